"""Rows given in code, as one array: NumPy arrays, torch tensors and data sets, pandas and polars
frames, Arrow tables, sparse matrices of SciPy, nested lists.

No package is imported for the sake of an object that is not its own.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from pipeline.common.errors import ConfigError, DataError, RefusedError
from pipeline.config.data import RowsData
from pipeline.data.base import DataSet, in_memory, split
from pipeline.data.cells import IMPUTED, Column, checked, numbers, with_holes
from pipeline.data.holes import filled, split_whole
from pipeline.data.labels import Categories, Labels, encoded

ROWS, HELD_OUT = "rows", "held_out"
TAKEN = "give an array, a tensor, a torch Dataset, a frame, an Arrow table or a sparse matrix"


class GivenRows(NamedTuple):
    """Rows [N, ...] float32, and those kept out of training where they are given apart; each with
    its contexts, where they have them. `columns` are those of a table with categories
    (`DataSet.columns`).
    """

    rows: np.ndarray
    context: np.ndarray | None
    held_out: np.ndarray | None
    held_out_context: np.ndarray | None
    columns: Sequence[tuple[str, Labels | None]] = ()

    @property
    def kept_out(self) -> int | None:
        """The number of rows that are kept out; None where they are not given apart."""
        return None if self.held_out is None else len(self.held_out)

    def in_words(self) -> str:
        """Tells how many rows there are, of what shape, and a digest of all their values, which a
        run that resumes is held to.
        """
        found = hashlib.sha256()
        for part in (self.rows, self.context, self.held_out, self.held_out_context):
            found.update(b"none" if part is None else part.astype("<f4").tobytes())
            found.update(repr(None if part is None else part.shape).encode())
        if self.columns:
            found.update(repr(self.columns).encode())
        shape = list(self.rows.shape[1:])
        return f"{len(self.rows)} rows of {shape}, digest {found.hexdigest()[:16]}"


def given_rows(
    rows: Any,
    held_out: Any = None,
    categorical: Sequence[str] | Literal["auto"] = (),
    holes: bool = False,
) -> GivenRows:
    """Takes `rows`, [N, *shape] of any kind named above, or a pair (rows, contexts); so
    `held_out`, rows that are kept out of training.

    A data set of torch gives rows, or pairs of a row and its context. A frame's columns are numbers
    or lists of numbers, and those that are `categorical`, as data.categorical says it, anything
    else. With `holes` values of `rows` may be missing: they are NaN.

    Raises `ConfigError` where they are no rows of numbers of one length, `DataError` where a value
    is missing or not finite; both name its row and column.
    """
    columns: Sequence[tuple[str, Labels | None]] = ()
    if categorical:
        rows, held_out, columns = _coded(rows, held_out, categorical)
    train, context = _pair(rows, ROWS, holes)
    if columns and len(columns) != train.shape[1]:
        remedy = "each column of a table with categories is one number a row; leave lists out"
        raise ConfigError(ROWS, f"{len(columns)} columns of {train.shape[1]} numbers", remedy)
    if held_out is None:
        return GivenRows(train, context, None, None, columns)
    kept, of_kept = _pair(held_out, HELD_OUT)
    alike = _shapes(train, context), _shapes(kept, of_kept)
    if alike[0] != alike[1]:
        remedy = "must be of the shapes of the training rows, {}, and their contexts, {}"
        raise ConfigError(HELD_OUT, alike[1], remedy.format(*alike[0]))
    return GivenRows(train, context, kept, of_kept, columns)


def _coded(
    rows: Any, held_out: Any, categorical: Sequence[str] | Literal["auto"]
) -> tuple[Any, Any, Sequence[tuple[str, Labels | None]]]:
    """The tables of rows with the places of categories in the place of their values, and the
    columns with all values of these; none where no column is of categories.
    """
    there = [(ROWS, rows)] if held_out is None else [(ROWS, rows), (HELD_OUT, held_out)]
    tables = [_table(part, name) for name, part in there]
    names = tables[0].column_names
    unknown = [] if categorical == "auto" else [name for name in categorical if name not in names]
    if unknown:
        raise ConfigError("data.categorical", unknown, f"there are only {', '.join(names)}")
    asked = names if categorical == "auto" else categorical
    found = {}
    for name in asked:
        column = Categories(name, ROWS, categorical != "auto")
        for table in tables:
            if name in table.column_names:
                column.add(_one(table, name))
        if (values := column.values()) is not None:
            found[name] = values
    coded = []
    for (place, part), table in zip(there, tables, strict=True):
        for name in [name for name in found if name in table.column_names]:
            codes = encoded(_one(table, name), found[name], Column(place, name, place, 0))
            table = table.set_column(table.column_names.index(name), name, codes)
        coded.append((table, part[1]) if isinstance(part, tuple) else table)
    columns = [(name, found.get(name)) for name in names] if found else []
    return coded[0], coded[1] if held_out is not None else None, columns


def _table(part: Any, name: str) -> pa.Table:
    """Rows, or those of a pair of rows and contexts, as an Arrow table. Raises `ConfigError`."""
    table = _as_arrow(part[0] if isinstance(part, tuple) and len(part) == 2 else part, name)
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
    if config.missing == "impute":
        return _with_holes(config, given, shape)
    parts = [_kept_apart(config, given.rows, given.held_out)]
    if given.context is not None:
        parts.append(_kept_apart(config, given.context, given.held_out_context))
    (train, held_out), *contexts = parts
    loaded = in_memory(
        train.view(-1, *shape),
        held_out.view(-1, *shape),
        config.noise,
        context=contexts[0] if contexts else None,
    )
    return loaded._replace(columns=given.columns)


def _with_holes(config: RowsData, given: GivenRows, shape: Sequence[int]) -> DataSet:
    """The data set of rows with holes, split as those of a file are. Raises `ConfigError` where
    they have contexts.
    """
    if given.context is not None:
        remedy = "no energy that holes are filled by takes contexts; give rows alone"
        raise ConfigError("data.missing", config.missing, remedy)
    if given.held_out is None:
        train, held_out = split_whole(given.rows, config.held_out, config.split_seed)
    else:
        train, held_out = torch.tensor(given.rows), torch.tensor(given.held_out)
    names = [name for name, _ in given.columns] or list(map(str, range(train[0].numel())))
    holes = train.isnan().view(-1, *shape)
    train = filled(train, names, ROWS, config.split_seed)
    loaded = in_memory(train.view(-1, *shape), held_out.view(-1, *shape), config.noise)
    return loaded._replace(columns=given.columns, missing=holes if bool(holes.any()) else None)


def _kept_apart(
    config: RowsData, values: np.ndarray, held_out: np.ndarray | None
) -> tuple[torch.Tensor, torch.Tensor]:
    if held_out is None:
        return split(values, config.held_out, config.split_seed)
    return torch.tensor(values), torch.tensor(held_out)


def _pair(value: Any, name: str, holes: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """The rows and contexts of `value`, which is rows or a pair of both."""
    if _of("torch", value, "utils.data.Dataset"):
        value = _of_dataset(value, name)
    pair = isinstance(value, tuple) and len(value) == 2
    found = _array(value[0] if pair else value, name, holes)
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


def _as_arrow(value: Any, name: str) -> Any:
    """A frame, a series or a record batch as Arrow has it; anything else as it is."""
    if _of("pandas", value, "DataFrame") or _of("pandas", value, "Series"):
        return _of_pandas(value, name)
    if _of("polars", value, "DataFrame") or _of("polars", value, "Series"):
        return value.to_arrow()
    return pa.Table.from_batches([value]) if isinstance(value, pa.RecordBatch) else value


def _array(value: Any, name: str, holes: bool = False) -> np.ndarray:
    """The numbers of `value` as float32, all of them finite, or with `holes` NaN."""
    value = _as_arrow(value, name)
    if isinstance(value, pa.Table):
        return _of_table(value, name, holes)
    if isinstance(value, pa.Array | pa.ChunkedArray):
        table = pa.table({"values": value})
        found = _of_table(table, name, holes)
        return found[:, 0] if found.shape[1] == 1 else found
    if _of("scipy", value, "sparse.spmatrix") or _of("scipy", value, "sparse.sparray"):
        value = value.toarray()
    return _finite(_as_numpy(value, name), name, holes)


def _of_pandas(value: Any, name: str) -> pa.Table | pa.Array:
    """A frame or a series as Arrow has it: NaN and NA are nulls there."""
    try:
        if value.ndim == 1:
            return pa.Array.from_pandas(value)
        return pa.Table.from_pandas(value, preserve_index=False)
    except (pa.ArrowException, ValueError, TypeError) as error:
        remedy = f"its columns must hold numbers, or lists of numbers of one length ({error})"
        raise ConfigError(name, type(value).__name__, remedy) from error


def _of_table(table: pa.Table, name: str, holes: bool) -> np.ndarray:
    """The columns of a table side by side, `[N, d]` float32."""
    found = []
    for number, column in enumerate(table.column_names):
        place = Column(name, column, name, 0)
        try:
            chunks = table.column(number).combine_chunks()
            found.append(
                with_holes(chunks, place) if holes else checked(numbers(chunks, place), place)
            )
        except RefusedError as error:
            remedy = error.remedy.partition(": name the columns to learn from")[0]
            if remedy != error.remedy:
                remedy += ": set data.categorical=auto, encode it, or leave it out"
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


def _finite(array: np.ndarray, name: str, holes: bool) -> np.ndarray:
    with np.errstate(over="ignore"):
        found: np.ndarray = np.array(array, dtype=np.float32, order="C")
    odd = np.argwhere(~np.isfinite(found) & ~(holes & np.isnan(array)))
    if len(odd):
        place = odd[0].tolist()
        value = array[tuple(odd[0])]
        remedy = "is missing; fill it in" if np.isnan(value) else "is not finite in 32 bits; mend"
        remedy += ", or leave the row out"
        remedy += IMPUTED if name == ROWS and np.isnan(value) else ""
        raise DataError(name, f"{value} at {_where(place)}", remedy)
    return found


def _check_levels(values: np.ndarray, levels: int, encoding: str, name: str) -> None:
    odd = np.argwhere(~np.isin(values, np.arange(levels)) & ~np.isnan(values))
    if len(odd):
        remedy = f"data.encoding={encoding} wants 0, ..., {levels - 1}; use real, or mend the value"
        if encoding == "categorical":
            remedy += f", or set data.levels (now {levels})"
        value = f"{values[tuple(odd[0])]:g} at {_where(odd[0].tolist())}"
        raise DataError(name, value, remedy)


def _where(place: list[int]) -> str:
    row, *column = place
    return f"row {row}" + (f", column {', '.join(map(str, column))}" if column else "")
