"""The gradient of a step: of a weighted sum of objectives, one side of the batch after the
other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from pipeline.energies.base import Energy
from pipeline.objectives.base import Batch, NegativeSide, Objective, Part, PositiveSide, Term
from pipeline.objectives.chunking import Chunking
from pipeline.training.intake import Weighing
from pipeline.training.ranks import Alone


class Gradient:
    """The gradient of the sum of the `terms` at an `energy` that lies on its ranks as `layout`
    says. It is added up in the parameters' own `grad`, from sides that may come one at a time:
    that of the positives needs no negatives.
    """

    def __init__(
        self,
        energy: Energy,
        terms: Sequence[Term],
        layout: Alone,
        chunking: Chunking,
        generator: torch.Generator,
    ) -> None:
        self._energy, self._terms, self._layout = energy, terms, layout
        self._chunking, self._generator = chunking, generator
        self._losses: list[Tensor] = []
        self._parts: dict[str, Tensor] = {}

    def add(self, sides: Sequence[Batch], weighing: Weighing, scale: float = 1.0) -> None:
        """Adds what the `sides` contribute, chunk by chunk, times `scale`. Negatives without
        weights get them from `weighing`.
        """
        pieces = (
            (term, *piece)
            for side in sides
            for term in self._terms
            for piece in self._chunks(term.objective, side, weighing)
        )
        self._losses += self._layout.backward(
            partial(self._loss, term, chunk, scale * share, weighing)
            for term, chunk, share in pieces
        )

    def take(self) -> tuple[float, dict[str, float]]:
        """Ends the sum: this rank's value of the objective, and the mean of each of its parts."""
        loss = torch.stack(self._losses).sum() if self._losses else torch.zeros(())
        value, *means = torch.stack([loss, *self._parts.values()]).tolist()
        parts = dict(zip(self._parts, means, strict=True))
        self._losses, self._parts = [], {}
        return value, parts

    def put_back(self, loss: float, parts: dict[str, float]) -> None:
        """Begins a sum with what `take` returned, whose gradient the parameters have."""
        self._losses = [torch.tensor(loss, dtype=torch.float64)]
        self._parts = {
            name: torch.tensor(mean, dtype=torch.float64) for name, mean in parts.items()
        }

    def _loss(self, term: Term, chunk: Batch, share: float, weighing: Weighing) -> Tensor:
        losses = []
        parts = self._by_hand(term, chunk, share, weighing)
        for part in parts or term.objective.parts(self._energy, chunk, weighing):
            mean = part.total * (share / part.rows)
            losses.append(mean * (term.weight * part.weight))
            name, value = term.name + part.name, mean.detach()
            self._parts[name] = self._parts[name] + value if name in self._parts else value
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    @torch.no_grad()
    def _by_hand(
        self, term: Term, chunk: Batch, share: float, weighing: Weighing
    ) -> list[Part] | None:
        """The parts of the loss of the chunk's one side, without a graph and their gradient added,
        where both the objective and the energy know it by hand; else None.
        """
        objective, negatives = term.objective, chunk.negatives
        side = negatives or chunk.positives
        if self._layout.split or not objective.of_energies_alone or side is None:
            return None
        found = self._energy.given(side.context).energies_and_pull(side.position)
        if found is None:
            return None
        energies, pull = found
        weights = None if chunk.positives is None else chunk.positives.weights
        if negatives is not None:
            weights = weighing(energies) if negatives.weights is None else negatives.weights
        parts, slopes = objective.of_energies(energies, weights, -1.0 if negatives else 1.0)
        pull(slopes.mul_(term.weight * share / len(energies)))
        return parts

    def _chunks(
        self, objective: Objective, side: Batch, weighing: Weighing
    ) -> Iterable[tuple[Batch, float]]:
        """The side in chunks with their shares, with the objective's draws for its rows; nothing
        where the objective does not learn from it.
        """
        if side.negatives is not None:
            if not objective.consumes_chains:
                return ()
            if self._chunking.rows is not None:
                side = side._replace(negatives=self._weighed(side.negatives, weighing))

        def draw(rows: PositiveSide) -> tuple[Tensor, ...]:
            return objective.draw(self._energy.given(rows.context), rows.position, self._generator)

        return self._chunking.split(side, draw)

    @torch.no_grad()
    def _weighed(self, side: NegativeSide, weighing: Weighing) -> NegativeSide:
        """The negatives with their weights, which are normalised over more rows than a chunk
        has.
        """
        if weighing.result is not None:
            return side._replace(weights=weighing.result.weights)
        pieces: Iterator[NegativeSide] = (
            piece for piece, _ in self._chunking.split_negatives(side)
        )
        energies = [self._energy.given(some.context)(some.position) for some in pieces]
        return side._replace(weights=weighing(torch.cat(energies)))
