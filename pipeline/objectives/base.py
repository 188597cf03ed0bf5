"""The shape every objective has: a loss, in parts, as a pure function of an energy and a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.energies.base import Energy


class Part(NamedTuple):
    """One additive piece of a loss: `weight * total / rows`. `total` (a scalar) carries the graph.

    Totals and row counts, not means, so that a learner may split rows into chunks, or over ranks, and still take one mean.
    """

    name: str
    total: Tensor
    rows: int
    weight: float = 1.0


class Batch(NamedTuple):
    """What one step learns from, or one chunk of it; a chunk may hold one of the two sides alone.

    `positives` [N, *shape]; `drawn` is what the objective drew for them, `[P, N, ...]` each: P directions, noises or sites
    for every row; `context` [N, *context_shape] is theirs, where rows have one. `negatives` [M, *shape], under
    `negative_context` where the model is conditional; their weights, [M] of mean over the step 1, are `weights` where they
    are known beforehand, else `weigh` of their energies. Where the objective replays transitions, `previous` [M, *shape] is
    where the chains were before the last L of them, and `noise` [L, M, *shape] the standard normal draws that these used;
    `bank` [B, *shape] holds all negatives of the step, whatever the chunk.
    """

    positives: Tensor | None = None
    drawn: tuple[Tensor, ...] = ()
    negatives: Tensor | None = None
    weigh: Callable[[Tensor], Tensor] = torch.ones_like
    weights: Tensor | None = None
    previous: Tensor | None = None
    noise: Tensor | None = None
    bank: Tensor | None = None
    context: Tensor | None = None
    negative_context: Tensor | None = None

    def weights_of(self, energies: Tensor) -> Tensor:
        """The weights of the negatives, whose energies are `energies` [M]; without a graph."""
        return self.weigh(energies.detach()) if self.weights is None else self.weights

    def sides(self) -> list[Batch]:
        """The negatives and the positives apart, the positives last."""
        positives = Batch(self.positives, self.drawn, context=self.context)
        return [self._replace(positives=None, drawn=(), context=None), positives] if self.negatives is not None else [positives]


class Objective(nn.Module):
    """A loss. It draws nothing itself: `draw` makes the random inputs of a step, `parts` is a function of them.

    Most have no parameters; those that do (the log Z of noise-contrastive estimation) are learned beside the energy's.
    `consumes_chains` says whether it learns from negatives.
    """

    consumes_chains: ClassVar[bool] = False

    def initialise(self, energy: Energy, rows: Tensor, generator: torch.Generator) -> None:
        """Hook for what is best started from the data, `[S, *shape]`, and the untrained energy; none by default."""

    def check(self, energy: Energy, rows: Tensor) -> None:
        """Hook: raises `ConfigError` where no parameters could have what would be learned from training rows `[S, *shape]`."""

    def draw(self, energy: Energy, positives: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:  # noqa: ARG002
        """The random inputs for `positives` [N, *shape], `[P, N, ...]` each; none by default."""
        return ()

    def parts(self, energy: Energy, batch: Batch) -> Iterator[Part]:
        """The loss of the batch, or of the side of it that is there. Raises nothing: what is not finite stays so."""
        raise NotImplementedError


class Term(NamedTuple):
    """An objective in a weighted sum of several; `name` stands before those of its parts, empty where it is alone."""

    name: str
    weight: float
    objective: Objective


Draw = Callable[["Batch"], tuple[Tensor, ...]]
"""`Objective.draw` as a function of the batch's positives, under their contexts, alone."""


class Chunking(NamedTuple):
    """At most how many rows, and how many of what was drawn for each, are worked on at once; None: all."""

    rows: int | None = None
    draws: int | None = None

    def split(self, batch: Batch, draw: Draw | None = None) -> Iterator[tuple[Batch, float]]:
        """The batch in chunks, each with its share of its side: means over chunks, so weighted, are those of the whole.

        Where rows are split, a chunk has one side alone, and negatives need `weights`, which are normalised over more rows than
        a chunk has. With `draw`, what is drawn for rows is drawn when their turn comes, so that no more of it is held.
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
    """Slices of at most `most`, and what share of the total each is; of nothing, one that is all of it."""
    if not total:
        yield slice(0, 0), 1.0
    size = total if most is None else most
    for start in range(0, total, size):
        stop = min(start + size, total)
        yield slice(start, stop), (stop - start) / total
