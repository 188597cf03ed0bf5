"""Tables and folders of images through the door: trained from, sampled, and ranked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import csv

import pipeline
from pipeline.evaluate import main as evaluate
from pipeline.sample import main as sample
from pipeline.train import main as train

TINY = (
    *("cluster=inline", "metrics.port=0", "chains.per_pool=16", "chains.pools=1"),
    *("trainer.batch_size=16", "evaluation.samples=6", "evaluation.transitions=5"),
    *("evaluation.ais_temperatures=3", "evaluation.ais_particles=2", "recorders=[series]"),
)
LABELLED = ("energy=label_mlp", "energy.classes=3", "energy.hidden=[8]", "objective=pcd")


def table(path: Path) -> np.ndarray:
    """Writes 120 rows of a far and wide column, a narrow one, and a label in words."""
    rows = np.random.default_rng(0).normal(size=(120, 2)) * [300, 0.01] + [5000, 2]
    words = ["oak", "ash", "elm"]
    lines = [f"{a},{b},{words[i % 3]}" for i, (a, b) in enumerate(rows)]
    path.write_text("\n".join(["height,width,tree", *lines]))
    return rows


@pytest.mark.usefixtures("undrawn")
def test_a_csv_with_labels_and_a_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run is called after the file, goes on with the same scale, and tells what adds to its
    likelihoods; samples, points and clamped rows are in the data's units, also without the data.
    """
    rows, run = table(tmp_path / "trees.csv"), tmp_path / "run"
    asked = [
        *("data=columns", f"data.path={tmp_path}/trees.csv", "data.columns=[height,width]"),
        *("data.context=[tree]", "data.scale=standard", "data.held_out=0.25"),
        *("kernel.step_size=0.1", f"output={run}", *LABELLED, *TINY),
    ]
    assert train([*asked, "trainer.steps=3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("trees: label_mlp energy")
    assert "labels of tree: ash is 0, elm is 1, oak is 2\n" in out
    assert "own units add -" in out
    assert "verdict at step 0, scale" not in out
    assert train([*asked, "trainer.steps=5"]) == 0
    assert "resuming at step 3" in capsys.readouterr().out
    summary = json.loads((run / "summary.json").read_text())
    assert summary["name"] == "trees"
    # 300 and 0.01, of 90 rows each: 0.3 is 4 standard errors of the sum of two log(deviation)s
    assert abs(summary["log_determinant"] + np.log(300) + np.log(0.01)) < 0.3

    energy = pipeline.load(run)
    deviation = torch.from_numpy(rows).float()
    assert energy.row_scale.scaled(deviation).std(0).sub(1).abs().max() < 0.3

    (tmp_path / "trees.csv").rename(tmp_path / "moved.csv")
    given = [f"run={run}", "given=elm", "format=csv", "transitions=5", f"output={tmp_path}/out"]
    assert sample([*given, "samples=200"]) == 0
    drawn = csv.read_csv(tmp_path / "out" / "samples.csv")
    assert drawn.column_names == ["height", "width", "context0", "energy"]
    assert set(drawn["context0"].to_pylist()) == {"elm"}
    assert 4000 < np.mean(drawn["height"].to_numpy()) < 6000
    assert 1.9 < np.mean(drawn["width"].to_numpy()) < 2.1
    (tmp_path / "holes.csv").write_text("height,width\n4800,\n")
    assert sample([*given, f"clamp={tmp_path}/holes.csv"]) == 0
    filled = csv.read_csv(tmp_path / "out" / "samples.csv")
    assert filled["height"].to_pylist() == [pytest.approx(4800, abs=0.1)]
    assert sample([f"run={run}", "given=fir", f"output={tmp_path}/out"]) == 2
    assert "has the labels ash, elm, oak" in capsys.readouterr().err

    points = [f"run={run}", f"points={tmp_path}/moved.csv", f"data.path={tmp_path}/moved.csv"]
    assert evaluate([*points, f"output={tmp_path}/ranked"]) == 0
    ranked = csv.read_csv(tmp_path / "ranked" / "ranking.csv")
    expected = energy(energy.row_scale.scaled(deviation))[ranked["point"].to_pylist()]
    np.testing.assert_allclose(ranked["energy"].to_numpy(), expected.numpy(), atol=1e-4)


@pytest.mark.usefixtures("undrawn")
def test_rows_far_from_the_base_law_name_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table(tmp_path / "trees.csv")
    asked = [
        *("data=columns", f"data.path={tmp_path}/trees.csv", "data.columns=[height,width]"),
        *("data.held_out=20", "energy.hidden=[8]", "objective=nce", "trainer.steps=1"),
    ]
    assert train([*asked, *TINY, f"output={tmp_path}/run"]) == 0
    out = capsys.readouterr().out
    assert "verdict at step 0, scale: the data span" in out
    assert "set data.scale=standard" in out


@pytest.mark.usefixtures("undrawn")
def test_a_folder_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its sub-folders are labels, by which samples are asked for."""
    pixels = np.random.default_rng(0).integers(0, 255, (60, 6, 6), np.uint8)
    for number, image in enumerate(pixels):
        folder = tmp_path / "trees" / ["oak", "ash", "elm"][number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    run = tmp_path / "run"
    asked = ["data=images", f"data.path={tmp_path}/trees", f"output={run}", "trainer.steps=2"]
    assert train([*asked, *LABELLED, *TINY]) == 0
    out = capsys.readouterr().out
    assert out.startswith("trees: label_mlp energy")
    assert "labels of folder: ash is 0, elm is 1, oak is 2\n" in out
    given = [f"run={run}", "given=[oak,ash]", "samples=4", "transitions=3", "format=csv"]
    assert sample([*given, f"output={tmp_path}/out"]) == 0
    drawn = csv.read_csv(tmp_path / "out" / "samples.csv")
    assert drawn["context0"].to_pylist() == ["oak", "ash"] * 2
