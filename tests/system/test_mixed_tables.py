"""A table of words and numbers with holes, through the door: trained from, resumed, sampled, filled
and ranked.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pyarrow import csv

import pipeline
from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.evaluate import evaluate as figures_of
from pipeline.evaluate import main as evaluate
from pipeline.sample import main as sample
from pipeline.train import main as train
from pipeline.train import run

TINY = (
    *("cluster=inline", "metrics.port=0", "chains.per_pool=64", "chains.pools=1"),
    *("trainer.batch_size=64", "evaluation.samples=0", "evaluation.transitions=5"),
    *("evaluation.ais_temperatures=0", "recorders=[]", "checkpoint.every=400"),
    *("metrics.every=100", "metrics.held_out_every=0"),
)
MIXED = (
    *("energy=mixed_rbm", "energy.hidden=8", "kernel=gibbs", "objective.energy_l2=0"),
    *("optimizer.weight_decay=0", "optimizer.learning_rate=0.05", "data.categorical=auto"),
    "data.missing=impute",
)

WHOLE = "data.missing=refuse"


def latent_classes(rows: int, holes: float) -> pd.DataFrame:
    """Draws rows of a latent class model: given one of three classes, two columns of words, one of
    booleans and two of numbers are independent. Each value is missing with probability `holes`.
    """
    random = np.random.default_rng(1)
    classes = random.choice(3, rows, p=[0.5, 0.3, 0.2])
    colours, shapes = ["red", "green", "blue"], ["disc", "cube", "cone", "ball"]
    of_colours = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7]])
    of_shapes = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7], [0.1, 0.4, 0.4, 0.1]])
    frame = pd.DataFrame(
        {
            "colour": [colours[random.choice(3, p=of_colours[k])] for k in classes],
            "weight": random.normal(np.array([100, 160, 220])[classes], 15),
            "shape": [shapes[random.choice(4, p=of_shapes[k])] for k in classes],
            "hollow": random.random(rows) < np.array([0.9, 0.2, 0.5])[classes],
            "height": random.normal(np.array([2.0, 1.0, 3.0])[classes], 0.3),
        }
    ).astype({"hollow": object})
    return frame.mask(random.random(frame.shape) < holes)


@pytest.mark.usefixtures("undrawn")
def test_a_mixed_table_with_holes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model's held-out log-likelihood, exact, is nearer to that of the law than to that of
    independent columns; samples have the words, and a row with empty cells is filled, also without
    the data.
    """
    table, whole = tmp_path / "things.csv", tmp_path / "run"
    latent_classes(1200, 0.1).to_csv(table, index=False)
    asked = ["data=columns", f"data.path={table}", "data.held_out=200", "data.scale=standard"]
    assert train([*asked, *TINY, *MIXED, "trainer.steps=300", f"output={whole}"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("things: mixed_rbm energy")
    assert "categories of shape: ball is 0, cone is 1, cube is 2, disc is 3\n" in out
    assert "training rows, which are imputed; held-out rows lack nothing\n" in out
    summary = json.loads((whole / "summary.json").read_text())
    found, alone = summary["test_log_likelihood"], summary["baselines"]["independent_components"]
    # the law itself has 1.8 nats more than independent columns; it is trained for a second
    assert found > alone + 0.9

    energy = pipeline.load(whole)
    assert energy.kinds == (3, 0, 4, 2, 0)
    table.rename(tmp_path / "moved.csv")
    asked = [f"run={whole}", "format=csv", "transitions=30", f"output={tmp_path}/out"]
    assert sample([*asked, "samples=200"]) == 0
    drawn = csv.read_csv(tmp_path / "out" / "samples.csv").to_pandas()
    assert list(drawn) == ["colour", "weight", "shape", "hollow", "height", "energy"]
    assert set(drawn["colour"]) <= {"red", "green", "blue"}
    assert 100 < drawn["weight"].mean() < 180
    (tmp_path / "holes.csv").write_text(
        "colour,weight,shape,hollow,height\nred,,disc,,\n,160,,False,1.0\n"
    )
    assert sample([*asked, f"clamp={tmp_path}/holes.csv"]) == 0
    filled = csv.read_csv(tmp_path / "out" / "samples.csv").to_pandas()
    assert filled["colour"][0] == "red"
    assert filled["shape"][0] == "disc"
    assert filled["weight"][1] == pytest.approx(160, abs=0.01)
    assert not filled.isna().any().any()
    (tmp_path / "holes.csv").write_text("colour,weight,shape,hollow,height\npink,,disc,,\n")
    assert sample([*asked, f"clamp={tmp_path}/holes.csv"]) == 2
    assert "'pink' is none of the labels blue, green, red" in capsys.readouterr().err

    latent_classes(20, 0).to_csv(tmp_path / "points.csv", index=False)
    points = [f"run={whole}", f"points={tmp_path}/points.csv", f"data.path={tmp_path}/moved.csv"]
    assert evaluate([*points, f"output={tmp_path}/ranked"]) == 0
    ranked = csv.read_csv(tmp_path / "ranked" / "ranking.csv")
    assert sorted(ranked["point"].to_pylist()) == list(range(20))
    assert np.isfinite(ranked["log_density"].to_numpy()).all()


@pytest.mark.usefixtures("undrawn")
def test_a_run_in_two_parts_ends_as_one_does(tmp_path: Path) -> None:
    """Bitwise, what is imputed among it."""
    latent_classes(200, 0.3).to_csv(tmp_path / "things.csv", index=False)
    asked = ["data=columns", f"data.path={tmp_path}/things.csv", "data.held_out=20", *TINY, *MIXED]
    ends = []
    for name, parts in (("whole", (9,)), ("parts", (4, 9))):
        for steps in parts:
            assert train([*asked, f"trainer.steps={steps}", f"output={tmp_path}/{name}"]) == 0
        checkpoint = tmp_path / name / "checkpoints" / "00000009"
        ends.append((checkpoint / "learner.safetensors").read_bytes())
    assert ends[0] == ends[1]


@pytest.mark.usefixtures("undrawn")
def test_a_frame_with_holes_by_contrastive_divergence(tmp_path: Path) -> None:
    """Rows in code; chains start at rows that are filled, under objective=cd."""
    asked = [*TINY, *MIXED, "data=rows", "data.held_out=20", "objective=cd", "trainer.steps=4"]
    config = compose([*asked, f"output={tmp_path}/run"])
    summary = run(config, rows=latent_classes(200, 0.1))
    assert np.isfinite(summary["test_log_likelihood"])
    energy = pipeline.load(tmp_path / "run")
    assert bool(torch.isfinite(energy(torch.zeros(1, 5))).all())


@pytest.mark.usefixtures("undrawn")
def test_a_weighted_frame_with_holes_by_its_run(tmp_path: Path) -> None:
    """The run that is returned draws samples, and its figures are found again from the frame."""
    asked = [*TINY, *MIXED, "data=rows", "data.held_out=20", "trainer.steps=4"]
    table, weights = latent_classes(200, 0.1), np.resize([3.0, 1.0, 0.0], 200)
    config = compose([*asked, "data.scale=standard", f"output={tmp_path}/run"])
    found = run(config, rows=table, weights=weights)
    assert found.sample(3).shape == (3, 5)
    assert found.samples.shape == (40, 5)
    again = figures_of(found.output, rows=table, weights=weights)["figures"]
    assert again["test_log_likelihood"] == pytest.approx(found["test_log_likelihood"], abs=1e-6)
    alike = figures_of(found.output, rows=table)["figures"]
    assert alike["test_log_likelihood"] != pytest.approx(found["test_log_likelihood"], abs=1e-6)
    with pytest.raises(ConfigError, match=r"learned from colour, .*; give these, in this order"):
        figures_of(found.output, rows=table[list(table)[::-1]])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("kernel=mala",), "kernel=mala: energy=mixed_rbm is over components of several kinds"),
        (
            (WHOLE, "objective=pseudo_likelihood"),
            "of several kinds; use pcd, cd or maximum_likelihood",
        ),
        ((WHOLE, "objective=nce"), "of several kinds; use pcd, cd or maximum_likelihood"),
        ((WHOLE, "objective=hutchinson"), "of several kinds; use pcd, cd or maximum_likelihood"),
        (("data.noise=0.1",), "data.noise=0.1: discrete data take no Gaussian noise"),
        (("data.encoding=binary",), "says of all columns what data.categorical=auto says of some"),
        (("data.categorical=3",), "should be auto, or names such as [colour,shape]"),
        (("energy.kinds=[1]",), "should be 0 for a real number, or 2 levels or more"),
        (
            ("energy=mlp", "kernel=mala"),
            "energy=mlp has no exact law of what is missing given the rest",
        ),
        (("energy=dbm", "energy.hidden=[3,2]"), "energy=dbm has no exact law of what is missing"),
        (("energy=potts", "energy.levels=2"), "energy=potts has no exact law of what is missing"),
        (
            ("energy=gaussian_rbm", "kernel=mala"),
            "rows are filled by the run's kernel given what is there; use kernel=gibbs",
        ),
        (("objective=maximum_likelihood",), "has no chains, as what is missing is drawn by"),
        (
            ("trainer.replicas=2", "cluster=local", "chains.pools=2"),
            "one learner keeps what is imputed; use trainer.replicas=1 (not 2)",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    overrides: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ["data=columns", "data.path=nowhere.csv", "data.categorical=auto", "cluster=inline"]
    usual += ["data.missing=impute", "energy=mixed_rbm", "kernel=gibbs"]
    asked = dict(each.split("=", 1) for each in (*usual, *overrides))
    assert train([f"{key}={value}" for key, value in asked.items()]) == 2
    assert said in capsys.readouterr().err
