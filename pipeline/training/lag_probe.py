"""A look at what one version of lag would do to a step's gradient, made in lock-step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.common.types import Negatives
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.objectives.base import Batch, NegativeSide, Replayed, Term
from pipeline.objectives.chunking import Chunking
from pipeline.training.intake import Weighed, weigh
from pipeline.training.lag_choice import Halves, Treatment, squared_bias, variance
from pipeline.training.lag_trial import Look
from pipeline.training.refresh import Refresher


class Taken(NamedTuple):
    """The negatives of a step: the side, and the batches that it is made of."""

    side: NegativeSide
    received: Sequence[Negatives]


class LagProbe:
    """Compares, under the weights that `energy` has, the gradient of a step's fresh negatives with
    that of the ones of the step before, made one version earlier: as they are, reweighted where
    that is valid, and moved by the `refresher`, where there is one. `term` is the objective that
    consumes chains.
    """

    def __init__(
        self, config: RunConfig, energy: Energy, term: Term, refresher: Refresher | None
    ) -> None:
        self._config, self._energy, self._term = config, energy, term
        self._refresher = refresher
        self._rows = Chunking(config.trainer.chunk_rows)
        self._parameters = [p for p in energy.parameters() if p.requires_grad]
        self._before: Taken | None = None

    def look(
        self, side: NegativeSide | None, received: Sequence[Negatives], version: int
    ) -> Look | None:
        """The figures of a step at `version`; None where its negatives are not all fresh, or those
        of the look before not all one version older. Gradients that the parameters hold stay.
        """
        before, self._before = self._before, None
        if side is None or any(batch.version != version for batch in received):
            return None
        now = self._before = Taken(_of_its_own(side), received)
        if before is None or any(batch.version != version - 1 for batch in before.received):
            return None
        fresh = self._gradients(now, version)
        squares = {Treatment.PLAIN: squared_bias(self._gradients(before, version), fresh)}
        ess = None
        if self._config.reweight:
            weighted = self._gradients(before, version, reweight=True)
            squares[Treatment.REWEIGHTED] = squared_bias(weighted, fresh)
            ratios = self._weighed(before, version, reweight=True).ess
            ess = sum(ratios) / len(ratios)
        if self._refresher is not None:
            position = self._refresher.move(before.side.position, before.side.context)
            moved = before._replace(side=before.side._replace(position=position))
            squares[Treatment.MOVED] = squared_bias(self._gradients(moved, version), fresh)
        return Look(squares, variance(fresh), ess)

    def _gradients(self, taken: Taken, version: int, reweight: bool = False) -> Halves:
        """The gradients that the first and the second half of every batch's chains give."""
        halves = (self._half(taken, half) for half in range(2))
        return Halves(*(self._gradient(half, version, reweight) for half in halves))

    def _gradient(self, taken: Taken, version: int, reweight: bool) -> Tensor:
        """The gradient [P] of the objective's parts that are of negatives. Chains in their burn-in
        do not count.
        """
        weights = self._weighed(taken, version, reweight).weights
        total = weights.new_zeros(sum(parameter.numel() for parameter in self._parameters))
        for piece, share in self._rows.split_negatives(taken.side._replace(weights=weights)):
            parts = self._term.objective.parts(self._energy, Batch(negatives=piece))
            means = [part.weight * part.total / part.rows for part in parts]
            gradients = torch.autograd.grad(
                self._term.weight * share * torch.stack(means).sum(),
                self._parameters,
                materialize_grads=True,
                allow_unused=True,
            )
            total += torch.cat([gradient.flatten() for gradient in gradients])
        return total

    @torch.no_grad()
    def _weighed(self, taken: Taken, version: int, reweight: bool) -> Weighed:
        pieces = (piece for piece, _ in self._rows.split_negatives(taken.side))
        energies = [self._energy.given(some.context)(some.position) for some in pieces]
        now = torch.cat(energies)
        return weigh(self._config, taken.received, version, 1.0, reweight, now)

    def _half(self, taken: Taken, half: int) -> Taken:
        """The first or the second half of every batch; where it has several contexts, of them."""
        start, rows, batches = 0, [], []
        for batch in taken.received:
            size = len(batch.energy)
            each = self._config.chains.per_context if self._config.conditional else 1
            each = each if size >= 2 * each else 1
            middle = size // each // 2 * each
            part = slice(half * middle, (half + 1) * middle)
            batches.append(batch._replace(energy=batch.energy[part], age=batch.age[part]))
            rows.append(torch.arange(start + part.start, start + part.stop))
            start += size
        return Taken(_some(taken.side, torch.cat(rows).to(taken.side.position.device)), batches)


def _of_its_own(side: NegativeSide) -> NegativeSide:
    """The side with memory that the next step does not overwrite."""
    position, past = side.position.clone(), side.past
    return side._replace(
        position=position, past=None if past is None else past._replace(bank=position)
    )


def _some(side: NegativeSide, rows: Tensor) -> NegativeSide:
    """The `rows` [M'] of a side without weights."""
    past = side.past
    if past is not None:
        past = Replayed(past.previous[rows], past.noise[:, rows], past.bank)
    context = None if side.context is None else side.context[rows]
    return NegativeSide(side.position[rows], context, past=past)
