"""The unadjusted Langevin algorithm."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.energies.base import Target
from pipeline.kernels.base import Info, Kernel, normal_like


class State(NamedTuple):
    position: Tensor
    energy: Tensor
    gradient: Tensor


def init(position: Tensor, target: Target) -> State:
    return State(position, *target.energy_and_gradient(position))


def step(
    generator: torch.Generator, state: State, target: Target, *, step_size: float, noise: float | None = None
) -> tuple[State, Info]:
    """x' = x - epsilon grad E(x) + sigma xi, xi standard normal (Parisi 1981; Roberts & Tweedie 1996).

    With `noise=None`, sigma = sqrt(2 epsilon): exp(-E) is invariant up to a bias of O(epsilon). Any other sigma is the field's
    "temperature" form (Nijkamp et al. 2019; Du & Mordatch 2019), whose chains follow roughly exp(-E / T) at
    T = sigma^2 / (2 epsilon): sharper samples, no likelihood.
    """
    sigma = math.sqrt(2 * step_size) if noise is None else noise
    proposal = state.position.sub(state.gradient, alpha=step_size).add_(normal_like(state.position, generator), alpha=sigma)
    moved = init(proposal, target)
    return moved, Info(torch.ones_like(moved.energy))


kernel = Kernel(init, step)
