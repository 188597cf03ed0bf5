"""Runs that diverge, in one process: they go back, or end with the cause by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.runs.inline import InlineRunner
from pipeline.storage.store import CheckpointStore
from pipeline.train import main
from tests.conftest import SMALL

pytestmark = pytest.mark.usefixtures("undrawn")
RBM = (*SMALL["rbm"], "chains.per_pool=100")
RATE = "optimizer.learning_rate=1e5"


def train(output: Path, *overrides: str) -> int:
    return main(["cluster=inline", f"output={output}", *overrides])


def summary(output: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((output / "summary.json").read_text())
    return figures


def test_a_learning_rate_of_a_thousand_is_recovered_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The run begins again at a tenth, and at a tenth of that, and learns."""
    rate = "optimizer.learning_rate=1000"
    settings = (rate, "trainer.steps=300", "chains.per_pool=250", "checkpoint.every=150")
    assert train(tmp_path, *RBM, *settings) == 0
    assert "Rollback 2 of 3: it goes on from its beginning at 0.01 of" in caplog.text
    assert "optimizer.clip_norm" in caplog.text
    assert "rolled back 2 times this time; trained on at 0.01 of" in capsys.readouterr().out
    figures = summary(tmp_path)
    assert (figures["rollbacks"], figures["version"]) == (2, 300)
    assert figures["rate_factor"] == pytest.approx(0.01)
    assert figures["test_log_likelihood"] > figures["baselines"]["untrained"]
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(10, 301, 10)), "no row of what was given up"
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["ebm_rollbacks_total"] == 2


def test_a_short_run_that_diverges_is_recovered_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is over before the watch is sure, and is looked at more closely at its end."""
    settings = ("optimizer.learning_rate=1000", "trainer.steps=15", "chains.per_pool=250")
    assert train(tmp_path, *RBM, *settings) == 0
    assert "Rollback 1 of 3: it goes on from its beginning at 0.1 of" in caplog.text
    figures = summary(tmp_path)
    assert figures["rate_factor"] < 1
    assert figures["version"] == 15


def test_a_learning_rate_that_diverges_late_goes_back_to_a_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that was well is given a rate of 1000 when it resumes: it goes on from where it was.
    What was written in the middle of it is gone, and a third process keeps the rate.
    """
    assert train(tmp_path, *RBM, "trainer.steps=40", "checkpoint.every=20") == 0
    rate = ("optimizer.learning_rate=1000", "checkpoint.every=10")
    assert train(tmp_path, *RBM, *rate, "trainer.steps=80") == 0
    assert "it goes on from" in caplog.text
    assert "checkpoints/00000040 at 0.1 of" in caplog.text
    factor = summary(tmp_path)["rate_factor"]
    assert factor < 1
    found = CheckpointStore(str(tmp_path), 3).latest()
    assert found is not None
    assert found.read("learner")["rate"] == {"configured": 1000.0, "factor": factor}
    assert train(tmp_path, *RBM, *rate, "trainer.steps=90") == 0
    assert summary(tmp_path)["rate_factor"] == factor
    assert summary(tmp_path)["rollbacks"] == 0
    assert train(tmp_path, *RBM, "optimizer.learning_rate=0.1", "trainer.steps=100") == 0
    assert summary(tmp_path)["rate_factor"] == 1, "one that is configured anew is what is wanted"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((*RBM, RATE, "trainer.rollbacks=0"), "trainer.rollbacks=0 allows no rollback"),
        ((*RBM, RATE, "trainer.rollbacks=1"), "after 1 rollbacks, the last to 0.1 of"),
        (  # twenty steps in a row that are not finite, each time
            (*SMALL["deep"], "optimizer.learning_rate=1e18", "trainer.rollbacks=1"),
            "20 steps in a row had a loss or gradient that is not finite",
        ),
    ],
)
def test_a_run_that_stays_absurd_ends_with_the_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: tuple[str, ...], said: str
) -> None:
    assert train(tmp_path, *overrides, "trainer.steps=200") == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed")]
    assert line.startswith("failed: the run diverged: ")
    assert said in line
    assert "optimizer.learning_rate" in line
    assert not list(CheckpointStore(str(tmp_path), 3).complete()), "none that is absurd is left"


def test_a_run_that_goes_back_ends_as_one_that_began_there(tmp_path: Path) -> None:
    """The same bits as a run at that learning rate: nothing is left of what was given up."""
    steps = ("trainer.steps=60", "optimizer.schedule=constant", "checkpoint.every=60")
    assert train(tmp_path / "back", *RBM, *steps, "optimizer.learning_rate=64") == 0
    figures = summary(tmp_path / "back")
    assert figures["rollbacks"] == 1
    rate = f"optimizer.learning_rate={64 * figures['rate_factor']}"
    assert train(tmp_path / "straight", *RBM, *steps, rate) == 0
    back, straight = (
        CheckpointStore(str(tmp_path / name), 3).latest() for name in ("back", "straight")
    )
    assert back is not None
    assert straight is not None
    for part in ("energy", "pool-0", "pool-1"):
        assert str(back.read(part)) == str(straight.read(part)), part
    mine, theirs = back.read("learner"), straight.read("learner")
    assert mine["weights"].equal(theirs["weights"])


@pytest.mark.parametrize("kind", ["rbm", "deep", "ladder", "conv", "conditional"])
def test_small_runs_that_are_well_see_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """No figure is beyond its bound in a single step."""
    seen: list[bool] = []
    start = InlineRunner.start

    def counted(self: InlineRunner, *arguments: Any) -> None:
        seen.append(True)
        start(self, *arguments)

    monkeypatch.setattr(InlineRunner, "start", counted)
    monkeypatch.setattr("pipeline.runs.divergence.SOON", 1)
    monkeypatch.setattr("pipeline.runs.divergence.LATER", 1)
    assert train(tmp_path, *SMALL[kind]) == 0
    assert seen == [True]
    assert summary(tmp_path)["rollbacks"] == 0
