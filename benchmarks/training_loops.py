"""Whole training runs in plain torch, as one writes them by hand for one process.

    python -m benchmarks.training_loops RECIPE ROWS [--images FILE] [--steps N]

The project's own runs of the same recipe are measured against them (`benchmarks.front_door`).
Nothing of this project is imported but its bare loops. All chains are one batch. The gradient in
the weights is by hand, but for convolutions; the optimizer is torch's fastest. A run goes on until
SIGTERM, or for N steps; it says so when its first step is made. At the end it writes ROWS, a line
of JSON for each step with the keys `step` and `time`, as `metrics.jsonl` has them.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import avg_pool2d, linear, silu

from benchmarks import loops

STEPS = 1_000_000
"""The schedule's length, beyond what is ever run."""
NOISE, STEP_SIZE, ENERGY_L2 = 0.15, 0.01, 0.002


class Recipe(NamedTuple):
    """What a run learns with; names and defaults are the configuration's."""

    energy: str = "mlp"
    batch: int = 128
    chains: int = 128
    transitions: int = 5
    restart: float = 0.005
    rate: float = 4e-3
    ema: float = 0.995


RECIPES = {
    "default": Recipe(),
    "k40": Recipe(transitions=40),
    "conv": Recipe("conv", transitions=20),
    "rbm": Recipe("rbm", 100, 1000, 1, 0.0, 0.2, 0.99),
    "images": Recipe("conv", rate=1e-3),
}


class Model(Protocol):
    """An energy of positions `[N, *shape]`, and the tensors that are learned."""

    parameters: list[Tensor]

    def noise(self, count: int, generator: Generator) -> Tensor:
        """Return positions `[count, *shape]` that chains start at."""
        ...

    def advance(self, x: Tensor, transitions: int, generator: Generator) -> Tensor:
        """Return where the chains at `x` are after so many transitions."""
        ...

    def learn(self, positives: Tensor, negatives: Tensor) -> Tensor:
        """Put the objective's gradient into `grad` of the parameters, and return its value."""
        ...

    def update(self, step: int) -> None:
        """Move the parameters down their gradient, as the optimizer has it in `step`."""
        ...


class Continuous:
    """Chains on R^d by MALA, and AdamW with clipping, a warm-up and a cosine."""

    shape: Sequence[int]
    of: loops.Functions

    def _learn_by(self, parameters: list[Tensor], rate: float) -> None:
        self.parameters, self._rate = parameters, rate
        self._adam = torch.optim.AdamW(
            parameters, lr=rate, betas=(0.0, 0.999), weight_decay=0.12, fused=True
        )

    def noise(self, count: int, generator: Generator) -> Tensor:
        return torch.randn(count, *self.shape, generator=generator)

    def advance(self, x: Tensor, transitions: int, generator: Generator) -> Tensor:
        sigma = (2 * STEP_SIZE) ** 0.5
        energy, gradient = self.of.both(x)
        for _ in range(transitions):
            noise = torch.randn(x.shape, generator=generator)
            proposal = x.add(gradient, alpha=-STEP_SIZE).add_(noise, alpha=sigma)
            new, new_gradient = self.of.both(proposal)
            back = (x - proposal).add_(new_gradient, alpha=STEP_SIZE).square().flatten(1).sum(1)
            log_ratio = energy - new + noise.square().flatten(1).sum(1) / 2 - back / (4 * STEP_SIZE)
            accepted = torch.rand(len(x), generator=generator) < log_ratio.exp_()
            energy = torch.where(accepted, new, energy)
            accepted = accepted.view(-1, *(1,) * len(self.shape))
            x = torch.where(accepted, proposal, x)
            gradient = torch.where(accepted, new_gradient, gradient)
        return x

    def update(self, step: int) -> None:
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self._adam.param_groups:
            cosine = (1 + math.cos(math.pi * max(step - 200, 0) / (STEPS - 200))) / 2
            group["lr"] = self._rate * min((step + 1) / 200, cosine)
        self._adam.step()


class Perceptron(Continuous):
    """SiLU perceptron, 384 wide twice, + |x|^2 / 2."""

    def __init__(self, rows: Tensor, rate: float, widths: Sequence[int] = (384, 384)) -> None:
        self.shape = (rows[0].numel(),)
        made = [nn.Linear(*pair) for pair in pairwise((*self.shape, *widths, 1))]
        self._layers = [(layer.weight.detach(), layer.bias.detach()) for layer in made]
        self._layers[-1][0].mul_(0.1)
        self._layers[-1][1].zero_()
        self._learn_by([tensor for layer in self._layers for tensor in layer], rate)
        for tensor in self.parameters:
            tensor.grad = torch.zeros_like(tensor)
        self.of = loops.mlp(self._layers, 1.0)

    def learn(self, positives: Tensor, negatives: Tensor) -> Tensor:
        values, inputs = [torch.cat((positives.flatten(1), negatives))], []
        for layer in self._layers[:-1]:
            inputs.append(linear(values[-1], *layer))
            values.append(silu(inputs[-1]))
        energies = linear(values[-1], *self._layers[-1]).squeeze(1)
        energies.add_(loops.squared_norm(values[0]), alpha=0.5)
        value, slope = contrastive(energies, len(positives))
        pull = slope[:, None]
        for number in reversed(range(len(self._layers))):
            weight, bias = self._layers[number]
            torch.mm(pull.T, values[number], out=weight.grad)
            torch.sum(pull, 0, out=bias.grad)
            if number:
                pull = loops.silu_backward(pull @ weight, inputs[number - 1])
        return value


class Block(nn.Module):
    """x + conv(silu(conv(silu(x))))."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        same = inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.second(silu(self.first(silu(x))))
        return branch + self.shortcut(x)


class Convolutions(Continuous):
    """Residual network on `[N, H, W]`, pooled by 2 to at most 4 pixels, + |x|^2 / 2."""

    def __init__(
        self, rows: Tensor, rate: float, channels: Sequence[int] = (16, 32, 64), hidden: int = 128
    ) -> None:
        self.shape = tuple(rows.shape[1:])
        size, (width, *wider) = list(self.shape), channels
        self.stem, blocks = nn.Conv2d(1, width, 3, padding=1), [Block(width, width)]
        while min(size) > 4:
            size = [-(-side // 2) for side in size]
            inputs, (width, *wider) = width, wider or [width]
            blocks.append(Block(inputs, width))
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(width * math.prod(size), hidden), nn.Linear(hidden, 1)
        nn.init.zeros_(self.head[1].bias)
        self.head[1].weight.data.mul_(0.1)
        parts = nn.ModuleList((self.stem, self.blocks, *self.head))
        parts.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._learn_by(list(parts.parameters()), rate)
        self.of = loops.Functions(self._energy_alone, lambda x: self._pull(x)[1], self._pull)

    def energy(self, x: Tensor) -> Tensor:
        """Return the energies [N], with a graph to the weights."""
        value = self.stem(x[:, None])
        for number, block in enumerate(self.blocks):
            value = block(avg_pool2d(value, 2, ceil_mode=True) if number else value)
        value = self.head[1](silu(self.head[0](silu(value).flatten(1)))).squeeze(1)
        return value + x.square().flatten(1).sum(1) / 2

    @torch.no_grad()
    def _energy_alone(self, x: Tensor) -> Tensor:
        return self.energy(x)

    @torch.enable_grad()
    def _pull(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        energies = self.energy(x)
        return energies.detach(), torch.autograd.grad(energies.sum(), x)[0]

    @torch.enable_grad()
    def learn(self, positives: Tensor, negatives: Tensor) -> Tensor:
        self._adam.zero_grad()
        energies = self.energy(torch.cat((positives, negatives)))
        value, slope = contrastive(energies.detach(), len(positives))
        energies.backward(slope)
        return value


class Machine:
    """Bernoulli RBM with 16 hidden units: Gibbs sampling, and SGD with a rate that falls to 0."""

    def __init__(self, rows: Tensor, rate: float, hidden: int = 16) -> None:
        rows = rows.flatten(1)
        odds = torch.logit(rows.mean(0).clamp(0.01, 0.99))
        self.parameters = [0.01 * torch.randn(hidden, rows.shape[1]), odds, torch.zeros(hidden)]
        self._sgd = torch.optim.SGD(self.parameters, lr=rate, fused=True)
        self._rate = rate

    def noise(self, count: int, generator: Generator) -> Tensor:
        visible = self.parameters[1]
        draws = torch.empty(count, len(visible)).uniform_(generator=generator)
        return draws.lt_(visible.sigmoid())

    def advance(self, x: Tensor, transitions: int, generator: Generator) -> Tensor:
        return loops.gibbs(generator, (x,), transitions, *self.parameters)[0][0]

    def learn(self, positives: Tensor, negatives: Tensor) -> Tensor:
        weight, visible, hidden = self.parameters
        value, gradient = torch.zeros(()), [torch.zeros_like(tensor) for tensor in self.parameters]
        for rows, sign in ((positives.flatten(1), 1.0), (negatives, -1.0)):
            field, share = linear(rows, weight, hidden), sign / len(rows)
            value -= share * ((rows @ visible).sum() + nn.functional.softplus(field).sum())
            means = field.sigmoid_()
            gradient[0].addmm_(means.T, rows, alpha=-share)
            gradient[1].sub_(rows.sum(0), alpha=share)
            gradient[2].sub_(means.sum(0), alpha=share)
        for tensor, own in zip(self.parameters, gradient, strict=True):
            tensor.grad = own
        return value

    def update(self, step: int) -> None:
        for group in self._sgd.param_groups:
            group["lr"] = self._rate * (1 - step / STEPS)
        self._sgd.step()


MODELS: dict[str, Any] = {"mlp": Perceptron, "conv": Convolutions, "rbm": Machine}


def contrastive(energies: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the objective of the energies [N], the first `count` of data, and its slopes [N].

    It is mean E(x+) - mean E(x-) + l2 (mean E(x+)^2 + mean E(x-)^2).
    """
    share = torch.full_like(energies, 1 / count)
    share[count:] = 1 / (len(energies) - count)
    signed = share.clone()
    signed[count:].neg_()
    squares = share * energies
    value = signed @ energies + ENERGY_L2 * (squares @ energies)
    return value, signed.add_(squares, alpha=2 * ENERGY_L2)


def training(recipe: Recipe, rows: Tensor) -> Iterator[float]:
    """Train on `rows` [N, *shape] without end, and yield the objective of each step."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model: Model = MODELS[recipe.energy](rows, recipe.rate)
    average = [tensor.detach().clone() for tensor in model.parameters]
    chains, noisy = model.noise(recipe.chains, generator), recipe.energy != "rbm"
    order, at = torch.randperm(len(rows)), 0
    for step in range(STEPS):
        if recipe.restart:
            restarted = torch.rand(recipe.chains, generator=generator) < recipe.restart
            chains[restarted] = model.noise(int(restarted.sum()), generator)
        chains = model.advance(chains, recipe.transitions, generator)
        if at + recipe.batch > len(rows):
            order, at = torch.randperm(len(rows)), 0
        positives = rows[order[at : at + recipe.batch]]
        at += recipe.batch
        if noisy:
            positives = positives + NOISE * torch.randn(positives.shape)
        value = model.learn(positives, chains)
        model.update(step)
        decay = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(average, model.parameters, 1 - decay)
        yield float(value)


def digits(binary: bool) -> Tensor:
    """Return 1,500 of scikit-learn's digits, `[1500, 8, 8]`: in [-1, 1], or 0 and 1."""
    from sklearn.datasets import load_digits

    images = load_digits().images
    chosen = images[np.random.RandomState(0).permutation(len(images))][:1500]
    values = chosen >= 8 if binary else chosen / 8 - 1
    return torch.from_numpy(values.astype(np.float32))


def images(file: Path) -> Tensor:
    """Return the 28x28 images of an IDX file, in [-1, 1]."""
    grey = np.frombuffer(file.read_bytes(), np.uint8, offset=16).reshape(-1, 28, 28)
    return torch.from_numpy(grey.astype(np.float32) * (2 / 255) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("rows", type=Path, metavar="ROWS")
    parser.add_argument("--images", type=Path, metavar="FILE", help="an IDX file of 28x28 images")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.recipe]
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    torch.set_num_threads(1)
    data = images(arguments.images) if arguments.images else digits(recipe.energy == "rbm")
    rows: list[dict[str, float]] = []
    for step, value in enumerate(training(recipe, data), 1):
        rows.append({"step": step, "time": time.time(), "ebm_loss": value})
        if step == 1:
            print(f"step 1/{arguments.steps}", flush=True)
        if stopped or step == arguments.steps:
            break
    speed = (len(rows) - 1) / max(rows[-1]["time"] - rows[0]["time"], 1e-9)
    print(f"{len(rows)} steps, {speed:.1f} a second, loss {rows[-1]['ebm_loss']:+.3f}")
    arguments.rows.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
