"""HDF5 files, by h5py: each data set is a column, `group/name` where it is in a group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.common.errors import ConfigError, DataError
from pipeline.data.arrays import column, rows_of
from pipeline.storage.files import Place

MAGIC = b"\x89HDF\r\n"
SUFFIXES = (".h5", ".hdf5")
UNIT = 32 << 20
"""About how many bytes of its largest data set a unit has."""


class HDF5:
    """An open HDF5 file: units of as many rows, of whole chunks where data sets have some.

    Raises `ConfigError` where h5py is not there, `DataError` for a data set that is none of rows of
    numbers or text.
    """

    def __init__(self, file: Any, at: Place) -> None:
        try:
            import h5py
        except ImportError as error:
            remedy = "HDF5 files are read by h5py: pip install 'ebm-pipeline[hdf5]'"
            raise ConfigError("data.path", at, remedy) from error
        self._at, self._file = at, h5py.File(file, "r")
        self._sets: dict[str, Any] = {}

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                self._sets[name] = item

        self._file.visititems(visit)
        self.names = list(self._sets)
        if not self.names:
            raise DataError("data.path", at, "holds no data set")

    def rows(self, columns: Sequence[str], context: Sequence[str]) -> list[int]:
        """Returns the number of rows of each unit. Raises `DataError` where the data sets that are
        asked for have not equally many, or several are there and none is asked for.
        """
        total = rows_of(self.names, columns, context, self._count, self._at)
        if total is None:  # its names are checked when it is read
            return [1]
        size = self._unit
        return [min(size, total - first) for first in range(0, total, size)]

    def batches(
        self, unit: int, columns: Sequence[str], context: Sequence[str], size: int
    ) -> Iterator[pa.RecordBatch]:
        """Yields a unit, `size` rows at a time."""
        names = [*columns, *context]
        last = min([(unit + 1) * self._unit, *map(self._count, names)])
        for first in range(unit * self._unit, last, size):
            rows = slice(first, min(first + size, last))
            yield pa.record_batch({name: column(self._read(name, rows)) for name in names})

    @property
    def _unit(self) -> int:
        """Rows of a unit, whichever data sets are asked for."""
        rows = [each for each in self._sets.values() if each.shape]
        widest = max(
            (each.dtype.itemsize * int(np.prod(each.shape[1:])) for each in rows), default=1
        )
        chunk = max((each.chunks[0] for each in rows if each.chunks), default=1)
        return int(max(1, UNIT // max(1, widest) // chunk) * chunk)

    def _count(self, name: str) -> int:
        """The rows of a data set."""
        found = self._sets[name]
        if not found.shape:
            raise DataError("data.path", self._at, f"{name}: is a single value; rows are wanted")
        if found.dtype.kind not in "biufS" and not self._is_text(name):
            remedy = f"{name}: holds values of type {found.dtype}; numbers are wanted"
            if found.dtype.names:
                remedy += ", each field as a data set of its own"
            raise DataError("data.path", self._at, remedy)
        return int(found.shape[0])

    def _is_text(self, name: str) -> bool:
        import h5py

        return h5py.check_string_dtype(self._sets[name].dtype) is not None

    def _read(self, name: str, rows: slice) -> np.ndarray:
        found = self._sets[name]
        values: np.ndarray = found.asstr()[rows] if self._is_text(name) else found[rows]
        return values.astype(values.dtype.newbyteorder("="), copy=False)
