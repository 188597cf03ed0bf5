"""Seconds to a likelihood: what is counted, where the target is passed, and this project's runs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import contestants, harness
from benchmarks import time_to_likelihood as benchmark
from benchmarks.contestants import Snapshot, Watch
from benchmarks.likelihood_settings import SETTINGS
from pipeline.config.compose import compose
from pipeline.storage.checkpoint import Checkpoint
from pipeline.storage.store import CheckpointStore
from pipeline.train import main
from tests.conftest import undrawn


def curve(*nats: float) -> list[Snapshot]:
    """Return snapshots at 1, 2, ... seconds whose one weight is the likelihood."""
    return [Snapshot(float(i), [torch.tensor(value)]) for i, value in enumerate(nats, 1)]


@pytest.mark.parametrize(
    ("nats", "seconds"),
    [
        ((-14.0, -12.0, -11.0, -9.0, -8.0), 3.5),
        ((-11.0, -10.0, -9.0), 2.0),
        ((-9.0, -8.0), 1.0),
        ((-12.0, -11.0), None),
        ((-14.0, -9.0, -11.0), None),
        ((float("nan"), -9.0), 2.0),
    ],
)
def test_the_target_is_passed_on_a_line_between_two_snapshots(
    nats: tuple[float, ...], seconds: float | None
) -> None:
    found = benchmark.crossing(curve(*nats), lambda kept: float(kept.weights[0]), -10.0)
    assert (found and found.seconds) == (None if seconds is None else pytest.approx(seconds))


def test_few_snapshots_are_evaluated() -> None:
    evaluated: list[float] = []

    def nats(kept: Snapshot) -> float:
        evaluated.append(kept.seconds)
        return kept.seconds - 30.5

    found = benchmark.crossing(curve(*[0.0] * 64), nats, 0.0)
    assert found is not None
    assert (found.seconds, found.after.seconds) == (pytest.approx(30.5), 31.0)
    assert len(evaluated) == 7


def test_the_clock_stands_while_weights_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    weight = torch.zeros(2)

    def read() -> list[torch.Tensor]:
        nonlocal now
        now += 100.0
        return [weight]

    monkeypatch.setattr(contestants.time, "perf_counter", lambda: now)
    watch = Watch({"steps": 48, "rate": 2.0}, read)
    rates = []
    for step in range(48):
        now += 1.0
        weight.fill_(step + 1)
        rates.append(watch.step())
    assert [kept.seconds for kept in watch.kept] == list(range(2, 49, 2))
    assert [float(kept.weights[0][0]) for kept in watch.kept] == list(range(2, 49, 2))
    assert (rates[0], rates[23], rates[-1]) == (pytest.approx(2.0 * 47 / 48), 1.0, 0.0)


def test_a_peer_learns_while_it_is_watched() -> None:
    kept = contestants.scikit_learn({"steps": 120, "batch": 100, "rate": 0.5}, seed=0)
    seconds = [snapshot.seconds for snapshot in kept]
    assert len(kept) == contestants.SNAPSHOTS
    assert seconds == sorted(seconds)
    first, last = (benchmark.nats("digits RBM", kept[index]) for index in (0, -1))
    assert first is not None
    assert last is not None
    assert first + 1 < last < -20


def test_a_run_of_this_project_is_evaluated_as_it_evaluates_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time that its checkpoints take, 0.05 s and more each, is not counted."""

    commit = CheckpointStore.commit

    def slowly(*arguments: Any) -> Checkpoint:
        time.sleep(0.05)
        return commit(*arguments)

    def run(module: str, *arguments: str, output: Path) -> dict[str, object]:
        assert module == "pipeline.train"
        with undrawn():
            assert main([*arguments, f"output={output}"]) == 0
        summary: dict[str, object] = json.loads((output / "summary.json").read_text())
        return summary

    monkeypatch.setattr(CheckpointStore, "commit", slowly)
    monkeypatch.setattr(harness, "run", run)
    setting = {"steps": 16, "overrides": ["optimizer.ema=0.5", "chains.per_pool=10"]}
    task = benchmark.TASKS["digits RBM"]
    found = benchmark.through_the_front_door(task, "inline", setting, 1, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    seconds = [snapshot.seconds for snapshot in found.snapshots]
    assert len(seconds) == benchmark.CHECKPOINTS
    assert seconds[0] > 0
    assert seconds == sorted(seconds)
    assert seconds[-1] + 0.05 * len(seconds) < summary["wall_seconds"] < found.command_seconds
    ours = benchmark.nats("digits RBM", found.snapshots[-1])
    assert ours == pytest.approx(summary["test_log_likelihood"])


@pytest.mark.parametrize("task", SETTINGS)
def test_contestants_are_tuned_with_the_same_effort(task: str) -> None:
    assert len({len(settings) for settings in SETTINGS[task].values()}) == 1
    for name, settings in SETTINGS[task].items():
        for setting in settings:
            if name in benchmark.OURS:
                compose([*benchmark.TASKS[task].given, *benchmark.COMMON, *setting["overrides"]])
            else:
                assert name in contestants.CONTESTANTS[task]
