"""Rows of files too large for memory: an endless stream, shuffled, dealt to ranks, read ahead,
resumable at any row.

An epoch takes the units of the files in a seeded order, deals them out to the ranks, and joins
those of a rank to *windows* of at most half of `data.memory_limit`, each with its rows shuffled.
While one window is used a thread reads the next. Position (epoch, window, cursor) is all it takes
to go on; a window that was read ahead is a cache and no more.

A *part* is what is dealt: a unit, or each n-th row of a unit that is larger than a window, or of
every unit where there are fewer than ranks. A unit is decoded anew for each of its parts, a few
megabytes at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.common.errors import CheckpointError, ConfigError
from pipeline.common.rng import numpy_generator
from pipeline.common.types import Rows
from pipeline.config.data import ColumnsData
from pipeline.data.base import NoisyRows, held_out_of
from pipeline.data.row_weights import dealt

if TYPE_CHECKING:
    from pipeline.data.files import Source

Wanted = Callable[[], bool]
"""Whether a window that is being read is still waited for."""


def kept_out(source: Source, config: ColumnsData, unit: int) -> np.ndarray:
    """Returns a mask `[rows]` bool of unit number `unit`: the rows that are held out, as their
    column says, or by `split_seed` and the unit alone.
    """
    rows = source.units[unit].rows
    marked = source.told.held_out(unit, rows)
    if marked is not None:
        return marked
    if config.held_out_path is not None:
        return np.zeros(rows, bool)
    chance = held_out_of(config.held_out, source.rows) / source.rows
    return numpy_generator(config.split_seed, "split", unit).random(rows) < chance


def first_rows(source: Source, config: ColumnsData) -> tuple[Tensor, Tensor]:
    """Returns held-out and training rows, each `[N, n]`, none of weight 0: from units in a seeded
    order, until memory is full; of a count that is held out, at most as many.

    Raises `ConfigError` where either is empty, `DataError`. Of files of held-out rows the former
    are none.
    """
    kept, sample, budget = [], [], config.memory_limit // (4 * source.width)
    for rows, mask in _shuffled(source, config):
        counts = rows[:, -1] > 0 if config.weight is not None else np.ones(len(rows), bool)
        kept.append(rows[mask & counts])
        sample.append(rows[~mask & counts])
        budget -= len(rows)
        if budget <= 0:
            break
    found, most = np.concatenate(kept), None
    key = "held_out" if config.held_out_column is None else "held_out_column"
    if config.held_out_column is None and config.held_out_path is None:
        most = held_out_of(config.held_out, source.rows)
    pair = found[:most], np.concatenate(sample)
    if not len(pair[0]) and config.held_out_path is None:
        raise ConfigError(
            f"data.{key}",
            getattr(config, key),
            "too few to find any among the first rows; keep out more",
        )
    if not len(pair[1]):
        raise ConfigError(
            f"data.{key}",
            getattr(config, key),
            "no training row is left among the first rows; keep out fewer",
        )
    return torch.from_numpy(pair[0]), torch.from_numpy(pair[1])


def _shuffled(source: Source, config: ColumnsData) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields rows and their held-out mask, of all units in an order drawn by `split_seed`."""
    for number in numpy_generator(config.split_seed, "first-rows").permutation(len(source.units)):
        mask = kept_out(source, config, int(number))
        for first, rows in source.pieces(source.units[number]):
            yield rows, mask[first : first + len(rows)]


class Part(NamedTuple):
    """Each `stride`-th row of a unit from `first` on: `rows` of them, held-out ones included."""

    unit: int
    first: int
    stride: int
    rows: int


def _parts(source: Source, most: int, ranks: int) -> Iterator[Part]:
    """All units, cut so that no part has more than `most` rows and there is one for each rank at
    least.
    """
    for number, unit in enumerate(source.units):
        stride = max(-(-unit.rows // most), -(-ranks // len(source.units)))
        for first in range(stride):
            yield Part(number, first, stride, -(-(unit.rows - first) // stride))


class Place(NamedTuple):
    """The place of a window in the stream."""

    epoch: int
    window: int


class Window(NamedTuple):
    """The rows at a place, `[N, n]`, shuffled, and the place after it. Where rows have weights,
    they come in the `order` that their numbers have there, as often as each does.
    """

    rows: np.ndarray
    following: Place
    order: np.ndarray | None = None

    @property
    def size(self) -> int:
        """The number of rows that come."""
        return len(self.rows if self.order is None else self.order)

    def piece(self, begin: int, most: int) -> np.ndarray:
        """Returns the rows from number `begin` on, `[m, n]`, at most so many."""
        if self.order is None:
            return self.rows[begin : begin + most]
        found: np.ndarray = self.rows[self.order[begin : begin + most]]
        return found


class StreamedPositives:
    """Rank `rank`'s share of the training rows of `source`: see the module's first lines. Nothing
    is read before `next`.

    Over all ranks, each training row comes once an epoch; epochs are of a rank alone, and differ in
    length. Besides the two windows, `data.memory_limit` together, memory holds 16 bytes for each
    row of the one being read, and a few megabytes. `waited` counts the seconds that `next` has
    waited for windows so far, the first one included. A class whose `reads_ahead` is False reads
    each window when it is needed.

    Where rows have weights, of mean m over the files, one of weight w comes w / m times an epoch,
    rounded down or up (`pipeline.data.row_weights.dealt`), for which memory has 8 bytes a time.
    """

    reads_ahead = True

    def __init__(
        self,
        source: Source,
        config: ColumnsData,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        assert 0 <= rank < ranks
        self.waited = 0.0
        self._source, self._config, self._seed, self._rank, self._ranks = (
            source,
            config,
            seed,
            rank,
            ranks,
        )
        self._noisy = NoisyRows(seed, config.noise, rank)
        self._most = max(1, config.memory_limit // (8 * source.width))  # rows of a window
        self._parts = list(_parts(source, self._most, ranks))
        self._place, self._cursor = Place(0, 0), 0
        self._window: Window | None = None  # that at `_place`, once it is needed
        self._ahead: _Reading | None = None
        # filled in turn, and kept: memory for two windows, whatever the allocator makes of large
        # blocks that come and go
        self._buffers: list[np.ndarray] = []
        self._filled = 0

    def _windows(self, epoch: int) -> list[list[Part]]:
        """This rank's parts in a seeded order, as many to a window as fit."""
        order = numpy_generator(self._seed, "data", epoch).permutation(len(self._parts))
        windows: list[list[Part]] = [[]]
        size = 0
        for number in order[self._rank :: self._ranks]:
            part = self._parts[number]
            if windows[-1] and size + part.rows > self._most:
                windows.append([])
                size = 0
            windows[-1].append(part)
            size += part.rows
        return windows

    def next(self, count: int) -> Rows:
        """Returns the next `count` rows of this rank, without numbers. Raises `DataError` or
        `StorageError` where they cannot be read; the next call then begins where this one did.
        """
        began = self._place, self._cursor
        try:
            position, context = self._source.split(torch.from_numpy(self._taken(count)))
        except Exception:
            (self._place, self._cursor), self._window = began, None
            raise
        return Rows(self._noisy(position), context)

    def _taken(self, count: int) -> np.ndarray:
        """The next rows, `[count, n]`: a copy, for windows are written over."""
        rows, filled = np.empty((count, self._source.width), np.float32), 0
        while filled < count:
            if self._window is None:
                self._window = self._open(self._place)
            elif self._cursor == self._window.size:
                self._window = self._open(self._window.following)
                self._cursor = 0
            piece = self._window.piece(self._cursor, count - filled)
            rows[filled : filled + len(piece)] = piece
            self._cursor += len(piece)
            filled += len(piece)
        return rows

    def _open(self, place: Place) -> Window:
        """The window at `place`, to be used next; and sets out to read the one after it."""
        if self._ahead is None or self._ahead.place != place:
            if self._ahead is not None:
                self._ahead.stop()
            self._ahead = self._start(place)
        before = perf_counter()
        try:
            window = self._ahead.result()
        except Exception:  # the reader's: the next call tries anew
            self._ahead = None
            raise
        self.waited += perf_counter() - before
        self._place, self._filled = place, 1 - self._filled
        self._ahead = self._start(window.following) if self.reads_ahead else None
        return window

    def _start(self, place: Place) -> _Reading:
        """Reads the window at `place`, to where the window in use is not."""
        if not self._buffers:
            self._buffers = [
                np.empty((self._most, self._source.width), np.float32) for _ in range(2)
            ]
        buffer = self._buffers[1 - self._filled]
        return _Reading(place, lambda wanted: self._read(place, buffer, wanted))

    def _read(self, place: Place, buffer: np.ndarray, wanted: Wanted) -> Window:
        """The window's training rows, shuffled, at the beginning of `buffer`; not all of them once
        it is not wanted.
        """
        windows = self._windows(place.epoch)
        parts, last = windows[place.window], place.window + 1 == len(windows)
        masks = [self._training_rows(part) for part in parts]
        # zeros at the end of an entropy change nothing: rank 0 has the order that it has alone
        generator = np.random.default_rng([self._seed, *place, self._rank])
        order = generator.permutation(sum(mask.sum() for mask in masks))
        targets, done = np.empty_like(order), 0
        targets[order] = np.arange(len(order))
        for part, mask in zip(parts, masks, strict=True):
            for first, piece in self._source.pieces(self._source.units[part.unit]):
                if not wanted():
                    break
                chosen = piece[mask[first : first + len(piece)]]
                buffer[targets[done : done + len(chosen)]] = chosen
                done += len(chosen)
        following = Place(place.epoch + 1, 0) if last else Place(place.epoch, place.window + 1)
        rows = buffer[: len(order)]
        if self._source.told.mean_weight is None or done < len(order):
            return Window(rows, following)
        weights = rows[:, -1].astype(np.float64)
        count = weights.sum() / self._source.told.mean_weight
        numbers = dealt(weights, count, generator.random()) if count else order[:0]
        return Window(rows, following, generator.permutation(numbers))

    def _training_rows(self, part: Part) -> np.ndarray:
        """Returns a mask of the unit, bool: the rows that are the part's and not held out."""
        mask = np.zeros(self._source.units[part.unit].rows, bool)
        mask[part.first :: part.stride] = True
        return mask & ~kept_out(self._source, self._config, part.unit)

    def state_dict(self) -> dict[str, Any]:
        """Returns the place and the state of the noise: this rank's alone, and of so many ranks."""
        position = {
            "epoch": self._place.epoch,
            "window": self._place.window,
            "cursor": self._cursor,
        }
        return {
            **position,
            "noise": self._noisy.get_state(),
            "rank": self._rank,
            "ranks": self._ranks,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a place. Raises `CheckpointError` where another rank, or one of another
        number of ranks, wrote it.
        """
        theirs, ours = (state.get("rank", 0), state.get("ranks", 1)), (self._rank, self._ranks)
        if theirs != ours:
            raise CheckpointError(
                "the place in the streamed data is that of rank {} of {}; rank {} of {} has other"
                " rows: ".format(*theirs, *ours)
                + "resume with as many ranks as before, or start over with resume=never"
            )
        place = Place(state["epoch"], state["window"])
        if place != self._place:
            self._window = None
        self._place, self._cursor = place, state["cursor"]
        self._noisy.set_state(state["noise"])


class _Reading:
    """A window on its way into memory, in a thread of its own.

    The thread is no daemon, for one that is cut off in Arrow's C++ at the interpreter's exit aborts
    the process. So that the exit need not wait for a whole window, `read` is to ask now and then
    whether it is still wanted.
    """

    def __init__(self, place: Place, read: Callable[[Wanted], Window]) -> None:
        self.place = place
        self._window: Future[Window] = Future()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, args=(read,), name="positives")
        self._thread.start()

    def _run(self, read: Callable[[Wanted], Window]) -> None:
        try:
            self._window.set_result(read(self._wanted))
        except BaseException as error:
            self._window.set_exception(error)

    def _wanted(self) -> bool:
        return not self._stopped and threading.main_thread().is_alive()

    def result(self) -> Window:
        """Returns the window, when it is there. Raises what the reader raised."""
        return self._window.result()

    def stop(self) -> None:
        """Gives the window up, and returns when nothing is written any more."""
        self._stopped = True
        self._thread.join()
