"""Underdamped Langevin dynamics, made exact by an accept step."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from pipeline.common.rng import Source
from pipeline.config.fields import NonNegativeFloat, PositiveFloat, PositiveInt, about
from pipeline.config.kernels import Force, TunedKernel
from pipeline.energies.base import reflect, squared_norm
from pipeline.energies.target import Target
from pipeline.kernels.base import (
    GradientState,
    Info,
    Kernel,
    Scale,
    add_scaled,
    init_gradient,
    metropolis,
    normal_like,
    per_chain,
)


class UnderdampedKernel(TunedKernel):
    at_walls: ClassVar[str] = "reflects"
    step_size: PositiveFloat = about("h, the time of a BAOAB step, in data units (the mass is 1)")
    friction: NonNegativeFloat = about(
        "gamma, per unit of time; 0: Hamiltonian Monte Carlo without jitter"
    )
    steps: PositiveInt = about("L, the BAOAB steps of a transition")
    force: Force


def step(
    generator: Source,
    state: GradientState,
    target: Target,
    *,
    step_size: Scale,
    friction: float,
    steps: int,
) -> tuple[GradientState, Info]:
    """p ~ N(0, 1); then `steps` times BAOAB (Leimkuhler & Matthews 2013), with c = exp(-gamma h):

        B  p <- p - h F(x) / 2          A  x <- x + h p / 2
        O  p <- c p + sqrt(1 - c^2) xi  A  x <- x + h p / 2          B  p <- p - h F(x) / 2

    accepted with probability min(1, exp(-w)), where w = E(x') - E(x) + sum of the changes of
    |p|^2 / 2 in the B alone. F = grad E.

    B and A are reversible and preserve volume, and O is in detailed balance with N(0, 1). So w is
    the log ratio of the densities of the path and of the same path backward (Bussi & Parrinello
    2007; Sivak, Chodera & Crooks 2013: the shadow work), and exp(-E) is invariant exactly, at any
    h and gamma and for any fixed F. The momentum is drawn anew in every transition, so that a state
    holds none. A box's walls reflect x, and turn p's component around.
    """
    position, gradient = state.position, state.gradient
    momentum = normal_like(position, generator)
    keep = torch.exp(-friction * torch.as_tensor(step_size).to(position))
    keep = per_chain(keep, position) if keep.ndim else keep
    work = torch.zeros_like(state.energy)
    for _ in range(steps):
        momentum, gained = _kick(momentum, gradient, step_size)
        work += gained
        position, momentum = _drift(position, momentum, step_size, target)
        xi = normal_like(position, generator)
        momentum = keep * momentum + (1 - keep.square()).sqrt() * xi
        position, momentum = _drift(position, momentum, step_size, target)
        moved = init_gradient(position, target)
        gradient = moved.gradient
        momentum, gained = _kick(momentum, gradient, step_size)
        work += gained
    log_ratio = state.energy - moved.energy - work
    state, acceptance = metropolis(generator, log_ratio, moved, state)
    return state, Info(acceptance)


def _kick(momentum: Tensor, gradient: Tensor, step_size: Scale) -> tuple[Tensor, Tensor]:
    """B: the momentum half a step later, and the kinetic energy `[N]` that it gained."""
    kicked = add_scaled(momentum, gradient, -step_size / 2)
    return kicked, (squared_norm(kicked) - squared_norm(momentum)) / 2


def _drift(
    position: Tensor, momentum: Tensor, step_size: Scale, target: Target
) -> tuple[Tensor, Tensor]:
    """A: position and momentum half a step later."""
    position = add_scaled(position, momentum, step_size / 2)
    if target.box is None:
        return position, momentum
    position, sign = reflect(position, target.box)
    return position, momentum * sign


kernel = Kernel(init_gradient, step, streams=True)
