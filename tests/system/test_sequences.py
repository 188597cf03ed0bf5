"""Alignments through the doors: contacts of a family, chains, and sequences drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.compose import compose
from pipeline.sample import main as sample
from pipeline.train import run

SHORT = (
    *("cluster=inline", "metrics.port=0", "recorders=[]", "evaluation.samples=8"),
    *("evaluation.transitions=5", "data.alphabet=rna", "data.held_out=20", "trainer.steps=10"),
)


@pytest.fixture
def alignment(tmp_path: Path) -> Path:
    """200 sequences of 10 sites, of which sites 2 and 9 pair as bases do."""
    random = np.random.RandomState(0)
    codes = random.randint(0, 4, (200, 10))
    codes[:, 8] = 3 - codes[:, 1]
    rows = ("".join("ACGU"[code] for code in row) for row in codes)
    path = tmp_path / "hairpin.fasta"
    path.write_text("".join(f">s{number}\n{row}\n" for number, row in enumerate(rows)))
    return path


@pytest.mark.usefixtures("undrawn")
def test_contacts_of_a_family(
    alignment: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The pair comes first, in the table, in the summary and in words; weights are written."""
    output = tmp_path / "run"
    experiment = ("experiment=protein_potts", "energy.levels=4", "objective.l2_couplings=1")
    run(compose([*experiment, *SHORT, f"data.path={alignment}", f"output={output}"]))
    lines = [line.split() for line in (output / "contacts.txt").read_text().splitlines()]
    best = max(lines, key=lambda line: float(line[5]))
    assert (len(lines), best[0], best[2]) == (45, "2", "9")
    summary = json.loads((output / "summary.json").read_text())
    assert summary["sequences"]["count"] == 200
    assert 150 < summary["sequences"]["effective"] <= 200
    assert summary["contacts"]["strongest"][0] == f"{best[1]}2-{best[3]}9"
    weights = (output / "weights.txt").read_text().split()
    assert sum(map(float, weights)) == pytest.approx(summary["sequences"]["effective"])
    assert "contacts.png" in summary["pictures"]
    said = capfd.readouterr().out
    assert "200 sequences of 10 sites, which count as" in said
    assert "strongest couplings of sites more than 5 apart" in said


@pytest.mark.usefixtures("undrawn")
def test_chains_learn_and_draw_sequences(alignment: Path, tmp_path: Path) -> None:
    """By persistent chains, swept site by site, in two pools; then new sequences."""
    output, drawn = tmp_path / "run", tmp_path / "drawn"
    chains = ("energy=potts", "energy.levels=5", "kernel=gibbs", "objective=pcd")
    size = ("chains.per_pool=32", "trainer.batch_size=64", "evaluation.ais_temperatures=20")
    data = ("data=fasta", f"data.path={alignment}")
    summary = run(compose([*data, *chains, *size, *SHORT, f"output={output}"]))
    assert summary["contacts"]["strongest"]
    clamp = ("clamp=data", "clamp_columns=0-4")
    asked = ("samples=6", "transitions=5", "format=npy", *clamp)
    assert sample([f"run={output}", f"output={drawn}", *asked]) == 0
    (file,) = drawn.glob("*.npy")
    rows = np.load(file)
    assert rows.shape == (6, 10)
    assert set(np.unique(rows)) <= set(range(5))
