"""Alignments through the doors: contacts of a family, chains, and sequences drawn."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import pipeline
from pipeline.assembly.data import open_data
from pipeline.common.errors import ConfigError, DataError
from pipeline.config.compose import compose
from pipeline.config.sample import Settings
from pipeline.config.sweep import parse
from pipeline.evaluate import evaluate
from pipeline.evaluate import main as evaluate_main
from pipeline.runs.draw import sample as draw
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
    known = tmp_path / "structure.txt"
    known.write_text("2 9\n1 10\n")
    experiment += (f"data.contacts={known}",)
    run(compose([*experiment, *SHORT, f"data.path={alignment}", f"output={output}"]))
    lines = [line.split() for line in (output / "contacts.txt").read_text().splitlines()]
    best = max(lines, key=lambda line: float(line[5]))
    assert (len(lines), best[0], best[2]) == (45, "2", "9")
    summary = json.loads((output / "summary.json").read_text())
    assert summary["sequences"]["count"] == 200
    assert 150 < summary["sequences"]["effective"] <= 200
    assert summary["contacts"]["strongest"][0] == f"{best[1]}2-{best[3]}9"
    assert summary["contacts"]["ppv"]["L/5"] >= 0.5  # of 2, the first is one
    assert summary["contacts"]["by_chance"] == pytest.approx(2 / 10)
    weights = (output / "weights.txt").read_text().split()
    assert sum(map(float, weights)) == pytest.approx(summary["sequences"]["effective"])
    assert "contacts.png" in summary["pictures"]
    said = capfd.readouterr().out
    assert "200 sequences of 10 sites, which count as" in said
    assert "strongest couplings of sites more than 5 apart" in said
    statistics = summary["sequence_statistics"]
    assert statistics["samples"] == 1000
    assert statistics["triples"] == 120
    for name in ("one_site", "two_site", "two_site_slope", "three_site"):
        assert abs(statistics["rows"][name]) < 1.1
        assert abs(statistics[name]) < 1.1
    # sites 2 and 9 are the only ones that are coupled, and the model has learned that
    assert statistics["two_site"] > 0.8
    assert "sequences.png" in summary["pictures"]
    assert "1,000 samples against training sequences" in said


def test_couplings_are_held_against_a_structure(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In an evaluation of a run that was trained without; its pairs are 5 apart at most."""
    table = tmp_path / "known, contacts.txt"
    table.write_text("I J D\n11 16 4.5\n11 13 9\n11 99 1\n")
    asked = (f"run={family / 'run'}", f"data.contacts={table}", f"output={tmp_path / 'out'}")
    assert evaluate_main([*asked, "evaluation.samples=0"]) == 0
    contacts = json.loads((tmp_path / "out" / "summary.json").read_text())["figures"]["contacts"]
    assert (contacts["pairs"], contacts["elsewhere"], contacts["ppv"]) == (0, 1, {})
    assert "1 rows of data.contacts are of residues" in capsys.readouterr().out
    assert (tmp_path / "out" / "contacts.png").stat().st_size > 1000


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


NONE = (
    "data=fasta",
    "data.alphabet=rna",
    "energy=potts",
    "energy.levels=5",
    "kernel=gibbs",
    "objective=pcd",
)


@pytest.mark.usefixtures("undrawn")
def test_every_sequence_may_be_learned_from(
    alignment: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without held-out ones there are figures of training sequences alone, and words say so; the
    bracket of AIS is that of the pseudo-likelihood's model.
    """
    output = tmp_path / "run"
    size = ("chains.per_pool=32", "trainer.batch_size=64", "metrics.held_out_every=2")
    asked = (
        *NONE,
        *SHORT,
        *size,
        f"data.path={alignment}",
        "data.held_out=0",
        "recorders=[series]",
    )
    ais = ("evaluation.ais_temperatures=30", "evaluation.ais_particles=60")
    summary = run(compose([*asked, *ais, f"output={output}"]))
    said = capfd.readouterr().out
    assert "no row is held out" in said
    assert "held-out log-likelihood" not in said
    assert not {"baselines", "test_log_likelihood", "test_pseudo_log_likelihood"} & set(summary)
    told = summary["log_likelihood_a_site"]
    assert set(told) == {"training"}
    assert told["training"]["at_least"] <= told["training"]["value"]
    assert f"training sequences {told['training']['value']:.4f} nats, between" in said
    assert "(all components of every row)" in said
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert 'ebm_energy_nats{source="training"}' in rows[-1]
    assert rows[-1]["ebm_held_out_gap_nats"] is None
    path = ("ood=noise", f"output={tmp_path / 'again'}")
    with pytest.raises(ConfigError, match="has no held-out rows to tell from others"):
        evaluate(str(output), *path)
    with pytest.raises(ConfigError, match=r"clamp=data: .* held no rows out; give a file"):
        draw(Settings.model_validate({"runs": [str(output)], "clamp": "data"}))
    assert np.isfinite(evaluate(str(output), path[1])["figures"]["train_log_likelihood"])


@pytest.mark.parametrize(
    "key",
    [
        "evaluation.live=true",
        "checkpoint.keep_best=ebm_held_out_gap_nats",
        "checkpoint.keep_best=max:ebm_pseudo_log_likelihood_nats",
        "+evaluation.judged={figure: test_log_likelihood, sense: at_least, reference: 0}",
    ],
)
def test_figures_of_held_out_rows_want_some(key: str) -> None:
    name = key.lstrip("+").partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^{re.escape(name)}.*data\.held_out=0 keeps none"):
        compose([*NONE, "data.path=family.fasta", "data.held_out=0", key])


def test_a_sweep_of_all_sequences_wants_a_figure() -> None:
    words = [*NONE, "data.path=family.fasta", "data.held_out=0", "optimizer.learning_rate=0.1,0.2"]
    with pytest.raises(ConfigError, match=r"with data\.held_out=0 has no held-out log-likelihood"):
        parse(words)


def test_a_likelihood_is_of_sequences_without_gaps(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where gaps are missing letters; a live one is refused where there are too few."""
    rows = ["ACGU"[n % 4] + "ACGU"[n // 4 % 4] + ("-" if n % 2 else "A") for n in range(64)]
    path = tmp_path / "gaps.fasta"
    path.write_text("".join(f">s{number}\n{row}\n" for number, row in enumerate(rows)))
    words = ("experiment=protein_potts", "energy.levels=4", *SHORT, "data.identity=null")
    asked = (*words, f"data.path={path}", f"output={tmp_path / 'run'}", "evaluation.samples=0")
    found = run(compose(list(asked)))
    counts = found["without_gaps"]
    assert counts["held_out"] + counts["training"] == 32
    assert f"that lack no letter: {counts['held_out']} held-out ones" in capfd.readouterr().out
    path.write_text("".join(f">s{number}\n{row[:2]}-\n" for number, row in enumerate(rows)))
    with pytest.raises(ConfigError, match=r"evaluation\.live=True: .* 0 held-out ones do not"):
        open_data(compose([*asked, "evaluation.live=true"]))


@pytest.mark.parametrize("units", ["gaussian", "drelu"])
@pytest.mark.usefixtures("undrawn")
def test_hidden_units_learn_a_family(
    alignment: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], units: str
) -> None:
    """Through the preset: nats a site by both ways of annealing, motifs, features and sequences."""
    machine = ("experiment=protein_rbm", "energy.levels=5", "energy.hidden=6")
    chains = ("chains.per_pool=50", "trainer.batch_size=50", "evaluation.ais_temperatures=50")
    asked = [*machine, f"energy.units={units}", *chains, *SHORT, "trainer.steps=150"]
    summary = run(compose([*asked, f"data.path={alignment}", f"output={tmp_path}"]))
    found = summary["log_likelihood_a_site"]["held_out"]
    assert found["value"] == pytest.approx(summary["test_log_likelihood"] / 10)
    apart = summary["log_z_forward"] - summary["log_z_reverse"]
    assert found["reverse"] - found["forward"] == pytest.approx(apart / 10, abs=1e-9)
    # nine letters that are free and one that follows: -9 log 4 / 10 = -1.25, without it -1.39
    assert found["value"] > summary["baselines"]["independent_components"] / 10 + 0.03
    assert "motifs.png" in summary["pictures"]
    assert "log-likelihood a site: held-out sequences -1." in capfd.readouterr().out
    energy = pipeline.load(tmp_path)
    rows = energy.sample_base(4, torch.Generator().manual_seed(0))
    assert pipeline.features(energy, rows).shape == (4, 6)
    clamp = ("clamp=data", "clamp_columns=0-4", "samples=3", "transitions=2", "format=fasta")
    assert sample([f"run={tmp_path}", f"output={tmp_path / 'drawn'}", *clamp]) == 0


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 60 sequences of 6 sites, whose focus sequence begins at 11."""
    folder = tmp_path_factory.mktemp("family")
    random = np.random.RandomState(1)
    rows = ["".join(random.choice(list("ACGU"), 6)) for _ in range(60)]
    rows[0] = "ACGUAC"
    names = ["focus/11-16", *(f"s{number}" for number in range(1, 60))]
    path = folder / "family.fasta"
    path.write_text("".join(f">{name}\n{row}\n" for name, row in zip(names, rows, strict=True)))
    words = ("experiment=protein_potts", "energy.levels=4", "data.focus=focus", *SHORT)
    asked = (*words, "evaluation.samples=0", "data.identity=null", "data.held_out=5")
    run(compose([*asked, f"data.path={path}", f"output={folder / 'run'}"]))
    return folder


def test_sequences_are_written_with_letters(family: Path, tmp_path: Path) -> None:
    """Headers tell the energy, and the identity to the nearest training sequence."""
    asked = ("samples=7", "transitions=3", "format=fasta", f"output={tmp_path}")
    assert sample([f"run={family / 'run'}", *asked]) == 0
    lines = (tmp_path / "samples.fasta").read_text().splitlines()
    text = (family / "family.fasta").read_text()
    known = dict(record.splitlines() for record in text.split(">")[1:])
    assert len(lines) == 14
    for number, (header, letters) in enumerate(zip(lines[::2], lines[1::2], strict=True), 1):
        name, _, identity, nearest = header.split()
        assert name == f">sample_{number}"
        assert set(letters) <= set("ACGU")
        other = known[nearest.removeprefix("nearest=")]
        same = np.mean([a == b for a, b in zip(letters, other, strict=True)])
        assert identity == f"identity={same:.2f}"


def test_sequences_without_their_alignment(family: Path, tmp_path: Path) -> None:
    """Letters are there, and no nearest sequence is told."""
    path = family / "family.fasta"
    moved = path.rename(family / "elsewhere.fasta")
    try:
        asked = ("samples=2", "transitions=1", "format=fasta", f"output={tmp_path}")
        assert sample([f"run={family / 'run'}", *asked]) == 0
    finally:
        moved.rename(path)
    header, letters = (tmp_path / "samples.fasta").read_text().splitlines()[:2]
    assert "nearest" not in header
    assert len(letters) == 6


def test_letters_are_refused_of_what_has_none(runs: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="format=fasta: goes with runs on data=fasta"):
        draw(Settings.model_validate({"runs": [runs["rbm"]], "format": "fasta"}))


def test_mutations_change_the_energy(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """delta E is the difference of two energies, and Spearman's correlation is of -delta E."""
    file = tmp_path / "mutants.csv"
    file.write_text("score,mutant\n1,A11C\n2,g13u:C16A\n,U14U\n3,A15G\n")
    asked = (f"run={family / 'run'}", f"mutations={file}", f"output={tmp_path / 'out'}")
    assert evaluate_main(list(asked)) == 0
    lines = (tmp_path / "out" / "mutations.csv").read_text().splitlines()
    assert lines[0] == "mutant,delta_energy,score"
    changes = [float(line.split(",")[1]) for line in lines[1:]]
    energy = pipeline.load(str(family / "run"))
    codes = ["ACGUAC", "CCGUAC", "ACUUAA", "ACGUAC", "ACGUGC"]
    rows = torch.tensor([["ACGU".index(letter) for letter in text] for text in codes]).float()
    values = energy(rows).tolist()
    assert changes == pytest.approx([value - values[0] for value in values[1:]], abs=1e-4)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())["mutations"]
    measured = [changes[0], changes[1], changes[3]]
    expected = np.corrcoef(np.argsort(np.argsort(np.negative(measured))), [0, 1, 2])[0, 1]
    assert summary["spearman"] == pytest.approx(expected)
    assert (summary["mutants"], summary["measured"]) == (4, 3)
    said = capsys.readouterr().out
    assert "4 mutants, delta E in nats, the lowest first" in said
    assert "Spearman of -delta E with 3 measured scores" in said
    assert f"all single mutants {tmp_path / 'out' / 'mutations.png'}" in said
    assert (tmp_path / "out" / "mutations.png").exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("mutant\nA11C\nC11A\n", "row 2, C11A: the wild type has A at 11, not C"),
        ("mutant\nA99C\n", "row 1, A99C: 99 is no site; sites are among 11, ..., 16"),
        ("mutant\nA11W\n", "row 1, A11W: W is no letter of ACGU"),
        ("mutant\nA11\n", "row 1, A11: a mutation is two letters with a number between"),
        ("mutant\nA11C:A11G\n", "row 1, A11C:A11G: site 11 is mutated twice"),
        ("mutant,score\nA11C,high\n", "row 1, A11C: could not convert string to float"),
        ("mutation\nA11C\n", "has no column mutant"),
        ("mutant\n", "has no rows"),
        (None, "cannot be read as a CSV file"),
    ],
)
def test_mutations_that_are_none_are_refused(
    family: Path, tmp_path: Path, text: str | None, why: str
) -> None:
    file = tmp_path / "mutants.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DataError, match=re.escape(why)):
        evaluate(str(family / "run"), f"mutations={file}", f"output={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_mutations_of_what_has_no_letters_are_refused(runs: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"mutations=mutants\.csv: goes with runs on data=fasta"):
        evaluate(runs["rbm"], "mutations=mutants.csv")
