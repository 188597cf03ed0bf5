"""The rows of a run as far as a picture needs them, in memory."""

from __future__ import annotations

import sys
import threading

from pipeline.runs.recorders.series import thinned
from pipeline.storage.rows import Row, StoredRows

MOST = 500
"""Rows that are kept; of more every second, fourth and so on."""


class LiveRows:
    """Rows of the run under `output`, added by one thread and read by others.

    Those of its earlier processes are read from storage when they are first asked for.
    """

    def __init__(self, output: str) -> None:
        self._output = output
        self._lock = threading.Lock()
        self._rows: list[Row] = []
        self._stride, self._left_out = 1, 0
        self._earlier: list[Row] | None = None

    def add(self, row: Row) -> None:
        """Keeps `row`, which has a `step`, or leaves it out where others nearby are kept."""
        if self._left_out + 1 < self._stride:
            self._left_out += 1
            return
        # rows have the same names: one text for all of them
        kept = {sys.intern(name): value for name, value in row.items()}
        with self._lock:
            self._left_out = 0
            self._rows.append(kept)
            if len(self._rows) > MOST:
                self._rows, self._stride = self._rows[::2], 2 * self._stride

    def rewind(self, step: int) -> None:
        """Drops the rows of later steps than `step`."""
        if self._rows and self._rows[-1]["step"] > step:
            with self._lock:
                self._rows = [row for row in self._rows if row["step"] <= step]

    def all(self) -> list[Row]:
        """Returns the rows that are kept, in the order of their steps. Raises `StorageError`."""
        with self._lock:
            rows = list(self._rows)
        if not rows:  # storage may hold those of a run that this one is to replace
            return []
        if self._earlier is None:
            self._earlier = thinned(StoredRows(self._output), MOST)
        # a run that was put back may have made some of those steps anew
        return [row for row in self._earlier if row["step"] < rows[0]["step"]] + rows
