"""`series`: the file `metrics.jsonl` of a run, one JSON object a row."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator

from pipeline.common.json_text import to_json
from pipeline.common.types import Figures
from pipeline.runs.recorders.base import RecordedRun
from pipeline.storage.files import append_file, read_file, write_file

NAME = "metrics.jsonl"


class Series:
    """Rows of every series, appended to a local file, and written whole where storage cannot
    append.

    `rows` are those up to now, of earlier processes of the run too, in the order of their steps.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._begun = False  # whether the file holds the rows of the run as it stands
        self._written: int | None = None  # how many rows the file holds; None: not known

    def start(self, run: RecordedRun) -> None:
        """Takes up the rows that are there. Nothing is written until the run stands."""
        self._output = run.output
        try:
            lines = read_file(f"{run.output}/{NAME}").decode().splitlines()
        except FileNotFoundError:
            return
        self.rows = list(_parsed(lines))

    def record(self, step: int, figures: dict[str, float]) -> None:
        """Adds a row, which `flush` writes."""
        self.rows.append({"step": step, **figures})

    def rewind(self, step: int) -> None:
        """Drops the rows of later steps than `step`, here and in the file."""
        if not self._begun or (self.rows and self.rows[-1]["step"] > step):
            self._begun = True
            self.rows = [row for row in self.rows if row["step"] <= step]
            self._rewrite()

    def flush(self) -> None:
        """Puts the rows that are new into storage."""
        written, self._written = self._written, None  # until all of it is written
        if written is None or not append_file(self._output, NAME, _lines(self.rows[written:])):
            self._rewrite()
        self._written = len(self.rows)

    def finish(self, summary: Figures | None) -> None:
        """Writes what a failure kept from being written, where the run came to its end."""
        if summary is not None and self._written != len(self.rows):
            self.flush()

    def _rewrite(self) -> None:
        self._written = None
        write_file(self._output, NAME, _lines(self.rows))
        self._written = len(self.rows)


def _lines(rows: Iterable[dict[str, float]]) -> bytes:
    return "".join(to_json(row) + "\n" for row in rows).encode()


def _parsed(lines: Iterable[str]) -> Iterator[dict[str, float]]:
    """Yields the rows of the lines, NaN where a value is null; a last one that was cut off by a
    crash is passed over.
    """
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            return
        yield {key: math.nan if value is None else value for key, value in row.items()}
