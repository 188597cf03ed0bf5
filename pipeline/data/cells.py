"""Columns of Arrow tables as numbers: what is taken, and what is refused by its name and place.

Taken are integers, floats, booleans and decimals; lists of them, or of such lists, that are of one
length, whether their type says so or not; and tensors of one shape (Arrow's extension type).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.common.errors import ConfigError, DataError


class Column(NamedTuple):
    """The column called `name` of the file at `path`, which `key` of the configuration asks for,
    from the file's row number `first` on. Of the array at hand so many items are `each` row's.
    """

    key: str
    name: str
    path: str
    first: int
    each: int = 1

    def of(self, row: int) -> str:
        """Returns in words where item number `row` of the array at hand is."""
        return f"column {self.name}, row {self.first + row // self.each} of {self.path}"


def numbers(column: pa.Array, place: Column) -> np.ndarray:
    """Returns a column as `[rows, numbers]`, of whatever type of numbers it holds.

    Raises `DataError` where a value is missing, or lists are of several lengths, and `ConfigError`
    where the column holds no numbers.
    """
    _check_present(column, place)
    if isinstance(column.type, pa.FixedShapeTensorType):
        _check_kind(column.type.value_type, column, place)
        _check_within(column.storage, column.type.storage_type.list_size, place)
        tensors = column.to_numpy_ndarray()
        return tensors.reshape(len(column), -1)
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    if not _is_list(column.type):
        _check_kind(column.type, column, place)
        return _plain(column).reshape(len(column), 1)
    if _is_list(column.type.value_type):
        size = _one_length(column, place)
        within = numbers(column.flatten(), place._replace(each=place.each * size))
        return within.reshape(len(column), -1)
    _check_kind(column.type.value_type, column, place)
    size = _one_length(column, place)
    _check_within(column, size, place)
    return _plain(column.flatten()).reshape(len(column), size)


def tensor_shape(kind: pa.DataType) -> tuple[int, ...] | None:
    """Returns the shape of a column of tensors, as a reader sees them; None for other columns."""
    if not isinstance(kind, pa.FixedShapeTensorType):
        return None
    order = kind.permutation or range(len(kind.shape))
    return tuple(kind.shape[axis] for axis in order)


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    )


def _plain(values: pa.Array) -> np.ndarray:
    """Returns values without nulls as a NumPy array."""
    if pa.types.is_decimal(values.type):
        values = pc.cast(values, pa.float64())
    array: np.ndarray = values.to_numpy(zero_copy_only=False)
    return array


def _check_present(column: pa.Array, place: Column) -> None:
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise DataError(
            "data.path",
            place.path,
            f"{place.of(row)}: the value is missing ({column.null_count} missing in the"
            f" {len(column)} rows read); fill them in, or leave the rows out",
        )


def _check_kind(kind: pa.DataType, column: pa.Array, place: Column) -> None:
    """Raises `ConfigError` where values of `kind` are no numbers."""
    if (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    ):
        return
    example = f", row {place.first} is {str(column[0].as_py())[:40]!r}" if len(column) else ""
    remedy = (
        f"is of type {column.type} in {place.path}{example}; numbers, and lists of numbers of one"
        " length, can be used: "
    )
    if place.key == "data.context":
        remedy += "write labels as numbers 0, ..., K-1, or as text"
    else:
        remedy += "name the columns to learn from, without it, in data.columns=[..]"
    raise ConfigError(place.key, place.name, remedy)


def _one_length(column: pa.Array, place: Column) -> int:
    """Returns the length that all lists of a column have. Raises `DataError` where it differs."""
    if pa.types.is_fixed_size_list(column.type):
        size: int = column.type.list_size
        return size
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    if not len(lengths):
        return 0
    other = np.flatnonzero(lengths != lengths[0])
    if len(other):
        raise DataError(
            "data.path",
            place.path,
            f"{place.of(int(other[0]))}: a list of {lengths[other[0]]} numbers, but row"
            f" {place.first} has one of {lengths[0]}; lists must be of one length: pad or cut them",
        )
    return int(lengths[0])


def _check_within(lists: pa.Array, size: int, place: Column) -> None:
    """Raises `DataError` where a value within a list is missing."""
    values = lists.flatten()
    if values.null_count:
        at = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
        raise DataError(
            "data.path",
            place.path,
            f"{place.of(at // size)}: number {at % size} of its list is missing; fill it in, or"
            " leave the row out",
        )


def checked(values: np.ndarray, place: Column) -> np.ndarray:
    """Returns values `[rows, numbers]` as float32. Raises `DataError` for the first that is not
    finite there.
    """
    with np.errstate(over="ignore"):
        rows: np.ndarray = values.astype(np.float32)
    if not np.isfinite(rows).all():
        row, number = (int(index) for index in np.argwhere(~np.isfinite(rows))[0])
        raise DataError(
            "data.path",
            place.path,
            f"{place.of(row)}: {_shown(values[row, number])} is not finite in 32 bits; mend it, or"
            " leave the row out",
        )
    return rows


def check_levels(rows: np.ndarray, levels: int, encoding: str, place: Column) -> None:
    """Raises `DataError` for the first of the values `[rows, numbers]` that is no level 0, ...,
    `levels` - 1 of data.encoding=`encoding`.
    """
    wrong = ~np.isin(rows, np.arange(levels))
    if not wrong.any():
        return
    row, number = (int(index) for index in np.argwhere(wrong)[0])
    value = _shown(rows[row, number])
    where = f"{place.of(row)} holds {value}, and values must be 0, ..., {levels - 1}"
    key: str
    given: object
    whole = bool((rows == np.floor(rows)).all()) and rows.min() >= 0
    if not whole:
        key, given, remedy = "data.encoding", encoding, "use encoding=real, or mend the values"
    elif encoding == "binary":
        key, given = "data.encoding", encoding
        remedy = "use encoding=categorical with data.levels=.., or mend the values"
    elif rows.min() == 1 and rows.max() == levels:
        key, given, remedy = "data.levels", levels, "they begin at 1 there: subtract 1 from each"
    else:
        key, given = "data.levels", levels
        remedy = f"use data.levels={int(rows.max()) + 1} or more, or mend the values"
    raise DataError(key, given, f"{where}; {remedy}")


def _shown(value: Any) -> str:
    return f"{value.item():g}"
