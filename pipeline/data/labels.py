"""Labels that are text, or begin at 1, as numbers 0, ..., K-1; contexts that a text file holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.common.errors import ConfigError, DataError
from pipeline.data.cells import Column

MOST = 10_000
Labels = list[Any]
"""The K labels of a column, in order: text, or 1, ..., K."""


def is_text(kind: pa.DataType) -> bool:
    """Returns whether a column of `kind` holds text, or categories of text."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def find_labels(
    name: str, pieces: Iterable[pa.Array], path: str, classes: int | None
) -> Labels | None:
    """Returns the labels of a context column, in sorted order: of text that is not all numbers; of
    numbers where an energy of so many `classes` needs 0, ..., K-1 and they are 1, ..., K. None
    where its values are taken as they are.

    Raises `ConfigError` for more than `MOST` labels.
    """
    found: set[Any] = set()
    text = False
    for piece in pieces:
        if not is_text(piece.type) and (classes is None or not _is_number(piece.type)):
            return None
        values = pc.drop_null(_plain(piece)).unique()
        if is_text(values.type) and not text:
            text = not _are_numbers(values)
        if len(found) <= MOST:
            found |= set(values.to_pylist())
        if text and len(found) > MOST:
            raise ConfigError(
                "data.context",
                name,
                f"holds more than {MOST:,} different texts in {path}; numbers, or labels, are"
                " wanted",
            )
    if text:
        return sorted(found)
    numbers = {float(value) for value in found}
    if classes is None or not numbers or (min(numbers), max(numbers)) != (1, classes):
        return None
    return list(range(1, classes + 1)) if all(x.is_integer() for x in numbers) else None


def encoded(column: pa.Array, labels: Labels | None, place: Column) -> pa.Array:
    """Returns a context column as numbers: the places of its values among the `labels`; without
    them text as the number it tells, and other columns as they are. Nulls stay.

    Raises `DataError` where a value is none of the labels.
    """
    if labels is None:
        if not is_text(column.type) or not _are_numbers(_plain(column)):
            return column
        return pc.cast(_plain(column), pa.float64())
    values = _plain(column)
    if not is_text(values.type):
        labels = [float(label) for label in labels]
        values = pc.cast(values, pa.float64())
    elif not isinstance(labels[0], str):
        return encoded(pc.cast(values, pa.float64()), labels, place)
    codes = pc.index_in(values, pa.array(labels, values.type))
    unknown = np.flatnonzero(pc.and_(codes.is_null(), values.is_valid()).to_numpy(False))
    if len(unknown):
        row = int(unknown[0])
        raise DataError(
            "data.path",
            place.path,
            f"{place.of(row)}: {values[row].as_py()!r} is none of the labels"
            f" {in_words(labels)}; mend it, or leave the row out",
        )
    return codes


def truths(column: pa.Array, place: Column) -> pa.Array:
    """Returns a column of text, which says false or true, 0 or 1, as numbers; other columns as they
    are. Nulls stay. Raises `DataError` where it says something else.
    """
    if not is_text(column.type):
        return column
    words = _plain(column)
    plain = pc.utf8_lower(pc.utf8_trim_whitespace(words))
    places = pc.index_in(plain, pa.array(["false", "true", "0", "1", "0.0", "1.0"], plain.type))
    unknown = np.flatnonzero(pc.and_(places.is_null(), words.is_valid()).to_numpy(False))
    if len(unknown):
        row = int(unknown[0])
        remedy = f"{place.of(row)}: {words[row].as_py()[:40]!r} is neither 0 nor 1"
        raise DataError("data.path", place.path, remedy)
    return pc.bit_wise_and(places, pa.scalar(1, places.type))


def in_words(labels: Sequence[Any]) -> str:
    """Returns the labels in words, the middle of many left out."""
    shown = [str(label) for label in labels]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:10], "...", shown[-1]])


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _are_numbers(values: pa.Array) -> bool:
    try:
        pc.cast(values, pa.float64())
    except pa.ArrowInvalid:
        return False
    return True
