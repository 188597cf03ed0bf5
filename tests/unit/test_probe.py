"""The figures that need no Z: against the same worked out by hand, and that taking them changes
nothing of a run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.assembly.data import open_data
from pipeline.assembly.energies import make_energy
from pipeline.common.rng import torch_generator
from pipeline.config.compose import compose
from pipeline.config.run import RunConfig
from pipeline.energies.base import site_log_likelihood
from pipeline.energies.rbm import BernoulliRBM, PottsRBM
from pipeline.runs.inline import InlineRunner
from pipeline.training.probe import ROWS, Probe
from tests.system.test_run import train

Small = Callable[..., RunConfig]
CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["rbm", "deep", "conv"])
def test_mean_energies_are_those_of_rows(small: Small, kind: str) -> None:
    """Of as many held-out rows as training rows; those without noise are rows as stored."""
    config = small(kind, "data.noise=0.0")
    data = open_data(config)
    energy = make_energy(config, data.shape).requires_grad_(False)
    found = Probe(config, data, CPU).figures(energy)
    count = min(len(data.held_out), ROWS)
    generator = torch_generator(config.data.split_seed, "probe")
    for name, rows in (("held_out", data.held_out), ("training", data.sample)):
        chosen = torch.randperm(len(rows), generator=generator)[:count]
        values = energy(rows[chosen]).double()
        assert found[name] == pytest.approx(float(values.mean()), rel=1e-6)
    assert ("pseudo_log_likelihood" in found) == (kind == "rbm")


def test_rows_have_their_noise_and_a_box_its_walls(small: Small) -> None:
    """The energy |x|^2 / 2 of rows whose noise has variance 4 is 2 d more; in a box none is inf."""
    near, far = (small("deep", f"data.noise={noise}") for noise in (0.0, 2.0))
    data = open_data(near)
    square = make_energy(near, data.shape).requires_grad_(False)
    for layer in square.layers:  # type: ignore[operator, union-attr]
        layer.weight.zero_()
        layer.bias.zero_()
    levels = [
        Probe(config, open_data(config), CPU).figures(square)["held_out"] for config in (near, far)
    ]
    assert levels[1] - levels[0] == pytest.approx(2 * 64, rel=0.05)


@pytest.mark.parametrize("levels", [2, 3])
def test_site_likelihoods_are_the_conditionals(levels: int) -> None:
    """Over all values of one site the probabilities sum to 1, and they go as exp(-E)."""
    torch.manual_seed(0)
    rbm = BernoulliRBM((5,), 3, 1.0) if levels == 2 else PottsRBM((5,), levels, 3, 1.0)
    rbm = rbm.double().requires_grad_(False)
    rows = torch.randint(levels, (40, 5)).double()
    sites = torch.randint(5, (40,))
    total = torch.zeros(40, dtype=torch.float64)
    for value in range(levels):
        set_to = rows.scatter(1, sites[:, None], float(value))
        log_p = site_log_likelihood(rbm, set_to, sites)
        total += log_p.exp()
        torch.testing.assert_close(
            log_p - site_log_likelihood(rbm, rows, sites), rbm(rows) - rbm(set_to)
        )
    torch.testing.assert_close(total, torch.ones_like(total))


def test_a_look_changes_nothing(small: Small) -> None:
    """A run learns the same bits whether it is looked at or not; rank 0 alone looks."""
    ends = []
    for every in (0, 2):
        runner = InlineRunner(small("rbm", "cluster=inline", f"metrics.held_out_every={every}"))
        runner.start(None, None)
        reports = [runner.step()[0] for _ in range(4)]
        assert [bool(report.figures) for report in reports] == [
            bool(every) and report.version % 2 == 0 for report in reports
        ]
        ends.append(runner._learner.publish().flat)
    assert np.array_equal(*ends)


@pytest.mark.usefixtures("undrawn")
def test_rows_of_a_run_have_the_figures(tmp_path: Path) -> None:
    """None before the first look; with chains, energies of all three sources."""
    settings = ("metrics.every=1", "metrics.held_out_every=3", "trainer.steps=4")
    train("rbm", tmp_path, "evaluation.samples=0", "evaluation.ais_temperatures=0", *settings)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for name in ("ebm_held_out_gap_nats", "ebm_pseudo_log_likelihood_nats"):
        assert [row[name] is None for row in rows] == [True, True, False, False]
    last = rows[-1]
    gap = last['ebm_energy_nats{source="held_out"}'] - last['ebm_energy_nats{source="training"}']
    assert last["ebm_held_out_gap_nats"] == pytest.approx(gap)


@pytest.mark.parametrize(
    "experiment", ["compose_toys", "conditional_label", "conditional_regression", "dbm_digits"]
)
def test_chains_are_held_against_rows_of_every_kind(experiment: str) -> None:
    """With their contexts where the model is conditional, and without where it only knows them."""
    config = compose([f"experiment={experiment}", "cluster=inline", "metrics.port=0"])
    runner = InlineRunner(config)
    runner.start(None, None)
    for _ in range(20):
        report = runner.step()[0]
    assert 0 <= report.figures["energy_distance"] <= 1
    assert 0 < report.figures["mode_coverage"] <= 1.001
    assert {"held_out", "training", "told_apart"} <= set(report.figures)
