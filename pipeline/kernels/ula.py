"""The unadjusted Langevin algorithm."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from pipeline.common.rng import Source
from pipeline.energies.target import Target
from pipeline.kernels.base import (
    GradientState,
    Info,
    Kernel,
    Scale,
    add_scaled,
    choose,
    init_gradient,
    normal_like,
    per_chain,
)


class Differentiable(Protocol):
    """A target whose gradient has a graph to the weights."""

    @property
    def box(self) -> tuple[float, float] | None: ...

    def gradient(self, x: Tensor) -> Tensor: ...


def step(
    generator: Source,
    state: GradientState,
    target: Target,
    *,
    step_size: Scale,
    noise: float | None = None,
) -> tuple[GradientState, Info]:
    """x' = x - epsilon grad E(x) + sigma xi, xi standard normal (Parisi 1981; Roberts & Tweedie
    1996).

    With `noise=None`, sigma = sqrt(2 epsilon): exp(-E) is invariant up to a bias of O(epsilon). Any
    other sigma is the field's "temperature" form (Nijkamp et al. 2019; Du & Mordatch 2019), whose
    chains follow roughly exp(-E / T) at T = sigma^2 / (2 epsilon): sharper samples, no likelihood.

    In a box x' is clamped to it, the field's custom, and a bias of its own: walls collect chains. A
    move to where energy or gradient is not finite is not made, and its noise is told as NaN.
    """
    xi = normal_like(state.position, generator)
    drifted = add_scaled(state.position, state.gradient, -step_size)
    proposal = add_scaled(drifted, xi, _sigma(step_size, noise))
    if target.box is not None:
        proposal.clamp_(*target.box)
    moved = init_gradient(proposal, target)
    # a number that is not finite is seen in the sum of all; which one, only where there is one
    if not math.isfinite(moved.energy.sum() + moved.gradient.sum()):
        finite = (moved.energy + moved.gradient.flatten(1).sum(1)).isfinite()
        moved = choose(finite, moved, state)
        xi = torch.where(per_chain(finite, xi), xi, torch.nan)
    return moved, Info(torch.ones_like(moved.energy), noise=xi)


def replay(
    previous: Tensor,
    noise_drawn: Tensor,
    target: Differentiable,
    *,
    step_size: Scale,
    noise: float | None = None,
) -> Tensor:
    """x' [N, *shape] of `step` from x = `previous` and xi = `noise_drawn`, with a graph through
    grad E and x.

    Where the noise is NaN, of a move that was not made, x.
    """
    drifted = add_scaled(previous, target.gradient(previous), -step_size)
    moved = add_scaled(drifted, noise_drawn, _sigma(step_size, noise))
    if target.box is not None:
        moved = moved.clamp(*target.box)
    return torch.where(noise_drawn.isnan(), previous, moved)


def _sigma(step_size: Scale, noise: float | None) -> Scale:
    return (2 * step_size) ** 0.5 if noise is None else noise


kernel = Kernel(init_gradient, step, replay, streams=True)
