"""The benchmark of whole runs: bare loops learn what the project learns, windows are read right,
and a contender that was stopped stands still.
"""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from benchmarks import front_door, training_loops
from benchmarks.front_door import BARE, CONTENDERS, DRIVER, RECIPES, Contender, Window
from pipeline.assembly.data import open_data
from pipeline.config.compose import compose
from pipeline.energies.base import Energy
from pipeline.energies.conv import ConvEnergy
from pipeline.energies.mlp import MLPEnergy
from pipeline.energies.rbm import BernoulliRBM
from pipeline.objectives.base import NegativeSide, PositiveSide
from pipeline.objectives.contrastive import ContrastiveDivergence
from pipeline.training.optimizer import learning_rate


def test_the_training_loops_import_nothing_of_the_project() -> None:
    tree = ast.parse(Path(training_loops.__file__).read_text())
    modules = {
        *(
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        ),
        *(node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)),
    }
    assert not {name.partition(".")[0] for name in modules} & {"pipeline", "actors", "ray"}
    assert {name for name in modules if name.startswith("benchmarks")} == {"benchmarks"}


def pair_of(energy: str, rows: Tensor) -> tuple[Energy, training_loops.Model]:
    """The project's energy and the bare loop's, with the same weights."""
    torch.manual_seed(0)
    shape = rows.shape[1:]
    if energy == "mlp":
        ours, theirs = (
            MLPEnergy(shape, (9, 7), 1.0, False),
            training_loops.Perceptron(rows, 1.0, (9, 7)),
        )
    elif energy == "conv":
        ours = ConvEnergy(shape, (3, 5), 6, 1, False, 1.0)
        theirs = training_loops.Convolutions(rows, 1.0, (3, 5), 6)
    else:
        ours, theirs = BernoulliRBM(shape, 5, 0.1), training_loops.Machine(rows, 1.0, 5)
    with torch.no_grad():
        for parameter, other in zip(ours.parameters(), theirs.parameters, strict=True):
            other.copy_(parameter.add_(0.3 * torch.randn_like(parameter)))
    return ours, theirs


@pytest.mark.parametrize("energy", ["mlp", "conv", "rbm"])
def test_a_bare_loop_has_the_gradient_of_the_projects_objective(energy: str) -> None:
    rows = torch.rand(20, 9, 8, generator=torch.Generator().manual_seed(1))
    rows = rows.round() if energy == "rbm" else rows
    ours, theirs = pair_of(energy, rows)
    positives, negatives = rows[:12], rows[12:]
    flat = negatives if energy == "conv" else negatives.flatten(1)
    value = theirs.learn(positives, flat)
    objective = ContrastiveDivergence(0.0 if energy == "rbm" else training_loops.ENERGY_L2)
    energies = ours(negatives)
    parts = [
        *objective.of_positives(ours, PositiveSide(positives)),
        *objective.of_negatives(ours, NegativeSide(negatives), energies, torch.ones_like(energies)),
    ]
    loss = torch.stack([part.weight * part.total / part.rows for part in parts]).sum()
    expected = torch.autograd.grad(loss, list(ours.parameters()))
    torch.testing.assert_close(value, loss.detach(), rtol=1e-5, atol=1e-5)
    for other, gradient in zip(theirs.parameters, expected, strict=True):
        torch.testing.assert_close(other.grad, gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_bare_loop_and_run_have_one_recipe(name: str) -> None:
    bare = training_loops.RECIPES[name]
    for who in CONTENDERS:
        module, *given = front_door.arguments_of(name, who, Path("folder/1"))
        config = compose(given)
        assert module == "pipeline.train"
        ours = (
            config.energy.name,
            config.trainer.batch_size,
            config.negatives,
            config.kernel.transitions,
            config.chains.restart,
            config.optimizer.learning_rate,
            config.optimizer.ema,
        )
        assert ours == tuple(bare)
        assert config.trainer.steps == training_loops.STEPS
    model = training_loops.MODELS[bare.energy](torch.rand(9, 28, 28), bare.rate)
    (optimizer,) = (model._sgd if bare.energy == "rbm" else model._adam,)
    for tensor in model.parameters:
        tensor.grad = torch.zeros_like(tensor)
    for step in (0, 120, 150_000):
        model.update(step)
        wanted = learning_rate(config.optimizer, step, training_loops.STEPS)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(wanted)
    if bare.energy != "rbm":
        assert config.kernel.step_size == training_loops.STEP_SIZE
        assert config.data.noise == training_loops.NOISE
        assert config.objective.energy_l2 == training_loops.ENERGY_L2


def test_rows_of_the_bare_loops_are_the_projects() -> None:
    for binary, given in ((False, []), (True, ["experiment=digits_rbm"])):
        sample = open_data(compose(given)).sample
        torch.testing.assert_close(training_loops.digits(binary), sample, rtol=0, atol=1e-6)


def test_images_are_read_by_both(tmp_path: Path) -> None:
    front_door.write_images(tmp_path / "images", count=200)
    config = compose(["experiment=images", f"data.path={tmp_path / 'images'}", "data.held_out=5"])
    data = open_data(config)
    order = np.random.RandomState(config.data.split_seed).permutation(200)
    bare = training_loops.images(tmp_path / "images")
    assert 0.1 < float(bare.std()) < 1
    torch.testing.assert_close(bare[order[:-5]], data.sample, rtol=0, atol=1e-6)


def test_a_speed_is_of_the_rows_within_the_window() -> None:
    """2 steps a second before the window and behind it, 10 within."""
    times = [0.0, 1.0, 2.0, 2.2, 2.4, 2.6, 3.6]
    rows = [
        {"step": 2.0 * number, "time": time, DRIVER: 0.004 * number}
        for number, time in enumerate(times)
    ]
    found = front_door.speed(rows, Window(1.9, 2.7, 1.2))
    assert found == pytest.approx((10.0, 1.5, 2.0))
    alone = [{"step": row["step"], "time": row["time"]} for row in rows]
    assert math.isnan(front_door.speed(alone, Window(1.9, 2.7, 1.2)).driver)
    with pytest.raises(ValueError, match="1 rows in"):
        front_door.speed(rows, Window(2.1, 2.3, 1.0))


def test_rows_of_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    speeds = [front_door.Speed(rate, 1.5, 2.0) for rate in (30.0, 10.0, 20.0)]
    row = front_door.row_of("default", "Ray, 2 pools", speeds, [40.0, 40.0, 10.0])
    assert (row["steps_per_second"], row["ratio_to_bare"]) == (20.0, 0.75)
    assert (row["cores_used"], row["driver_ms_per_step"]) == (1.5, 2.0)
    assert front_door.row_of("default", BARE, speeds, [1.0] * 3)["driver_ms_per_step"] is None
    assert "2.00 ms a step" in capsys.readouterr().out


def test_a_contender_stands_still_until_its_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bare loop of the RBM, the quickest, with its rows."""
    monkeypatch.setattr(front_door, "WARM", 0.0)
    monkeypatch.setattr(front_door, "SETTLE", 0.0)
    contender = Contender(front_door.arguments_of("rbm", BARE, tmp_path), tmp_path / "log")
    try:
        contender.warm_up()
        assert {process.status() for process in contender.tree()} == {psutil.STATUS_STOPPED}
        window = contender.window(0.3)
        assert {process.status() for process in contender.tree()} == {psutil.STATUS_STOPPED}
    finally:
        contender.end()
        contender.wait()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert front_door.speed(rows, window).steps_per_second > 0
    assert window.used > 0


def test_a_contender_that_fails_is_told(tmp_path: Path) -> None:
    contender = Contender(["pipeline.train", "trainer.steps=none"], tmp_path / "log")
    with pytest.raises(RuntimeError, match=r"refused: trainer\.steps=none"):
        contender.warm_up()
