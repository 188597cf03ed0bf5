"""Integrals over one or two real dimensions by the midpoint rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.energies.base import Energy
from pipeline.energies.frozen import frozen

AT_ONCE = 2**16


class MidpointRule(NamedTuple):
    """The midpoints of `side` equal cells a side of [low, high]^d.

    For smooth functions that vanish at the ends the error falls faster than any power of the
    spacing, else as its square (Trefethen & Weideman 2014, sections 2 and 3).
    """

    low: float
    high: float
    side: int

    def points(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """`[side^d, *shape]`, d the product of the `shape`; of the dtype and on the device of
        `like`.
        """
        middle = torch.arange(self.side, dtype=torch.float64, device=like.device) + 0.5
        line = middle * ((self.high - self.low) / self.side) + self.low
        return product(line, shape).to(like.dtype)

    def log_cell(self, dimension: int) -> float:
        """The log of the volume that a point stands for."""
        return dimension * math.log((self.high - self.low) / self.side)

    def log_integral(self, energy: Energy, like: Tensor) -> Tensor:
        """log of the integral of exp(-E(x)), nats, `[contexts]` of the energy's contexts; with a
        graph where the energy has one, in the dtype and on the device of `like`.
        """
        return _log_sum(energy, self.points(energy.shape, like)) + self.log_cell(energy.dimension)

    @torch.no_grad()
    def precise_log_integral(self, energy: Energy) -> Tensor:
        """The same without a graph, from energies in float32 that are summed in float64, at most
        2^16 at once; of the energy in evaluation mode, which stays as it is.
        """
        energy = frozen(energy)
        points = self.points(energy.shape, torch.empty(0))
        pieces = points.split(max(1, AT_ONCE // energy.contexts))
        sums = torch.stack([_log_sum(energy, x, torch.float64) for x in pieces])
        return torch.logsumexp(sums, 0) + self.log_cell(energy.dimension)


def _log_sum(energy: Energy, points: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """log sum_i exp(-E(x_i)) over the `points` [S, *shape], `[contexts]`, summed in `dtype`."""
    values = energy(points.repeat_interleave(energy.contexts, 0)).to(dtype)
    return torch.logsumexp(-values.view(len(points), energy.contexts), 0)


def product(line: Tensor, shape: Sequence[int]) -> Tensor:
    """All positions whose components are of `line` [S], `[S^d, *shape]`."""
    return torch.cartesian_prod(*[line] * math.prod(shape)).view(-1, *shape)
