"""`series`: the rows of a run, in the end the file `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import chain

from pipeline.common.types import Figures
from pipeline.runs.recorders.base import RecordedRun
from pipeline.storage.rows import Row, StoredRows

MOST = 5000
"""Rows that a picture is drawn from."""


class Series:
    """Rows of every series. Those since the last flush are in memory, the others in storage alone.

    A thread puts them there, so that no step waits for storage. What it fails at is raised by the
    next call, and done again at the next flush.
    """

    def __init__(self) -> None:
        self._rows: list[Row] = []  # not in storage yet
        self._last = -1  # no row is of a later step
        self._begun = False  # whether storage holds the rows of the run as it stands
        self._back: int | None = None  # to where storage has to be put back first
        self._thread = ThreadPoolExecutor(1, "series")
        self._writes: list[Future[None]] = []  # whose failures were not told yet

    def start(self, run: RecordedRun) -> None:
        """Finds where rows are to go. Nothing is written until the run stands."""
        self._stored = StoredRows(run.output)

    @property
    def rows(self) -> list[Row]:
        """The rows up to now, of earlier processes of the run too, in the order of their steps; of
        very many every second, or fourth, and so on. Raises `StorageError`.
        """
        wait(self._writes)
        return thinned(chain(self._stored, self._rows), MOST)

    def record(self, step: int, figures: dict[str, float]) -> None:
        """Adds a row, which `flush` writes."""
        self._rows.append({"step": step, **figures})
        self._last = step

    def rewind(self, step: int) -> None:
        """Drops the rows of later steps than `step`, here and in storage. Raises `StorageError`."""
        if self._begun and self._last <= step:
            return
        self._begun, self._last = True, step
        wait(self._writes)
        self._rows = [row for row in self._rows if row["step"] <= step]
        self._back = step if self._back is None else min(step, self._back)
        self._put_back()

    def flush(self) -> None:
        """Has the thread put the rows that are new into storage. Raises what kept those before from
        it.
        """
        done = [write for write in self._writes if write.done()]
        self._writes = [write for write in self._writes if not write.done()]
        self._writes.append(self._thread.submit(self._write))
        for write in done:
            write.result()

    def settle(self) -> None:
        """Waits until the thread is done. Raises what it failed at."""
        writes, self._writes = self._writes, []
        wait(writes)
        for write in writes:
            write.result()

    def finish(self, summary: Figures | None) -> None:
        """Waits for the thread. Where the run came to its end, writes what a failure kept from
        being written, and leaves one file.
        """
        if summary is None:
            self.settle()
            return
        wait(self._writes)
        self._write()
        self._stored.finish()

    def _put_back(self) -> None:
        if self._back is not None:
            self._stored.rewind(self._back)
            self._back = None

    def _write(self) -> None:
        """Puts the rows that are there now into storage. In the meantime others may be added."""
        self._put_back()
        rows = list(self._rows)
        self._stored.add(rows)
        del self._rows[: len(rows)]


def thinned(rows: Iterable[Row], most: int) -> list[Row]:
    """Returns every row, or every second, fourth and so on, so that there are at most so many, and
    the last.
    """
    kept: list[Row] = []
    stride, row = 1, None
    for number, row in enumerate(rows):
        if number % stride == 0:
            if len(kept) == most:
                kept, stride = kept[::2], 2 * stride
                if number % stride:
                    continue
            kept.append(row)
    if row is not None and kept[-1] is not row:
        kept[-1] = row
    return kept
