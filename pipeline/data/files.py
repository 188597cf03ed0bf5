"""Data files at any fsspec URL, read unit by unit; `pipeline.data.formats` says what a unit is."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from torch import Tensor

from pipeline.common.errors import ConfigError, DataError
from pipeline.config.data import ColumnsData
from pipeline.data.cells import Column, check_levels, checked, numbers, tensor_shape
from pipeline.data.folders import data_files
from pipeline.data.formats import Format, format_of
from pipeline.data.labels import Labels, encoded, find_labels, truths
from pipeline.data.row_weights import check_weights
from pipeline.data.scaling import Scale
from pipeline.storage.files import Place, locate, open_file

PIECE = 8 << 20
"""About how many bytes are decoded at once."""
ROWS = 1 << 16
"""Contexts that are looked through at once."""
UNREADABLE = (pa.ArrowException, OSError, EOFError, zipfile.BadZipFile, zlib.error)
"""What readers raise of a file that is damaged, or not there."""


class Unit(NamedTuple):
    """The unit numbered `number` of the file at `path`, of so many `rows`."""

    path: Place
    number: int
    rows: int
    form: type[Format]


class Told(NamedTuple):
    """The contents of columns that were read through: the mean of the weights, and for each unit
    the rows that are held out, 8 bits a byte; None where there is no such column.
    """

    mean_weight: float | None
    masks: list[np.ndarray] | None

    def held_out(self, unit: int, rows: int) -> np.ndarray | None:
        """Returns a mask `[rows]` bool of unit number `unit`."""
        return (
            None if self.masks is None else np.unpackbits(self.masks[unit], count=rows).astype(bool)
        )


@contextmanager
def opened(path: Place) -> Iterator[Any]:
    """Opens a file for reading. Raises `DataError` where it is not there, and for whatever Arrow
    has to say against it while it is open.
    """
    try:
        with open_file(path) as file:
            yield file
    except UNREADABLE as error:
        raise DataError("data.path", path, f"cannot be read ({error})") from error


class Source:
    """The files of `data.path`, and their units, each read as `[rows, n]` float32: positions, then
    contexts, then 1 where data.held_out_column says that the row is held out and else 0, then a
    weight, where columns of these are named; n is the `width`.

    `units` has none without rows, and `rows` counts those of all. `labels` are those of context
    columns that are read as their places 0, ..., K-1, and positions get the `scale` when rows are
    split. Reading keeps to one thread, the caller's, and several may read. Raises `DataError` where
    the files cannot be read or hold no rows, `ConfigError` where they are not of the columns or
    shapes asked for.
    """

    def __init__(self, config: ColumnsData) -> None:
        self._config = config
        self._names = list(config.columns)
        self._weight = [] if config.weight is None else [config.weight]
        self._flag = [] if config.held_out_column is None else [config.held_out_column]
        self._besides = [*config.context, *self._flag, *self._weight]  # what is not learned from
        twice = _twice([*self._names, *self._besides])
        if twice:
            raise ConfigError(
                "data.columns",
                list(config.columns),
                f"{', '.join(twice)} would be taken twice ({self._told_besides}); name each column"
                " once",
            )
        self.width = 0  # of a row, context and all; known once the first unit is read
        self.units = [
            unit
            for path in data_files(locate(config.path, "data.path"), config.path)
            for unit in self._units_of(path)
            if unit.rows
        ]
        self.rows = sum(unit.rows for unit in self.units)
        if not self.rows:
            raise DataError("data.path", config.path, "the files there hold no rows")
        self.scale: Scale | None = None
        self.told = Told(None, None)  # until it is read through
        self.labels: dict[str, Labels] = self._find_labels()
        self._contexts = 0  # numbers of a row's context
        self._widths: dict[str, int] = {}  # numbers of each column, as first read
        self._shapes: dict[str, tuple[int, ...]] = {}  # of columns of tensors
        self._piece = 1  # rows decoded at once
        _, first = next(self.pieces(self.units[0]))
        self.width = first.shape[1]
        self.dimension = self.width - self._contexts - len(self._flag) - len(self._weight)
        self._piece = max(1, PIECE // first.nbytes)
        self.shape = config.shape or self._tensor(self._names) or (self.dimension,)
        if math.prod(self.shape) != self.dimension:
            raise ConfigError(
                "data.shape",
                list(self.shape),
                f"a row has {self.dimension} numbers, not {math.prod(self.shape)}",
            )
        of_contexts = config.context_shape or self._tensor(config.context) or (self._contexts,)
        self.context_shape = of_contexts if self._contexts else None
        if self.context_shape is not None and math.prod(self.context_shape) != self._contexts:
            remedy = (
                f"a row's context has {self._contexts} numbers, not {math.prod(self.context_shape)}"
            )
            raise ConfigError("data.context_shape", list(self.context_shape), remedy)

    def _tensor(self, names: Sequence[str]) -> tuple[int, ...] | None:
        """Returns the shape of a single column of tensors; None for other columns."""
        return self._shapes.get(names[0]) if len(names) == 1 else None

    def _units_of(self, path: Place) -> list[Unit]:
        with opened(path) as file:
            form = format_of(file, path)
            rows = form(file, path).rows(self._config.columns, self._besides)
        return [Unit(path, number, count, form) for number, count in enumerate(rows)]

    def read(self, unit: Unit) -> np.ndarray:
        """Returns all rows of a unit, `[rows, n]` float32. Raises `DataError` on values that are
        missing or not finite.
        """
        return np.concatenate([rows for _, rows in self.pieces(unit)])

    def pieces(self, unit: Unit) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the rows of a unit in order, a few megabytes at a time: the number of the first
        row, and rows `[m, n]`. Raises `DataError` where the file has changed.
        """
        first = 0
        with opened(unit.path) as file:
            for batch in self._batches(unit, file):
                yield first, self._matrix(batch, unit, first)
                first += len(batch)
        if first != unit.rows:
            raise DataError(
                "data.path", unit.path, f"has changed; {unit.rows} rows there are {first} now"
            )

    def _batches(self, unit: Unit, file: Any) -> Iterator[pa.RecordBatch]:
        form = unit.form(file, unit.path)
        self._check_names(unit.path, form.names)
        columns = [*self._names, *self._weight]  # numbers, all of them
        others = [*self._config.context, *self._flag]
        yield from form.batches(unit.number, columns, others, self._piece)

    def _find_labels(self) -> dict[str, Labels]:
        """Reads the context columns through, and returns the labels of those that have some; of
        data of a trained run its own.
        """
        recorded = self._config.recorded.get("labels")
        if recorded is not None:
            return dict(recorded)
        names, found = self._config.context, {}
        for name in names:
            pieces = (batch.column(name) for batch in self._contexts_of_all())
            labels = find_labels(
                name, pieces, self._config.path, self._config.classes if len(names) == 1 else None
            )
            if labels is not None:
                found[name] = labels
        return found

    def _contexts_of_all(self) -> Iterator[pa.RecordBatch]:
        """Yields the context columns of all files, and perhaps others."""
        for unit in self.units:
            with opened(unit.path) as file:
                form = unit.form(file, unit.path)
                self._check_names(unit.path, form.names)
                yield from form.batches(unit.number, (), self._config.context, ROWS)

    @property
    def numbers(self) -> list[str]:
        """The names of a row's d numbers: those of their columns, with their places in lists."""
        return [
            name if self._widths[name] == 1 else f"{name}[{number}]"
            for name in self._names
            for number in range(self._widths[name])
        ]

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Cuts rows `[N, n]` into positions `[N, *shape]`, scaled, and contexts
        `[N, *context_shape]`, None where they have none.
        """
        position = rows[:, : self.dimension].reshape(-1, *self.shape)
        if self.scale is not None:
            position = self.scale.scaled(position)
        if self.context_shape is None:
            return position, None
        context = rows[:, self.dimension : self.dimension + self._contexts]
        return position, context.reshape(-1, *self.context_shape)

    def weights_of(self, rows: Tensor) -> Tensor | None:
        """Returns the weights of rows `[N, n]`, `[N]` float64; None where they have none."""
        return rows[:, -1].double() if self._weight else None

    def held_out_of(self, rows: Tensor) -> Tensor:
        """Returns which of the rows `[N, n]` data.held_out_column says are held out, `[N]` bool."""
        return rows[:, -1 - len(self._weight)] == 1

    def read_through(self) -> None:
        """Reads the columns of weights and of held-out rows through, so that `told` says what they
        say. Raises `DataError` where a weight is missing, below 0 or not finite, or a row neither
        held out nor not.
        """
        total, masks = 0.0, []
        for unit in self.units:
            first, flags = self._first(unit), []
            with opened(unit.path) as file:
                form = unit.form(file, unit.path)
                self._check_names(unit.path, form.names)
                for batch in form.batches(unit.number, self._weight, self._flag, ROWS):
                    if self._weight:
                        total += float(self._weights(batch, unit, first).sum(dtype=np.float64))
                    if self._flag:
                        flags.append(self._flags(batch, unit, first)[:, 0] == 1)
                    first += len(batch)
            if self._flag:
                masks.append(np.packbits(np.concatenate(flags)))
        mean = total / self.rows if self._weight else None
        self.told = Told(mean, masks if self._flag else None)

    def _check_names(self, path: Place, present: list[str]) -> None:
        """Checks that the file has the columns asked for, each once; where none are, that it has
        those of the first file and no others.
        """
        besides = self._besides
        wanted = {*self._names, *besides} if self._names else set(present)
        twice = [name for name in _twice(present) if name in wanted]
        if twice:
            raise DataError(
                "data.path",
                path,
                f"has more than one column called {', '.join(twice)}; give each a name of its own",
            )
        if not self._names:
            self._names = [name for name in present if name not in besides]
        if not self._names:
            told = f" besides {self._told_besides}" if besides else ""
            raise DataError("data.path", path, f"has no column{told} to learn from")
        if not self._config.columns and set(present) - set(besides) != set(self._names):
            raise DataError(
                "data.path",
                path,
                f"has columns {', '.join(present)}, the first file {', '.join(self._names)}; name"
                " those to learn from in data.columns=[..]",
            )
        asked = {
            "columns": self._names,
            "context": self._config.context,
            "held_out_column": self._flag,
            "weight": self._weight,
        }
        for key, names in asked.items():
            missing = [name for name in names if name not in present]
            if missing:
                value = missing if key in ("columns", "context") else missing[0]
                raise ConfigError(f"data.{key}", value, f"{path} has only {', '.join(present)}")

    @property
    def _told_besides(self) -> str:
        """The keys that name columns which are not learned from."""
        config, told = self._config, []
        if config.context or not self._besides:
            told.append(f"data.context={list(config.context)}")
        told += [f"data.held_out_column={name}" for name in self._flag]
        told += [f"data.weight={name}" for name in self._weight]
        return ", ".join(told)

    def _first(self, unit: Unit) -> int:
        """The number of a unit's first row in its file."""
        return sum(
            other.rows
            for other in self.units
            if other.path == unit.path and other.number < unit.number
        )

    @property
    def names(self) -> list[str]:
        """The names of the columns that are learned from."""
        return list(self._names)

    def _flags(self, batch: pa.RecordBatch, unit: Unit, first: int) -> np.ndarray:
        """1 for held-out rows and 0 for others of a batch that begins at row `first` of the file,
        `[rows, 1]` float32.
        """
        place = Column("data.held_out_column", self._flag[0], str(unit.path), first)
        values = checked(numbers(truths(batch.column(place.name), place), place), place)
        odd = np.argwhere((values != 0) & (values != 1))
        if len(odd) or values.shape[1] != 1:
            row = int(odd[0, 0]) if len(odd) else 0
            remedy = f"{place.of(row)}: {values[row, 0]:g} is neither 0 nor 1"
            if values.shape[1] != 1:
                remedy = f"{place.of(row)} holds a list; 0 or 1 is wanted"
            raise DataError("data.path", unit.path, remedy)
        return values

    def _weights(self, batch: pa.RecordBatch, unit: Unit, first: int) -> np.ndarray:
        """The weights of a batch that begins at row `first` of the file, `[rows, 1]` float32."""
        place = Column("data.weight", self._weight[0], str(unit.path), first)
        values = checked(numbers(batch.column(place.name), place), place)
        if values.shape[1] != 1:
            remedy = f"holds lists in {place.path}; a weight is one number"
            raise ConfigError(place.key, place.name, remedy)
        check_weights(values[:, 0], "data.path", unit.path, place.of)
        return values

    def _matrix(self, batch: pa.RecordBatch, unit: Unit, first: int) -> np.ndarray:
        """The columns of positions, of contexts and of weights side by side, `[rows, n]` float32;
        the batch begins at row `first` of the unit.
        """
        begin = self._first(unit) + first
        config, levels = self._config, self._config.discrete_levels
        columns = []
        for key, names in (("data.columns", self._names), ("data.context", config.context)):
            for name in names:
                place = Column(key, name, str(unit.path), begin)
                column = batch.column(name)
                if key == "data.context":
                    column = encoded(column, self.labels.get(name), place)
                rows = checked(numbers(column, place), place)
                if key == "data.columns" and levels is not None:
                    check_levels(rows, levels, config.encoding, place)
                self._check_width(rows.shape[1], place)
                shape = tensor_shape(column.type)
                if shape is not None:
                    self._shapes.setdefault(name, shape)
                columns.append(rows)
        self._contexts = sum(self._widths[name] for name in config.context)
        if self._flag:
            columns.append(self._flags(batch, unit, begin))
        if self._weight:
            columns.append(self._weights(batch, unit, begin))
        return np.concatenate(columns, 1)

    def _check_width(self, width: int, place: Column) -> None:
        """Raises `DataError` where a column has no numbers, or not as many as at first."""
        if not width:
            raise DataError(
                "data.path",
                place.path,
                f"{place.of(0)}: the list is empty; leave the column out, by naming the others in"
                f" {place.key}=[..]",
            )
        expected = self._widths.setdefault(place.name, width)
        if width != expected:
            raise DataError(
                "data.path",
                place.path,
                f"{place.of(0)}: a row has {width} numbers, but {expected} in {self.units[0].path};"
                " rows must be of one length",
            )


def _twice(names: Sequence[str]) -> list[str]:
    """Returns the names that stand there more than once, in order."""
    return [name for name, count in Counter(names).items() if count > 1]
