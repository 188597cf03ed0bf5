"""Replica exchange (parallel tempering) over any kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.energies.target import Target
from pipeline.kernels.base import Info, Kernel, choose


def over(kernel: Kernel, rungs: int, transitions: int) -> Kernel:
    """R rungs of N chains each, `[R N, *shape]` rung by rung, under a target with `beta` [R N] from
    0 to 1.

    One transition is: `transitions` of `kernel` in all rungs at once, swaps between rungs (0, 1),
    (2, 3), ..., as many transitions again, swaps between (1, 2), (3, 4), ... (even-odd scheme:
    Okabe et al. 2001; Syed et al. 2022). The product of the rungs' laws is invariant exactly, where
    `kernel` leaves each rung's law as it is.
    """

    def step(
        generator: torch.Generator, state: Any, target: Target, **parameters: Any
    ) -> tuple[Any, Info]:
        acceptance, swaps = torch.zeros(len(state.position), device=state.position.device), []
        log_weights = []
        for first in (0, 1):
            for _ in range(transitions):
                state, info = kernel.step(generator, state, target, **parameters)
                acceptance += info.acceptance
            state, swapped, weights = swap(generator, kernel, state, target, rungs, first)
            swaps.append(swapped)
            log_weights.append(weights)
        return state, Info(
            acceptance / (2 * transitions),
            torch.stack(swaps).sum(0),
            log_weights=torch.stack(log_weights).sum(0),
        )

    return Kernel(kernel.init, step)


def swap(
    generator: torch.Generator, kernel: Kernel, state: Any, target: Target, rungs: int, first: int
) -> tuple[Any, Tensor, Tensor]:
    """Chain i of rungs a and a + 1, for a = first, first + 2, ..., exchange positions with
    probability min(1, r),

        log r = E_a(x_a) + E_b(x_b) - E_a(x_b) - E_b(x_a),   b = a + 1.

    The new state; the mean of those probabilities over chains by pair of neighbours, [rungs - 1];
    and the log weights of positions before the exchange, which bridge the pair, [2, rungs - 1, N]:
    E_a(x_a) - E_b(x_a), and E_b(x_b) - E_a(x_b). Each is 0 where no exchange was tried.
    """
    rates = torch.zeros(rungs - 1, device=state.position.device)
    log_weights = rates.new_zeros(2, rungs - 1, len(state.position) // rungs)
    lower = torch.arange(first, rungs - 1, 2, device=rates.device)
    if not len(lower):
        return state, rates, log_weights
    partner = torch.arange(rungs, device=lower.device)
    partner[lower], partner[lower + 1] = lower + 1, lower
    exchanged = state.position.unflatten(0, (rungs, -1))[partner].flatten(0, 1)
    moved = kernel.init(exchanged, target)
    before, after = (_energy(at, target).view(rungs, -1) for at in (state, moved))
    gain = before - after
    log_weights[0, lower] = (before[lower] - after[lower + 1]).to(rates.dtype)
    log_weights[1, lower] = (before[lower + 1] - after[lower]).to(rates.dtype)
    log_ratio = gain[lower] + gain[lower + 1]
    acceptance = torch.where(log_ratio.isfinite(), log_ratio.clamp(max=0).exp(), 0.0)
    pairs = torch.empty_like(acceptance).uniform_(generator=generator) < acceptance
    accepted = torch.zeros_like(gain, dtype=torch.bool)
    accepted[lower] = accepted[lower + 1] = pairs
    rates[lower] = acceptance.mean(1).to(rates.dtype)
    return choose(accepted.flatten(), moved, state), rates, log_weights


def _energy(state: Any, target: Target) -> Tensor:
    return state.energy if hasattr(state, "energy") else target.energy(state.position)
