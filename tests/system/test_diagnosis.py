"""Verdicts through the door: runs that are spoilt on purpose, and one that is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.sabotage import judge, table
from benchmarks.sabotage_cases import HEALTHY, SICK, Case
from pipeline.train import main

pytestmark = pytest.mark.usefixtures("undrawn")
CASES = {case.name: case for case in (*SICK, *HEALTHY)}
RATE = (
    *("experiment=digits_rbm", "cluster=inline", "metrics.port=0", "trainer.steps=400"),
    *("optimizer.learning_rate=6", "evaluation.samples=0"),
)


@pytest.mark.parametrize(
    "name", ["RBM", "RBM, rate / 1000", "RBM, one pool stands still", "rows with NaN"]
)
def test_the_first_verdict_is_the_right_one(name: str, tmp_path: Path) -> None:
    case: Case = CASES[name]
    row = judge(case._replace(steps=min(case.steps, 240)), tmp_path, 0)
    assert row["right"], row
    if row["verdicts"]:
        told = row["verdicts"][0]["step"]
        assert case.spoilt_at <= told <= case.spoilt_at + 100
    assert name in table([row]) or not case.causes


def test_there_are_forty_of_each() -> None:
    assert len(SICK) == len(HEALTHY) == 40
    assert len(CASES) == 80
    assert not any(case.causes for case in HEALTHY)
    assert all(case.causes for case in SICK)


def test_a_verdict_stands_wherever_a_run_is_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """When it is found, in the last lines, in the summary, on the page and among the metrics."""
    output = tmp_path / "run"
    assert main([*RATE, f"output={output}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("verdict at step"))
    assert line.startswith("verdict at step 240, learning_rate: ")
    words = line.partition("learning_rate: ")[2]
    assert any("diagnosis" in line and words in line for line in lines[lines.index(line) + 1 :])
    summary = json.loads((output / "summary.json").read_text())
    verdict = summary["diagnosis"]["verdicts"][0]
    assert verdict["cause"] == "learning_rate"
    assert verdict["words"] == words
    assert summary["diagnosis"]["figures"]["turnover"] > 0
    assert "<b>learning_rate</b>" in (output / "report.html").read_text()
    rows = [json.loads(row) for row in (output / "metrics.jsonl").read_text().splitlines()]
    told = {row["step"]: row.get('ebm_verdict{cause="learning_rate"}') for row in rows}
    assert told[230] is None
    assert told[240] == 1
