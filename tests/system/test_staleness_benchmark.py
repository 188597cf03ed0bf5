"""The benchmark of stale negatives: its lags are what it says, and its rows, targets and picture
come from runs.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import staleness
from benchmarks.staleness import rows_of, targets_of
from benchmarks.staleness_runs import (
    COMMON,
    MOVED,
    QUICK,
    SETTINGS,
    TASKS,
    SteeredRunner,
    Task,
    Trial,
    run,
    trials_of,
)
from pipeline.config.compose import compose
from pipeline.evaluation import likelihood
from pipeline.training.staleness import LagController

SMALL = (*QUICK, "chains.per_pool=20", "energy.hidden=8", "experiment=digits_rbm")


def trial(way: str, lag: int, *more: str) -> Trial:
    return Trial(
        "rbm",
        0.2,
        lag,
        way,
        0,
        (*COMMON, *SMALL, *SETTINGS[way], f"trainer.lag={lag}", *more),
    )


def test_an_exact_lag_is_the_lag_of_every_step() -> None:
    result = run(trial("reweighted", 4))
    assert result["lag_curve"] == [min(step, 4) for step in range(20)]
    assert 0 < result["worst_ess"] <= result["mean_ess"] < 1
    assert math.isfinite(result["nats"])


def test_weights_change_nothing_in_lock_step() -> None:
    """So that one set of runs is the row of both."""
    plain, reweighted = (
        run(trial("lock-step", 0, f"trainer.reweight={value}"))["nats"]
        for value in ("false", "true")
    )
    assert plain == reweighted


def test_a_steered_run_at_its_bound_is_an_exact_one() -> None:
    """While the controller waits, 50 steps, nothing differs, bit for bit."""
    steered, exact = run(trial("steered", 4)), run(trial("reweighted", 4))
    assert [steered[key] for key in ("nats", "mean_ess", "lag_curve")] == [
        exact[key] for key in ("nats", "mean_ess", "lag_curve")
    ]


def test_a_steered_run_has_the_lag_that_the_controller_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bounds = [8, 8, 8, 8, 8, 8, 4, 4, 2, 2, 3, 3, 0, 0, 1, 8, 8, 8]

    following = iter(bounds)
    monkeypatch.setattr(
        LagController,
        "observe",
        lambda controller, _: setattr(controller, "bound", next(following)),
    )
    runner = SteeredRunner(compose(trial("steered", 8).arguments))
    lags = [runner.step()[0].lags[0] for _ in bounds]
    assert lags == [min(step, bound) for step, bound in enumerate([8, *bounds[:-1]])]


def test_differences_are_between_runs_of_one_seed() -> None:
    """Of 1, 2 and 3 nats: 2, with a standard error of 1/sqrt(3). A run that diverged is counted,
    and its pair left out.
    """
    task = Task((), (0.2,), (0, 4), (), True, 3)
    nats = {
        "lock-step": (-20.0, -30.0, -40.0),
        "plain": (-21.0, -33.0, None),
        "reweighted": (-19.0, -28.0, -37.0),
    }
    figures = {
        "log_z_standard_error": None,
        "mean_ess": 0.5,
        "worst_ess": 0.1,
        "lag_curve": [],
        "settled_lag": 4.0,
        "seconds": 1.0,
    }
    trials = list(trials_of("rbm", task))
    rows = rows_of(
        "rbm", task, {trial: figures | {"nats": nats[trial.way][trial.seed]} for trial in trials}
    )
    assert [(row["lag"], row["reweight"]) for row in rows] == [
        (0, False),
        (0, True),
        (4, False),
        (4, True),
    ]
    assert [row["diverged"] for row in rows] == [0, 0, 1, 0]
    assert rows[2]["difference_to_lock_step"] == -2.0
    assert rows[3]["difference_to_lock_step"] == 2.0
    assert rows[3]["difference_to_lock_step_standard_error"] == pytest.approx(1 / math.sqrt(3))
    (target,) = targets_of(rows)
    assert target["met"]
    assert target["allowed"] == pytest.approx(-0.1 - 2 / math.sqrt(3))


def test_moved_negatives_have_a_row_of_their_own() -> None:
    """Beside those that are counted as they are, which have no weights either."""
    task = Task((), (0.2,), (0, 1), (), True, 1, moved=True)
    nats = {"lock-step": -20.0, "plain": -23.0, "reweighted": -26.0, "moved": -22.0}
    figures = {"log_z_standard_error": 0.1, "mean_ess": 0.4, "worst_ess": 0.1, "seconds": 1.0}
    results = {
        trial: figures | {"nats": nats[trial.way], "lag_curve": [], "settled_lag": 1.0}
        for trial in trials_of("deep", task)
    }
    rows = rows_of("deep", task, results)
    assert [
        (row["lag"], row["reweight"], row["moved"], row["difference_to_lock_step"]) for row in rows
    ] == [
        (0, False, 0, 0.0),
        (0, True, 0, 0.0),
        (1, False, 0, -3.0),
        (1, False, MOVED, -2.0),
        (1, True, 0, -6.0),
    ]
    lines = staleness.table(rows).splitlines()
    assert [line.split(" | ")[3] for line in lines[3:]] == ["plain", "moved", "reweighted"]


@pytest.mark.slow
def test_the_whole_in_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(likelihood, "GRID", 50)
    runs = tmp_path / "runs.jsonl"
    staleness.main(["--quick", "--docs", str(tmp_path), "--json", "--runs", str(runs)])
    content = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert content == json.loads((tmp_path / "staleness.json").read_text())
    assert {row["learning_rate"] for row in content["rows"]} == {0.05, 0.2}
    assert {row["task"] for row in content["deep_rows"]} == {*TASKS} - {"rbm"}
    assert all(
        row["standard_error"] >= 0 and row["seeds"] == 2
        for row in content["rows"] + content["deep_rows"]
    )
    assert (tmp_path / "staleness.png").stat().st_size > 20_000
    monkeypatch.setattr(
        staleness, "run", lambda _: pytest.fail("a run that is kept is not done again")
    )
    staleness.main(["--quick", "--docs", str(tmp_path), "--runs", str(runs)])
    assert content == json.loads((tmp_path / "staleness.json").read_text())


@pytest.mark.parametrize("name", TASKS)
def test_every_trial_is_a_valid_run(name: str) -> None:
    """Each way of one rate and one seed."""
    task = TASKS[name]
    for trial in trials_of(name, task._replace(rates=task.rates[:1], seeds=1)):
        config = compose(trial.arguments)
        assert config.assigned_rounds == (trial.way != "steered")
        assert config.reweight == (trial.way not in ("plain", "moved"))
        assert config.refresh == (MOVED if trial.way == "moved" else 0)
