"""Hamiltonian Monte Carlo."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.common.rng import Source, uniform_like
from pipeline.energies.base import reflect, squared_norm
from pipeline.energies.target import Target
from pipeline.kernels.base import (
    GradientState,
    Info,
    Kernel,
    Scale,
    init_gradient,
    metropolis,
    normal_like,
    per_chain,
)


def step(
    generator: Source,
    state: GradientState,
    target: Target,
    *,
    step_size: Scale,
    leapfrog_steps: int,
    jitter: float = 0.0,
    mass: float | Sequence[float] = 1.0,
) -> tuple[GradientState, Info]:
    """p ~ N(0, M); `leapfrog_steps` times half a kick, a drift, half a kick (Duane et al. 1987;
    Neal 2011):

        p <- p - epsilon F(x) / 2,   x <- x + epsilon p / M,   p <- p - epsilon F(x) / 2,

    accepted with probability min(1, exp(E(x) + |p|^2 / 2M - E(x') - |p'|^2 / 2M)). F = grad E. The
    map preserves volume and is reversible, for any fixed F, so exp(-E) is invariant exactly. `mass`
    is M, a number or one for each component, `[d]`. Each chain's epsilon, and so the length of its
    path, is drawn from step_size (1 +- jitter), which breaks the periods of near-Gaussian laws
    (Mackenzie 1989; Neal 2011, section 3.2). A box's walls reflect x, and turn p's component
    around.

    The code has q = p / sqrt(M), which is N(0, 1), and M as a step size by component, epsilon /
    sqrt(M).
    """
    momentum = normal_like(state.position, generator)
    kinetic = squared_norm(momentum) / 2
    scale = _scale(generator, state, step_size, jitter, mass)
    _kick(momentum, state.gradient, scale, 0.5)
    position, momentum = _drift(state.position.clone(), momentum, scale, target)
    for _ in range(leapfrog_steps - 1):
        _kick(momentum, target.gradient(position), scale, 1.0)
        position, momentum = _drift(position, momentum, scale, target)
    moved = init_gradient(position, target)
    _kick(momentum, moved.gradient, scale, 0.5)
    log_ratio = state.energy - moved.energy + kinetic - squared_norm(momentum) / 2
    state, acceptance = metropolis(generator, log_ratio, moved, state)
    return state, Info(acceptance)


def _scale(
    generator: Source,
    state: GradientState,
    step_size: Scale,
    jitter: float,
    mass: float | Sequence[float],
) -> Tensor:
    """epsilon / sqrt(M), to broadcast over `[N, *shape]`."""
    x = state.position
    epsilon = torch.as_tensor(step_size, dtype=x.dtype, device=x.device).expand(len(x))
    if jitter:
        epsilon = epsilon * (1 + jitter * uniform_like(state.energy, generator, -1, 1))
    root = x.new_tensor(mass).sqrt()
    return per_chain(epsilon, x) / (root if root.ndim == 0 else root.view(x.shape[1:]))


def _kick(momentum: Tensor, gradient: Tensor, scale: Tensor, share: float) -> None:
    """`share` of a whole kick, in place."""
    momentum.addcmul_(gradient, scale, value=-share)


def _drift(
    position: Tensor, momentum: Tensor, scale: Tensor, target: Target
) -> tuple[Tensor, Tensor]:
    """`position` and `momentum` after a drift, which overwrites them."""
    position.addcmul_(momentum, scale)
    if target.box is None:
        return position, momentum
    position, sign = reflect(position, target.box)
    return position, momentum.mul_(sign)


kernel = Kernel(init_gradient, step, streams=True)
