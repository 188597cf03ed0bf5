"""Bare loops in plain torch, as one writes them by hand for one model.

A kernel's speed is measured against its loop's.
Nothing of this project is imported. An energy is a few functions over plain tensors (`mlp`, `rbm`,
`conv`), its gradient by hand but for convolutions. A loop takes the chains' own tensors and a
number of transitions, does in each what the kernel of its name does (proposals that are not finite
are rejected, acceptance is counted), and returns the tensors and the mean acceptance [N]. Draws
come in the kernels' order: with one seed, kernel and loop run the same chains, but for blocks of
32,768 binary units and more, whose bits the project draws in bulk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import avg_pool2d, conv2d, linear, silu, softplus

Tensors = tuple[Tensor, ...]
Layer = tuple[Tensor, Tensor | None]
"""Weight and bias."""

silu_backward = torch.ops.aten.silu_backward


class Functions(NamedTuple):
    """An energy at positions `[N, *shape]`: its values [N], its gradient [N, *shape], or both."""

    energy: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor], Tensor]
    both: Callable[[Tensor], tuple[Tensor, Tensor]]


def mlp(layers: Sequence[Layer], precision: float, beta: Tensor | None = None) -> Functions:
    """Return SiLU perceptron + precision |x|^2 / 2 at `[N, d]`; `beta` [N] is times the former."""
    *hidden, (last, offset) = layers

    def finish(value: Tensor, x: Tensor) -> Tensor:
        values = linear(value, last, offset).squeeze(1)
        if beta is not None:
            values *= beta
        return values.add_(squared_norm(x), alpha=precision / 2)

    def energy(x: Tensor) -> Tensor:
        value = x
        for weight, bias in hidden:
            value = silu(linear(value, weight, bias), inplace=True)
        return finish(value, x)

    def forward(x: Tensor) -> tuple[list[Tensor], Tensor]:
        before, value = [], x
        for weight, bias in hidden:
            before.append(linear(value, weight, bias))
            value = silu(before[-1])
        return before, value

    def backward(x: Tensor, before: list[Tensor]) -> Tensor:
        pull = (last if beta is None else last * beta[:, None].to(last.dtype)).expand_as(before[-1])
        for (weight, _), at in zip(reversed(hidden), reversed(before), strict=True):
            pull = silu_backward(pull, at) @ weight
        return pull.add_(x, alpha=precision)

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        before, value = forward(x)
        return finish(value, x), backward(x, before)

    return Functions(energy, lambda x: backward(x, forward(x)[0]), both)


class Block(NamedTuple):
    """A residual block's convolutions, two and perhaps a shortcut."""

    first: Layer
    second: Layer
    shortcut: Layer | None


def conv(
    stem: Layer,
    blocks: Sequence[Block],
    hidden: Layer,
    last: Layer,
    precision: float,
    beta: Tensor | None = None,
) -> Functions:
    """Return residual network + precision |x|^2 / 2 on `[N, H, W]`, pooled by 2 between blocks."""

    def network(x: Tensor) -> Tensor:
        value = conv2d(x[:, None], *stem, padding=1)
        for number, (first, second, shortcut) in enumerate(blocks):
            if number:
                value = avg_pool2d(value, 2, ceil_mode=True)
            branch = conv2d(silu(conv2d(silu(value), *first, padding=1)), *second, padding=1)
            value = branch + (value if shortcut is None else conv2d(value, *shortcut))
        values = linear(silu(linear(silu(value).flatten(1), *hidden)), *last).squeeze(1)
        return values if beta is None else values * beta

    def with_base(values: Tensor, x: Tensor) -> Tensor:
        return values.add_(squared_norm(x), alpha=precision / 2)

    def pull(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            values = network(x)
            (gradient,) = torch.autograd.grad(values.sum(), x)
        return values.detach(), gradient.add_(x.detach(), alpha=precision)

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        values, gradient = pull(x)
        return with_base(values, x), gradient

    return Functions(
        torch.no_grad()(lambda x: with_base(network(x), x)), lambda x: pull(x)[1], both
    )


def rbm(weight: Tensor, visible: Tensor, hidden: Tensor, beta: Tensor | None = None) -> Functions:
    """Return a binary RBM's free energy at `[N, d]`, with `beta` [N] that of the tempered law.

    The gradient is for beta = 1 alone.
    """

    def energy(x: Tensor) -> Tensor:
        field = linear(x, weight, hidden)
        if beta is not None:
            field *= beta[:, None]
        return (x @ visible).add_(softplus(field).sum(1)).neg_()

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        field = linear(x, weight, hidden)
        values = (x @ visible).add_(softplus(field).sum(1)).neg_()
        return values, torch.addmm(visible, field.sigmoid_(), weight).neg_()

    return Functions(energy, lambda x: both(x)[1], both)


def mixed(exact: Functions, rough: Functions, dtype: torch.dtype) -> Functions:
    """Take energies by `exact` and gradients by `rough`, in a lower precision."""

    def gradient(x: Tensor) -> Tensor:
        return rough.gradient(x.to(dtype)).to(x.dtype)

    return Functions(exact.energy, gradient, lambda x: (exact.energy(x), gradient(x)))


@torch.no_grad()
def random_walk(
    generator: Generator, chains: Tensors, transitions: int, of: Functions, step_size: float
) -> tuple[Tensors, Tensor]:
    """Run random-walk Metropolis. `chains`: position, energy."""
    x, energy = chains
    proposal, total = torch.empty_like(x), torch.zeros_like(energy)
    for _ in range(transitions):
        torch.add(x, proposal.normal_(generator=generator), alpha=step_size, out=proposal)
        new = of.energy(proposal)
        accepted, probability = accept(generator, energy - new)
        x = take_(accepted, proposal, x)
        energy = torch.where(accepted, new, energy)
        total += probability
    return (x, energy), total / transitions


@torch.no_grad()
def metropolis_hastings(
    generator: Generator, chains: Tensors, transitions: int, of: Functions, scale: float
) -> tuple[Tensors, Tensor]:
    """Run it with independent proposals N(0, scale^2). `chains`: position, energy."""
    x, energy = chains
    proposal, total = torch.empty_like(x), torch.zeros_like(energy)
    for _ in range(transitions):
        proposal.normal_(generator=generator).mul_(scale)
        new = of.energy(proposal)
        log_ratio = energy - new + (squared_norm(proposal) - squared_norm(x)) / (2 * scale**2)
        accepted, probability = accept(generator, log_ratio)
        x = take_(accepted, proposal, x)
        energy = torch.where(accepted, new, energy)
        total += probability
    return (x, energy), total / transitions


@torch.no_grad()
def ula(
    generator: Generator, chains: Tensors, transitions: int, of: Functions, step_size: float
) -> tuple[Tensors, Tensor]:
    """Run unadjusted Langevin. `chains`: position, energy, gradient."""
    x, energy, gradient = chains
    noise, sigma = torch.empty_like(x), (2 * step_size) ** 0.5
    for _ in range(transitions):
        noise.normal_(generator=generator)
        proposal = x.add(gradient, alpha=-step_size).add_(noise, alpha=sigma)
        new, new_gradient = of.both(proposal)
        finite = (new + new_gradient.flatten(1).sum(1)).isfinite()
        if finite.all():
            x, energy, gradient = proposal, new, new_gradient
        else:
            for old, other in ((x, proposal), (energy, new), (gradient, new_gradient)):
                old[finite] = other[finite]
    return (x, energy, gradient), torch.ones_like(energy)


@torch.no_grad()
def mala(
    generator: Generator,
    chains: Tensors,
    transitions: int,
    of: Functions,
    step_size: float | Tensor,
) -> tuple[Tensors, Tensor]:
    """Run MALA, `step_size` a number or [N]. `chains`: position, energy, gradient."""
    x, energy, gradient = chains
    noise, total = torch.empty_like(x), torch.zeros_like(energy)
    sigma = (2 * step_size) ** 0.5
    for _ in range(transitions):
        noise.normal_(generator=generator)
        proposal = add_(add(x, gradient, -step_size), noise, sigma)
        new, new_gradient = of.both(proposal)
        backward = add_(x - proposal, new_gradient, step_size)
        log_ratio = energy - new + squared_norm(noise) / 2
        log_ratio -= squared_norm(backward) / (4 * step_size)
        accepted, probability = accept(generator, log_ratio)
        x, gradient = take_(accepted, proposal, x), take_(accepted, new_gradient, gradient)
        energy = torch.where(accepted, new, energy)
        total += probability
    return (x, energy, gradient), total / transitions


@torch.no_grad()
def hmc(
    generator: Generator,
    chains: Tensors,
    transitions: int,
    of: Functions,
    step_size: float,
    leapfrog_steps: int,
    jitter: float,
) -> tuple[Tensors, Tensor]:
    """Run HMC with unit mass. `chains`: position, energy, gradient."""
    x, energy, gradient = chains
    momentum, total = torch.empty_like(x), torch.zeros_like(energy)
    for _ in range(transitions):
        momentum.normal_(generator=generator)
        kinetic = squared_norm(momentum) / 2
        spread = torch.empty_like(energy).uniform_(-1, 1, generator=generator)
        step = (step_size * (1 + jitter * spread)).view(-1, *(1,) * (x.ndim - 1))
        momentum.addcmul_(gradient, step, value=-0.5)
        proposal = torch.addcmul(x, momentum, step)
        for _ in range(leapfrog_steps - 1):
            momentum.addcmul_(of.gradient(proposal), step, value=-1)
            proposal.addcmul_(momentum, step)
        new, new_gradient = of.both(proposal)
        momentum.addcmul_(new_gradient, step, value=-0.5)
        log_ratio = energy - new + kinetic - squared_norm(momentum) / 2
        accepted, probability = accept(generator, log_ratio)
        x, gradient = take_(accepted, proposal, x), take_(accepted, new_gradient, gradient)
        energy = torch.where(accepted, new, energy)
        total += probability
    return (x, energy, gradient), total / transitions


@torch.no_grad()
def gibbs(
    generator: Generator,
    chains: Tensors,
    transitions: int,
    weight: Tensor,
    visible: Tensor,
    hidden: Tensor,
    beta: Tensor | None = None,
) -> tuple[Tensors, Tensor]:
    """Draw a binary RBM's hidden units given visible ones, and back. `chains`: position."""
    (x,) = chains
    h, v = torch.empty(len(x), len(hidden), dtype=x.dtype, device=x.device), torch.empty_like(x)
    for _ in range(transitions):
        field = linear(x, weight, hidden)
        if beta is not None:
            field *= beta[:, None]
        h.uniform_(generator=generator).lt_(field.sigmoid_())
        if beta is not None:
            h *= beta[:, None]
        x = v.uniform_(generator=generator).lt_(torch.addmm(visible, h, weight).sigmoid_())
    return (x,), torch.ones(len(x), dtype=x.dtype, device=x.device)


@torch.no_grad()
def gibbs_with_gradients(
    generator: Generator, chains: Tensors, transitions: int, of: Functions
) -> tuple[Tensors, Tensor]:
    """Run it on binary positions `[N, d]`. `chains`: position, energy, gradient."""
    x, energy, gradient = chains
    total = torch.zeros_like(energy)
    for _ in range(transitions):
        forward = (x - 0.5).mul_(gradient).log_softmax(1)
        uniform = torch.empty_like(x[:, :1]).uniform_(generator=generator)
        site = torch.searchsorted(forward.exp().cumsum_(1), uniform, right=True)
        site.clamp_(max=x.shape[1] - 1)
        old = x.gather(1, site)
        x.scatter_(1, site, 1 - old)
        new, new_gradient = of.both(x)
        back = (x - 0.5).mul_(new_gradient).log_softmax(1)
        log_ratio = energy - new + (back.gather(1, site) - forward.gather(1, site)).squeeze(1)
        accepted, probability = accept(generator, log_ratio)
        x.scatter_(1, site, torch.where(accepted[:, None], 1 - old, old))
        gradient[accepted] = new_gradient[accepted]
        energy = torch.where(accepted, new, energy)
        total += probability
    return (x, energy, gradient), total / transitions


@torch.no_grad()
def single_site(
    generator: Generator, chains: Tensors, transitions: int, of: Functions
) -> tuple[Tensors, Tensor]:
    """Redraw one site a transition of binary positions `[N, d]`. `chains`: position, energy."""
    x, energy = chains
    total = torch.zeros_like(energy)
    for _ in range(transitions):
        site = torch.randint(x.shape[1], (len(x), 1), generator=generator, device=x.device)
        old = x.gather(1, site)
        x.scatter_(1, site, 1 - old)
        new = of.energy(x)
        stay = torch.sigmoid(new - energy)
        flipped = torch.empty_like(stay).uniform_(generator=generator) >= stay
        x.scatter_(1, site, torch.where(flipped[:, None], 1 - old, old))
        energy = torch.where(flipped, new, energy)
        total += 1 - stay
    return (x, energy), total / transitions


@torch.no_grad()
def replica_exchange(
    generator: Generator,
    chains: Tensors,
    transitions: int,
    of: Functions,
    rungs: int,
    inner: Callable[[Generator, Tensors], tuple[Tensors, Tensor]],
) -> tuple[Tensors, Tensor]:
    """Run `inner`, swap (0, 1), (2, 3), ..., run `inner`, swap (1, 2), ...

    `chains`: position, with energy and gradient or alone. As in the kernel, energies (and
    gradients) at the exchanged positions are evaluated, whatever the path E_beta is.
    """
    total = torch.zeros(len(chains[0]), dtype=chains[0].dtype, device=chains[0].device)
    for _ in range(transitions):
        for first in (0, 1):
            chains, probability = inner(generator, chains)
            total += probability / 2
            x = chains[0]
            pairs = (rungs - first) // 2
            paired = slice(first, first + 2 * pairs)
            exchanged = x.unflatten(0, (rungs, -1)).clone()
            exchanged[paired] = exchanged[paired].unflatten(0, (pairs, 2)).flip(1).flatten(0, 1)
            exchanged = exchanged.flatten(0, 1)
            energy = of.energy(x) if len(chains) == 1 else chains[1]
            both = (of.energy(exchanged),) if len(chains) == 1 else of.both(exchanged)
            gain = (energy - both[0]).view(rungs, -1)[paired].view(pairs, 2, -1).sum(1)
            swapped, _ = accept(generator, gain)
            accepted = torch.zeros(rungs, len(x) // rungs, dtype=torch.bool, device=x.device)
            accepted[paired].view(pairs, 2, -1)[:] = swapped[:, None]
            for old, other in zip(chains, (exchanged, *both), strict=False):
                old[accepted.flatten()] = other[accepted.flatten()]
    return chains, total / transitions


def accept(generator: Generator, log_ratio: Tensor) -> Tensors:
    """Return the proposals that are accepted, and the probabilities.

    None is accepted where the ratio, and so an energy, is not finite.
    """
    probability = log_ratio.nan_to_num(nan=-torch.inf, posinf=-torch.inf).clamp_(max=0).exp_()
    return torch.empty_like(probability).uniform_(generator=generator) < probability, probability


def take_(accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Take the rows of `new` that are `accepted` [N].

    They are written into `old` where they are long enough to be worth looking up.
    """
    if old[0].numel() < 64:
        return torch.where(accepted.view(-1, *(1,) * (new.ndim - 1)), new, old)
    old[accepted] = new[accepted]
    return old


def add(x: Tensor, y: Tensor, scale: float | Tensor, out: Tensor | None = None) -> Tensor:
    """Return x + scale y, `scale` a number or [N]."""
    if isinstance(scale, Tensor):
        return torch.addcmul(x, y, scale.view(-1, *(1,) * (y.ndim - 1)), out=out)
    return torch.add(x, y, alpha=scale, out=out)


def add_(x: Tensor, y: Tensor, scale: float | Tensor) -> Tensor:
    """Add scale y to x in place."""
    return add(x, y, scale, out=x)


def squared_norm(x: Tensor) -> Tensor:
    """Return |x|^2 of every row, [N]."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1).square_()
