"""Rows of data on their way to steps, and to the chains that run at or under them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch

from pipeline.common.types import Negatives, Rows
from pipeline.config.run import RunConfig
from pipeline.data.base import Positives
from pipeline.energies.base import Energy
from pipeline.training.ranks import Ranks, share_of


class RowQueue:
    """This rank's rows of data, drawn from `stream` ahead of the steps that learn from them. With
    `numbered`, they carry their numbers: pools keep chains for each.
    """

    def __init__(
        self, config: RunConfig, energy: Energy, stream: Positives, numbered: bool, ranks: Ranks
    ) -> None:
        self._config, self._energy, self._ranks = config, energy, ranks
        self._stream, self._numbered = stream, numbered
        self._drawn: deque[Rows] = deque()
        # of several ranks each remembers where the stream was before each of those
        self._places: deque[dict[str, Any]] = deque()

    def ahead(self, steps: int) -> Rows:
        """The rows of the step that comes after as many others; they stay in the queue."""
        while len(self._drawn) <= steps:
            if self._ranks.size > 1:
                self._places.append(self._stream.state_dict())
            self._drawn.append(self._draw())
        return self._drawn[steps]

    def deal(self) -> Rows:
        """The next rows for one round that whichever step may consume: its batch brings them
        back.
        """
        while not self._drawn:
            self._drawn.extend(self._draw().chunk(self._pieces))
        return self._drawn.popleft()

    def of_step(self, received: Sequence[Negatives]) -> Rows:
        """The rows of the next step: those that its batches bring along, or else those that stay
        in the queue until `next_step`.
        """
        if not self._config.batches_carry_rows:
            return self.ahead(0)
        if not received:
            return self.deal()
        each = self._config.chains.per_context
        position = torch.cat([batch.start[::each] for batch in received if batch.start is not None])
        contexts = [batch.context[::each] for batch in received if batch.context is not None]
        shape = self._energy.context_shape or ()
        return Rows(
            position.view(-1, *self._energy.data_shape),
            torch.cat(contexts).view(-1, *shape) if contexts else None,
        )

    def next_step(self) -> None:
        """Says that a step was made, whose rows are not needed again."""
        if not self._config.batches_carry_rows:
            self._drawn.popleft()
            if self._places:
                self._places.popleft()

    @property
    def _pieces(self) -> int:
        """The pieces that the rows of a step are dealt in, this rank's."""
        config = self._config
        return config.batches_per_step // self._ranks.size if config.batches_carry_rows else 1

    @property
    def _count(self) -> int:
        """The rows of a step that this rank asks for; 0 of a stream that gives all at once."""
        return (self._config.trainer.batch_size or 0) // self._ranks.size

    def _draw(self) -> Rows:
        rows = self._stream.next(self._count)
        number = rows.number if self._numbered else None
        return rows._replace(position=self._energy.into_domain(rows.position), number=number)

    def state_dict(self) -> dict[str, Any]:
        drawn = self._drawn if self._count else ()  # all rows at once are there anyway
        return {
            "positives": self._stream.state_dict(),
            "drawn": [tuple(rows) for rows in drawn],
        }

    def living_state(self) -> dict[str, Any]:
        """Returns what `go_on` and `go_on_from` take: `places` of the stream, the first of which is
        before the rows that no step has learned from.
        """
        return {**self.state_dict(), "places": list(self._places)}

    def go_on(self, state: dict[str, Any]) -> None:
        """Goes on exactly where this rank's `living_state` was made."""
        self._stream.load_state_dict(state["positives"])
        self._drawn = deque(Rows(*rows) for rows in state["drawn"])
        self._places = deque(state["places"])

    def go_on_from(self, state: dict[str, Any]) -> None:
        """Goes on where another rank's rows are that no step has learned from: with those that this
        rank has drawn by then, or where batches bring rows along, with the next ones.

        Raises `CheckpointError` where positives are streamed, whose ranks have rows of their own.
        """
        self._stream.load_state_dict(state["places"][0] if state["places"] else state["positives"])

    def load_state_dict(self, ranks: Sequence[dict[str, Any]]) -> None:
        """Takes up the states of all `ranks` there were, in their order: the own rank's stream (a
        rank that was not there goes on with that of the first), and what it had drawn ahead. Where
        there were more or fewer ranks, or pieces of another size, an even share of what all had
        drawn; what fills no whole piece is left out.

        Raises `CheckpointError` where positives are streamed, whose ranks have rows of their own,
        and there were more or fewer ranks.
        """
        own, size = self._ranks.rank, self._ranks.size
        self._stream.load_state_dict(ranks[own if own < len(ranks) else 0]["positives"])
        drawn = [[Rows(*rows) for rows in rank["drawn"]] for rank in ranks]
        each = self._count // self._pieces
        if len(ranks) == size and all(len(r.position) == each for rank in drawn for r in rank):
            self._drawn = deque(drawn[own])
            return
        # piece by piece, those of all ranks end to end are the stream's rows in order
        pieces = [rows for row in zip_longest(*drawn) for rows in row if rows is not None]
        count = sum(len(rows.position) for rows in pieces) // (each * size) * size
        cut = (
            share_of(pieces, 0, 1).map(lambda field: field[: count * each]).chunk(count)
            if count
            else []
        )
        self._drawn = deque(cut[own::size])
