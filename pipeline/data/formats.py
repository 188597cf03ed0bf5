"""The formats of data files: Parquet, Arrow, HDF5, CSV, .npy and .npz, each as units of record
batches.

A *unit* is a row group of a Parquet file, a record batch of an Arrow file, a number of rows of an
HDF5 file, or a whole CSV or NumPy file or Arrow stream. What Arrow has to say against a file is
raised as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.common.errors import DataError
from pipeline.data.comma_separated import CSV, SUFFIXES
from pipeline.data.hdf5_files import HDF5
from pipeline.data.hdf5_files import MAGIC as HDF5_MAGIC
from pipeline.data.numpy_files import MAGIC, NPY, NPZ
from pipeline.storage.files import Place

READ = 1 << 20
"""About how many encoded bytes of a column are read at once."""


class Format(Protocol):
    """An open file of one format, at `at` in messages. `columns` are those to learn from, none for
    all but the `context`.
    """

    names: list[str]
    """The names of its columns, in order."""

    def __init__(self, file: Any, at: Place) -> None: ...

    def rows(self, columns: Sequence[str], context: Sequence[str]) -> list[int]:
        """Returns the number of rows of each unit."""
        ...

    def batches(
        self, unit: int, columns: Sequence[str], context: Sequence[str], size: int
    ) -> Iterator[pa.RecordBatch]:
        """Yields unit number `unit` in order, about `size` rows at a time; with the columns of
        these names, and perhaps others.
        """
        ...


class Parquet:
    """An open Parquet file."""

    def __init__(self, file: Any, at: Place) -> None:  # noqa: ARG002
        # a large column is not read whole
        self._file = pq.ParquetFile(file, buffer_size=READ, pre_buffer=False)
        self.names: list[str] = list(self._file.schema_arrow.names)

    def rows(self, columns: Sequence[str], context: Sequence[str]) -> list[int]:  # noqa: ARG002
        """Returns the number of rows of each row group."""
        groups = self._file.metadata
        return [groups.row_group(number).num_rows for number in range(groups.num_row_groups)]

    def batches(
        self, unit: int, columns: Sequence[str], context: Sequence[str], size: int
    ) -> Iterator[pa.RecordBatch]:
        """Yields a row group, `size` rows at a time."""
        # no threads take the processors of other actors
        names = [*columns, *context]
        yield from self._file.iter_batches(size, [unit], names, use_threads=False)


class Arrow:
    """An open Arrow file."""

    def __init__(self, file: Any, at: Place) -> None:  # noqa: ARG002
        self._file = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(use_threads=False))
        self.names: list[str] = list(self._file.schema.names)

    def rows(self, columns: Sequence[str], context: Sequence[str]) -> list[int]:  # noqa: ARG002
        """Returns the number of rows of each record batch."""
        batches = range(self._file.num_record_batches)
        return [self._file.get_batch(number).num_rows for number in batches]

    def batches(
        self,
        unit: int,
        columns: Sequence[str],  # noqa: ARG002
        context: Sequence[str],  # noqa: ARG002
        size: int,
    ) -> Iterator[pa.RecordBatch]:
        """Yields a record batch, `size` rows at a time."""
        batch = self._file.get_batch(unit)
        yield from (batch.slice(start, size) for start in range(0, len(batch), size))


class ArrowStream:
    """An open Arrow stream, which has no list of its batches: one unit."""

    def __init__(self, file: Any, at: Place) -> None:  # noqa: ARG002
        self._file = file
        self.names: list[str] = list(self._open().schema.names)

    def rows(self, columns: Sequence[str], context: Sequence[str]) -> list[int]:  # noqa: ARG002
        """Returns the number of rows, for which the stream is read through."""
        return [sum(map(len, self._open()))]

    def batches(
        self,
        unit: int,  # noqa: ARG002
        columns: Sequence[str],  # noqa: ARG002
        context: Sequence[str],  # noqa: ARG002
        size: int,
    ) -> Iterator[pa.RecordBatch]:
        """Yields all rows, at most `size` at a time."""
        for batch in self._open():
            yield from (batch.slice(start, size) for start in range(0, len(batch), size))

    def _open(self) -> Any:
        self._file.seek(0)
        return pa.ipc.open_stream(self._file, options=pa.ipc.IpcReadOptions(use_threads=False))


def format_of(file: Any, at: Place) -> type[Format]:
    """Returns the format of an open file: CSV by its name, the others by their first bytes,
    whatever their names. Raises `DataError` where it is none of them.
    """
    magic = file.read(6)
    file.seek(0)
    if magic[:4] == b"PAR1":
        return Parquet
    if magic == b"ARROW1":
        return Arrow
    if magic[:4] == b"\xff\xff\xff\xff":
        return ArrowStream
    if magic == MAGIC:
        return NPY
    if magic == HDF5_MAGIC:
        return HDF5
    if magic[:4] == b"PK\x03\x04" and at.path.endswith(".npz"):
        return NPZ
    if at.path.endswith(SUFFIXES):
        return CSV
    remedy = (
        f"neither a Parquet nor an Arrow file (it begins with {magic!r}), nor HDF5 or NumPy's;"
        " names of CSV files end in .csv, .tsv or one of these and .gz"
    )
    raise DataError("data.path", at, remedy)
