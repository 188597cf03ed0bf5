"""Trained runs evaluated again, points ranked, outliers told, from command line to files."""

from __future__ import annotations

import csv
import json
import math
from collections import ChainMap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats

import pipeline
from pipeline.evaluate import main
from pipeline.evaluation.outliers import outlier_score, shuffled
from tests.system.conftest import Runs

pytestmark = pytest.mark.xdist_group("trained runs")


@pytest.fixture
def found(capsys: pytest.CaptureFixture[str]) -> Any:
    """`found(*arguments)`: the document that --json prints."""

    def ask(*arguments: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main([*arguments, "--json"]) == 0
        printed = capsys.readouterr()
        assert "evaluated again" in printed.err
        document: dict[str, Any] = json.loads(printed.out)
        return document

    return ask


@pytest.mark.parametrize("name", ["ring", "rbm"])
def test_the_figures_are_those_of_the_runs_own_summary(
    runs: Runs, tmp_path: Path, found: Any, name: str
) -> None:
    document = found(f"run={runs[name]}", f"output={tmp_path}")
    own = json.loads((Path(runs[name]) / "summary.json").read_text())
    assert document["figures"].items() <= own.items()
    assert (document["step"], document["checkpoint"]) == (own["version"], own["checkpoint"])
    assert (tmp_path / "samples.png").exists()
    assert json.loads((tmp_path / "summary.json").read_text()) == document


def test_another_evaluation(runs: Runs, found: Any) -> None:
    document = found(
        f"run={runs['ring']}", "evaluation.transitions=7", "evaluation.samples=5", "kernel=hmc"
    )
    assert document["figures"]["transitions_from_noise"] == 7
    assert document["output"].startswith(f"{runs['ring']}/evaluation-")


@pytest.mark.parametrize("suffix", ["npy", "parquet", "arrow"])
def test_points_are_ranked(
    runs: Runs,
    tmp_path: Path,
    suffix: str,
    found: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the most probable down, by the energy's own values."""
    points = np.random.default_rng(0).normal(size=(25, 2), scale=3).astype(np.float32)
    path = write(points, tmp_path / f"points.{suffix}")
    arguments = [
        f"run={runs['ring']}",
        "evaluation.samples=0",
        f"points={path}",
        f"output={tmp_path / 'out'}",
    ]
    arguments += [] if suffix == "npy" else ["columns=[position]"]
    ranking = found(*arguments)["ranking"]
    energy = pipeline.load(runs["ring"])(torch.from_numpy(points)).double()
    order = energy.argsort().tolist()
    with (tmp_path / "out" / "ranking.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["point"]) for row in rows] == order
    for row, number in zip(rows, order, strict=True):
        assert float(row["energy"]) == pytest.approx(float(energy[number]), abs=1e-4)
        assert float(row["log_ratio"]) == pytest.approx(
            float(energy.min() - energy[number]), abs=1e-4
        )
        assert float(row["log_density"]) == pytest.approx(
            float(-energy[number]) - ranking["log_z"], abs=1e-4
        )
    assert (ranking["points"], len(ranking["first"])) == (25, 10)
    assert main(arguments) == 0
    assert "25 points, the most probable first" in (words := capsys.readouterr().out)
    assert f"{order[9]:>10}" in words


@pytest.mark.parametrize("suffix", ["npy", "csv", "parquet"])
def test_features_of_points_are_written(
    runs: Runs, tmp_path: Path, suffix: str, found: Any
) -> None:
    """The last hidden layer by row, in the order of the file; in a table with the energies."""
    points = np.random.default_rng(0).normal(size=(25, 2)).astype(np.float32)
    path, out = write(points, tmp_path / "points.npy"), tmp_path / "made" / f"features.{suffix}"
    arguments = [f"run={runs['ring']}", "evaluation.samples=0", f"points={path}"]
    assert found(*arguments, f"features={out}")["features"] == str(out)
    energy = pipeline.load(runs["ring"])
    wanted = pipeline.features(energy, points).numpy()
    if suffix == "npy":
        features = np.load(out)
    else:
        table = pyarrow.csv.read_csv(out) if suffix == "csv" else pq.read_table(out)
        assert table.column_names == [*(f"h{i}" for i in range(wanted.shape[1])), "energy"]
        *columns, energies = (column.to_numpy() for column in table.columns)
        features = np.stack(columns, 1)
        np.testing.assert_allclose(energies, energy(points), atol=1e-4)
    np.testing.assert_allclose(features, wanted, atol=1e-4)


def write(points: np.ndarray, path: Path) -> Path:
    columns = {
        "position": pa.FixedSizeListArray.from_arrays(pa.array(points.ravel()), points.shape[1]),
        "other": pa.array(np.zeros(len(points))),
    }
    if path.suffix == ".npy":
        np.save(path, points)
    elif path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path, row_group_size=10)
    else:
        with pa.ipc.new_file(path, pa.table(columns).schema) as file:
            file.write_table(pa.table(columns))
    return path


def test_points_given_a_context(runs: Runs, tmp_path: Path, found: Any) -> None:
    points = np.linspace(-2, 2, 5, dtype=np.float32)[:, None]
    asked = (
        f"points={write(points, tmp_path / 'p.npy')}",
        "given=[0.3]",
        f"output={tmp_path}",
        "evaluation.samples=0",
    )
    ranking = found(f"run={runs['regression']}", *asked)["ranking"]
    energy = pipeline.load(runs["regression"]).given(torch.tensor([[0.3]]))(
        torch.from_numpy(points)
    )
    assert [row["point"] for row in ranking["first"]] == energy.argsort().tolist()
    assert ranking["log_z"] is None


def test_outliers_are_told(runs: Runs, tmp_path: Path, found: Any) -> None:
    """Rows far away are told for certain, more rows of the law not at all; the others' scores are
    scores.
    """
    run = f"run={runs['ring']}"
    far = write(np.full((50, 2), 9.0, dtype=np.float32), tmp_path / "far.npy")
    assert found(run, "evaluation.samples=0", f"ood={far}")["ood"]["auroc"] == 1
    for kind, others in {"noise": 4000, "shuffled": 4000}.items():
        score = found(run, "evaluation.samples=0", f"ood={kind}")["ood"]
        assert (score["held_out"], score["others"]) == (4000, others)
        assert 0 < score["auroc"] < 1
    again = found(run, "evaluation.samples=0", "ood=shuffled")["ood"]
    assert again == score
    conditional = found(f"run={runs['regression']}", "evaluation.samples=0", "ood=noise")["ood"]
    assert 0 < conditional["auroc"] < 1


@pytest.mark.parametrize("scale", [1.0, 1.3, 2.0])
def test_auroc_of_gaussians_in_closed_form(scale: float) -> None:
    """E = |x|^2 / 2 of N(0, I) and N(0, s^2 I) in d dimensions: P(E' > E) = P(F < s^2), F by
    Fisher's law F(d, d).

    Within 5 of Hanley & McNeil's standard errors: false-alarm rate 6e-7, were they exact.
    """
    generator = torch.Generator().manual_seed(0)
    inside, outside = (
        torch.randn(3000, 4, generator=generator).square().sum(1) / 2 for _ in range(2)
    )
    score = outlier_score(inside, scale**2 * outside)
    assert abs(score.auroc - stats.f.cdf(scale**2, 4, 4)) < 5 * score.standard_error
    assert score.auroc == pytest.approx(1 - outlier_score(scale**2 * outside, inside).auroc)


def test_the_standard_error_is_that_of_repeated_scores() -> None:
    """500 scores of 40 rows against 60, of exponential energies, the formula's own law: their
    spread is known to 3.2 %.
    """
    generator = torch.Generator().manual_seed(1)
    scores = [
        outlier_score(
            torch.rand(40, generator=generator).log().neg(),
            2 * torch.rand(60, generator=generator).log().neg(),
        )
        for _ in range(500)
    ]
    values = np.array([score.auroc for score in scores])
    assert values.mean() == pytest.approx(2 / 3, abs=5 * values.std() / math.sqrt(len(values)))
    assert np.mean([score.standard_error for score in scores]) == pytest.approx(
        values.std(), rel=6 * 0.032
    )


def test_shuffling_keeps_marginals_and_takes_dependence() -> None:
    rows = torch.randn(5000, 1, 1, generator=torch.Generator().manual_seed(1)).expand(
        5000, 2, 1
    ) * torch.tensor([[1.0], [2.0]])
    mixed = shuffled(rows, torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixed.sort(0).values, rows.sort(0).values)
    assert abs(float(torch.corrcoef(mixed.flatten(1).T)[0, 1])) < 6 / math.sqrt(5000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "run=(missing)"),
        (["run=nowhere"], "nowhere: no complete checkpoint"),
        (["run={ring}", "point=x.npy"], "point=x.npy: unknown key; did you mean points"),
        (["run={ring}", "points=x.npy"], "points=x.npy: cannot be read"),
        (["run={ring}", "features=x.npy"], "features=x.npy: goes with points=FILE"),
        (
            ["run={ring}", "points=x.parquet"],
            "points=x.parquet: no files there",
        ),
        (
            ["run={ring}", "points={three}"],
            "a row there has 3 numbers, one of {ring} has shape [2]; columns=[..] chooses",
        ),
        (
            ["run={rbm}", "ood={sixty_four}"],
            "row 0 holds 0.5 as its number 0; those of {rbm} are one of 0, ..., 1",
        ),
        (["run={dbm}", "ood=noise"], "rows and latent units together"),
        (["run={regression}", "points={one}"], "given=None: {regression} conditions on a context"),
        (
            ["run={regression}", "points={one}", "given=[[0.1],[0.2]]"],
            "give the one of all these rows",
        ),
        (["run={ring}", "given=1", "ood=noise"], "given=1: {ring} is a model of rows alone"),
        (["run={regression}", "given=[1]"], "goes with points=FILE or ood=FILE"),
        (["run={ring}", "evaluation.sample=0"], "evaluation.sample=0: unknown key"),
        (["run={ring}", "data.path=x"], "data.path='x': unknown key; it goes with data="),
    ],
)
def test_what_makes_no_sense_is_refused(
    runs: Runs,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, width in {"one": 1, "three": 3, "sixty_four": 64}.items():
        write(np.full((4, width), 0.5, dtype=np.float32), tmp_path / f"{name}.npy")
    files = {name: f"{tmp_path}/{name}.npy" for name in ("one", "three", "sixty_four")}
    named = ChainMap(files, runs)
    assert main([text.format_map(named) for text in arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("refused: ")
    assert message.format_map(named) in printed


def test_help_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "ood=shuffled" in capsys.readouterr().out
