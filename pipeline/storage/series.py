"""`metrics.jsonl`: every series of a run, one JSON object a row."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable

import fsspec


class SeriesFile:
    """`metrics.jsonl`: one JSON object a row, appended locally, rewritten whole where storage
    cannot append.
    """

    def __init__(self, output: str) -> None:
        self._file_system, root = fsspec.core.url_to_fs(output)
        self._path = f"{root.rstrip('/')}/metrics.jsonl"
        self._file_system.makedirs(root, exist_ok=True)
        self.rows: list[dict[str, float]] = []
        self._written = 0

    def resume(self, step: int) -> None:
        """Takes up the rows up to `step`; later ones were of steps that the checkpoint has not."""
        if self._file_system.exists(self._path):
            lines = self._file_system.cat_file(self._path).decode().splitlines()
            self.rows = [row for row in _parsed(lines) if row["step"] <= step]
        self._rewrite()

    def append(self, step: int, values: dict[str, float]) -> None:
        self.rows.append({"step": step, "time": time.time(), **values})

    def forget_from(self, step: int) -> None:
        """Drops the rows of `step` and later ones: the run was put back before them."""
        if self.rows and self.rows[-1]["step"] >= step:
            self.rows = [row for row in self.rows if row["step"] < step]
            self._rewrite()

    def flush(self) -> None:
        """Puts the rows that are new into storage."""
        if "file" in self._file_system.protocol:
            with self._file_system.open(self._path, "ab") as file:
                file.write(_lines(self.rows[self._written :]))
            self._written = len(self.rows)
        else:
            self._rewrite()

    def _rewrite(self) -> None:
        self._file_system.pipe_file(self._path, _lines(self.rows))
        self._written = len(self.rows)


def _lines(rows: Iterable[dict[str, float]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _parsed(lines: Iterable[str]) -> Iterable[dict[str, float]]:
    """The rows of the lines; a last one that was cut off by a crash is passed over."""
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            return
