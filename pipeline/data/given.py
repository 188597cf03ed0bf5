"""Rows given in code, as one array: NumPy arrays, torch tensors and data sets, pandas and polars
frames, Arrow tables, sparse matrices of SciPy, nested lists.

No package is imported for the sake of an object that is not its own.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from pipeline.common.errors import ConfigError, DataError, RefusedError
from pipeline.config.data import RowsData
from pipeline.data.base import DataSet, in_memory, split
from pipeline.data.cells import Column, checked, numbers
from pipeline.data.row_weights import check_some, check_weights
from pipeline.data.scaling import constant_columns, scale_for

ROWS, HELD_OUT = "rows", "held_out"
WEIGHTS, HELD_OUT_WEIGHTS = "weights", "held_out_weights"
TAKEN = "give an array, a tensor, a torch Dataset, a frame, an Arrow table or a sparse matrix"


class GivenRows(NamedTuple):
    """Rows [N, ...] float32, and those kept out of training where they are given apart; each with
    its contexts and its weights [N], where they have them.
    """

    rows: np.ndarray
    context: np.ndarray | None
    held_out: np.ndarray | None
    held_out_context: np.ndarray | None
    weights: np.ndarray | None = None
    held_out_weights: np.ndarray | None = None

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
        parts = self if self.weights is not None or self.held_out_weights is not None else self[:4]
        for part in parts:
            found.update(b"none" if part is None else part.astype("<f4").tobytes())
            found.update(repr(None if part is None else part.shape).encode())
        shape = list(self.rows.shape[1:])
        return f"{len(self.rows)} rows of {shape}, digest {found.hexdigest()[:16]}"


def given_rows(
    rows: Any, held_out: Any = None, weights: Any = None, held_out_weights: Any = None
) -> GivenRows:
    """Takes `rows`, [N, *shape] of any kind named above, or a pair (rows, contexts); so
    `held_out`, rows that are kept out of training; and weights of each, [N] of any kind, 0 or more.

    A data set of torch gives rows, or pairs of a row and its context. A frame's columns are numbers
    or lists of numbers. Raises `ConfigError` where they are no rows of numbers of one length, or
    there are not as many weights, or all are 0; `DataError` where a value is missing or not finite,
    or a weight below 0. Both name the row and column.
    """
    train, context = _pair(rows, ROWS)
    counts = _weights(weights, len(train), WEIGHTS)
    if held_out is None:
        if held_out_weights is not None:
            remedy = "go with held_out=ROWS; rows that data.held_out keeps out have those of all"
            raise ConfigError(HELD_OUT_WEIGHTS, type(held_out_weights).__name__, remedy)
        return GivenRows(train, context, None, None, counts)
    kept, of_kept = _pair(held_out, HELD_OUT)
    alike = _shapes(train, context), _shapes(kept, of_kept)
    if alike[0] != alike[1]:
        remedy = "must be of the shapes of the training rows, {}, and their contexts, {}"
        raise ConfigError(HELD_OUT, alike[1], remedy.format(*alike[0]))
    of_counts = _weights(held_out_weights, len(kept), HELD_OUT_WEIGHTS)
    return GivenRows(train, context, kept, of_kept, counts, of_counts)


def _weights(value: Any, rows: int, name: str) -> np.ndarray | None:
    """The weights of so many rows, [N] float64."""
    if value is None:
        return None
    found = _array(value, name)
    if found.shape == (rows, 1):
        found = found[:, 0]
    if found.shape != (rows,):
        remedy = f"there are {rows} rows; give each one number, 0 or more"
        raise ConfigError(name, f"shape {list(found.shape)}", remedy)
    check_weights(found, name, type(value).__name__, lambda row: f"row {row}")
    check_some(found, name, f"{rows} of them")
    return found.astype(np.float64)


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
    given = given.counting()
    train, held_out = _kept_apart(config, given.rows, given.held_out)
    weights, context = _weights_apart(config, given), None
    if given.context is not None:
        context = _kept_apart(config, given.context, given.held_out_context)
    scale = scale_for(
        config.scale, config.recorded, train.flatten(1), held_out.flatten(1), weights[0]
    )
    if scale is not None:
        train, held_out = scale.scaled(train), scale.scaled(held_out)
    loaded = in_memory(
        train.view(-1, *shape), held_out.view(-1, *shape), config.noise, None, context, weights
    )
    constant = [f"number {number} of a row" for number in constant_columns(train)]
    return loaded._replace(scale=scale, constant=constant)


def _kept_apart(
    config: RowsData, values: np.ndarray, held_out: np.ndarray | None
) -> tuple[torch.Tensor, torch.Tensor]:
    if held_out is None:
        return split(values, config.held_out, config.split_seed)
    return torch.tensor(values), torch.tensor(held_out)


def _weights_apart(
    config: RowsData, given: GivenRows
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The weights of training and of held-out rows."""
    if given.held_out is None and given.weights is not None:
        train, held_out = split(given.weights, config.held_out, config.split_seed)
        return train.double(), held_out.double()
    of_both = (given.weights, given.held_out_weights)
    of_train, of_held_out = (None if each is None else torch.tensor(each) for each in of_both)
    return of_train, of_held_out


def _pair(value: Any, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The rows and contexts of `value`, which is rows or a pair of both."""
    if _of("torch", value, "utils.data.Dataset"):
        value = _of_dataset(value, name)
    pair = isinstance(value, tuple) and len(value) == 2
    found = _array(value[0] if pair else value, name)
    if found.ndim < 2 or not math.prod(found.shape[1:]):
        remedy = "rows [N, *shape] are wanted, of one number each [N, 1]"
        raise ConfigError(name, f"shape {list(found.shape)}", remedy)
    if not len(found):
        raise ConfigError(name, "no rows", "give one or more")
    if not pair:
        return found, None
    context = _array(value[1], f"{name}[1]")
    if len(context) != len(found):
        remedy = f"there are {len(found)} rows; give each its context"
        raise ConfigError(f"{name}[1]", f"{len(context)} contexts", remedy)
    return found, context


def _of(package: str, value: Any, path: str) -> bool:
    """Tells whether `value` is of the class at `path` in a package, which then is loaded."""
    found: Any = sys.modules.get(package)
    for part in path.split("."):
        found = getattr(found, part, None)
    return isinstance(found, type) and isinstance(value, found)


def _of_dataset(value: Any, name: str) -> Any:
    """The rows of a torch data set, or the pair of its rows and contexts."""
    counted = hasattr(value, "__len__")
    items = [value[i] for i in range(len(value))] if counted else list(value)
    if not items:
        raise ConfigError(name, "no rows", "the data set is empty; give one or more")
    if all(isinstance(item, tuple | list) and len(item) == 2 for item in items):
        return _stacked((x for x, _ in items), name), _stacked((y for _, y in items), f"{name}[1]")
    if all(isinstance(item, tuple | list) and len(item) == 1 for item in items):
        items = [item[0] for item in items]
    return _stacked(items, name)


def _stacked(items: Iterable[Any], name: str) -> np.ndarray:
    found = [_as_numpy(item, name) for item in items]
    for row, item in enumerate(found):
        if item.shape != found[0].shape:
            remedy = f"row 0 is of shape {list(found[0].shape)}; rows must be of one shape"
            raise ConfigError(name, f"row {row} of shape {list(item.shape)}", remedy)
    return np.stack(found)


def _array(value: Any, name: str) -> np.ndarray:
    """The numbers of `value` as float32, all of them finite."""
    if _of("pandas", value, "DataFrame") or _of("pandas", value, "Series"):
        value = _of_pandas(value, name)
    elif _of("polars", value, "DataFrame") or _of("polars", value, "Series"):
        value = value.to_arrow()
    if isinstance(value, pa.RecordBatch):
        value = pa.Table.from_batches([value])
    if isinstance(value, pa.Table):
        return _of_table(value, name)
    if isinstance(value, pa.Array | pa.ChunkedArray):
        table = pa.table({"values": value})
        found = _of_table(table, name)
        return found[:, 0] if found.shape[1] == 1 else found
    if _of("scipy", value, "sparse.spmatrix") or _of("scipy", value, "sparse.sparray"):
        value = value.toarray()
    return _finite(_as_numpy(value, name), name)


def _of_pandas(value: Any, name: str) -> pa.Table | pa.Array:
    """A frame or a series as Arrow has it: NaN and NA are nulls there."""
    try:
        if value.ndim == 1:
            return pa.Array.from_pandas(value)
        return pa.Table.from_pandas(value, preserve_index=False)
    except (pa.ArrowException, ValueError, TypeError) as error:
        remedy = f"its columns must hold numbers, or lists of numbers of one length ({error})"
        raise ConfigError(name, type(value).__name__, remedy) from error


def _of_table(table: pa.Table, name: str) -> np.ndarray:
    """The columns of a table side by side, `[N, d]` float32."""
    found = []
    for number, column in enumerate(table.column_names):
        place = Column(name, column, name, 0)
        try:
            chunks = table.column(number).combine_chunks()
            found.append(checked(numbers(chunks, place), place))
        except RefusedError as error:
            remedy = error.remedy.partition(": name the columns to learn from")[0]
            if remedy != error.remedy:
                remedy += ": encode it, or leave it out"
            value = "a table" if isinstance(error, DataError) else f"column {column}"
            raise type(error)(name, value, remedy) from error
    if not found:
        raise ConfigError(name, "no columns", "give a table with one or more")
    return np.concatenate(found, 1)


def _as_numpy(value: Any, name: str) -> np.ndarray:
    """An array of real numbers, of whatever type they are."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        if value.layout != torch.strided:
            value = value.to_dense()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if np.ma.is_masked(value):
        raise DataError(name, type(value).__name__, "has masked values; fill them in")
    try:
        array = np.asarray(value)
        if array.dtype.kind == "O":
            array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(name, *_no_numbers(value, error)) from error
    if array.dtype.kind not in "biuf":
        remedy = f"holds values of type {array.dtype}; numbers are wanted: {TAKEN}"
        raise ConfigError(name, type(value).__name__, remedy)
    return array


def _no_numbers(value: Any, error: Exception) -> tuple[str, str]:
    """Names the row of `value` that is of another length than the first, else says that they are no
    numbers.
    """
    if isinstance(value, list | tuple) and value and all(hasattr(row, "__len__") for row in value):
        for number, row in enumerate(value):
            if len(row) != len(value[0]):
                remedy = f"row 0 has {len(value[0])}; rows must be of one length: pad or cut them"
                return f"row {number} of {len(row)} numbers", remedy
    return type(value).__name__, f"holds what are no numbers ({error}); {TAKEN}"


def _finite(array: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        found: np.ndarray = np.array(array, dtype=np.float32, order="C")
    odd = np.argwhere(~np.isfinite(found))
    if len(odd):
        place = odd[0].tolist()
        value = array[tuple(odd[0])]
        remedy = "is missing; fill it in" if np.isnan(value) else "is not finite in 32 bits; mend"
        raise DataError(name, f"{value} at {_where(place)}", f"{remedy}, or leave the row out")
    return found


def _check_levels(values: np.ndarray, levels: int, encoding: str, name: str) -> None:
    odd = np.argwhere(~np.isin(values, np.arange(levels)))
    if len(odd):
        remedy = f"data.encoding={encoding} wants 0, ..., {levels - 1}; use real, or mend the value"
        if encoding == "categorical":
            remedy += f", or set data.levels (now {levels})"
        value = f"{values[tuple(odd[0])]:g} at {_where(odd[0].tolist())}"
        raise DataError(name, value, remedy)


def _where(place: list[int]) -> str:
    row, *column = place
    return f"row {row}" + (f", column {', '.join(map(str, column))}" if column else "")
