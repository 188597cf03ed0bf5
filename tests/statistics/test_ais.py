"""AIS of RBMs, forward and back, against enumeration over the hidden states; its path against sums
over the joint law.

An estimate agrees with the truth when it is within 5 of its own standard errors: a false-alarm rate
of 6e-7 where those are right. Seeds are fixed. Broken variants must fail the very check the
estimator passes.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from pipeline.config.compose import compose
from pipeline.data.base import in_memory
from pipeline.energies.discrete import all_states
from pipeline.energies.laws import Gaussian
from pipeline.energies.rbm import BernoulliRBM, PottsRBM
from pipeline.energies.target import Target
from pipeline.evaluation import ais, likelihood
from pipeline.evaluation.ais import (
    AISResult,
    Bridge,
    RatesBridge,
    gibbs_log_partition,
    reverse_annealed_log_partition,
    reverse_log_partition,
)
from pipeline.kernels import gibbs
from pipeline.kernels.base import EnergyState, Info, Kernel, init_energy
from pipeline.train import main
from tests.statistics.test_evaluation import run
from tests.statistics.test_rbms import HIDDEN, hidden_states, make

pytestmark = pytest.mark.slow  # as a group

LIMIT = 5.0


class Known(NamedTuple):
    """An RBM of 784 visible, 16 hidden units, its log Z by enumeration, and exact draws."""

    rbm: BernoulliRBM
    log_z: float
    rows: Tensor


@pytest.fixture(scope="module")
def known() -> Known:
    """Weights N(0, 0.3^2) and biases N(-1.5, 1.5^2): the rates of MNIST, weights as large as
    learned ones and more.
    """
    generator = torch.Generator().manual_seed(3)
    rbm = BernoulliRBM((28, 28), hidden=16, weight_scale=1.0).requires_grad_(False)
    rbm.weight.copy_(0.3 * torch.randn(rbm.weight.shape, generator=generator))
    rbm.visible_bias.copy_(1.5 * torch.randn(784, generator=generator) - 1.5)
    rbm.hidden_bias.copy_(
        -rbm.weight @ torch.sigmoid(rbm.visible_bias)
    )  # or most units would be always on or off
    log_z = rbm.log_partition()
    assert log_z is not None
    h = torch.cat(list(all_states(2, 16))).float()
    logs = h @ rbm.hidden_bias + rbm.visible_log_partition(
        torch.addmm(rbm.visible_bias, h, rbm.weight)
    )
    chosen = torch.multinomial(
        torch.softmax(logs.double(), 0), 1000, replacement=True, generator=generator
    )
    return Known(rbm, log_z, rbm.conditional("visible", h[chosen]).sample(generator))


def forward(
    known: Known, temperatures: int = 400, particles: int = 100, seed: int = 0
) -> AISResult:
    path, generator = RatesBridge(known.rbm, known.rows), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return run(gibbs_log_partition(path, temperatures, particles, generator))


def reverse(
    known: Known, temperatures: int = 400, particles: int = 100, seed: int = 0
) -> AISResult:
    path, generator = RatesBridge(known.rbm, known.rows), torch.Generator().manual_seed(seed)
    starts = known.rows[seed : seed + particles]
    with torch.no_grad():
        return run(reverse_log_partition(path, temperatures, starts, generator))


def z_score(result: AISResult, known: Known) -> float:
    return (result.log_z - known.log_z) / result.standard_error


@pytest.mark.parametrize("estimate", [forward, reverse])
def test_estimate_agrees_with_enumeration(
    known: Known, estimate: Callable[[Known], AISResult]
) -> None:
    result = estimate(known)
    assert result.standard_error < 0.15
    assert abs(z_score(result, known)) < LIMIT
    assert result.particles.shape == (100, 28, 28)


def test_hasty_estimates_enclose_the_truth(known: Known) -> None:
    """From one particle and 5 temperatures E[log w] is below it, and above on the way back: by 5
    standard errors of 400.
    """
    for estimate, sign in ((forward, -1), (reverse, 1)):
        excess = torch.tensor(
            [sign * (estimate(known, 5, 1, seed).log_z - known.log_z) for seed in range(400)]
        )
        assert excess.mean() > LIMIT * excess.std() / math.sqrt(400)


def test_the_standard_error_is_the_spread_of_estimates(known: Known) -> None:
    """Over 40 seeds: the ratio's own standard error is about 1 / sqrt(80) = 0.11, and 0.5 is 4 of
    it away.
    """
    results = [forward(known, 200, 50, seed) for seed in range(40)]
    spread = torch.tensor([result.log_z for result in results]).std()
    assert 0.5 < spread / torch.tensor([result.standard_error for result in results]).mean() < 1.5


def negated(position: Tensor, target: Target) -> EnergyState:
    return EnergyState(position, -target.energy(position))


def negated_step(
    generator: torch.Generator, state: EnergyState, target: Target
) -> tuple[EnergyState, Info]:
    moved, info = gibbs.step(generator, gibbs.State(state.position), target)
    return negated(moved.position, target), info


def at_the_wrong_beta(
    generator: torch.Generator, state: EnergyState, target: Target
) -> tuple[EnergyState, Info]:
    """A transition that leaves the law at another beta, (1 + beta) / 2, invariant."""
    assert target.beta is not None
    right = target.beta
    target.beta = (1 + right) / 2
    moved, info = gibbs.step(generator, gibbs.State(state.position), target)
    target.beta = right
    return init_energy(moved.position, target), info


BROKEN: dict[str, tuple[Any, str, Any]] = {
    "the weights' sign": (ais, "GIBBS", Kernel(negated, negated_step)),
    "the transition's beta": (ais, "GIBBS", Kernel(init_energy, at_the_wrong_beta)),
    "base biases missing in the transition": (
        RatesBridge,
        "conditional",
        lambda path, *a: path.rbm.conditional(*a),
    ),
    "base biases missing in the energy": (
        RatesBridge,
        "tempered",
        lambda path, *a: path.rbm.tempered(*a),
    ),
    "the base's log Z": (
        RatesBridge,
        "base_log_partition",
        lambda path: path.rbm.base_log_partition(),
    ),
    "starts": (RatesBridge, "sample_base", lambda path, *a: path.rbm.sample_base(*a)),
}


@pytest.mark.parametrize("slip", BROKEN)
def test_broken_variant_is_caught(known: Known, slip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*BROKEN[slip])
    assert abs(z_score(forward(known), known)) > LIMIT


@pytest.mark.parametrize("kind", ["bernoulli", "potts"])
def test_path_is_that_of_the_joint_law(kind: str) -> None:
    """Free energies, conditionals, base law and its log Z from E_beta(v, h), summed over all
    states; both ends.
    """
    rbm, v, _ = make(kind)
    assert isinstance(rbm, BernoulliRBM | PottsRBM)
    rbm.requires_grad_(False)
    rows = v[torch.randint(len(v), (50,), generator=torch.Generator().manual_seed(0))]
    path, h = RatesBridge(rbm, rows), hidden_states(rbm)
    rates = copy.deepcopy(rbm)
    rates.initialise(rows)
    phi = rbm.features(v)
    for beta in (0.0, 0.3, 1.0):
        bias = (1 - beta) * rates.visible_bias + beta * rbm.visible_bias
        joint = -(phi @ bias)[:, None] - beta * (h @ rbm.hidden_bias + phi @ rbm.weight.T @ h.T)
        betas = torch.full((len(v),), beta, dtype=torch.float64)
        torch.testing.assert_close(
            path.tempered(v, betas), -torch.logsumexp(-joint, 1), rtol=0, atol=1e-8
        )
        hidden = path.conditional("hidden", v, betas)
        for column in range(len(h)):
            log_prob = hidden.log_prob(h[column].expand(len(v), HIDDEN)).sum(1)
            torch.testing.assert_close(
                log_prob, torch.log_softmax(-joint, 1)[:, column], rtol=0, atol=1e-9
            )
            visible = path.conditional("visible", h[column].expand(len(v), HIDDEN), betas).log_prob(
                v
            )
            torch.testing.assert_close(
                visible.flatten(1).sum(1),
                torch.log_softmax(-joint, 0)[:, column],
                rtol=0,
                atol=1e-9,
            )
        if beta == 0:
            assert path.base_log_partition() == pytest.approx(
                float(torch.logsumexp(-joint.flatten(), 0)), abs=1e-9
            )
            torch.testing.assert_close(path.base(v), -torch.logsumexp(-joint, 1), rtol=0, atol=1e-9)
    torch.testing.assert_close(path(v), rbm(v))


def test_figures_of_a_likelihood(known: Known) -> None:
    """Means over held-out and training rows as by the exact log Z, off by what log Z is off by; the
    gap, and rows' spread.
    """
    config = compose(
        ["experiment=digits_rbm", "evaluation.ais_temperatures=400", "evaluation.ais_particles=100"]
    )
    data = in_memory(known.rows[:600], known.rows[600:], 0.0)
    steps = likelihood.by_gibbs_annealing(known.rbm, data, config)
    stages = []
    with torch.no_grad():
        while True:
            try:
                stages.append(next(steps).stage)
            except StopIteration as stop:
                figures = stop.value
                break
        truth = likelihood.exact(known.rbm, known.log_z, data.held_out, data.sample)
        values = -known.rbm(data.held_out).double()
    assert list(dict.fromkeys(stages)) == [
        "annealed importance sampling",
        "draws of the model",
        "reverse annealed importance sampling",
    ]
    for name in ("log_z", "log_z_reverse"):
        assert abs(figures[name] - known.log_z) < LIMIT * figures[f"{name}_standard_error"]
    assert figures["log_z_gap"] == pytest.approx(figures["log_z_reverse"] - figures["log_z"])
    for name in ("test_log_likelihood", "train_log_likelihood"):
        assert figures[name] - truth[name] == pytest.approx(
            known.log_z - figures["log_z"], abs=1e-6
        )
    assert figures["test_rows_standard_error"] == pytest.approx(float(values.std()) / 20)


@pytest.mark.parametrize("energy", ["rbm", "potts_rbm"])
def test_a_run_reports_both_estimates(
    energy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """64x24 and 3-level units cannot be enumerated: AIS where it has temperatures, else the
    pseudo-likelihood.
    """
    levels = ["energy=potts_rbm", "energy.levels=3", "data.encoding=categorical", "data.levels=3"]
    short = [
        "experiment=digits_rbm",
        "energy.hidden=24",
        "cluster=inline",
        "metrics.port=0",
        "evaluation.samples=0",
    ]
    short += ["trainer.steps=5", f"output={tmp_path}", *(levels if energy == "potts_rbm" else [])]
    assert main([*short, "evaluation.ais_temperatures=50"]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["method"] == "AIS, 50 temperatures, 200 particles"
    assert abs(summary["log_z_gap"]) < 0.5
    assert summary["test_log_likelihood"] > summary["baselines"]["untrained"]
    assert "by reverse AIS" in capsys.readouterr().out
    assert main([*short, "evaluation.ais_temperatures=0"]) == 0
    assert "test_pseudo_log_likelihood" in json.loads((tmp_path / "summary.json").read_text())


def test_continuous_annealing_comes_back_to_the_same_log_z() -> None:
    """A Gaussian is reached from a wider one elsewhere; the particles start far from draws."""
    law = Gaussian(torch.zeros(6), 4 * torch.eye(6))
    model = Gaussian(torch.ones(6), 0.25 * torch.eye(6))
    generator = torch.Generator().manual_seed(0)
    starts = torch.randn(100, 6, generator=generator) - 1
    found = run(
        reverse_annealed_log_partition(Bridge(law, model), 300, starts, generator, step_size=0.05)
    )
    assert found.standard_error < 0.1
    assert abs(found.log_z - model.log_partition()) < LIMIT * found.standard_error
