"""Every objective beside a step of contrastive divergence.

    python -m benchmarks.objectives [--json [FILE]] [--device cpu|cuda]
        [--only OBJECTIVE[:ENERGY]] [--pairs 9]

A step is the learner's: the objective's draws, its loss and gradient chunk by chunk, clipping,
AdamW, the moving average. A step of contrastive divergence has as many negatives as positives,
given: no transitions are run. Rates are 0, so that the weights stay as they are after `TRAINED`
steps of denoising score matching. The result is {"rows": [...]}:

    ms, time_ratio     of a step (on a CPU, of processor time), and over that of contrastive
                       divergence on the same batch: medians over pairs of runs
    mib, memory_ratio  the most that a step allocates above what is held before it; gradients are
                       not held before it
    variance           of the parameters' gradient over the objective's own draws at one batch of
                       data: trace of its covariance / squared norm of its mean; null where the
                       randomness is the chains', or where the mean is lost in it
    gradient_variance  variance x time_ratio: at equal cost, for draws that are independent
    loss_deviation     standard deviation of the loss over the same draws, nats,
                       x sqrt(time_ratio)
    probes             directions, noises or noise samples for each row
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from benchmarks import harness
from benchmarks.harness import say
from pipeline.assembly.data import open_data
from pipeline.assembly.learner import make_learner
from pipeline.common.process import keep_freed_memory
from pipeline.config.compose import compose
from pipeline.data.base import DataSet, in_memory
from pipeline.energies.base import Energy
from pipeline.objectives.base import Batch, NegativeSide, PositiveSide, Replayed
from pipeline.training.intake import Weighed, Weighing
from pipeline.training.learner import Learner

SECONDS = 0.15
"""One timed run takes about so long."""
TRAINED = 200
DRAWS, FEW_DRAWS = 32, 6
"""For a variance; few, and fewer pairs, where a step takes longer than a timed run."""
NOISE = 0.3

Curvature = Callable[[Energy, Tensor, Tensor], tuple[Tensor, Tensor]]
"""`Energy.gradient_and_curvature`, or another way to it."""


class Model(NamedTuple):
    """Settings of an energy, with the data and the training that it gets.

    `side` is that of its images (digits, scaled up), `rows` are those of a batch, and it is trained
    for `trained` steps.
    """

    settings: tuple[str, ...]
    side: int
    rows: int
    trained: int = TRAINED


LARGE = ("energy=mlp", "energy.hidden=[512,512]")
SMALL = ("energy=mlp", "energy.hidden=[128,128]")
MODELS = {
    "784-512-512-1 MLP": Model(LARGE, 28, 256),
    "28x28 conv": Model(("energy=conv",), 28, 64),
    "64-128-128-1 MLP": Model(SMALL, 8, 256),
    "64-128-128-1 MLP, untrained": Model(SMALL, 8, 256, 0),
}
MLP, CONV, DIGITS, UNTRAINED = MODELS


class Entry(NamedTuple):
    """Settings of a step, and the models that it is timed on.

    `rows` of a batch are the model's where None, and `curvature` is the energy's own where None.
    """

    settings: tuple[str, ...]
    models: tuple[str, ...] = (MLP, CONV)
    rows: int | None = None
    curvature: Curvature | None = None


def forward_over_reverse(energy: Energy, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Take H v as the tangent of the gradient (Pearlmutter 1994)."""
    gradient = torch.func.grad(lambda at: energy(at).sum())
    curvatures = []
    for v in directions:
        slope, product = torch.func.jvp(gradient, (x,), (v,))[:2]
        curvatures.append((product * v).flatten(1).sum(1))
    return slope, torch.stack(curvatures)


def differenced_gradients(
    energy: Energy, x: Tensor, directions: Tensor, epsilon: float = 0.05
) -> tuple[Tensor, Tensor]:
    """Take H v from the gradients at x - epsilon v and x + epsilon v."""
    u = epsilon * directions
    points = torch.cat([x[None], x + u, x - u])
    here, ahead, behind = (
        energy.differentiable_gradient(points.flatten(0, 1))
        .view_as(points)
        .split([1, len(u), len(u)])
    )
    return here[0], ((ahead - behind) * directions).flatten(2).sum(2) / (2 * epsilon)


def checkpointed(energy: Energy, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Go back twice; the second pass makes the network's activations anew."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value: Tensor = checkpoint(energy, x, use_reentrant=False)
        (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        products = [
            torch.autograd.grad((slope * v).sum(), x, create_graph=True)[0] for v in directions
        ]
    return slope, torch.stack(
        [(product * v).flatten(1).sum(1) for product, v in zip(products, directions, strict=True)]
    )


def double_backward(energy: Energy, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    return Energy.gradient_and_curvature(energy, x, directions)


def controlled(energy: Energy, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract a control variate, v.B v - tr B, from v.H(x) v.

    B is the Hessian at the batch's mean, with a graph, as H has.
    """
    own = type(energy).gradient_and_curvature
    slope, curvatures = own(energy, x, directions)
    basis = torch.eye(energy.dimension, dtype=x.dtype, device=x.device).view(-1, *x.shape[1:])
    _, at_mean = own(
        energy, x.mean(0, keepdim=True), torch.cat([directions.flatten(0, 1), basis])[:, None]
    )
    along, exact = at_mean.split([curvatures.numel(), energy.dimension])
    return slope, curvatures - along.view_as(curvatures) + exact.sum()


def _hutchinson(probes: int, probe: str = "rademacher", *more: str) -> tuple[str, ...]:
    return "objective=hutchinson", f"objective.probes={probes}", f"objective.probe={probe}", *more


SMALL_ONES = (DIGITS, UNTRAINED)
ENTRIES = {
    "cd": Entry(("objective=cd",), tuple(MODELS)),
    "improved_cd": Entry(("objective=improved_cd", "kernel=ula")),
    "hutchinson": Entry(_hutchinson(1), tuple(MODELS)),
    "sliced": Entry(("objective=sliced",)),
    "finite_difference": Entry(("objective=finite_difference",)),
    "finite_difference, chunk_rows=64": Entry(
        ("objective=finite_difference", "trainer.chunk_rows=64"), (MLP,)
    ),
    "denoising": Entry(("objective=denoising",)),
    "denoising_finite_difference": Entry(("objective=denoising_finite_difference",)),
    "denoising_finite_difference, chunk_rows=64": Entry(
        ("objective=denoising_finite_difference", "trainer.chunk_rows=64"), (MLP,)
    ),
    "nce": Entry(("objective=nce",)),
    # pairs hard to tell apart: where they are easy, gradients underflow, and steps take many times
    # as long
    "conditional_nce": Entry(("objective=conditional_nce", "objective.scale=0.02")),
    "score_matching": Entry(("objective=score_matching",), (MLP,), rows=16),
    # many directions
    "hutchinson, 8 rademacher": Entry(_hutchinson(8), (CONV,)),
    "hutchinson, 64 rademacher, unchunked": Entry(_hutchinson(64), (MLP,)),
    **{
        f"hutchinson, 64 {probe}": Entry(
            _hutchinson(64, probe, "trainer.chunk_rows=8", "trainer.chunk_draws=32"), (MLP,)
        )
        for probe in ("rademacher", "sphere", "orthogonal", "hutch_pp")
    },
    **{
        f"hutchinson, {probes} {probe}": Entry(_hutchinson(probes, probe), SMALL_ONES)
        for probes in (12, 48)
        for probe in ("rademacher", "sphere", "orthogonal", "hutch_pp")
    },
    "hutchinson, 1 sphere": Entry(_hutchinson(1, "sphere"), SMALL_ONES),
    "hutchinson, control variate": Entry(_hutchinson(1), (MLP, *SMALL_ONES), curvature=controlled),
    "hutchinson, 12 rademacher, control variate": Entry(
        _hutchinson(12), SMALL_ONES, curvature=controlled
    ),
    # ways to the second derivative
    "double_backward": Entry(_hutchinson(1), curvature=double_backward),
    "double_backward, chunk_rows=16": Entry(
        _hutchinson(1, "rademacher", "trainer.chunk_rows=16"), (CONV,)
    ),
    "double_backward, checkpointed": Entry(_hutchinson(1), curvature=checkpointed),
    "forward_over_reverse": Entry(_hutchinson(1), curvature=forward_over_reverse),
    "differenced_gradients": Entry(_hutchinson(1), curvature=differenced_gradients),
}


class Step:
    """A learner's step on one batch, which can be made again and again."""

    def __init__(self, name: str, model: str, rows: int, device: str) -> None:
        entry = ENTRIES[name]
        sizes = (f"trainer.batch_size={rows}", "chains.pools=1", f"chains.per_pool={rows}")
        self._learner = learner(model, (*entry.settings, *sizes, f"device={device}"))
        self._learner.energy.load_state_dict(weights(model))
        if entry.curvature is not None:
            energy: Any = self._learner.energy
            energy.gradient_and_curvature = partial(entry.curvature, energy)
        generator = torch.Generator().manual_seed(0)
        x = data(MODELS[model].side).positives(0).next(rows).position
        y = (x + 0.1 * torch.randn(x.shape, generator=generator)).to(device)
        noise = torch.randn(1, *x.shape, generator=generator).to(device)
        x = x.to(device)
        negatives = NegativeSide(y, past=Replayed(y, noise, y))
        self._sides = [Batch(negatives=negatives), Batch(PositiveSide(x))]
        self._weighing = Weighing(lambda energies: Weighed(torch.ones_like(energies), (), ()))
        self._device = device
        self._updates = self._learner._updates
        self._updates.rate_factor = 0.0
        self._gradients = [p for p in self._learner.energy.parameters() if p.requires_grad]
        objective = self._learner._terms[0].objective
        drawn = objective.draw(self._learner.energy, x[:1], torch.Generator(device))
        self.probes = len(drawn[0]) if drawn else 0
        self()

    def __call__(self, times: int = 1) -> None:
        for _ in range(times):
            self._updates.step(self._loss(), 0, lambda: None, self._learner._gradient)

    def _loss(self) -> float:
        """Work out the gradient of a step, and return the objective's value."""
        self._updates.optimizer.zero_grad(set_to_none=True)
        self._learner._gradient.add(self._sides, self._weighing)
        return self._learner._gradient.take()[0]

    def seconds(self, times: int) -> float:
        """Return what so many steps take: on a CPU, of this process's processor time.

        Others on the machine delay that, but do not lengthen it.
        """
        clock = time.process_time if self._device == "cpu" else time.perf_counter
        return harness.seconds(partial(self, times), self._device, clock)

    def peak(self) -> int:
        """Return the most bytes that a step allocates above what is held before it."""
        for parameter in self._gradients:
            parameter.grad = None
        return peak(self, self._device)

    def spread(self, draws: int) -> tuple[float | None, float]:
        """Return the gradient's variance over draws and the standard deviation of the loss, nats.

        The variance is by the squared norm of the mean, and None where that is lost in it.
        """
        losses = []
        size = sum(p.numel() for p in self._gradients)
        total, squares = torch.zeros(size, dtype=torch.float64, device=self._device), 0.0
        for _ in range(draws):
            losses.append(self._loss())
            parts = (torch.zeros_like(p) if p.grad is None else p.grad for p in self._gradients)
            gradient = torch.cat([part.flatten() for part in parts])
            total += gradient
            squares += float(gradient.double().square().sum())
        of_mean = float(total.square().sum()) / draws**2
        variance = max(0.0, squares - draws * of_mean) / (draws - 1)
        mean = of_mean - variance / draws  # what the mean of so few has of their variance taken off
        return (variance / mean if mean > 0 else None), statistics.stdev(losses)


def peak(work: Callable[[], object], device: str) -> int:
    """Return the most bytes that `work` has allocated at once, above what there was before."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - held
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        work()
    results: Any = trace.profiler
    events = sorted(
        (e for e in results.kineto_results.events() if e.name() == "[memory]"),
        key=lambda e: e.start_ns(),
    )
    held, most = 0, 0
    for event in events:
        held += event.nbytes()
        most = max(most, held)
    return most


@cache
def data(side: int) -> DataSet:
    """Return the digits as images `[side, side]`."""
    digits = open_data(compose(["data=digits"]))
    train, held_out = (
        interpolate(rows.view(-1, 1, 8, 8), (side, side), mode="bilinear")[:, 0]
        for rows in (digits.sample, digits.held_out)
    )
    return in_memory(train, held_out, NOISE)


def learner(model: str, settings: tuple[str, ...]) -> Learner:
    chosen = MODELS[model]
    return make_learner(compose(["cluster=inline", *chosen.settings, *settings]), data(chosen.side))


@cache
def weights(model: str) -> dict[str, Tensor]:
    """Return the model's weights after its training by denoising score matching."""
    chosen = MODELS[model]
    trainer = learner(
        model, ("objective=denoising", f"trainer.batch_size={chosen.rows}", "optimizer.warmup=0")
    )
    for _ in range(chosen.trained):
        trainer.step([])
    return trainer.energy.state_dict()


@cache
def contrastive(model: str, rows: int, device: str) -> tuple[Step, int]:
    """Return the step of contrastive divergence that others are measured by, and its peak."""
    step = Step("cd", model, rows, device)
    return step, step.peak()


def measure(name: str, model: str, pairs: int, device: str = "cpu") -> dict[str, Any]:
    """Return one row, as the module's docstring describes it."""
    rows = ENTRIES[name].rows or MODELS[model].rows
    base, base_bytes = contrastive(model, rows, device)
    step = base if name == "cd" else Step(name, model, rows, device)
    took, bytes_ = step.seconds(1), base_bytes if name == "cd" else step.peak()
    own, theirs = harness.alternate(
        pairs if took < SECONDS else min(pairs, 5), *(_each(one) for one in (step, base))
    )
    ratio = 1.0 if name == "cd" else harness.median_ratio(own, theirs)
    row = {
        "objective": name,
        "energy": model,
        "rows": rows,
        "probes": step.probes,
        "ms": statistics.median(own) * 1e3,
        "time_ratio": ratio,
        "mib": bytes_ / 2**20,
        "memory_ratio": bytes_ / base_bytes,
    }
    variance, deviation = (
        step.spread(DRAWS if took < SECONDS else FEW_DRAWS) if step.probes else (None, None)
    )
    row["variance"] = variance
    row["gradient_variance"] = None if variance is None else variance * ratio
    row["loss_deviation"] = None if deviation is None else deviation * math.sqrt(ratio)
    ratios = [round(value, 4) for value in harness.ratios(own, theirs)]
    return row | {"device": device, "ratios": ratios}


def _each(step: Step) -> Callable[[], float]:
    """Return a function that times the step for about `SECONDS`: seconds for each time."""
    times = harness.repetitions(step.seconds, SECONDS)
    return lambda: step.seconds(times) / times


def all_rows() -> list[tuple[str, str]]:
    """Return (objective, energy) of every row."""
    return [
        (name, model)
        for model in MODELS
        for name, entry in ENTRIES.items()
        if model in entry.models
    ]


def main() -> None:
    parser = harness.command_line(__doc__, "pairs", "device", "json")
    harness.add_only_row(parser, "objective")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = []
    say(
        f"{'objective':<44}{'energy':<28}{'ms':>9}{'time':>8}{'MiB':>8}{'memory':>8}"
        f"{'variance':>12}{'loss':>9}"
    )
    for name, model in harness.chosen(all_rows(), arguments.only, parser):
        row = measure(name, model, arguments.pairs, arguments.device)
        rows.append(row)
        variance, deviation = (
            "-" if row[key] is None else f"{row[key]:.3g}"
            for key in ("gradient_variance", "loss_deviation")
        )
        say(
            f"{name:<44}{model:<28}{row['ms']:9.1f}{row['time_ratio']:8.3f}{row['mib']:8.2f}"
            f"{row['memory_ratio']:8.3f}{variance:>12}{deviation:>9}"
        )
    harness.write({**harness.conditions("torch"), "rows": rows}, arguments.json)


if __name__ == "__main__":
    main()
