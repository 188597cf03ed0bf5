"""A batch worked on in pieces, so that memory is a setting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from pipeline.objectives.base import Batch, NegativeSide, PositiveSide, Replayed

Draw = Callable[[PositiveSide], tuple[Tensor, ...]]
"""`Objective.draw` as a function of the rows of data, under their contexts, alone."""


class Chunking(NamedTuple):
    """At most how many rows, and how many of what was drawn for each, are worked on at once; None:
    all.
    """

    rows: int | None = None
    draws: int | None = None

    def split(self, batch: Batch, draw: Draw | None = None) -> Iterator[tuple[Batch, float]]:
        """The batch in chunks, each with its share of its side: means over chunks, so weighted, are
        those of the whole.

        Where rows are split, a chunk has one side alone, and negatives need `weights`, which are
        normalised over more rows than a chunk has. With `draw`, what is drawn for rows is drawn
        when their turn comes, so that no more of it is held.
        """
        for some, share in self._split_rows(batch):
            if draw is not None and some.positives is not None:
                drawn = draw(some.positives)
                some = some._replace(positives=some.positives._replace(drawn=drawn))
            for piece, part in self._split_draws(some):
                yield piece, share * part

    def _split_rows(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        if self.rows is None:
            yield batch, 1.0
            return
        if batch.positives is not None:
            for rows, share in _slices(len(batch.positives.position), self.rows):
                yield Batch(_some_positives(batch.positives, rows)), share
        if batch.negatives is not None:
            for piece, share in self.split_negatives(batch.negatives):
                yield Batch(negatives=piece), share

    def split_negatives(self, side: NegativeSide) -> Iterator[tuple[NegativeSide, float]]:
        """The negatives in chunks, each with its share of them."""
        for rows, share in _slices(len(side.position), self.rows):
            yield _some_negatives(side, rows), share

    def _split_draws(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        side = batch.positives
        if side is None or not side.drawn:
            yield batch, 1.0
            return
        for some, share in _slices(len(side.drawn[0]), self.draws):
            drawn = tuple(values[some] for values in side.drawn)
            yield batch._replace(positives=side._replace(drawn=drawn)), share


def _some_positives(side: PositiveSide, rows: slice) -> PositiveSide:
    drawn = tuple(values[:, rows] for values in side.drawn)
    context, weights = _some(side.context, rows), _some(side.weights, rows)
    return PositiveSide(side.position[rows], drawn, context, weights)


def _some_negatives(side: NegativeSide, rows: slice) -> NegativeSide:
    past = side.past
    if past is not None:
        past = Replayed(past.previous[rows], past.noise[:, rows], past.bank)
    context, weights = _some(side.context, rows), _some(side.weights, rows)
    return NegativeSide(side.position[rows], context, weights, past)


def _some(values: Tensor | None, rows: slice) -> Tensor | None:
    return None if values is None else values[rows]


def _slices(total: int, most: int | None) -> Iterator[tuple[slice, float]]:
    """Slices of at most `most`, and what share of the total each is; of nothing, one that is all of
    it.
    """
    if not total:
        yield slice(0, 0), 1.0
    size = total if most is None else most
    for start in range(0, total, size):
        stop = min(start + size, total)
        yield slice(start, stop), (stop - start) / total
