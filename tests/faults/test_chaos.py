"""`benchmarks.chaos`: its figures, and a short run of it."""

from __future__ import annotations

import random
from pathlib import Path

import fsspec
import pytest

from benchmarks import chaos
from benchmarks.chaos_figures import (
    Fault,
    Row,
    quantile,
    recomputed,
    slope,
    stalls,
    while_training,
)
from benchmarks.chaos_parts import FOLDER, WEATHER, Weather


def test_a_stall_is_the_longest_wait_behind_a_fault() -> None:
    """Rows come every second, but for one after the first fault, and across the second."""
    rows = [Row(at, 0, 1) for at in (0, 1, 2, 3, 8, 9, 10, 30, 31)]
    found = stalls(rows, [Fault("pool", 3.5), Fault("driver", 12.0), Fault("pool", 30.5)])
    assert found == [("pool", 4.0), ("driver", 19.0), ("pool", 0.0)]


def test_steps_that_were_made_twice() -> None:
    steps = [10, 20, 30, 40, 30, 40, 50]  # behind 40 the run went back to 20
    assert recomputed([Row(0.0, step, 1) for step in steps], 50) == 20


def test_memory_is_looked_at_between_the_first_row_and_the_last() -> None:
    rows = [Row(1.0, 10, 7), Row(3.0, 20, 7)]
    samples = [(7, at, 0.0) for at in (0.5, 1.0, 2.0, 3.5)] + [(8, 2.0, 0.0)]
    assert [at for _, at, _ in while_training(samples, rows)] == [1.0, 2.0]


def test_quantiles_and_slopes() -> None:
    assert [quantile([3.0, 1.0, 2.0, 4.0], share) for share in (0.5, 0.95)] == [2.0, 4.0]
    assert quantile([], 0.5) is None
    generator = random.Random(0)
    noisy = [
        (process, 1.0 * at, 100 * process + at / 30 + generator.gauss(0, 0.1))
        for process in (1, 2)
        for at in range(60)
    ]
    assert slope(noisy) == pytest.approx(2.0, abs=0.1)  # two in a minute, whatever each begins at
    assert slope(noisy[:5]) is None


def test_the_storage_is_what_it_is_told_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    fsspec.register_implementation("chaos", Weather, clobber=True)
    storage, path = fsspec.core.url_to_fs(f"chaos://{tmp_path}/file")
    storage.pipe_file(path, b"one", mode="create")
    with pytest.raises(FileExistsError):
        storage.pipe_file(path, b"two", mode="create")
    (tmp_path / WEATHER).write_text("full")
    with pytest.raises(OSError, match="No space left"):
        storage.pipe_file(path, b"two")
    assert storage.cat_file(path) == b"one"
    (tmp_path / WEATHER).write_text("down")
    with pytest.raises(ConnectionRefusedError):
        storage.cat_file(path)
    (tmp_path / WEATHER).write_text("0.001")
    storage.pipe_file(path, b"two")
    assert storage.cat_file(path) == b"two"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", WEATHER]


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_under_random_faults_loses_no_checkpoint() -> None:
    """It ends well, with every step made, and as good a model as an undisturbed run's."""
    found = chaos.main(["--minutes=0.25", "--seed=1", "trainer.steps=400", "checkpoint.every=20"])
    calm, stormy = found["undisturbed"], found["disturbed"]
    assert (calm["exit_status"], stormy["exit_status"]) == (0, 0)
    assert (calm["step"], stormy["step"]) == (400, 400)
    assert stormy["checkpoints_lost"] == []
    assert stormy["checkpoints_seen"] > 0
    assert stormy["tracebacks"] == 0
    assert sum(stormy["faults"].values()) >= 1
    assert stormy["log_likelihood"] == pytest.approx(calm["log_likelihood"], abs=1.0)
