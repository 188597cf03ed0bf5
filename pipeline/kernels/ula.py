"""The unadjusted Langevin algorithm."""

from __future__ import annotations

import torch

from pipeline.energies.base import Target
from pipeline.kernels.base import GradientState, Info, Kernel, Scale, add_scaled, choose, init_gradient, normal_like


def step(
    generator: torch.Generator, state: GradientState, target: Target, *, step_size: Scale, noise: float | None = None
) -> tuple[GradientState, Info]:
    """x' = x - epsilon grad E(x) + sigma xi, xi standard normal (Parisi 1981; Roberts & Tweedie 1996).

    With `noise=None`, sigma = sqrt(2 epsilon): exp(-E) is invariant up to a bias of O(epsilon). Any other sigma is the field's
    "temperature" form (Nijkamp et al. 2019; Du & Mordatch 2019), whose chains follow roughly exp(-E / T) at
    T = sigma^2 / (2 epsilon): sharper samples, no likelihood.

    In a box x' is clamped to it, the field's custom, and a bias of its own: walls collect chains. A move to where energy or
    gradient is not finite is not made.
    """
    sigma = (2 * step_size) ** 0.5 if noise is None else noise
    drifted = add_scaled(state.position, state.gradient, -step_size)
    proposal = add_scaled(drifted, normal_like(state.position, generator), sigma)
    if target.box is not None:
        proposal.clamp_(*target.box)
    moved = init_gradient(proposal, target)
    finite = (moved.energy + moved.gradient.flatten(1).sum(1)).isfinite()
    if not finite.all():
        moved = choose(finite, moved, state)
    return moved, Info(torch.ones_like(moved.energy))


kernel = Kernel(init_gradient, step)
