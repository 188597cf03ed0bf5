"""A batch worked on in pieces, so that memory is a setting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from pipeline.objectives.base import Batch

Draw = Callable[["Batch"], tuple[Tensor, ...]]
"""`Objective.draw` as a function of the batch's positives, under their contexts, alone."""


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
                some = some._replace(drawn=draw(some))
            for piece, part in self._split_draws(some):
                yield piece, share * part

    def _split_rows(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        if self.rows is None:
            yield batch, 1.0
            return
        if batch.positives is not None:
            for rows, share in _slices(len(batch.positives), self.rows):
                drawn = tuple(values[:, rows] for values in batch.drawn)
                yield Batch(batch.positives[rows], drawn, context=_some(batch.context, rows)), share
        if batch.negatives is not None:
            for rows, share in _slices(len(batch.negatives), self.rows):
                piece = batch._replace(
                    positives=None,
                    drawn=(),
                    context=None,
                    negatives=batch.negatives[rows],
                    negative_context=_some(batch.negative_context, rows),
                    weights=_some(batch.weights, rows),
                    previous=_some(batch.previous, rows),
                    noise=None if batch.noise is None else batch.noise[:, rows],
                )
                yield piece, share

    def _split_draws(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        for some, share in _slices(len(batch.drawn[0]) if batch.drawn else 1, self.draws):
            yield batch._replace(drawn=tuple(values[some] for values in batch.drawn)), share


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
