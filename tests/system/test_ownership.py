"""Two runs and one output: the second is refused, and one that was succeeded keeps its work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import evaluate, sample
from pipeline.runs.inline import InlineRunner
from pipeline.storage import lease
from pipeline.storage.lease import Lease
from pipeline.storage.store import find
from tests.conftest import SMALL
from tests.system.test_run import summary, train

pytestmark = pytest.mark.usefixtures("undrawn")
QUICK = ("evaluation.samples=0",)


def leases(output: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in (output / "lease").iterdir()}


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, do: Callable[[], object]) -> None:
    """`do` is done once, when a run has made step `number`."""
    step, done = InlineRunner.step, []

    def stepped(self: InlineRunner) -> Any:
        made = step(self)
        if made[0].version == number and not done:
            done.append(True)
            do()
        return made

    monkeypatch.setattr(InlineRunner, "step", stepped)


def await_checkpoint(output: Path) -> None:
    """Waits until the first checkpoint stands, and what goes with it is written too."""
    before: dict[str, bytes] = {}
    while "checkpoints/run.json" not in before or before != files(output):
        before = files(output)
        time.sleep(0.2)


def succeed(output: Path) -> None:
    """Another run takes over, as one does that saw no heartbeat."""
    content = Lease(str(output), print)._holder._replace(owner="thenewone", host="node-7")
    (output / "lease/2.json").write_text(json.dumps(content._asdict()))


def files(output: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_second_run_is_refused_and_the_first_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    resume: str,
) -> None:
    statuses, before = [], []

    def second() -> None:
        await_checkpoint(tmp_path)
        before.append(files(tmp_path))
        statuses.append(train("rbm", tmp_path, *QUICK, f"resume={resume}", "trainer.steps=30"))
        before.append(files(tmp_path))

    at_step(monkeypatch, 17, second)
    assert train("rbm", tmp_path, *QUICK) == 0
    assert statuses == [2]
    assert before[0] == before[1], "it writes nothing"
    (refused,) = capsys.readouterr().err.strip().splitlines()
    owner = leases(tmp_path)["1"]
    assert refused.startswith(f"refused: output={tmp_path}: process {os.getpid()} on ")
    assert owner["host"] in refused
    assert owner["since"] in refused
    assert owner["owner"] in refused
    assert summary(tmp_path)["version"] == 20
    assert owner["released"]


@pytest.mark.parametrize("seen", ["by the heartbeat", "at a checkpoint"])
def test_a_run_that_was_succeeded_keeps_its_work_elsewhere(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seen: str,
) -> None:
    """It writes nothing more where the new owner is, and goes on from there bitwise."""
    output, before = tmp_path / "run", {}
    by_heart = seen == "by the heartbeat"
    monkeypatch.setattr(lease, "HEARTBEAT", 0.05 if by_heart else 1000)

    def taken_over() -> None:
        succeed(output)
        before.update(files(output))
        if by_heart:
            (heart,) = (thread for thread in threading.enumerate() if thread.name == "lease")
            heart.join(20)

    at_step(monkeypatch, 7, taken_over)
    assert train("rbm", output, *QUICK) == 1
    (failed,) = capsys.readouterr().err.strip().splitlines()
    assert "taken over by process" in failed
    assert "on node-7 (run thenewone" in failed
    (aside,) = output.glob("displaced-*")
    assert f"output={aside} goes on from there" in failed
    step = find(str(aside)).step
    assert step == 7 if by_heart else 10 <= step <= 20, "steps are made while it finds out"
    assert f"stopped at step {step} of 20" in failed
    after = files(output)
    # a heartbeat may have been under way
    others = [name for name in before if not name.startswith("lease/")]
    assert {name: after[name] for name in others} == {name: before[name] for name in others}
    assert all(name in before or name.startswith("displaced-") for name in after)
    monkeypatch.undo()
    assert train("rbm", aside, *QUICK) == 0
    assert train("rbm", tmp_path / "whole", *QUICK) == 0
    one, two = (find(str(at)).read("learner")["weights"] for at in (aside, tmp_path / "whole"))
    assert np.array_equal(one.numpy(), two.numpy())


@pytest.mark.parametrize("when", ["begins", "ends"])
def test_one_that_is_succeeded_while_it_evaluates_sums_nothing_up(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    when: str,
) -> None:
    evaluated = InlineRunner.evaluate

    def evaluating(self: InlineRunner, output: str) -> Iterator[Any]:
        if when == "begins":
            succeed(tmp_path)
        yield from evaluated(self, output)
        if when == "ends":
            succeed(tmp_path)

    monkeypatch.setattr(InlineRunner, "evaluate", evaluating)
    assert train("rbm", tmp_path, *QUICK) == 1
    assert "thenewone" in capsys.readouterr().err
    assert not (tmp_path / "summary.json").exists()
    (aside,) = tmp_path.glob("displaced-*")
    assert find(str(aside)).step == 20


def test_a_run_that_starts_slowly_clears_nothing_of_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("rbm", tmp_path, *QUICK) == 0
    start, metrics = InlineRunner.start, (tmp_path / "metrics.jsonl").read_bytes()

    def slow(self: InlineRunner, *checkpoints: Any) -> None:
        start(self, *checkpoints)
        content = json.dumps({**leases(tmp_path)["2"], "owner": "thenewone"})
        (tmp_path / "lease/3.json").write_text(content)

    monkeypatch.setattr(InlineRunner, "start", slow)
    assert train("rbm", tmp_path, *QUICK, "resume=never") == 1
    assert find(str(tmp_path)).step == 20
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics


def test_a_checkpoint_that_fails_where_the_output_was_lost_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = InlineRunner.save

    def full(self: InlineRunner, folder: str) -> Any:
        if "displaced" in folder:
            raise OSError(28, "No space left on device")
        return save(self, folder)

    monkeypatch.setattr(InlineRunner, "save", full)
    at_step(monkeypatch, 7, lambda: succeed(tmp_path))
    assert train("rbm", tmp_path, *QUICK) == 1
    error = capsys.readouterr().err
    assert "thenewone" in error
    assert "could not write a checkpoint" in error


def failing() -> None:
    raise RuntimeError("somebody's bug")


@pytest.mark.parametrize("end", ["interrupted", "failed"])
def test_however_it_ends_the_next_one_need_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    if end == "interrupted":
        at_step(monkeypatch, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train("rbm", tmp_path, *QUICK) == 143
    else:
        at_step(monkeypatch, 17, failing)
        with pytest.raises(RuntimeError):
            train("rbm", tmp_path, *QUICK)
    assert leases(tmp_path)["1"]["released"]
    monkeypatch.undo()
    capsys.readouterr()
    assert train("rbm", tmp_path, *QUICK) == 0
    assert "output up" not in capsys.readouterr().out
    assert set(leases(tmp_path)) == {"2"}


def test_a_run_that_is_done_needs_no_lease(tmp_path: Path) -> None:
    assert train("rbm", tmp_path, *QUICK) == 0
    before = files(tmp_path)
    with Lease(str(tmp_path), print):
        assert train("rbm", tmp_path, *QUICK) == 0
    after = files(tmp_path)
    del before["lease/1.json"], after["lease/2.json"]
    assert after == before


def test_a_run_that_was_killed_is_succeeded_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As long as it lives, others are refused."""
    command = [sys.executable, "-m", "pipeline.train", *SMALL["rbm"], "cluster=inline"]
    process = subprocess.Popen(
        [*command, "trainer.steps=1000000", f"output={tmp_path}"], stdout=subprocess.DEVNULL
    )
    try:
        while not list(tmp_path.glob("checkpoints/*/manifest.json")):
            assert process.poll() is None
            time.sleep(0.05)
        assert train("rbm", tmp_path, *QUICK) == 2
        assert f"process {process.pid} on" in capsys.readouterr().err
    finally:
        process.kill()
        process.wait()
    step = find(str(tmp_path)).step
    assert train("rbm", tmp_path, *QUICK, f"trainer.steps={step + 5}") == 0
    said = capsys.readouterr().out
    assert f"process {process.pid} on" in said
    assert "takes it over" in said
    assert "waiting" not in said
    assert f"resuming at step {step} of" in said


@pytest.mark.parametrize("door", [sample.main, evaluate.main])
def test_work_on_a_run_goes_on_beside_it_in_a_folder_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], door: Callable[[list[str]], int]
) -> None:
    run = tmp_path / "run"
    assert train("rbm", run, *QUICK) == 0
    with Lease(str(run), print):
        before = files(run)
        assert door([f"run={run}"]) == 0
        assert door([f"run={run}", f"output={run}"]) == 2
        after = files(run)
    assert f"output={run}: a run has its files there" in capsys.readouterr().err
    assert after.keys() > before.keys()
    assert {name: after[name] for name in before if "lease" not in name} == {
        name: before[name] for name in before if "lease" not in name
    }
