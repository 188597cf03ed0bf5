"""Runs that end early, since their figure of merit gets no better."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.runs.patience import Patience
from pipeline.train import main
from tests.conftest import SMALL

pytestmark = pytest.mark.usefixtures("undrawn")
RUN = (*SMALL["rbm"], "cluster=inline", "trainer.steps=60", "checkpoint.every=5", "metrics.every=5")
# the number of steps never gets lower
NEVER = ("checkpoint.keep_best=ebm_steps_total", "checkpoint.keep=1")


def summary(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "summary.json").read_text())
    return found


@pytest.mark.parametrize(("best", "ends"), [("f", 40), ("max:f", None)])
def test_patience_is_with_the_best_value(best: str, ends: int | None) -> None:
    """Rows without the figure count for nothing; a better one begins the patience anew."""
    patience = Patience(20, best)
    for version, value in ((10, 1.0), (20, 0.5), (25, None), (30, 3.0), (40, 4.0), (50, 5.0)):
        patience.observe(version, {} if value is None else {"f": value})
        if patience.over:
            break
    assert (version if patience.over else None) == ends
    assert bool(patience.figures()) == (ends is not None)


def test_a_run_that_gets_no_better_ends_early(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is evaluated, and is then done for the same command; another patience goes on."""
    asked = (*RUN, *NEVER, f"output={tmp_path}")
    assert main([*asked, "trainer.patience=15"]) == 0
    found = summary(tmp_path)
    assert found["version"] == 20
    assert found["ended_early"] == {
        **{"figure": "ebm_steps_total", "best": 5.0, "best_step": 5, "patience": 15}
    }
    assert "ended early" in capsys.readouterr().out
    assert {"00000005", "00000020"} <= {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert main([*asked, "trainer.patience=15"]) == 0
    assert "this run is done: step 20 of 60" in capsys.readouterr().out
    # the best one is known from its checkpoint
    assert main([*asked, "trainer.patience=30"]) == 0
    assert summary(tmp_path)["version"] == 35
    assert main([*asked, "trainer.patience=null"]) == 0
    assert summary(tmp_path)["version"] == 60
    assert "ended_early" not in summary(tmp_path)


def test_patience_without_a_figure_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RUN, f"output={tmp_path}", "trainer.patience=5"]) == 2
    assert "trainer.patience=5: it waits for a better figure" in capsys.readouterr().err
