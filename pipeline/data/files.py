"""Parquet and Arrow files at any fsspec URL, read unit by unit.

A *unit* is a row group of a Parquet file or a record batch of an Arrow file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from pipeline.common.errors import ConfigError, DataError
from pipeline.config.data import ColumnsData
from pipeline.storage.files import Place, files_below, files_matching, is_folder, locate, open_file

SUFFIXES = (".parquet", ".arrow", ".feather", ".ipc")
PIECE = 8 << 20
"""About how many bytes are decoded at once."""
READ = 1 << 20
"""About how many encoded bytes of a column are read at once."""


class Unit(NamedTuple):
    """The unit numbered `number` of the file at `path`, of so many `rows`."""

    path: Place
    number: int
    rows: int
    parquet: bool  # else Arrow: by the file's first bytes, whatever its name


class Source:
    """The files of `data.path`, and their units, each read as `[rows, d + c]` float32: positions,
    then contexts.

    `units` has none without rows, `rows` counts those of all, and `width` = d + c. Reading keeps to
    one thread, the caller's, and several may read. Raises `DataError` where the files cannot be
    read or hold no rows, `ConfigError` where they are not of the columns or shapes asked for.
    """

    def __init__(self, config: ColumnsData) -> None:
        self._config = config
        self._names = list(config.columns)
        self.width = 0  # of a row, context and all; known once the first unit is read
        self.units = [unit for path in self._paths() for unit in self._units_of(path) if unit.rows]
        self.rows = sum(unit.rows for unit in self.units)
        if not self.rows:
            raise DataError(f"data.path={config.path}: the files there hold no rows")
        self._contexts = 0  # numbers of a row's context
        self._piece = 1  # rows decoded at once
        _, first = next(self.pieces(self.units[0]))
        self.width, self.dimension = first.shape[1], first.shape[1] - self._contexts
        self._piece = max(1, PIECE // first.nbytes)
        self.shape = config.shape or (self.dimension,)
        if math.prod(self.shape) != self.dimension:
            raise ConfigError(
                "data.shape",
                list(self.shape),
                f"a row has {self.dimension} numbers, not {math.prod(self.shape)}",
            )
        self.context_shape = (config.context_shape or (self._contexts,)) if self._contexts else None
        if self.context_shape is not None and math.prod(self.context_shape) != self._contexts:
            remedy = (
                f"a row's context has {self._contexts} numbers, not {math.prod(self.context_shape)}"
            )
            raise ConfigError("data.context_shape", list(self.context_shape), remedy)

    def _paths(self) -> list[Place]:
        there = locate(self._config.path, "data.path")
        if is_folder(there):
            found = [place for place in files_below(there) if place.path.endswith(SUFFIXES)]
        else:
            found = files_matching(there)
        if not found:
            raise DataError(
                f"data.path={self._config.path}: no files there; give a file, a folder or a glob of"
                f" {SUFFIXES}"
            )
        return found

    @contextmanager
    def _open(self, path: Place) -> Iterator[Any]:
        """Opens a file for reading. Whatever Arrow has to say against it, or that it is not there,
        becomes a `DataError`.
        """
        try:
            with open_file(path) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"data.path={path}: cannot be read ({error})") from error

    def _units_of(self, path: Place) -> list[Unit]:
        with self._open(path) as file:
            magic = file.read(6)
            file.seek(0)
            if magic[:4] == b"PAR1":
                groups = pq.ParquetFile(file).metadata
                return [
                    Unit(path, i, groups.row_group(i).num_rows, True)
                    for i in range(groups.num_row_groups)
                ]
            if magic == b"ARROW1":
                reader = pa.ipc.open_file(file)
                return [
                    Unit(path, i, reader.get_batch(i).num_rows, False)
                    for i in range(reader.num_record_batches)
                ]
        raise DataError(
            f"data.path={path}: neither a Parquet nor an Arrow file (it begins with {magic!r})"
        )

    def read(self, unit: Unit) -> np.ndarray:
        """Returns all rows of a unit, `[rows, d + c]` float32. Raises `DataError` on values that
        are missing or not finite.
        """
        return np.concatenate([rows for _, rows in self.pieces(unit)])

    def pieces(self, unit: Unit) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the rows of a unit in order, a few megabytes at a time: the number of the first
        row, and rows `[n, d + c]`. Raises `DataError` where the file has changed.
        """
        first = 0
        with self._open(unit.path) as file:
            for batch in self._batches(unit, file):
                yield first, self._matrix(batch, unit.path)
                first += len(batch)
        if first != unit.rows:
            raise DataError(
                f"data.path={unit.path}: has changed; {unit.rows} rows there are {first} now"
            )

    def _batches(self, unit: Unit, file: Any) -> Iterator[pa.RecordBatch]:
        if unit.parquet:
            # a large column is not read whole, and no threads take the processors of other actors
            parquet = pq.ParquetFile(file, buffer_size=READ, pre_buffer=False)
            self._check_names(unit.path, parquet.schema_arrow.names)
            names = [*self._names, *self._config.context]
            yield from parquet.iter_batches(self._piece, [unit.number], names, use_threads=False)
        else:
            reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(use_threads=False))
            self._check_names(unit.path, reader.schema.names)
            batch = reader.get_batch(unit.number)
            yield from (
                batch.slice(start, self._piece) for start in range(0, len(batch), self._piece)
            )

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Cuts rows `[N, d + c]` into positions `[N, *shape]` and contexts `[N, *context_shape]`,
        None where they have none.
        """
        position = rows[:, : self.dimension].reshape(-1, *self.shape)
        if self.context_shape is None:
            return position, None
        return position, rows[:, self.dimension :].reshape(-1, *self.context_shape)

    def _check_names(self, path: Place, present: list[str]) -> None:
        """Checks that the file has the columns asked for; where none are, that it has those of the
        first file and no others.
        """
        context = self._config.context
        if not self._names:
            self._names = [name for name in present if name not in context]
        if not self._config.columns and set(present) - set(context) != set(self._names):
            raise DataError(
                f"data.path={path}: has columns {', '.join(present)}, the first file"
                f" {', '.join(self._names)}"
            )
        for key, names in (("columns", self._names), ("context", context)):
            missing = [name for name in names if name not in present]
            if missing:
                raise ConfigError(f"data.{key}", missing, f"{path} has only {', '.join(present)}")

    def _matrix(self, batch: pa.RecordBatch, path: Place) -> np.ndarray:
        """The columns of positions and of contexts side by side, `[rows, d + c]` float32."""
        positions = [self._numbers(batch, name, path) for name in self._names]
        contexts = [self._numbers(batch, name, path) for name in self._config.context]
        rows = np.concatenate([*positions, *contexts], 1, dtype=np.float32, casting="same_kind")
        if not np.isfinite(rows).all():
            raise DataError(f"data.path={path}: some values are not finite")
        self._contexts = sum(column.shape[1] for column in contexts)
        self._check_levels(rows[:, : rows.shape[1] - self._contexts], path)
        if self.width not in (0, rows.shape[1]):
            raise DataError(
                f"data.path={path}: a row has {rows.shape[1]} numbers there, {self.width} in the"
                " first file"
            )
        return rows

    def _numbers(self, batch: pa.RecordBatch, name: str, path: Place) -> np.ndarray:
        """A column, `[rows, numbers]`."""
        column = batch.column(name)
        if column.null_count:
            raise DataError(
                f"data.path={path}: column {name} has {column.null_count} missing values"
            )
        listed = pa.types.is_fixed_size_list(column.type)
        kind = column.type.value_type if listed else column.type
        if not (
            pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        ):
            raise ConfigError(
                "data.columns",
                name,
                f"is {column.type}; numbers and fixed-size lists of them can be used",
            )
        values = column.flatten() if listed else column
        return values.to_numpy(zero_copy_only=False).reshape(len(column), -1)

    def _check_levels(self, rows: np.ndarray, path: Place) -> None:
        levels = self._config.discrete_levels
        if levels is not None and not np.isin(rows, np.arange(levels)).all():
            raise DataError(
                f"data.path={path}: data.encoding={self._config.encoding}, but some values are not"
                f" 0, ..., {levels - 1}"
            )
