"""The rows of a run's series in storage, one JSON object a line, in the order of their steps.

On a local disk they are appended to `metrics.jsonl`. Other storage cannot append: there each flush
makes a file of its own, `metrics/<step of its first row>.jsonl`, and `finish` joins these to
`metrics.jsonl`. Whoever reads passes over rows of a step that was there before, so that a join that
broke off does no harm. Neither way holds more than one row in memory, or one segment where a run
goes back into it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from io import BufferedReader
from itertools import takewhile

from pipeline.common.json_text import to_json
from pipeline.storage import files

NAME, FOLDER = "metrics.jsonl", "metrics"
Row = dict[str, float]


class StoredRows:
    """The rows of the run under `output`."""

    def __init__(self, output: str) -> None:
        self._output = output
        self._local = files.locate(output).local
        self._size: int | None = None  # bytes of whole rows in the local file; None: not known

    def __iter__(self) -> Iterator[Row]:
        """Yields the rows that are there, NaN where a value is null; of each file those before a
        line that is not whole.
        """
        last = -1.0
        for name in (NAME, *(f"{FOLDER}/{name}" for name in self._segments())):
            for line in self._whole_lines(name):
                row = json.loads(line)
                if row["step"] > last:
                    last = row["step"]
                    yield {key: math.nan if value is None else value for key, value in row.items()}

    def add(self, rows: Sequence[Row]) -> None:
        """Adds rows behind those that are there. Raises `StorageError`; it may then be called again
        with the same rows.
        """
        if not rows:
            return
        content = _lines(rows)
        if not self._local:
            files.write_file(f"{self._output}/{FOLDER}", _segment(int(rows[0]["step"])), content)
            return
        size = self._cut(math.inf)  # half a row may be there of a write that broke off
        files.append_file(self._output, NAME, content)
        self._size = size + len(content)

    def rewind(self, step: int) -> None:
        """Drops the rows of later steps than `step`. Raises `StorageError`."""
        if self._local:
            self._size = None
            self._cut(step)
            return
        for name in reversed(self._segments()):
            if _first(name) <= step:
                self._keep(name, step)
                break
            files.remove(f"{self._output}/{FOLDER}/{name}")
        if any(json.loads(line)["step"] > step for line in self._whole_lines(NAME)):
            self._join([NAME], step)

    def finish(self) -> None:
        """Leaves one file, `metrics.jsonl`. Raises `StorageError`."""
        folder, segments = f"{self._output}/{FOLDER}", self._segments()
        if not segments:
            return
        self._join([NAME, *(f"{FOLDER}/{name}" for name in segments)], math.inf)
        for name in segments:
            files.remove(f"{folder}/{name}")
        if not files.names(folder):
            with suppress(FileNotFoundError):  # where a folder is no more than its files
                files.remove(folder)

    def _cut(self, step: float) -> int:
        """Cuts the local file behind the rows up to `step` that are whole; returns its bytes."""
        if self._size is None:
            kept = takewhile(lambda line: json.loads(line)["step"] <= step, self._whole_lines(NAME))
            self._size = sum(map(len, kept))
        files.cut_file(self._output, NAME, self._size)
        return self._size

    def _keep(self, segment: str, step: float) -> None:
        """Drops the later rows of one segment."""
        lines = list(self._whole_lines(f"{FOLDER}/{segment}"))
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        if len(kept) < len(lines):
            files.write_file(f"{self._output}/{FOLDER}", segment, b"".join(kept))

    def _join(self, names: Sequence[str], step: float) -> None:
        """Writes the rows of files up to `step`, each once, as `metrics.jsonl`."""

        def lines() -> Iterator[bytes]:
            last = -1.0
            for name in names:
                for line in self._whole_lines(name):
                    at = json.loads(line)["step"]
                    if last < at <= step:
                        last = at
                        yield line

        files.write_pieces(self._output, NAME, lines)

    def _whole_lines(self, name: str) -> Iterator[bytes]:
        """Yields the lines of a file up to one that is not whole."""
        try:
            file = files.open_file(f"{self._output}/{name}")
        except FileNotFoundError:
            return
        with BufferedReader(file, files.PIECE) as lines:
            for line in lines:
                if not _is_row(line):
                    return
                yield line

    def _segments(self) -> list[str]:
        """Returns the names of the segments, in the order of their steps."""
        if self._local:
            return []
        names = files.names(f"{self._output}/{FOLDER}")
        return sorted((name for name in names if _is_segment(name)), key=_first)


def _segment(step: int) -> str:
    return f"{step:09d}.jsonl"


def _is_segment(name: str) -> bool:
    return name.endswith(".jsonl") and name.removesuffix(".jsonl").isdigit()


def _first(segment: str) -> int:
    return int(segment.removesuffix(".jsonl"))


def _is_row(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and "step" in json.loads(line)
    except (ValueError, TypeError):
        return False


def _lines(rows: Iterable[Row]) -> bytes:
    return "".join(to_json(row) + "\n" for row in rows).encode()
