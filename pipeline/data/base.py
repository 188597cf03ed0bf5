"""The form of a data set, and the one that is in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.common.errors import ConfigError
from pipeline.common.rng import numpy_generator, torch_generator
from pipeline.common.types import Rows
from pipeline.data.row_weights import RowWeights, dealt
from pipeline.data.scaling import Scale

LogDensity = Callable[..., Tensor]
"""log p(x), or of a conditional law log p(x | c) of positions and contexts: `[N]` nats."""
MOST_ROWS = 20_000  # of the training rows, that simple laws and objectives are started from


class Positives(Protocol):
    """An endless stream of training rows, or one rank's share of it."""

    def next(self, count: int) -> Rows:
        """Returns the next `count` rows of this rank, float32. Ranks ask for as many as one
        another.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Returns the place in the stream, plain values and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a place in the stream."""


class MakePositives(Protocol):
    """A function that opens the training rows: the whole stream of `seed`, or of its `ranks` shares
    the one numbered `rank`.
    """

    def __call__(self, seed: int, rank: int = 0, ranks: int = 1) -> Positives: ...


class Contexts(NamedTuple):
    """The contexts of a data set's rows, each `[*shape]`: `held_out` [H, *shape], and `sample`
    [S, *shape].
    """

    shape: tuple[int, ...]
    held_out: Tensor
    sample: Tensor


class DataSet(NamedTuple):
    """So many training `rows` of `shape`, and rows kept out of training.

    `held_out` [H, *shape] and `sample` [S, *shape] are rows as stored; the sample holds training
    rows, all of them where they fit in memory. `positives` opens the stream of training rows. Noise
    of standard deviation `noise` is added to a row when it is drawn: the law learned is the
    smoothed one. `log_density` is given where the law is known. `context` is there where rows have
    one: a label, or what a conditional law conditions on. Where rows are `streamed`, each rank has
    rows of its own, which are read when they are needed. `row_weights` are there where some rows
    count more than others: the stream deals rows in proportion, and whoever takes `sample` or
    `held_out` as they are weights them.

    Of columns, `scale` is what their rows went through, `labels` are those of context columns that
    are told by their places 0, ..., K-1, and `constant` names the numbers of a row that are.
    `columns` has the name of each number of a row and, where it is one of q categories that are
    told by their places, these; it is empty where none is.

    `missing` [S, *shape] says which numbers of the `sample` were not there: another row's stand in
    their place. None where all were there.

    `held_out_apart`: held-out rows were chosen to be unlike all training rows, so that the two are
    not exchangeable, and a model tells them apart however little it has learned of single rows.
    """

    shape: tuple[int, ...]
    rows: int
    held_out: Tensor
    sample: Tensor
    noise: float
    positives: MakePositives
    log_density: LogDensity | None = None
    context: Contexts | None = None
    streamed: bool = False
    scale: Scale | None = None
    labels: Mapping[str, Sequence[Any]] = MappingProxyType({})
    constant: Sequence[str] = ()
    row_weights: RowWeights = RowWeights()
    columns: Sequence[tuple[str, list[Any] | None]] = ()
    missing: Tensor | None = None
    sequences: Any = None  # of an alignment, what its rows are (`pipeline.data.fasta.Sequences`)
    held_out_apart: bool = False

    def whole(self) -> DataSet:
        """The same with a sample of those rows that lacked nothing, where these are two or more."""
        if self.missing is None:
            return self
        there = ~self.missing.flatten(1).any(1)
        if there.sum() < 2:
            return self
        weights = self.row_weights
        if weights.sample is not None:
            weights = weights._replace(sample=weights.sample[there])
        return self._replace(sample=self.sample[there], missing=None, row_weights=weights)

    def complete(self) -> DataSet:
        """The same with those rows alone that have all their letters: over levels, one that is
        below 0 is missing.
        """
        whole = [bool((rows >= 0).all()) for rows in (self.held_out, self.sample)]
        if all(whole):
            return self
        full = [(rows >= 0).flatten(1).all(1) for rows in (self.held_out, self.sample)]
        weights = [
            None if of is None else of[kept]
            for of, kept in zip(self.row_weights, full, strict=True)
        ]
        return self._replace(
            held_out=self.held_out[full[0]],
            sample=self.sample[full[1]],
            row_weights=RowWeights(*weights),
        )

    @property
    def kinds(self) -> tuple[int, ...] | None:
        """The q of each number of a row that is one of q categories, 0 of the others; None where
        none is.
        """
        return tuple(len(values or ()) for _, values in self.columns) or None

    @property
    def total_weight(self) -> float:
        """The sum of the weights of all training rows: their number where all count alike."""
        weights = self.row_weights.sample
        return float(self.rows if weights is None else weights.sum())

    @property
    def context_shape(self) -> tuple[int, ...] | None:
        """The shape of a row's context; None where rows have none."""
        return None if self.context is None else self.context.shape


class NoisyRows:
    """Gaussian noise, added afresh to every position drawn, not to contexts.

    Its stream is `SeedSequence(seed, "data-noise", stream)`. Rows that are share `rank` of a block
    of `ranks` equal ones get that share of the whole block's noise, and the stream goes on behind
    the block.
    """

    def __init__(self, seed: int, noise: float, stream: int = 0) -> None:
        self._noise = noise
        self._generator = torch_generator(seed, "data-noise", stream)

    def __call__(self, rows: Tensor, rank: int = 0, ranks: int = 1) -> Tensor:
        if not self._noise:
            return rows
        noise = torch.randn(ranks, *rows.shape, generator=self._generator)[rank]
        return rows + self._noise * noise

    def get_state(self) -> Tensor:
        return self._generator.get_state()

    def set_state(self, state: Tensor) -> None:
        self._generator.set_state(state)


class TensorPositives:
    """Rows of tensors, numbered, each once an epoch; with `weights` [N] in proportion to these
    (`pipeline.data.row_weights.dealt`), as many in all.

    The order of an epoch is drawn from `SeedSequence(seed, "data", epoch)`.

    With `ranks`, a call for `count` rows takes `count * ranks` of the one stream and returns those
    numbered `rank * count` and on: the ranks' rows end to end are what one rank gets that asks for
    as many. Positions in the stream are the same on every rank, so that the state of one serves
    all, and any other number of ranks.
    """

    def __init__(
        self,
        rows: Tensor,
        seed: int,
        noise: float,
        context: Tensor | None = None,
        rank: int = 0,
        ranks: int = 1,
        weights: Tensor | None = None,
    ) -> None:
        assert 0 <= rank < ranks
        self._rows, self._context, self._seed = rows, context, seed
        self._weights = None if weights is None else weights.numpy()
        self._rank, self._ranks = rank, ranks
        self._noisy = NoisyRows(seed, noise)
        self._start_epoch(0)

    def _start_epoch(self, epoch: int) -> None:
        self._epoch, self._cursor = epoch, 0
        generator = numpy_generator(self._seed, "data", epoch)
        order = generator.permutation(len(self._rows))
        if self._weights is not None:
            order = dealt(self._weights, len(self._rows), generator.random())[order]
        self._order = torch.from_numpy(order)

    def next(self, count: int) -> Rows:
        """Returns the next `count` rows of this rank, with their noise and numbers."""
        number = self._take(count * self._ranks)[self._rank * count : (self._rank + 1) * count]
        rows = self._rows.index_select(0, number)
        position = self._noisy(rows, self._rank, self._ranks)
        return Rows(position, None if self._context is None else self._context[number], number)

    def _take(self, count: int) -> Tensor:
        """The numbers of the stream's next `count` rows."""
        chosen = []
        while count:
            if self._cursor == len(self._order):
                self._start_epoch(self._epoch + 1)
            piece = self._order[self._cursor : self._cursor + count]
            chosen.append(piece)
            self._cursor += len(piece)
            count -= len(piece)
        return torch.cat(chosen)

    def state_dict(self) -> dict[str, Any]:
        """Returns the place in the stream, the same on every rank."""
        return {"epoch": self._epoch, "cursor": self._cursor, "noise": self._noisy.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a place in the stream that any rank wrote."""
        self._start_epoch(state["epoch"])
        self._cursor = state["cursor"]
        self._noisy.set_state(state["noise"])


class AllRows:
    """All training rows at once, in their order, each with its weight: a stream that stands."""

    def __init__(self, data: DataSet) -> None:
        context = None if data.context is None else data.context.sample
        weights = data.row_weights.sample
        shares = None if weights is None else (weights / weights.mean()).float()
        self._rows = Rows(data.sample, context, weight=shares)

    def next(self, count: int) -> Rows:  # noqa: ARG002 - a stream of rows has it
        """Returns all of them."""
        return self._rows

    def state_dict(self) -> dict[str, Any]:
        """Returns nothing: it stands."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stands where it stood."""


def channels_last(shape: tuple[int, ...]) -> bool:
    """Returns whether rows of `shape` look like images whose channels come last, (H, W, C): at most
    4 of them, behind two longer axes. Everything here takes the first axis for channels.
    """
    return len(shape) == 3 and shape[2] <= 4 < min(shape[:2])


def held_out_of(held_out: float, rows: int) -> int:
    """Returns how many of so many `rows` are kept out: `held_out` is a count, or a share below 1,
    of which one row is kept out at least where it is above 0. Raises `ConfigError` where no
    training row is left.
    """
    count = int(held_out) if held_out >= 1 or not held_out else max(1, round(held_out * rows))
    if count >= rows:
        raise ConfigError(
            "data.held_out", held_out, f"there are {rows} rows in all; keep out fewer"
        )
    return count


def split(rows: np.ndarray, held_out: float, split_seed: int) -> tuple[Tensor, Tensor]:
    """Returns training and held-out rows: `rows` [N, ...] are permuted by
    `numpy.random.RandomState(split_seed)`, and the last are kept out, as many as `held_out_of`
    says.

    Raises `ConfigError` where no training row is left.
    """
    held_out = held_out_of(held_out, len(rows))
    order = np.random.RandomState(split_seed).permutation(len(rows))
    shuffled = torch.from_numpy(np.ascontiguousarray(rows[order], dtype=np.float32))
    return shuffled[:-held_out], shuffled[-held_out:]


def in_memory(
    train: Tensor,
    held_out: Tensor,
    noise: float,
    log_density: LogDensity | None = None,
    context: tuple[Tensor, Tensor] | None = None,
    weights: tuple[Tensor | None, Tensor | None] = (None, None),
) -> DataSet:
    """Makes a data set of two tensors of rows, `train` [N, *shape] and `held_out` [H, *shape], and
    of two of contexts and of weights where they have them.
    """
    return DataSet(
        shape=tuple(train.shape[1:]),
        rows=len(train),
        held_out=held_out,
        sample=train,
        noise=noise,
        positives=lambda seed, rank=0, ranks=1: TensorPositives(
            train, seed, noise, None if context is None else context[0], rank, ranks, weights[0]
        ),
        log_density=log_density,
        context=(
            None
            if context is None
            else Contexts(tuple(context[0].shape[1:]), context[1], context[0])
        ),
        row_weights=RowWeights(weights[1], weights[0]),
    )


def encode_grey(
    values: np.ndarray, maximum: int, encoding: str, levels: int, generator: np.random.Generator
) -> np.ndarray:
    """Returns grey levels 0..maximum as float32 of the same shape: `real` scales to [-1, 1],
    `binary` is 1 from the middle level up, `sampled` is 1 with probability grey / maximum, and
    `categorical` cuts them into `levels` equal parts, 0, ..., levels-1.
    """
    if encoding == "sampled":
        return (generator.random(values.shape, dtype=np.float32) * maximum < values).astype(
            np.float32
        )
    if encoding == "binary":
        return (values >= (maximum + 1) // 2).astype(np.float32)
    if encoding == "categorical":
        return (values.astype(np.int64) * levels // (maximum + 1)).astype(np.float32)
    return values.astype(np.float32) * (2 / maximum) - 1
