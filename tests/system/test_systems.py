"""Every system of the lecture through the door a user takes, in short versions of the presets that
`make experiments` runs.

In one process here; `tests/faults/test_systems.py` carries them through Ray and kills a pool.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.config.groups import choices
from pipeline.train import main

pytestmark = pytest.mark.usefixtures("coarse")
COMMON = ("cluster=inline", "metrics.port=0", "evaluation.samples=20", "checkpoint.every=100000")
SHORT = {
    "conditional_label": (
        *("trainer.steps=250", "energy.hidden=[128,128]", "optimizer.warmup=50"),
        *(
            "evaluation.transitions=100",
            "evaluation.ais_temperatures=100",
            "evaluation.ais_particles=20",
        ),
    ),
    "conditional_regression": (
        "trainer.steps=350",
        "optimizer.warmup=50",
        "evaluation.transitions=100",
    ),
    "conditional_structured": (
        "trainer.steps=150",
        "optimizer.warmup=20",
        "data.rows=3000",
        "evaluation.transitions=100",
    ),
    "maxent_moments": ("trainer.steps=300", "evaluation.transitions=200"),
    "maxent_ising": ("trainer.steps=150", "evaluation.transitions=200"),
    "dbm_digits": (
        *("trainer.steps=400", "energy.hidden=[32,16]", "evaluation.transitions=100"),
        *("evaluation.ais_temperatures=300", "evaluation.ais_particles=50"),
    ),
    "compose_toys": ("trainer.steps=250", "optimizer.warmup=50", "evaluation.transitions=200"),
}


def train(experiment: str, output: Path, *more: str) -> dict[str, Any]:
    assert (
        main([f"experiment={experiment}", *COMMON, *SHORT[experiment], f"output={output}", *more])
        == 0
    )
    summary: dict[str, Any] = json.loads((output / "summary.json").read_text())
    return summary


def test_no_system_is_left_out() -> None:
    systems = {
        name
        for name in choices("experiment")
        if name.startswith(("conditional", "maxent", "dbm", "compose"))
    }
    assert set(SHORT) == systems


@pytest.mark.slow
@pytest.mark.single
@pytest.mark.parametrize("experiment", sorted(SHORT))
def test_a_short_run_learns_and_is_judged(experiment: str, tmp_path: Path) -> None:
    """Better than untrained by its own measure, a verdict computed from two numbers, a picture, and
    an energy that loads.
    """
    summary = train(experiment, tmp_path)
    verdict = summary["judged"]
    assert {"name", "value", "reference", "passes"} <= set(verdict)
    apart = verdict["value"] - verdict["reference"]
    assert verdict["passes"] == (apart >= 0 if verdict["sense"] == "at_least" else apart <= 0)
    assert (tmp_path / "samples.png").stat().st_size > 5000
    assert summary["skipped_steps"] == summary["reseeded_chains"] == 0
    if "test_log_likelihood" in summary:
        assert summary["test_log_likelihood"] > summary["baselines"]["untrained"] + 0.3
    energy = pipeline.load(str(tmp_path))
    assert sum(parameter.numel() for parameter in energy.parameters()) > 0


@pytest.mark.slow
@pytest.mark.single
def test_y_in_the_plane(tmp_path: Path) -> None:
    """The same preset for y in R^2."""
    summary = train("conditional_regression", tmp_path, "data.law=wheel", "trainer.steps=700")
    assert summary["test_log_likelihood"] > summary["baselines"]["gaussian"]


@pytest.mark.slow
@pytest.mark.single
def test_images_given_their_labels_and_labels_given_images(tmp_path: Path) -> None:
    """p(x | y) with chains of each row's class, and p(y | x) exactly normalised: the same
    machinery, contexts exchanged.
    """
    classes = (
        "objective=pcd",
        "energy.class_conditional=true",
        "trainer.batch_size=128",
        "evaluation.ais_temperatures=0",
    )
    generator = train(
        "conditional_label", tmp_path / "x", *classes, "trainer.steps=600", "evaluation.judged=null"
    )
    assert generator["samples_recognised"] > 0.3
    labels = (
        "data.position=label",
        "data.noise=0",
        "energy=pairwise",
        "energy.levels=10",
        "energy.hidden=[64]",
    )
    exact = (
        "objective=maximum_likelihood",
        "kernel=gibbs_with_gradients",
        "optimizer.weight_decay=0.001",
    )
    classifier = train(
        "conditional_label",
        tmp_path / "y",
        *labels,
        *exact,
        "trainer.steps=400",
        "evaluation.judged=null",
    )
    assert classifier["accuracy"] > 0.9
    assert classifier["search"] == "exact"
