"""Parquet and Arrow files at any fsspec URL: loaded when small, streamed when larger than `data.memory_limit`.

A *unit* is a row group of a Parquet file or a record batch of an Arrow file. A streamed epoch takes the units in a seeded
order, several at a time as a *window*, and shuffles the rows within each: position (epoch, window, cursor) is all it takes
to go on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.data.base import Contexts, DataSet, NoisyRows, in_memory, open_url, split
from pipeline.data_sections import ColumnsData
from pipeline.errors import ConfigError, DataError
from pipeline.rng import numpy_generator
from pipeline.types import Rows

SUFFIXES = (".parquet", ".arrow", ".feather", ".ipc")


class Unit(NamedTuple):
    path: str
    number: int
    rows: int
    parquet: bool  # else Arrow: by the file's first bytes, whatever its name


class Source:
    """The files of `data.path`, their units, and how to read one as `[rows, d + c]` float32: positions, then contexts."""

    def __init__(self, config: ColumnsData) -> None:
        self._config = config
        self._names = list(config.columns)
        self.width = 0  # of a row, context and all; known once the first unit is read
        self._file_system, pattern = open_url(config.path)
        self.units = [unit for path in self._paths(pattern) for unit in self._units_of(path)]
        self.rows = sum(unit.rows for unit in self.units)
        if not self.rows:
            raise DataError(f"data.path={config.path}: the files there hold no rows")
        self._contexts = 0  # numbers of a row's context
        first = self.read(self.units[0])
        self.width, self.dimension = first.shape[1], first.shape[1] - self._contexts
        self.shape = config.shape or (self.dimension,)
        if math.prod(self.shape) != self.dimension:
            raise ConfigError(
                "data.shape", list(self.shape), f"a row has {self.dimension} numbers, not {math.prod(self.shape)}"
            )
        self.context_shape = (config.context_shape or (self._contexts,)) if self._contexts else None
        if self.context_shape is not None and math.prod(self.context_shape) != self._contexts:
            remedy = f"a row's context has {self._contexts} numbers, not {math.prod(self.context_shape)}"
            raise ConfigError("data.context_shape", list(self.context_shape), remedy)

    def _paths(self, pattern: str) -> list[str]:
        if self._file_system.isdir(pattern):
            found = [path for path in self._file_system.find(pattern) if path.endswith(SUFFIXES)]
        else:
            found = self._file_system.glob(pattern)
        if not found:
            raise DataError(f"data.path={self._config.path}: no files there; give a file, a folder or a glob of {SUFFIXES}")
        return sorted(found)

    @contextmanager
    def _open(self, path: str) -> Iterator[Any]:
        """The file, for reading; what Arrow or the file system has to say against it becomes a `DataError`."""
        try:
            with self._file_system.open(path, "rb") as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"data.path={path}: cannot be read ({error})") from error

    def _units_of(self, path: str) -> list[Unit]:
        with self._open(path) as file:
            magic = file.read(6)
            file.seek(0)
            if magic[:4] == b"PAR1":
                groups = pq.ParquetFile(file).metadata
                return [Unit(path, i, groups.row_group(i).num_rows, True) for i in range(groups.num_row_groups)]
            if magic == b"ARROW1":
                reader = pa.ipc.open_file(file)
                return [Unit(path, i, reader.get_batch(i).num_rows, False) for i in range(reader.num_record_batches)]
        raise DataError(f"data.path={path}: neither a Parquet nor an Arrow file (it begins with {magic!r})")

    def read(self, unit: Unit) -> np.ndarray:
        """All rows of a unit, `[rows, d]` float32. Raises `DataError` on values that are missing or not finite."""
        with self._open(unit.path) as file:
            if unit.parquet:
                parquet = pq.ParquetFile(file)
                self._check_names(unit.path, parquet.schema_arrow.names)
                table = parquet.read_row_group(unit.number, columns=[*self._names, *self._config.context])
            else:
                reader = pa.ipc.open_file(file)
                self._check_names(unit.path, reader.schema.names)
                table = pa.Table.from_batches([reader.get_batch(unit.number)])
        rows, contexts = self._matrix(table, self._names, unit.path), self._matrix(table, self._config.context, unit.path)
        self._check_levels(rows, unit.path)
        self._contexts = contexts.shape[1]
        if self.width not in (0, rows.shape[1] + self._contexts):
            wanted = f"{self.width} in the first file"
            raise DataError(f"data.path={unit.path}: a row has {rows.shape[1] + self._contexts} numbers there, {wanted}")
        return np.concatenate([rows, contexts], 1)

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows `[N, d + c]` as positions `[N, *shape]` and contexts `[N, *context_shape]`, None where they have none."""
        position = rows[:, : self.dimension].reshape(-1, *self.shape)
        if self.context_shape is None:
            return position, None
        return position, rows[:, self.dimension :].reshape(-1, *self.context_shape)

    def _check_names(self, path: str, present: list[str]) -> None:
        """That the file has the columns asked for; where none are, that it has those of the first file and no others."""
        context = self._config.context
        if not self._names:
            self._names = [name for name in present if name not in context]
        if not self._config.columns and set(present) - set(context) != set(self._names):
            raise DataError(f"data.path={path}: has columns {', '.join(present)}, the first file {', '.join(self._names)}")
        for key, names in (("columns", self._names), ("context", context)):
            missing = [name for name in names if name not in present]
            if missing:
                raise ConfigError(f"data.{key}", missing, f"{path} has only {', '.join(present)}")

    def _matrix(self, table: pa.Table, names: Sequence[str], path: str) -> np.ndarray:
        """The columns `names` side by side, `[rows, numbers]` float32."""
        columns = [np.empty((len(table), 0))]
        for name in names:
            column = table.column(name).combine_chunks()
            if column.null_count:
                raise DataError(f"data.path={path}: column {name} has {column.null_count} missing values")
            kind = column.type.value_type if pa.types.is_fixed_size_list(column.type) else column.type
            if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
                raise ConfigError("data.columns", name, f"is {column.type}; numbers and fixed-size lists of them can be used")
            if pa.types.is_fixed_size_list(column.type):
                columns.append(column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size))
            else:
                columns.append(column.to_numpy(zero_copy_only=False).reshape(-1, 1))
        rows = np.concatenate(columns, 1).astype(np.float32)
        if not np.isfinite(rows).all():
            raise DataError(f"data.path={path}: some values are not finite")
        return rows

    def _check_levels(self, rows: np.ndarray, path: str) -> None:
        levels = self._config.discrete_levels
        if levels is not None and not np.isin(rows, np.arange(levels)).all():
            raise DataError(
                f"data.path={path}: data.encoding={self._config.encoding}, but some values are not 0, ..., {levels - 1}"
            )


def columns(config: ColumnsData) -> DataSet:
    """The rows of `data.path`; loaded and split exactly when they fit `memory_limit`, else streamed.

    A streamed set holds each row out with probability held_out / rows, by a draw that depends on `split_seed` and the unit
    alone; the held-out rows in hand are those among the first rows that fit in memory, at most `held_out`.
    """
    source = Source(config)
    if config.held_out >= source.rows:
        raise ConfigError("data.held_out", config.held_out, f"there are {source.rows} rows in all; keep out fewer")
    if source.rows * source.width * 4 <= config.memory_limit:
        rows = np.concatenate([source.read(unit) for unit in source.units])
        (train, of_train), (held_out, of_held_out) = map(source.split, split(rows, config.held_out, config.split_seed))
        context = None if of_train is None or of_held_out is None else (of_train, of_held_out)
        return in_memory(train, held_out, config.noise, context=context)
    (held_out, of_held_out), (sample, of_sample) = map(source.split, _first_rows(source, config))
    return DataSet(
        shape=source.shape,
        rows=source.rows - config.held_out,
        held_out=held_out,
        sample=sample,
        noise=config.noise,
        positives=lambda seed: StreamedPositives(source, config, seed),
        context=(
            None
            if source.context_shape is None or of_held_out is None or of_sample is None
            else Contexts(source.context_shape, of_held_out, of_sample)
        ),
    )


def _kept_out(config: ColumnsData, source: Source, unit: int) -> np.ndarray:
    """Which rows of unit number `unit` are held out, `[rows]` bool."""
    chance = config.held_out / source.rows
    return numpy_generator(config.split_seed, "split", unit).random(source.units[unit].rows) < chance


def _first_rows(source: Source, config: ColumnsData) -> tuple[Tensor, Tensor]:
    """(held-out rows, a sample of training rows) from units in a seeded order, until both are enough or memory's full."""
    kept, sample, budget = [], [], config.memory_limit // (4 * source.width)
    for number in numpy_generator(config.split_seed, "first-rows").permutation(len(source.units)):
        rows, mask = source.read(source.units[number]), _kept_out(config, source, int(number))
        kept.append(rows[mask])
        sample.append(rows[~mask])
        budget -= len(rows)
        if budget <= 0:
            break
    pair = (np.concatenate(kept)[: config.held_out], np.concatenate(sample))
    if not len(pair[0]):
        raise ConfigError("data.held_out", config.held_out, "too few to find any among the first rows; keep out more")
    if not len(pair[1]):
        raise ConfigError("data.held_out", config.held_out, "no training row is left among the first rows; keep out fewer")
    return tuple(torch.from_numpy(rows) for rows in pair)  # type: ignore[return-value]


class StreamedPositives:
    """Rows of files too large for memory: see the module's first lines. A window holds about half of `memory_limit`."""

    def __init__(self, source: Source, config: ColumnsData, seed: int) -> None:
        self._source, self._config, self._seed = source, config, seed
        self._noisy = NoisyRows(seed, config.noise)
        self._start_epoch(0)
        self._open_window(0)

    def _start_epoch(self, epoch: int) -> None:
        """The epoch's order of units, cut into windows of about half the memory limit."""
        self._epoch = epoch
        budget = self._config.memory_limit // (8 * self._source.width)
        self._windows: list[list[int]] = [[]]
        size = 0
        for number in numpy_generator(self._seed, "data", epoch).permutation(len(self._source.units)):
            rows = self._source.units[number].rows
            if self._windows[-1] and size + rows > budget:
                self._windows.append([])
                size = 0
            self._windows[-1].append(int(number))
            size += rows

    def _open_window(self, window: int) -> None:
        units = self._windows[window]
        rows = np.concatenate(
            [self._source.read(self._source.units[n])[~_kept_out(self._config, self._source, n)] for n in units]
        )
        order = np.random.default_rng([self._seed, self._epoch, window]).permutation(len(rows))
        self._rows = torch.from_numpy(rows[order])
        self._window, self._cursor = window, 0

    def next(self, count: int) -> Rows:
        pieces = []
        while count:
            if self._cursor == len(self._rows):
                if self._window + 1 == len(self._windows):
                    self._start_epoch(self._epoch + 1)
                    self._open_window(0)
                else:
                    self._open_window(self._window + 1)
            piece = self._rows[self._cursor : self._cursor + count]
            pieces.append(piece)
            self._cursor += len(piece)
            count -= len(piece)
        position, context = self._source.split(torch.cat(pieces))
        return Rows(self._noisy(position), context)

    def state_dict(self) -> dict[str, Any]:
        position = {"epoch": self._epoch, "window": self._window, "cursor": self._cursor}
        return {**position, "noise": self._noisy.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._start_epoch(state["epoch"])
        self._open_window(state["window"])
        self._cursor = state["cursor"]
        self._noisy.set_state(state["noise"])
