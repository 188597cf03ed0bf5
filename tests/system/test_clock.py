"""The system's clock jumps: it is set by hand, or by a server of time after a suspension."""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from actors.waiting import Deadline
from pipeline.evaluation.curves import _draw_speed
from pipeline.runs.inline import InlineRunner
from pipeline.storage.store import find
from pipeline.train import main
from tests.conftest import SMALL

ROOT = Path(__file__).resolve().parent.parent.parent
HOUR = 3600.0
# what says when something was, to people and to Prometheus
STAMPS = {
    "pipeline/runs/live_page.py": 1,
    "pipeline/runs/metrics.py": 1,
    "pipeline/runs/recorders/mlflow.py": 1,
    "pipeline/runs/recorders/tensorboard.py": 2,
    "pipeline/runs/run.py": 1,
    "pipeline/runs/saving.py": 1,
    "pipeline/storage/folders.py": 1,
}


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """`jump(seconds)`: the clock is so far ahead from now on."""
    clock, ahead = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: clock() + ahead[0])

    def set_ahead(seconds: float) -> None:
        ahead[0] = seconds

    return set_ahead


@pytest.mark.usefixtures("undrawn")
def test_a_run_does_not_see_the_clock_jump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: Callable[[float], None]
) -> None:
    """An hour ahead at step 7, an hour behind at step 14: the model is the same bit for bit, and
    its speed is that of the steps.
    """
    arguments = [*SMALL["deep"], "cluster=inline"]
    assert main([*arguments, f"output={tmp_path / 'whole'}"]) == 0
    step = InlineRunner.step

    def jumping(self: InlineRunner) -> Any:
        done = step(self)
        jump({7: HOUR, 14: -HOUR}.get(done[0].version, 0.0))
        return done

    monkeypatch.setattr(InlineRunner, "step", jumping)
    assert main([*arguments, f"output={tmp_path / 'run'}"]) == 0
    one, two = (find(str(tmp_path / name)).read("learner") for name in ("whole", "run"))
    assert one["weights"].equal(two["weights"])
    figures = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0 < figures["wall_seconds"] < HOUR / 10
    assert figures["steps_per_second"] == pytest.approx(20 / figures["wall_seconds"], rel=0.1)


def test_what_is_waited_for_is_not_given_up_when_the_clock_jumps(
    jump: Callable[[float], None],
) -> None:
    deadline = Deadline(HOUR / 2, "a batch")
    for ahead in (HOUR, -HOUR):
        jump(ahead)
        deadline.check()


def test_a_clock_that_was_set_back_draws_no_speed() -> None:
    """The speed between rows of which the later one has the earlier time is not known."""
    rows = [
        {"time": time_, "ebm_negatives_total": 0.0, "ebm_steps_total": 10.0 * n}
        for n, time_ in enumerate([100.0, 101.0, 101.0 - HOUR, 103.0 - HOUR])
    ]
    axis = Figure().subplots()
    _draw_speed(axis, np.arange(4), rows)
    np.testing.assert_allclose(axis.lines[0].get_ydata(), [np.nan, 10.0, np.nan, 5.0])


def test_only_stamps_are_of_the_clock() -> None:
    """Whatever decides, or measures how long something took, asks a clock that does not jump."""
    found: dict[str, int] = {}
    for folder in ("pipeline", "actors"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and ast.unparse(node) in (
                    "time.time",
                    "datetime.now",
                    "datetime.datetime.now",
                ):
                    name = path.relative_to(ROOT).as_posix()
                    found[name] = found.get(name, 0) + 1
    assert found == STAMPS
