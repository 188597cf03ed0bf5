"""CSV files, gzipped or not: a line of names, then rows; parts of one are never held whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from pipeline.common.errors import DataError
from pipeline.storage.files import Place

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
BLOCK = 8 << 20
"""Bytes of text that are parsed at once; a line has to fit."""


class CSV:
    """An open CSV file, or a TSV file by its name: one unit.

    Columns to learn from are numbers, contexts are text. An empty cell, NA, NaN or null is a
    missing value. Raises `DataError` where the first line holds no names, or a cell no number.
    """

    def __init__(self, file: Any, at: Place) -> None:
        self._file, self._at = file, at
        self._delimiter = "\t" if ".tsv" in at.path[-7:] else ","
        self.names: list[str] = list(self._reader().schema.names)
        if all(_is_number(name) for name in self.names):
            raise DataError("data.path", at, "its first line must hold the columns' names")
        other = next((sign for sign in ";\t|" if sign in self.names[0]), None)
        if len(self.names) == 1 and other is not None:
            raise DataError(
                "data.path", at, f"its columns seem to be separated by {other!r}; write commas"
            )

    def rows(self, columns: Sequence[str], context: Sequence[str]) -> list[int]:  # noqa: ARG002
        """Returns the number of rows, for which the file is read through."""
        first = self.names[0]
        return [sum(len(batch) for batch in self._reader([first], {first: pa.string()}))]

    def batches(
        self,
        unit: int,  # noqa: ARG002
        columns: Sequence[str],
        context: Sequence[str],
        size: int,
    ) -> Iterator[pa.RecordBatch]:
        """Yields all rows, about `size` at a time."""
        types = dict.fromkeys(columns, pa.float64()) | dict.fromkeys(context, pa.string())
        try:
            for batch in self._reader(list(types), types):
                yield from (batch.slice(start, size) for start in range(0, len(batch), size))
        except pa.ArrowInvalid:
            self._find_text(columns)
            raise

    def _reader(
        self, names: Sequence[str] = (), types: dict[str, pa.DataType] | None = None
    ) -> csv.CSVStreamingReader:
        self._file.seek(0)
        zipped = self._file.read(2) == b"\x1f\x8b"
        self._file.seek(0)
        alone = bool(types) and len(self.names) == 1
        return csv.open_csv(
            pa.CompressedInputStream(pa.PythonFile(self._file, "r"), "gzip")
            if zipped
            else self._file,
            csv.ReadOptions(use_threads=False, block_size=BLOCK),
            csv.ParseOptions(
                delimiter=self._delimiter,
                newlines_in_values=True,
                ignore_empty_lines=not alone,  # of a single column an empty cell is an empty line
            ),
            csv.ConvertOptions(
                include_columns=list(names), column_types=types, strings_can_be_null=True
            ),
        )

    def _find_text(self, columns: Sequence[str]) -> None:
        """Raises `DataError` for the first cell of the columns that holds no number."""
        first = 0
        for batch in self._reader(columns, dict.fromkeys(columns, pa.string())):
            found = [(row, name) for name in columns if (row := _text(batch.column(name))) >= 0]
            if found:
                row, name = min(found, key=lambda pair: pair[0])
                cell = batch.column(name)[row].as_py()
                raise DataError(
                    "data.path",
                    self._at,
                    f"column {name}, row {first + row} of {self._at}: {cell[:40]!r} is no number;"
                    " mend it, leave the row out, or name the columns to learn from, without this"
                    " one, in data.columns=[..]",
                )
            first += len(batch)


def _text(column: pa.Array) -> int:
    """Returns the number of the first cell that holds no number; -1 where all do."""
    try:
        pc.cast(pc.utf8_trim_whitespace(column), pa.float64())
    except pa.ArrowInvalid:
        return int(
            np.argmax([cell is not None and not _is_number(cell) for cell in column.to_pylist()])
        )
    return -1


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
