"""The benchmarks' harness: pairs in alternation, options, results, and tables within pages."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import harness


def test_sides_alternate_and_ratios_are_within_rounds() -> None:
    order: list[str] = []

    def side(name: str, value: float) -> float:
        order.append(name)
        return value * len(order)

    ours, theirs = harness.alternate(3, lambda: side("ours", 1.0), lambda: side("theirs", 2.0))
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert (ours, theirs) == ([1, 4, 5], [4, 6, 12])
    assert harness.ratios(ours, theirs) == [1 / 4, 4 / 6, 5 / 12]
    assert harness.median_ratio(ours, theirs) == 5 / 12


def test_seconds_are_the_clock_s() -> None:
    assert harness.seconds(lambda: None, clock=iter((2.0, 5.5)).__next__) == 3.5


def test_so_many_repetitions_fill_the_time() -> None:
    assert harness.repetitions(lambda count: 0.01 * count, budget=0.3) == 30
    assert harness.repetitions(lambda count: 2.0 * count, budget=0.3) == 1


def test_a_row_is_asked_for_by_its_name_and_a_part_of_its_energy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser, rows = (
        harness.command_line(None),
        [("hmc", "2-D MLP"), ("mala", "2-D MLP"), ("mala", "conv")],
    )
    assert harness.chosen(rows, None, parser) == rows
    assert harness.chosen(rows, "mala", parser) == rows[1:]
    assert harness.chosen(rows, "mala:mlp", parser) == rows[1:2]
    assert harness.chosen(rows, ":CONV", parser) == rows[2:]
    with pytest.raises(SystemExit):
        harness.chosen(rows, "gibbs", parser)
    assert "names: hmc; mala; energies: 2-D MLP; conv" in capsys.readouterr().err


def test_a_result_goes_to_the_file_or_the_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = harness.command_line(None, "json")
    content = {**harness.conditions("numpy"), "rows": [1, 2]}
    assert content.keys() == {"machine", "cores", "python", "numpy", "rows"}
    for given in ([], ["--json"], ["--json", str(tmp_path / "it.json")]):
        harness.write(content, parser.parse_args(given).json)
    assert json.loads(capsys.readouterr().out) == content
    assert json.loads((tmp_path / "it.json").read_text()) == content


def test_only_a_page_s_tables_change(tmp_path: Path) -> None:
    page, mark = (
        tmp_path / "page.md",
        "<!-- figures: made by `python -m benchmarks.x --docs docs` -->",
    )
    page.write_text(f"before\n{mark}\nold\n{harness.END}\nafter\n")
    harness.insert("| new |", page, "benchmarks.x")
    assert page.read_text() == f"before\n{mark}\n\n| new |\n\n{harness.END}\nafter\n"


def test_a_run_that_fails_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"of": "an older run"}')
    with pytest.raises(subprocess.CalledProcessError):
        harness.run("pipeline.no_such_command", output=tmp_path)
