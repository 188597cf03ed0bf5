"""Mistakes that people make on their first day, each with the line that it gets: exit status 2, one
line, nothing written, and no tool of learning imported for mistakes in the words alone.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline import evaluate, report, sample, train
from pipeline.storage.folders import point_latest

FORM = "the arguments are key=value (see --help)"

WORDS = {
    "enrgy=mlp": "enrgy=mlp: unknown key; did you mean energy=?",
    "energy=MLP": "energy=MLP: no such choice; did you mean mlp? there are ",
    "trainer.steps 100": f"trainer.steps=(missing): write trainer.steps=100: {FORM}",
    "trainer.steps = 100": f"trainer.steps=(missing): write trainer.steps=100: {FORM}",
    "trainer.steps= 100": f"trainer.steps='': write trainer.steps=100: {FORM}",
    "--steps 100": f"--steps=(missing): write trainer.steps=100: {FORM}",
    "--trainer.steps=100": f"--trainer.steps=100: write trainer.steps=100: {FORM}",
    "--lr=0.1": f"--lr=0.1: write optimizer.learning_rate=0.1: {FORM}",
    "--verbose": f"--verbose=(missing): unknown option; {FORM}",
    "steps=100": "steps=100: unknown key; did you mean trainer.steps",
    "lr=0.1": "lr=0.1: unknown key; did you mean optimizer.learning_rate?",
    "epochs=3": "epochs=3: unknown key; did you mean trainer.steps?",
    "batch_size=10": "batch_size=10: unknown key; did you mean trainer.batch_size?",
    "kernel.step_sise=0.1": "kernel.step_sise=0.1: unknown key; did you mean kernel.step_size",
    "data=mnist": "data=mnist: no such choice; did you mean idx? there are ",
    "data=csv": "data=csv: no such choice; did you mean columns? there are ",
    "kernel=langevin": "kernel=langevin: no such choice; did you mean mala or ula? there are ",
    "experiment=digit_rbm": "experiment=digit_rbm: no such choice; did you mean digits_rbm? ",
    "cluster=kubernetes": "cluster=kubernetes: no such choice; did you mean kuberay? ",
    "toy": f"toy=(missing): write experiment=toy: {FORM}",
    "energy rbm": f"energy=(missing): write energy=rbm: {FORM}",
    "data=table.csv": "data=table.csv: no such choice; files are given as data=columns data.path=",
    "trainer/steps=5": "trainer/steps=5: unknown key; did you mean trainer.steps",
    "trainer:steps=5": "trainer:steps=5: write trainer.steps=VALUE",
    "trainer.steps=5,": "trainer.steps=5,: not of the form group=choice or key=value; a value with",
    "wandb=true": "wandb=true: unknown key; did you mean recorders?",
    "config.yaml": "config.yaml=(missing): no file is read; settings are key=value, and presets",
    "trainer.steps=1e4": "trainer.steps=10000.0: should be a whole number",
    "trainer.steps=ten": "trainer.steps=ten: should be a whole number",
    "optimizer.learning_rate=high": "optimizer.learning_rate=high: should be a number",
    "energy.hidden=256": "energy.hidden=256: should be a list such as [a,b]",
    "device=cuda": "cluster.pool_gpus=0.0: device=cuda needs a GPU, or a fraction of one, in each",
    "device=cuda:7 cluster=inline": "device=cuda:7: t",
    "device=gpu": "device=gpu: should be cpu, cuda or cuda:N",
    "energy=rbm": "kernel=mala: energy=rbm is over {0, 1}^d; use gibbs, ",
    "energy=rbm kernel=gibbs": "data=digits: energy=rbm is over {0, 1}^d; set data.encoding=binary",
    "data=columns": "data.path=???: must be given for data=columns",
    "data.path=mine.csv": "data.path='mine.csv': unknown key; it goes with data=columns, ",
}
"""The line that a command line gets."""


@pytest.mark.parametrize("line", WORDS)
def test_a_slip_of_words_is_answered_by_what_was_meant(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main(line.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"refused: {WORDS[line]}"), said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


DOORS = {"sample": sample, "evaluate": evaluate, "report": report}
OTHERS = {
    "sample": "run=(missing): give the folder or the URL of a run, such as run=runs/latest",
    "sample runs/mine": f"runs/mine=(missing): write run=runs/mine: {FORM}",
    "sample run=runs/mine": "run=runs/mine: no complete checkpoint there; give the folder or the",
    "sample --samples 100": f"--samples=(missing): write samples=100: {FORM}",
    "sample run=runs/mine samples 100": f"samples=(missing): write samples=100: {FORM}",
    "evaluate runs/mine": f"runs/mine=(missing): write run=runs/mine: {FORM}",
    "evaluate run=runs/mine point=x.npy": "point=x.npy: unknown key; did you mean points",
    "report": "run=(missing): give the folder or the URL of a run, such as run=runs/latest",
}


@pytest.mark.parametrize("line", OTHERS)
def test_so_is_one_about_runs_that_are_there(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    door, *arguments = line.split()
    assert DOORS[door].main(arguments) != 0
    assert OTHERS[line] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_fits_a_terminal_and_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    """A short form first; all keys, or those of a section, where they are asked for."""
    for arguments, most in ((["--help"], 70), (["--help", "all"], 1000), (["-h", "kernel"], 120)):
        assert train.main(arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) < most
        assert max(map(len, lines)) <= 81
    assert not any(line.startswith("  trainer.") for line in lines)
    assert train.main(["--help", "trainr"]) == 2
    assert "no such section; give all, chains, " in capsys.readouterr().err


def test_runs_latest_is_the_newest_run_and_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two runs the newest; no time that is left is told in the first steps; the gap between
    training and held-out rows stands in the last lines.
    """
    monkeypatch.chdir(tmp_path)
    short = ["cluster=inline", "trainer.steps=4", "evaluation.samples=0", "metrics.port=0"]
    for seed in ("1", "2"):
        assert train.main(["experiment=toy", *short, f"seed={seed}"]) == 0
        said = capsys.readouterr().out
        assert " left" not in said
        assert re.search(r"^  training rows -[\d.]+, [\d.]+ nats (higher|lower)$", said, re.M)
    latest = tmp_path / "runs" / "latest"
    newest = said.partition("  summary     ")[2].partition("/summary.json")[0]
    assert str(latest.resolve()) == newest
    assert sample.main(["run=runs/latest", "samples=2", "transitions=1"]) == 0


def test_what_stands_at_runs_latest_and_is_no_link_stays(tmp_path: Path) -> None:
    (tmp_path / "runs" / "latest").mkdir(parents=True)
    point_latest(str(tmp_path / "runs" / "mine"))
    assert not (tmp_path / "runs" / "latest").is_symlink()
    point_latest(str(tmp_path / "elsewhere" / "mine"))
    assert not (tmp_path / "elsewhere").exists()
