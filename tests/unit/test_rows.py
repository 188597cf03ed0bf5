"""The rows of a series in storage: appended or in segments, read, put back and joined."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.common.errors import StorageError
from pipeline.runs.recorders.series import Series, thinned
from pipeline.storage import files
from pipeline.storage.rows import Row, StoredRows
from tests.flaky import Flaky


@pytest.fixture(params=["disk", "flaky"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An output on a local disk, and one on storage that cannot append."""
    with Flaky.installed():
        yield str(tmp_path) if request.param == "disk" else "flaky://bucket/run"


def rows(*steps: int) -> list[Row]:
    return [{"step": step, "loss": step / 2} for step in steps]


def steps(stored: StoredRows | list[Row]) -> list[float]:
    return [row["step"] for row in stored]


def written(output: str) -> list[float]:
    """The steps in `metrics.jsonl`."""
    lines = files.read_file(f"{output}/metrics.jsonl").splitlines()
    return [json.loads(line)["step"] for line in lines]


def filled(output: str, *pieces: tuple[int, ...]) -> StoredRows:
    stored = StoredRows(output)
    stored.rewind(0)
    for piece in pieces:
        stored.add(rows(*piece))
    return stored


def test_rows_are_added_and_end_as_one_file(output: str) -> None:
    stored = filled(output, (1, 2), (3,), (4, 5))
    assert list(StoredRows(output)) == rows(1, 2, 3, 4, 5)
    stored.finish()
    assert written(output) == [1, 2, 3, 4, 5]
    assert [name for name in files.names(output) if not name.startswith(".")] == ["metrics.jsonl"]
    stored.add(rows(6))  # the run is told to go on
    assert steps(StoredRows(output)) == [1, 2, 3, 4, 5, 6]
    stored.finish()
    assert written(output) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("step", [0, 1, 2, 3, 4, 9])
@pytest.mark.parametrize("joined", [False, True])
def test_rows_of_later_steps_are_dropped(output: str, step: int, joined: bool) -> None:
    stored = filled(output, (1, 2), (3, 4, 5))
    if joined:
        stored.finish()
    again = StoredRows(output)
    again.rewind(step)
    kept = [each for each in range(1, 6) if each <= step]
    assert steps(again) == kept
    again.add(rows(10, 11))
    assert steps(StoredRows(output)) == [*kept, 10, 11]


def test_a_join_that_broke_off_doubles_nothing(output: str) -> None:
    """The file was written, and the segments were not removed yet."""
    stored = filled(output, (1, 2), (3, 4))
    content = b"".join(json.dumps(row).encode() + b"\n" for row in rows(1, 2, 3, 4))
    files.write_file(output, "metrics.jsonl", content)
    assert steps(StoredRows(output)) == [1, 2, 3, 4]
    stored.finish()
    assert written(output) == [1, 2, 3, 4]


def test_nobody_elses_files_go_with_the_segments() -> None:
    with Flaky.installed():
        stored = filled("flaky://bucket/run", (1,))
        files.write_file("flaky://bucket/run/metrics", "notes.txt", b"mine")
        stored.finish()
        assert files.names("flaky://bucket/run/metrics") == ["notes.txt"]


def test_each_flush_writes_its_own_rows_alone() -> None:
    """What was written is not written anew, on storage that cannot append either."""
    with Flaky.installed():
        series = Series()
        series._stored = StoredRows("flaky://bucket/run")
        series.rewind(0)
        for step in range(1, 9):
            series.record(step, {"loss": 0.5})
            if step % 2 == 0:
                series.flush()
                series.settle()
                assert series._rows == []
        names = files.names("flaky://bucket/run/metrics")
        assert names == [f"00000000{step}.jsonl" for step in (1, 3, 5, 7)]
        assert {files.size(f"flaky://bucket/run/metrics/{name}") for name in names} == {
            2 * len('{"step": 1, "loss": 0.5}\n')
        }
        series.finish({})
        assert written("flaky://bucket/run") == list(range(1, 9))


def test_what_storage_did_not_take_is_written_later() -> None:
    with Flaky.installed():
        series = Series()
        series._stored = StoredRows("flaky://bucket/run")
        series.rewind(0)
        series.record(1, {})
        Flaky.fails = lambda call, _: PermissionError("no") if call == "pipe_file" else None
        series.flush()
        with pytest.raises(StorageError):
            series.settle()
        Flaky.fails = None
        series.record(2, {})
        series.flush()
        series.settle()
        assert steps(StoredRows("flaky://bucket/run")) == steps(series.rows) == [1, 2]


def test_a_long_series_takes_no_memory(tmp_path: Path) -> None:
    """Of 20 MB of rows, in 20 flushes, never more than a few flushes' worth are held."""
    stored = filled(str(tmp_path))
    wide = "x" * 50_000
    tracemalloc.start()
    try:
        for first in range(1, 400, 20):
            stored.add([{"step": step, wide: 0.5} for step in range(first, first + 20)])
        stored.rewind(380)
        assert sum(1 for _ in stored) == 380
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()
    assert (files.size(f"{tmp_path}/metrics.jsonl") or 0) > 18e6


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 20, 21, 999])
def test_curves_are_drawn_from_some_of_very_many_rows(count: int) -> None:
    """Evenly, the first and the last among them."""
    found = steps(thinned(iter(rows(*range(count))), 10))
    assert len(found) == min(count, 10) or 5 <= len(found) < 10 < count
    assert found[:1] == [0][:count]
    assert found[-1:] == [count - 1][:count]
    strides = {b - a for a, b in pairwise(found[:-1])}
    assert len(strides) <= 1
