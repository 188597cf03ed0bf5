"""Exact maximum likelihood, for models small enough to know their log Z: what the other objectives
are held against.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.common.errors import ArgumentError
from pipeline.energies.base import Energy
from pipeline.objectives.base import Batch, Objective, Part

REACH = 6.0


class MaximumLikelihood(Objective):
    """loss = mean_i E(x_i+) + log Z(theta), the negative log-likelihood, differentiated as it
    stands.

    log Z is the energy's own (`log_sum`: enumeration, or a closed form), or, in one or two
    dimensions, a midpoint rule of `grid` points a side over the box, or on R^d over +- max(6
    base_scale, 1.5 max |x|) of the data; for smooth densities that vanish at its ends its error
    falls faster than any power of the spacing.
    """

    _side: Tensor

    def __init__(self, grid: int) -> None:
        super().__init__()
        self._grid = grid

    def initialise(self, energy: Energy, rows: Tensor, generator: torch.Generator) -> None:  # noqa: ARG002
        """Chooses the grid. Raises `ArgumentError` for an energy without a log Z in more than two
        dimensions.
        """
        self.register_buffer("_side", torch.empty(0), persistent=False)
        with torch.no_grad():
            if energy.log_sum() is not None:
                return
        if energy.dimension > 2 or energy.levels is not None:
            remedy = (
                "needs log Z: at most 2^20 states, an RBM with at most 20 hidden units, or at most"
                " two real dimensions"
            )
            raise ArgumentError("energy", type(energy).__name__, remedy)
        reach = max(REACH * energy.base_scale, 1.5 * float(rows.abs().max()))
        low, high = energy.box or (-reach, reach)
        self._step = (high - low) / self._grid
        self._side = ((torch.arange(self._grid, dtype=torch.float64) + 0.5) * self._step + low).to(
            rows
        )

    def parts(self, energy: Energy, batch: Batch) -> Iterator[Part]:
        """Parts named positive and log_z."""
        if batch.positives is None:
            return
        energy, rows = energy.given(batch.context), len(batch.positives)
        yield Part("positive", energy(batch.positives).sum(), rows)
        yield Part("log_z", self._log_z(energy).expand(rows).sum(), rows)

    def _log_z(self, energy: Energy) -> Tensor:
        """[], or [N] where the energy is bound to the contexts of N rows."""
        value = energy.log_sum()
        if value is not None:
            return value
        points = torch.cartesian_prod(*[self._side] * energy.dimension).view(-1, *energy.shape)
        values = energy(points.repeat_interleave(energy.contexts, 0)).view(-1, energy.contexts)
        return torch.logsumexp(-values, 0) + energy.dimension * math.log(self._step)
