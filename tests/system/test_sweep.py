"""Sweeps through the door: in one process, interrupted, and on one Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors import trials
from actors.launch import launch
from pipeline import sweep
from pipeline.config.compose import compose
from pipeline.runs.display import Silence
from pipeline.storage.store import find_averaged

RBM = ["experiment=digits_rbm", "trainer.steps=9", "chains.per_pool=50", "evaluation.samples=0"]
SIX = [*RBM, "optimizer.learning_rate=0.001,0.05,0.2", "energy.hidden=4,8", "sweep.rungs=2"]


def summary(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "sweep.json").read_text())
    return found


def test_a_run_that_pauses_ends_as_the_whole_run_does(tmp_path: Path) -> None:
    ends = []
    for name, stops in (("whole", [None]), ("paused", [1, 3, 3, None])):
        config = compose([*RBM, "cluster=inline", "metrics.port=0", f"output={tmp_path / name}"])
        for stop in stops:
            figures = launch(config, Silence(), until=stop)
            assert figures["version"] == (stop or 9)
        ends.append(find_averaged(str(tmp_path / name))[1])
    np.testing.assert_array_equal(*ends)


def test_six_trials_in_one_process_that_is_interrupted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found is kept; the same command makes the rest, and no result twice."""
    line = [*SIX, "cluster=inline", f"output={tmp_path}"]
    made: list[tuple[int, int]] = []
    real = trials.trial_to

    def counted(config: Any, figure: Any, trial: int, rung: int, step: int) -> Any:
        if len(made) == 4:
            made.append((-1, -1))
            raise KeyboardInterrupt
        made.append((trial, rung))
        return real(config, figure, trial, rung, step)

    monkeypatch.setattr(trials, "trial_to", counted)
    assert sweep.main(line) == 130
    assert sweep.main(line) == 0
    assert sorted(made[:4] + made[5:]) == sorted([*((t, 0) for t in range(6)), *made[-2:]])
    said, found = capsys.readouterr().out, summary(tmp_path)
    assert "4 results are there already" in said
    assert (tmp_path / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    # the score of a trial is what its run is judged by at its end
    last = [result for result in found["results"] if result["rung"] == 1]
    for result in last:
        run = tmp_path / "trials" / f"{result['trial']:04d}" / "summary.json"
        assert result["score"] == pytest.approx(
            json.loads(run.read_text())["test_log_likelihood"], abs=1e-6
        )
    assert found["best_score"] == max(result["score"] for result in last)
    assert f"  best        {' '.join(found['best'])}" in said
    assert found["share_of_steps"] == pytest.approx((6 * 3 + 2 * 6) / (6 * 9))
    assert sweep.main([*line, "seed=5"]) == 2
    assert "another sweep is there" in capsys.readouterr().err


def test_a_trial_that_fails_is_told_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["experiment=toy", "trainer.steps=30", "trainer.rollbacks=0", "evaluation.samples=0"]
    line += ["optimizer.learning_rate=0.001,1e6", "optimizer.warmup=0", "energy.hidden=[8]"]
    line += ["objective.energy_l2=0", "optimizer.name=sgd", "optimizer.clip_norm=null"]
    line += ["cluster=inline", "sweep.rungs=1", f"output={tmp_path}", "sweep.figure=ebm_loss"]
    assert sweep.main(line) == 0
    found, said = summary(tmp_path), capsys.readouterr().out
    assert [result["failed"] is None for result in found["results"]] == [True, False]
    assert found["results"][1]["score"] is None
    assert "failed: " in said
    assert found["best"] == ["optimizer.learning_rate=0.001"]


def test_trials_of_a_mixed_table_are_judged(tmp_path: Path) -> None:
    """Whose energy learns the kinds of its units from the data."""
    rows = "".join(f"{n / 7},{'red' if n % 3 else 'blue'}\n" for n in range(40))
    (tmp_path / "t.csv").write_text(f"size,colour\n{rows}")
    line = ["data=columns", f"data.path={tmp_path / 't.csv'}", "data.categorical=auto"]
    line += ["data.held_out=8", "data.scale=standard", "energy=mixed_rbm", "energy.hidden=2"]
    line += ["kernel=gibbs", "objective.energy_l2=0", "trainer.batch_size=8", "trainer.steps=3"]
    line += ["chains.per_pool=8", "evaluation.samples=0", "cluster=inline", "seed=1,2"]
    assert sweep.main([*line, f"output={tmp_path / 'out'}"]) == 0
    assert all(result["failed"] is None for result in summary(tmp_path / "out")["results"])


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_trial_that_is_refused_ends_the_sweep_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["data=columns", f"data.path={tmp_path / 'none.csv'}", "seed=1,2"]
    assert sweep.main([*line, "sweep.workers=1", f"output={tmp_path / 'out'}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("refused: data.path=")
    assert said.count("\n") == 1


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_six_trials_on_one_ray_find_what_one_process_finds(tmp_path: Path) -> None:
    for name, where in (("ray", "cluster=local"), ("here", "cluster=inline")):
        assert sweep.main([*SIX, where, "sweep.workers=2", f"output={tmp_path / name}"]) == 0
    results = [
        sorted((r["trial"], r["rung"], r["score"]) for r in summary(tmp_path / name)["results"])
        for name in ("ray", "here")
    ]
    assert results[0] == results[1]
    assert len(results[0]) == 8
