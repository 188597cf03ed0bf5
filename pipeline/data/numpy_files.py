"""NumPy's files: .npy, an array of rows, and .npz, an archive of such arrays by key.

Arrays are read a few rows at a time, none of them whole, but for those in Fortran's order.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.common.errors import DataError
from pipeline.data.arrays import column, rows_of
from pipeline.storage.files import Place

MAGIC = b"\x93NUMPY"
ARRAY = "array"
"""The name of the single column of a .npy file."""


class _Array:
    """The array that begins at the stream's position, read in order: `rows` of `shape`.

    Raises `DataError` where it is none of rows of numbers or text.
    """

    def __init__(self, stream: Any, name: str, at: Place) -> None:
        self._stream, self._at = stream, at
        self.name = name
        try:
            version = np.lib.format.read_magic(stream)
            header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, self._fortran, self._type = header(stream)
        except (ValueError, EOFError) as error:
            raise DataError("data.path", at, f"{name}: cannot be read ({error})") from error
        if self._type.kind not in "biufU":
            remedy = f"{name}: holds values of type {self._type}; numbers are wanted"
            if self._type.hasobject:
                remedy += ", saved as an array of a type of numbers"
            raise DataError("data.path", at, remedy)
        if not shape:
            raise DataError("data.path", at, f"{name}: is a single number; rows are wanted")
        self.rows, self.shape = shape[0], tuple(shape[1:])

    def pieces(self, size: int) -> Iterator[pa.Array]:
        """Yields `size` rows at a time."""
        numbers = int(np.prod(self.shape, dtype=np.int64))
        if self._fortran and self.shape:
            whole = self._taken(self.rows * numbers).reshape((*self.shape[::-1], self.rows)).T
        for first in range(0, self.rows, size):
            count = min(size, self.rows - first)
            if self._fortran and self.shape:
                values = whole[first : first + count]
            else:
                values = self._taken(count * numbers).reshape(count, *self.shape)
            yield column(np.ascontiguousarray(values))

    def _taken(self, count: int) -> np.ndarray:
        length = count * self._type.itemsize
        content = bytearray()
        while len(content) < length and (piece := self._stream.read(length - len(content))):
            content += piece
        if len(content) < length:
            raise DataError(
                "data.path", self._at, f"{self.name}: cut short; its header says {self.rows} rows"
            )
        values = np.frombuffer(bytes(content), self._type)
        return values.astype(self._type.newbyteorder("="))


class NPY:
    """An open .npy file of an array `[N, *shape]`, as one column called `ARRAY`: one unit."""

    def __init__(self, file: Any, at: Place) -> None:
        self._file, self._at = file, at
        self.names = [ARRAY]

    def rows(self, columns: Sequence[str], context: Sequence[str]) -> list[int]:  # noqa: ARG002
        """Returns the number of rows."""
        return [self._open().rows]

    def batches(
        self,
        unit: int,  # noqa: ARG002
        columns: Sequence[str],  # noqa: ARG002
        context: Sequence[str],  # noqa: ARG002
        size: int,
    ) -> Iterator[pa.RecordBatch]:
        """Yields all rows, `size` at a time."""
        for piece in self._open().pieces(size):
            yield pa.record_batch({ARRAY: piece})

    def _open(self) -> _Array:
        self._file.seek(0)
        return _Array(self._file, ARRAY, self._at)


class NPZ:
    """An open .npz file, its arrays as columns that are called by their keys: one unit."""

    def __init__(self, file: Any, at: Place) -> None:
        self._archive, self._at = zipfile.ZipFile(file), at
        members = self._archive.namelist()
        self.names = [name.removesuffix(".npy") for name in members if name.endswith(".npy")]

    def rows(self, columns: Sequence[str], context: Sequence[str]) -> list[int]:
        """Returns the number of rows of the arrays that are asked for. Raises `DataError` where
        they have not equally many, or several are there and none is asked for.
        """
        with ExitStack() as stack:
            count = rows_of(
                self.names, columns, context, lambda name: self._open(name, stack).rows, self._at
            )
        return [1 if count is None else count]

    def batches(
        self,
        unit: int,  # noqa: ARG002
        columns: Sequence[str],
        context: Sequence[str],
        size: int,
    ) -> Iterator[pa.RecordBatch]:
        """Yields all rows, `size` at a time."""
        names = [*columns, *context]
        with ExitStack() as stack:
            arrays = [self._open(name, stack) for name in names]
            for pieces in zip(*(array.pieces(size) for array in arrays), strict=True):
                yield pa.record_batch(dict(zip(names, pieces, strict=True)))

    def _open(self, name: str, stack: ExitStack) -> _Array:
        return _Array(stack.enter_context(self._archive.open(f"{name}.npy")), name, self._at)
