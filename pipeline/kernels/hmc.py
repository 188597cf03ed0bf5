"""Hamiltonian Monte Carlo."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.energies.base import Target, reflect
from pipeline.kernels.base import (
    GradientState,
    Info,
    Kernel,
    Scale,
    add_scaled,
    init_gradient,
    metropolis,
    normal_like,
    squared_norm,
)


def step(
    generator: torch.Generator,
    state: GradientState,
    target: Target,
    *,
    step_size: Scale,
    leapfrog_steps: int,
    jitter: float = 0.0,
    mass: float | Sequence[float] = 1.0,
) -> tuple[GradientState, Info]:
    """p ~ N(0, M); `leapfrog_steps` times half a kick, a drift, half a kick (Duane et al. 1987; Neal 2011):

        p <- p - epsilon F(x) / 2,   x <- x + epsilon p / M,   p <- p - epsilon F(x) / 2,

    accepted with probability min(1, exp(E(x) + |p|^2 / 2M - E(x') - |p'|^2 / 2M)). F = grad E. The map preserves volume and is
    reversible, for any fixed F, so exp(-E) is invariant exactly. `mass` is M, a number or one for each component, `[d]`.
    Each chain's epsilon, and so the length of its path, is drawn from step_size (1 +- jitter), which breaks the periods of
    near-Gaussian laws (Mackenzie 1989; Neal 2011, section 3.2). A box's walls reflect x, and turn p's component around.
    """
    position, gradient = state.position, state.gradient
    inverse_mass = 1 / position.new_tensor(mass).expand(position[0].numel()).view(position[0].shape)
    momentum = normal_like(position, generator) / inverse_mass.sqrt()
    kinetic = squared_norm(momentum * inverse_mass.sqrt()) / 2
    if jitter:
        step_size = step_size * (1 + jitter * torch.empty_like(state.energy).uniform_(-1, 1, generator=generator))
    momentum = add_scaled(momentum, gradient, -step_size / 2)
    for _ in range(leapfrog_steps - 1):
        position, momentum = _drift(position, momentum, inverse_mass, step_size, target)
        momentum = add_scaled(momentum, target.gradient(position), -step_size)
    position, momentum = _drift(position, momentum, inverse_mass, step_size, target)
    moved = init_gradient(position, target)
    momentum = add_scaled(momentum, moved.gradient, -step_size / 2)
    log_ratio = state.energy - moved.energy + kinetic - squared_norm(momentum * inverse_mass.sqrt()) / 2
    state, acceptance = metropolis(generator, log_ratio, moved, state)
    return state, Info(acceptance)


def _drift(position: Tensor, momentum: Tensor, inverse_mass: Tensor, step_size: Scale, target: Target) -> tuple[Tensor, Tensor]:
    position = add_scaled(position, momentum * inverse_mass, step_size)
    if target.box is None:
        return position, momentum
    position, sign = reflect(position, target.box)
    return position, momentum * sign


kernel = Kernel(init_gradient, step)
