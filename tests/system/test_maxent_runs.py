"""Maximum-entropy models through the door a user takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import pipeline
from pipeline.assembly.data import open_data
from pipeline.common.errors import CheckpointError, ConfigError
from pipeline.config.compose import compose
from pipeline.train import main, run
from tests.statistics.test_maxent import DICE

COMMON = (
    "cluster=inline",
    "metrics.port=0",
    "evaluation.samples=20",
    "evaluation.transitions=100",
    "optimizer.clip_norm=null",
)


DICE_RUN = (
    *(
        "energy=maxent",
        "energy.levels=6",
        "kernel=single_site",
        "objective=moments",
        "data=none",
        "data.levels=6",
    ),
    *("data.shape=[1]", "optimizer.warmup=0", *COMMON),
)


@pytest.mark.slow
@pytest.mark.parametrize("expectation", ["exact", "chains"])
def test_the_dice_from_the_command_line(expectation: str, tmp_path: Path) -> None:
    """No data: the moment alone. Exactly to 1e-3, by 128 chains and 400 averaged steps to 0.02, in
    each face's probability.
    """
    arguments = [
        f"objective.expectation={expectation}",
        "objective.moments=[3.5]",
        "trainer.steps=400",
        "optimizer.ema=0.98",
    ]
    settings = ("optimizer.learning_rate=0.05", "kernel.transitions=4")
    assert main([*DICE_RUN, *arguments, *settings, f"output={tmp_path}"]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["infeasible"] is None
    assert summary["max_residual_z"] is None
    entry = summary["moments"][0]
    assert entry["feature"] == "x"
    assert entry["residual"] == pytest.approx(entry["model"] - 3.5, abs=1e-6)
    assert summary["words"][0].startswith("1 moments, largest residual")
    energy = pipeline.load(str(tmp_path))
    tolerance = 1e-3 if expectation == "exact" else 0.02
    probabilities = torch.softmax(-energy(torch.arange(6.0)[:, None]), 0)
    torch.testing.assert_close(probabilities, torch.tensor(DICE), rtol=0, atol=tolerance)
    assert summary["dual_gap"] < tolerance
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("moments.png", "samples.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["objective.moments=[6]"],
            (
                "objective.moments=[6.0]: no law has these moments: x is at most 5, so 6 is no mean"
                " of it"
            ),
        ),
        (
            ["objective.moments=[5]"],
            "objective.moments=[5.0]: on the boundary of what a law can have",
        ),
        (
            ["objective.moments=[1,2]"],
            "objective.moments=2 numbers: there are 1 features, one moment each, in this order: x",
        ),
        (
            ["objective.moments=null"],
            "objective.moments=null: with data=none there are no rows to take them from",
        ),
        (
            [
                "data.shape=[8]",
                "objective.moments=[1,1,1,1,1,1,1,1]",
                "objective.expectation=exact",
            ],
            "objective.expectation=exact: log Z needs at most 2^20 states",
        ),
    ],
)
def test_refusals(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything starts."""
    assert main([*DICE_RUN, *arguments, f"output={tmp_path}/a"]) == 2
    assert capsys.readouterr().err.startswith(f"refused: {message}")
    assert not (tmp_path / "a").exists()


def test_combinations_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="data=none: objective=pcd learns from rows"):
        compose(["energy=maxent", "data=none"])
    with pytest.raises(ConfigError, match="objective=moments: energy=mlp declares no features"):
        compose(["objective=moments"])


@pytest.mark.usefixtures("undrawn")
def test_moments_that_cannot_be_met_are_seen_in_the_residuals(tmp_path: Path) -> None:
    """Under a ridge, a mean that no law has is not refused; the summary says why it is missed."""
    arguments = [
        "objective.expectation=exact",
        "objective.moments=[6]",
        "objective.l2=0.1",
        "trainer.steps=100",
    ]
    assert main([*DICE_RUN, *arguments, "optimizer.learning_rate=0.1", f"output={tmp_path}"]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["infeasible"].startswith("x is at most 5")
    assert summary["moments"][0]["residual"] < -1
    assert any("no law" in line for line in summary["words"])


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_is_not_done_says_so(tmp_path: Path) -> None:
    arguments = [
        "objective.expectation=exact",
        "objective.moments=[3.5]",
        "trainer.steps=3",
        "optimizer.learning_rate=0.01",
    ]
    assert main([*DICE_RUN, *arguments, f"output={tmp_path}"]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["max_residual_deviations"] > 0.1
    assert any("NOT MET" in line for line in summary["words"])


def sixes(x: Tensor) -> Tensor:
    return (x == 5).flatten(1).float()


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_features_given_in_code_train_and_are_read_back(tmp_path: Path) -> None:
    """A dice of mean 3.5 (of levels) whose top face has half the probability: both to 0.01."""
    config = compose(
        [
            *(
                *DICE_RUN,
                "objective.expectation=exact",
                "objective.moments=[3.5,0.5]",
                "trainer.steps=400",
            ),
            *("optimizer.learning_rate=0.1", f"output={tmp_path}"),
        ]
    )
    summary = run(config, features=[sixes])
    assert [entry["feature"] for entry in summary["moments"]] == ["x", "sixes[0]"]
    energy = pipeline.load(str(tmp_path), features=[sixes])
    probabilities = torch.softmax(-energy(torch.arange(6.0)[:, None]), 0)
    assert float(probabilities[5]) == pytest.approx(0.5, abs=0.01)
    assert float(probabilities @ torch.arange(6.0)) == pytest.approx(3.5, abs=0.01)
    with pytest.raises(CheckpointError, match="sixes were given in code"):
        pipeline.load(str(tmp_path))
    with pytest.raises(ConfigError, match="energy=maxent"):
        run(compose([]), features=[sixes])


def test_no_data_is_a_data_set_of_no_rows() -> None:
    data = open_data(compose([*DICE_RUN, "objective.moments=[3.5]"]))
    stream = data.positives(0)
    assert data.rows == 0
    assert stream.next(5).position.shape == (0, 1)
    stream.load_state_dict(stream.state_dict())
