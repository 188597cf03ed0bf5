"""CSV files, gzipped or not: a line of names, then rows; none is ever held whole."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from pipeline.common.errors import DataError
from pipeline.storage.files import Place

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
BLOCK = 4 << 20
"""Bytes of text that are parsed at once."""


class CSV:
    """An open CSV file, or a TSV file by its name: one unit.

    Columns to learn from are numbers, contexts are text. An empty cell, NA, NaN or null is a
    missing value. Raises `DataError` where the first line holds no names, or a cell no number.
    """

    def __init__(self, file: Any, at: Place) -> None:
        self._file, self._at = file, at
        self._delimiter = "\t" if ".tsv" in at.path[-7:] else ","
        head, _ = next(self._blocks(), (b"", b""))
        if not head.strip():
            raise DataError("data.path", at, "is empty")
        self.names: list[str] = list(self._parsed(head, None, None, 0).column_names)
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
        return [sum(len(batch) for _, batch in self._tables([first], pa.string()))]

    def batches(
        self,
        unit: int,  # noqa: ARG002
        columns: Sequence[str],
        context: Sequence[str],
        size: int,
    ) -> Iterator[pa.RecordBatch]:
        """Yields all rows, about `size` at a time."""
        for first, table in self._tables([*columns, *context], pa.string()):
            numbers = {name: self._numbers(table, name, first) for name in columns}
            batch = pa.record_batch(numbers | {name: _one(table, name) for name in context})
            yield from (batch.slice(start, size) for start in range(0, len(batch), size))

    def _numbers(self, table: pa.Table, name: str, first: int) -> pa.Array:
        """Returns a column of text as numbers; the table begins at row `first`."""
        column = pc.utf8_trim_whitespace(_one(table, name))
        try:
            return pc.cast(column, pa.float64())
        except pa.ArrowInvalid as error:
            cells = column.to_pylist()
            row = next(i for i, cell in enumerate(cells) if cell is not None and not _cast(cell))
            raise DataError(
                "data.path",
                self._at,
                f"column {name}, row {first + row} of {self._at}: {cells[row][:40]!r} is no number;"
                " mend it, leave the row out, or name the columns to learn from, without this one,"
                " in data.columns=[..]; of words data.categorical=auto makes categories",
            ) from error

    def _tables(self, names: Sequence[str], kind: pa.DataType) -> Iterator[tuple[int, pa.Table]]:
        """Yields the columns block by block, each with the number of its first row."""
        first = 0
        for _, block in self._blocks():
            if block.strip(b"\r\n") or len(self.names) == 1:
                table = self._parsed(block, names, kind, first)
                yield first, table
                first += len(table)

    def _blocks(self) -> Iterator[tuple[bytes, bytes]]:
        """Yields the text in blocks of whole rows, the line of names apart, in the first of them.

        Arrow could read the file by itself, but in threads of its own, which call this process's
        Python, and abort it where they are still at it when it ends.
        """
        self._file.seek(0)
        zipped = self._file.read(2) == b"\x1f\x8b"
        self._file.seek(0)
        file = gzip.GzipFile(fileobj=self._file) if zipped else self._file
        head, rest, started = b"", b"", False
        while True:
            piece = file.read(BLOCK)
            rest += piece
            if not started:
                rest = rest.lstrip(b"\r\n")
                end = _ends(rest)
                if not len(end) and piece:
                    continue
                cut = int(end[0]) if len(end) else len(rest)
                head, rest, started = rest[:cut], rest[cut:], True
            ends = _ends(rest) if piece else np.array([len(rest)])
            if len(ends):
                yield head, rest[: int(ends[-1])]
                head, rest = b"", rest[int(ends[-1]) :]
            if not piece:
                return

    def _parsed(
        self, text: bytes, names: Sequence[str] | None, kind: pa.DataType | None, first: int
    ) -> pa.Table:
        """Parses rows from number `first` on; without `names` text is the line of names."""
        if not text:
            return pa.table({name: pa.array([], kind) for name in names or ()})
        odd: list[csv.InvalidRow] = []

        def refuse(row: csv.InvalidRow) -> str:
            odd.append(row)
            return "error"

        header = names is None
        try:
            return csv.read_csv(
                pa.BufferReader(text),
                csv.ReadOptions(
                    use_threads=False,
                    block_size=len(text) + 1,
                    column_names=None if header else self.names,
                ),
                csv.ParseOptions(
                    delimiter=self._delimiter,
                    newlines_in_values=True,
                    # of a single column an empty cell is an empty line
                    ignore_empty_lines=header or len(self.names) > 1,
                    invalid_row_handler=refuse,
                ),
                csv.ConvertOptions(
                    include_columns=list(names or ()),
                    column_types=dict.fromkeys(names or (), kind),
                    strings_can_be_null=True,
                ),
            )
        except pa.ArrowInvalid as error:
            if not odd:
                raise
            row = odd[0]
            number = "a row" if row.number is None else f"row {first + row.number - 1}"
            raise DataError(
                "data.path",
                self._at,
                f"{number} has {row.actual_columns} cells, and the first line names"
                f" {row.expected_columns} columns; mend it, or put text with commas in quotes",
            ) from error


def _one(table: pa.Table, name: str) -> pa.Array:
    """Returns a column as one array."""
    column = table.column(name).combine_chunks()
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column


def _ends(text: bytes) -> np.ndarray:
    """Returns where rows end, behind their line breaks: those with an even number of quotes before
    them, for within a quoted cell it is odd.
    """
    letters = np.frombuffer(text, np.uint8)
    breaks = np.flatnonzero(letters == ord("\n"))
    quotes = np.flatnonzero(letters == ord('"'))
    found: np.ndarray = breaks[np.searchsorted(quotes, breaks) % 2 == 0] + 1
    return found


def _cast(text: str) -> bool:
    """Returns whether Arrow takes the text for a number."""
    try:
        pc.cast(pa.array([text]), pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
