"""`cluster.driver_restarts`: whole runs whose driver is killed, or fails."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.common.errors import ClusterError
from pipeline.runs.inline import InlineRunner
from pipeline.runs.supervision import AGAIN, PARENT
from pipeline.storage.store import find
from pipeline.train import main
from tests.conftest import SMALL
from tests.patience import PATIENCE

RUN = (*SMALL["rbm"], "cluster=inline", "evaluation.samples=0")


def test_a_driver_that_is_killed_goes_on_and_ends_as_a_whole_run(tmp_path: Path) -> None:
    """Bit for bit, and the death is told in a line."""
    arguments = [*RUN, "trainer.steps=500", "checkpoint.every=20"]
    assert main([*arguments, f"output={tmp_path}/whole"]) == 0
    output = tmp_path / "killed"
    command = [sys.executable, "-m", "pipeline.train", *arguments, "cluster.driver_restarts=2"]
    parent = subprocess.Popen(
        [*command, f"output={output}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list(output.glob("checkpoints/0*/manifest.json")):
        assert parent.poll() is None
        time.sleep(0.02)
    (child,) = psutil.Process(parent.pid).children()
    child.kill()
    printed, told = parent.communicate(timeout=PATIENCE)
    assert parent.returncode == 0, told
    assert "the driver died (SIGKILL); it is started again" in told
    assert "takes it over" in printed
    assert "resuming at step" in printed
    one, two = (find(f"{tmp_path}/{name}").read("learner") for name in ("whole", "killed"))
    assert one["version"] == two["version"] == 500
    assert one["weights"].equal(two["weights"])


def test_a_refused_run_is_refused_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "file"
    taken.touch()
    assert main([*RUN, f"output={taken}", "cluster.driver_restarts=5"]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("refused: output=")


@pytest.mark.parametrize(("supervised", "status"), [(True, AGAIN), (False, 1)])
def test_a_cluster_that_fails_is_told_to_the_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supervised: bool, status: int
) -> None:
    def failing(*_: object) -> None:
        raise ClusterError("no pool came")

    monkeypatch.setattr(InlineRunner, "stretch", failing)
    monkeypatch.setattr("pipeline.train.end_with_parent", lambda: None)
    if supervised:
        monkeypatch.setenv(PARENT, str(os.getppid()))
    assert main([*RUN, f"output={tmp_path}"]) == status
