"""The Metropolis-adjusted Langevin algorithm."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.energies.base import Target
from pipeline.kernels.base import Info, Kernel, choose, normal_like
from pipeline.kernels.ula import State, init


def step(generator: torch.Generator, state: State, target: Target, *, step_size: float) -> tuple[State, Info]:
    """Langevin proposal, then Metropolis-Hastings (Besag 1994; Roberts & Tweedie 1996):

        x' = x - epsilon grad E(x) + sqrt(2 epsilon) xi,   accepted with probability min(1, r),
        log r = E(x) - E(x') + log q(x | x') - log q(x' | x),
        log q(b | a) = -|b - a + epsilon grad E(a)|^2 / (4 epsilon) + const.

    exp(-E) is invariant exactly, at any epsilon. A proposal whose energy or gradient is not finite is rejected.
    """
    xi = normal_like(state.position, generator)
    proposal = state.position.sub(state.gradient, alpha=step_size).add_(xi, alpha=math.sqrt(2 * step_size))
    moved = init(proposal, target)
    # forward: b - a + epsilon grad E(a) is sqrt(2 epsilon) xi, so -log q(x'|x) = |xi|^2 / 2
    backward = (state.position - proposal).add_(moved.gradient, alpha=step_size)
    log_ratio = state.energy - moved.energy + _squared_norm(xi) / 2 - _squared_norm(backward) / (4 * step_size)
    # a gradient that is not finite makes `backward` so, and the ratio 0 or NaN; an energy of -inf would be accepted
    finite = moved.energy.isfinite() & log_ratio.isfinite()
    acceptance = torch.where(finite, log_ratio.clamp(max=0).exp(), 0.0)
    uniform = torch.empty_like(acceptance).uniform_(generator=generator)
    accepted = uniform < acceptance
    return choose(accepted, moved, state), Info(acceptance)


def _squared_norm(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1)


kernel = Kernel(init, step)
