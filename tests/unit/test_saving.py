"""Saves: in the background, one at a time; those that fail are counted, and how many in a row a run
bears.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from pipeline.assembly.energies import make_energy
from pipeline.common.errors import LostLeaseError, PipelineError
from pipeline.common.types import Part
from pipeline.config.run import RunConfig
from pipeline.runs.inline import InlineRunner
from pipeline.runs.metrics import RunMetrics
from pipeline.runs.saving import Saving
from pipeline.storage.lease import Lease
from pipeline.storage.parts import Snapshot
from pipeline.storage.store import CheckpointStore, find

Small = Callable[..., RunConfig]


class Storage:
    """A runner whose storage fails as often as it is told, and writes once it is `open`."""

    def __init__(self) -> None:
        self.failures, self.open = 0, threading.Event()
        self.open.set()

    def save(self, folder: str) -> list[Part]:
        assert self.open.wait(20)
        self.failures -= 1
        if self.failures >= 0:
            raise OSError("No space left on device")
        return [Snapshot("learner", {"version": 1}).write(folder)]

    def snapshot(self) -> Callable[[str], list[Part]]:
        return self.save


class Case(NamedTuple):
    saving: Saving
    metrics: RunMetrics
    output: str


@pytest.fixture
def case(small: Small, tmp_path: Path) -> Iterator[Case]:
    config, metrics = small("rbm", "checkpoint.patience=3"), RunMetrics("run")
    with Lease(str(tmp_path), lambda _: None) as lease:
        energy = make_energy(config, (64,))
        yield Case(Saving(config, str(tmp_path), energy, metrics, lease), metrics, str(tmp_path))


def test_failed_saves_in_a_row_end_the_run_and_a_good_one_forgives_them(case: Case) -> None:
    runner, saving = Storage(), case.saving
    runner.failures = 2
    for step in (1, 2, 3):
        saving.save(runner, step)
        assert saving.holds(step) == (step == 3)
    runner.failures = 3
    for step in (4, 5, 6):
        saving.save(runner, step)
    with pytest.raises(PipelineError, match=r"3 checkpoints in a row .*No space.*00000003"):
        saving.settle()
    runner.failures = 1
    with pytest.raises(PipelineError, match="last checkpoint"):
        saving.save(runner, 7, final=True)
    assert case.metrics.row()["ebm_checkpoint_failures_total"] == 6


def test_steps_go_on_while_a_checkpoint_is_written(case: Case) -> None:
    """Until it is whole nobody finds it. When the next one is due, it is waited for."""
    runner, saving, store = Storage(), case.saving, CheckpointStore(case.output, 3)
    runner.open.clear()
    saving.save(runner, 1)
    saving.poll()
    assert store.latest() is None
    assert saving.saved is None
    threading.Timer(0.2, runner.open.set).start()
    saving.save(runner, 2)
    assert saving.saved == store.folder(1)
    assert [checkpoint.step for checkpoint in store.complete()][-1] == 1
    assert saving.holds(2)
    row = case.metrics.row()
    assert row["ebm_checkpoints_total"] == 2
    assert row["ebm_checkpoint_stall_seconds_total"] > 0.1


def test_the_last_checkpoint_is_waited_for(case: Case) -> None:
    runner = Storage()
    runner.open.clear()
    threading.Timer(0.2, runner.open.set).start()
    case.saving.save(runner, 3, final=True)
    assert find(case.output).step == 3
    assert case.metrics.row()["ebm_checkpoint_stall_seconds_total"] == 0, "no step waits for it"


def test_an_output_that_was_lost_is_said_when_the_save_is_seen(case: Case) -> None:
    def lost() -> None:
        raise LostLeaseError("taken over")

    case.saving.store._check = lost
    case.saving.save(Storage(), 1)
    with pytest.raises(LostLeaseError):
        case.saving.settle()
    case.saving.close()
    assert case.metrics.row()["ebm_checkpoint_failures_total"] == 0


def test_the_figure_of_a_checkpoint_is_that_of_its_step(small: Small, tmp_path: Path) -> None:
    """And not of the steps that were made while it was written."""
    config, metrics = small("rbm", "checkpoint.keep_best=ebm_loss"), RunMetrics("run")
    runner = Storage()
    with Lease(str(tmp_path), lambda _: None) as lease:
        saving = Saving(config, str(tmp_path), make_energy(config, (64,)), metrics, lease)
        runner.open.clear()
        metrics["ebm_loss"].set(1.5)
        saving.save(runner, 1)
        metrics["ebm_loss"].set(9.0)
        runner.open.set()
        assert saving.holds(1)
    figure = find(str(tmp_path)).manifest.figure
    assert figure is not None
    assert (figure.name, figure.value) == ("ebm_loss", 1.5)


def test_a_snapshot_does_not_change_any_more(tmp_path: Path) -> None:
    """Nor does its part, whatever becomes of tensors, lists and dictionaries of the state."""
    state: dict[str, Any] = {"a": torch.zeros(2, 3).t(), "b": [1, {"c": 2.0}], "d": None}
    snapshot = Snapshot("learner", state)
    before = snapshot.write(str(tmp_path))
    state["a"] += 1
    state["b"][1]["c"] = 3.0
    state["b"].append(4)
    assert snapshot.write(str(tmp_path)) == before


def test_a_runners_snapshot_is_of_the_moment_it_was_made(small: Small, tmp_path: Path) -> None:
    """Bit for bit, of a run that goes on."""
    runner = InlineRunner(small("rbm"))
    runner.start(None, None)
    runner.step()
    at_once, write = runner.save(str(tmp_path / "a")), runner.snapshot()
    for _ in range(3):
        runner.step()
    assert write(str(tmp_path / "b")) == at_once
