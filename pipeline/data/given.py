"""Rows given in code, with their contexts, weights and categories; `pipeline.data.objects` says of
what kinds they may be.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.common.errors import ConfigError, DataError
from pipeline.config.data import DataSection, RowsData
from pipeline.data.base import DataSet, in_memory, split
from pipeline.data.cells import Column
from pipeline.data.holes import filled, split_whole
from pipeline.data.labels import Categories, Labels, encoded
from pipeline.data.objects import HELD_OUT, ROWS, array_of, as_arrow, place_of, unpaired
from pipeline.data.row_weights import check_some, check_weights
from pipeline.data.scaling import constant_columns, scale_for

WEIGHTS, HELD_OUT_WEIGHTS = "weights", "held_out_weights"


class GivenRows(NamedTuple):
    """Rows [N, ...] float32, and those kept out of training where they are given apart; each with
    its contexts and its weights [N], where they have them. `columns` are those of a table with
    categories (`DataSet.columns`). What is missing is NaN.
    """

    rows: np.ndarray
    context: np.ndarray | None
    held_out: np.ndarray | None
    held_out_context: np.ndarray | None
    weights: np.ndarray | None = None
    held_out_weights: np.ndarray | None = None
    columns: Sequence[tuple[str, Labels | None]] = ()

    @property
    def kept_out(self) -> int | None:
        """The number of rows that are kept out; None where they are not given apart."""
        return None if self.held_out is None else len(self.held_out)

    def counting(self) -> GivenRows:
        """Returns the rows whose weights are above 0."""
        found = self
        if self.weights is not None:
            there = self.weights > 0
            context = None if self.context is None else self.context[there]
            found = found._replace(
                rows=self.rows[there], context=context, weights=self.weights[there]
            )
        if self.held_out is not None and self.held_out_weights is not None:
            there = self.held_out_weights > 0
            context = None if self.held_out_context is None else self.held_out_context[there]
            found = found._replace(
                held_out=self.held_out[there],
                held_out_context=context,
                held_out_weights=self.held_out_weights[there],
            )
        return found

    def in_words(self) -> str:
        """Tells how many rows there are, of what shape, and a digest of all their values, which a
        run that resumes is held to.
        """
        found = hashlib.sha256()
        parts = [self.rows, self.context, self.held_out, self.held_out_context]
        if self.weights is not None or self.held_out_weights is not None:
            parts += [self.weights, self.held_out_weights]
        for part in parts:
            found.update(b"none" if part is None else part.astype("<f4").tobytes())
            found.update(repr(None if part is None else part.shape).encode())
        if self.columns:
            found.update(repr(self.columns).encode())
        shape = list(self.rows.shape[1:])
        return f"{len(self.rows)} rows of {shape}, digest {found.hexdigest()[:16]}"


def given_rows(
    rows: Any,
    held_out: Any = None,
    weights: Any = None,
    held_out_weights: Any = None,
    section: DataSection | None = None,
) -> GivenRows:
    """Takes `rows`, [N, *shape] of any kind named above, or a pair (rows, contexts); so
    `held_out`, rows that are kept out of training; and weights of each, [N] of any kind, 0 or more.

    A data set of torch gives rows, or pairs of a row and its context. A frame's columns are numbers
    or lists of numbers; those that data.categorical of the `section` takes may hold anything else.
    Of a trained run's section the categories are the run's own. Where its data.missing is impute
    values of `rows` may be missing.

    Raises `ConfigError` where they are no rows of numbers of one length, or there are not as many
    weights, or all are 0; `DataError` where a value is missing or not finite, or a weight below 0.
    Both name the row and column.
    """
    columns: Sequence[tuple[str, Labels | None]] = ()
    if isinstance(section, RowsData) and section.categorical:
        rows, held_out, columns = _coded(rows, held_out, section)
    train, context = _pair(rows, ROWS, getattr(section, "missing", "refuse") == "impute")
    if columns and len(columns) != train.shape[1]:
        remedy = "each column of a table with categories is one number a row; leave lists out"
        raise ConfigError(ROWS, f"{len(columns)} columns of {train.shape[1]} numbers", remedy)
    counts = _weights(weights, len(train), WEIGHTS)
    if held_out is None:
        if held_out_weights is not None:
            remedy = "go with held_out=ROWS; rows that data.held_out keeps out have those of all"
            raise ConfigError(HELD_OUT_WEIGHTS, type(held_out_weights).__name__, remedy)
        return GivenRows(train, context, None, None, counts, None, columns)
    kept, of_kept = _pair(held_out, HELD_OUT)
    alike = _shapes(train, context), _shapes(kept, of_kept)
    if alike[0] != alike[1]:
        remedy = "must be of the shapes of the training rows, {}, and their contexts, {}"
        raise ConfigError(HELD_OUT, alike[1], remedy.format(*alike[0]))
    of_counts = _weights(held_out_weights, len(kept), HELD_OUT_WEIGHTS)
    return GivenRows(train, context, kept, of_kept, counts, of_counts, columns)


def _weights(value: Any, rows: int, name: str) -> np.ndarray | None:
    """The weights of so many rows, [N] float64."""
    if value is None:
        return None
    found = array_of(value, name)
    if found.shape == (rows, 1):
        found = found[:, 0]
    if found.shape != (rows,):
        remedy = f"there are {rows} rows; give each one number, 0 or more"
        raise ConfigError(name, f"shape {list(found.shape)}", remedy)
    check_weights(found, name, type(value).__name__, lambda row: f"row {row}")
    check_some(found, name, f"{rows} of them")
    return found.astype(np.float64)


def _coded(
    rows: Any, held_out: Any, section: RowsData
) -> tuple[Any, Any, Sequence[tuple[str, Labels | None]]]:
    """The tables of rows with the places of categories in the place of their values, and the
    columns with all values of these; none where no column is of categories.
    """
    there = [(ROWS, rows)] if held_out is None else [(ROWS, rows), (HELD_OUT, held_out)]
    tables = [_table(part, name) for name, part in there]
    names = tables[0].column_names
    found = _categories(tables, section)
    coded = []
    for (place, part), table in zip(there, tables, strict=True):
        for name in [name for name in found if name in table.column_names]:
            codes = encoded(_one(table, name), found[name], Column(place, name, place, 0))
            table = table.set_column(table.column_names.index(name), name, codes)
        coded.append((table, part[1]) if isinstance(part, tuple) else table)
    columns = [(name, found.get(name)) for name in names] if found else []
    return coded[0], coded[1] if held_out is not None else None, columns


def _categories(tables: Sequence[pa.Table], section: RowsData) -> dict[str, Labels]:
    """The values of the columns of categories, of all tables; of a trained run its own. Raises
    `ConfigError` where columns that are asked for are not there, or they are not those of the run.
    """
    asked, names = section.categorical, tables[0].column_names
    recorded = section.recorded.get("categories")
    if recorded is not None:
        learned = [name for name, _ in recorded]
        if learned != names:
            remedy = f"the run learned from {', '.join(learned)}; give these, in this order"
            raise ConfigError(ROWS, ", ".join(names), remedy)
        return {name: values for name, values in recorded if values is not None}
    unknown = [] if asked == "auto" else [name for name in asked if name not in names]
    if unknown:
        raise ConfigError("data.categorical", unknown, f"there are only {', '.join(names)}")
    found = {}
    for name in names if asked == "auto" else asked:
        column = Categories(name, ROWS, asked != "auto")
        for table in tables:
            if name in table.column_names:
                column.add(_one(table, name))
        if (values := column.values()) is not None:
            found[name] = values
    return found


def _table(part: Any, name: str) -> pa.Table:
    """Rows, or those of a pair of rows and contexts, as an Arrow table. Raises `ConfigError`."""
    table = as_arrow(part[0] if isinstance(part, tuple) and len(part) == 2 else part, name)
    if not isinstance(table, pa.Table):
        remedy = "data.categorical is about columns; give a frame or an Arrow table"
        raise ConfigError(name, type(part).__name__, remedy)
    return table


def _one(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name).combine_chunks()
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column


def _shapes(rows: np.ndarray, context: np.ndarray | None) -> tuple[list[int], list[int] | None]:
    return list(rows.shape[1:]), None if context is None else list(context.shape[1:])


def rows(config: RowsData) -> DataSet:
    """The data set of the rows that the configuration carries, split as those of a file are where
    none are given to be kept out. Raises `ConfigError` where it carries none, they are of another
    shape, or no training row is left, and `DataError` where values are none of the levels.
    """
    given: GivenRows | None = config._rows
    if given is None:
        what = "its rows are" if config.given is None else f"its rows ({config.given}) were"
        remedy = f"{what} given in code: pipeline.train.run(config, rows=...); of files use columns"
        raise ConfigError("data", config.name, remedy)
    for part, name in ((given.rows, ROWS), (given.held_out, HELD_OUT)):
        if part is not None and config.discrete_levels is not None:
            _check_levels(part, config.discrete_levels, config.encoding, name)
    shape = config.shape or given.rows.shape[1:]
    if math.prod(shape) != math.prod(given.rows.shape[1:]):
        remedy = f"a row has {math.prod(given.rows.shape[1:])} numbers, not {math.prod(shape)}"
        raise ConfigError("data.shape", list(shape), remedy)
    if config.missing == "impute" and given.context is not None:
        remedy = "no energy that holes are filled by takes contexts; give rows alone"
        raise ConfigError("data.missing", config.missing, remedy)
    given = given.counting()
    (train, held_out), weights = _apart(config, given)
    names = [name for name, _ in given.columns]
    numeric = np.array([values is None for _, values in given.columns]) if names else True
    scale = scale_for(config.scale, config.recorded, train, held_out, weights[0], numeric)
    holes = train.isnan()
    missing = holes.view(-1, *shape) if bool(holes.any()) else None
    numbers = list(map(str, range(train.shape[1])))
    if missing is not None:
        train = filled(train, names or numbers, ROWS, config.split_seed, weights[0])
    if scale is not None:
        train, held_out = scale.scaled(train), scale.scaled(held_out)
    both = train.view(-1, *shape), held_out.view(-1, *shape)
    loaded = in_memory(*both, config.noise, None, _contexts_apart(config, given), weights)
    told = names or [f"number {number} of a row" for number in numbers]
    constant = [told[number] for number in constant_columns(train)]
    return loaded._replace(scale=scale, constant=constant, columns=given.columns, missing=missing)


def _apart(
    config: RowsData, given: GivenRows
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor | None, Tensor | None]]:
    """Training and held-out rows, flat, `[N, d]` and `[H, d]`, and the weights of both."""
    rows, weights = given.rows.reshape(len(given.rows), -1), given.weights
    if given.held_out is not None:
        held_out, of_both = given.held_out, (weights, given.held_out_weights)
        both = torch.tensor(rows), torch.tensor(held_out.reshape(len(held_out), -1))
        of_train, of_kept = (None if each is None else torch.tensor(each) for each in of_both)
        return both, (of_train, of_kept)
    deal = split_whole if config.missing == "impute" else split
    if weights is None:
        return deal(rows, config.held_out, config.split_seed), (None, None)
    there = np.concatenate([rows, weights[:, None].astype(np.float32)], 1)
    both = deal(there, config.held_out, config.split_seed)
    train, kept = (part[:, -1].double() for part in both)
    return (both[0][:, :-1].contiguous(), both[1][:, :-1].contiguous()), (train, kept)


def _contexts_apart(config: RowsData, given: GivenRows) -> tuple[Tensor, Tensor] | None:
    """The contexts of training and of held-out rows, where they have some."""
    if given.context is None:
        return None
    if given.held_out_context is None:
        return split(given.context, config.held_out, config.split_seed)
    return torch.tensor(given.context), torch.tensor(given.held_out_context)


def _pair(value: Any, name: str, holes: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """The rows and contexts of `value`, which is rows or a pair of both."""
    value = unpaired(value, name)
    pair = isinstance(value, tuple) and len(value) == 2
    found = array_of(value[0] if pair else value, name, holes)
    if found.ndim < 2 or not math.prod(found.shape[1:]):
        remedy = "rows [N, *shape] are wanted, of one number each [N, 1]"
        raise ConfigError(name, f"shape {list(found.shape)}", remedy)
    if not len(found):
        raise ConfigError(name, "no rows", "give one or more")
    if not pair:
        return found, None
    context = array_of(value[1], f"{name}[1]")
    if len(context) != len(found):
        remedy = f"there are {len(found)} rows; give each its context"
        raise ConfigError(f"{name}[1]", f"{len(context)} contexts", remedy)
    return found, context


def _check_levels(values: np.ndarray, levels: int, encoding: str, name: str) -> None:
    odd = np.argwhere(~np.isin(values, np.arange(levels)) & ~np.isnan(values))
    if len(odd):
        remedy = f"data.encoding={encoding} wants 0, ..., {levels - 1}; use real, or mend the value"
        if encoding == "categorical":
            remedy += f", or set data.levels (now {levels})"
        value = f"{values[tuple(odd[0])]:g} at {place_of(odd[0].tolist())}"
        raise DataError(name, value, remedy)
