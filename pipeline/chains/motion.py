"""The motion of chains in a round, which tells chains that mix from chains that do not."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.common.types import Motion

LOOK = 10
"""Rounds of a pool from one look at its motion to the next."""
QUARTILES = 1.349
"""Standard deviations between the quartiles of a normal law."""


@torch.no_grad()
def motion_of(
    start: Tensor, start_energy: Tensor, end: Tensor, end_energy: Tensor, levels: int | None
) -> Motion:
    """The motion of chains from `start` to `end`, [N, *shape], whose energies there under the same
    weights are `start_energy` and `end_energy` [N], nats; over `levels`, where there are any.

    Medians, quartiles and ranks are looked at, so that the few chains that began at noise, or at
    energies that are not finite, say nothing of the others.
    """
    before, after = start_energy.double(), end_energy.double()
    moved = (end - start).flatten(1)
    changed = (moved != 0).double().mean(1)
    distance = moved.square().mean(1).sqrt() if levels is None else changed
    low, high = after.nanquantile(torch.tensor([0.25, 0.75]).to(after)).tolist()
    return Motion(
        change=float((after - before).nanmedian()),
        spread=(high - low) / QUARTILES,
        memory=rank_correlation(before, after),
        distance=float(distance.nanmedian()),
    )


def rank_correlation(x: Tensor, y: Tensor) -> float:
    """Spearman's correlation of `x` and `y` [N]: Pearson's of their ranks, where ties have none in
    common (the order of equal values is theirs in memory). 0 for fewer than two.
    """
    count = len(x)
    if count < 2:
        return 0.0
    difference = x.argsort().argsort() - y.argsort().argsort()
    return 1 - 6 * float(difference.double().square().sum()) / (count * (count**2 - 1))
