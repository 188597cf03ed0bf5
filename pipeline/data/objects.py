"""Objects in hand as arrays of numbers: NumPy arrays, torch tensors and data sets, pandas and
polars frames, Arrow tables, sparse matrices of SciPy, nested lists.

No package is imported for the sake of an object that is not its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.common.errors import ConfigError, DataError, RefusedError
from pipeline.data.cells import IMPUTED, Column, checked, numbers, with_holes

ROWS, HELD_OUT = "rows", "held_out"
TAKEN = "give an array, a tensor, a torch Dataset, a frame, an Arrow table or a sparse matrix"


def _of(package: str, value: Any, path: str) -> bool:
    """Tells whether `value` is of the class at `path` in a package, which then is loaded."""
    found: Any = sys.modules.get(package)
    for part in path.split("."):
        found = getattr(found, part, None)
    return isinstance(found, type) and isinstance(value, found)


def unpaired(value: Any, name: str) -> Any:
    """Returns the rows of a torch data set, or the pair of its rows and contexts; anything else as
    it is. Raises `ConfigError` where there are none, or they are not of one shape.
    """
    if not _of("torch", value, "utils.data.Dataset"):
        return value
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


def as_arrow(value: Any, name: str) -> Any:
    """Returns a frame, a series or a record batch as Arrow has it; anything else as it is. Raises
    `ConfigError` where its columns hold what Arrow does not.
    """
    if _of("pandas", value, "DataFrame") or _of("pandas", value, "Series"):
        return _of_pandas(value, name)
    if _of("polars", value, "DataFrame") or _of("polars", value, "Series"):
        return value.to_arrow()
    return pa.Table.from_batches([value]) if isinstance(value, pa.RecordBatch) else value


def array_of(value: Any, name: str, holes: bool = False) -> np.ndarray:
    """Returns the numbers of `value` as float32, all of them finite, or with `holes` NaN. Raises
    `ConfigError` where they are no numbers, and `DataError` where one is missing or not finite.
    """
    value = as_arrow(value, name)
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
        raise DataError(name, f"{value} at {place_of(place)}", remedy)
    return found


def place_of(place: list[int]) -> str:
    """Tells the row, and the place in it, in words."""
    row, *column = place
    return f"row {row}" + (f", column {', '.join(map(str, column))}" if column else "")
