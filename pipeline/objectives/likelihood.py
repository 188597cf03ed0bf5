"""Exact maximum likelihood, for models small enough to know their log Z: what the other objectives
are held against.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.common.errors import ArgumentError
from pipeline.energies.base import Energy
from pipeline.energies.frozen import frozen
from pipeline.energies.quadrature import MidpointRule
from pipeline.objectives.base import Objective, Part, PositiveSide

REACH = 6.0


class MaximumLikelihood(Objective):
    """loss = mean_i E(x_i+) + log Z(theta), the negative log-likelihood, differentiated as it
    stands.

    log Z is the energy's own (`log_sum`: enumeration, or a closed form), or, in one or two
    dimensions, a midpoint rule of `grid` points a side over the box, or on R^d over +- max(6
    base_scale, 1.5 max |x|) of the data; for smooth densities that vanish at its ends its error
    falls faster than any power of the spacing.
    """

    def __init__(self, grid: int) -> None:
        super().__init__()
        self._grid, self._rule = grid, MidpointRule(0.0, 0.0, grid)

    def initialise(
        self,
        energy: Energy,
        rows: Tensor,
        generator: torch.Generator,  # noqa: ARG002
        weights: Tensor | None = None,  # noqa: ARG002
    ) -> None:
        """Chooses the grid. Raises `ArgumentError` for an energy without a log Z in more than two
        dimensions.
        """
        with torch.no_grad():
            if frozen(energy).log_sum() is not None:
                return
        if energy.dimension > 2 or energy.levels is not None:
            remedy = (
                "needs log Z: at most 2^20 states, an RBM with at most 20 hidden units, or at most"
                " two real dimensions"
            )
            raise ArgumentError("energy", type(energy).__name__, remedy)
        reach = max(REACH * energy.base_scale, 1.5 * float(rows.abs().max()))
        low, high = energy.box or (-reach, reach)
        self._rule = MidpointRule(low, high, self._grid)

    def of_positives(self, energy: Energy, positives: PositiveSide) -> Iterator[Part]:
        """Parts named positive and log_z."""
        energy, rows = energy.given(positives.context), len(positives.position)
        yield Part("positive", energy(positives.position).sum(), rows)
        log_z = energy.log_sum()  # [], or [N] where the energy is bound to the contexts of N rows
        if log_z is None:
            log_z = self._rule.log_integral(energy, positives.position)
        yield Part("log_z", log_z.expand(rows).sum(), rows)
