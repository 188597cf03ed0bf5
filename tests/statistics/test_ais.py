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
from pipeline.energies.discrete import all_states
from pipeline.energies.laws import Gaussian, GaussianMixture
from pipeline.energies.mlp import MLPEnergy
from pipeline.energies.rbm import BernoulliRBM, GaussianRBM, PottsRBM
from pipeline.energies.target import Target
from pipeline.evaluation import ais, likelihood
from pipeline.evaluation.ais import forward_log_partition, log_partition, place
from pipeline.evaluation.log_partition import LogPartition
from pipeline.evaluation.paths import Bridge, MomentsBridge, RatesBridge
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


def forward(known: Known, temperatures: int = 200, seed: int = 0) -> LogPartition:
    path, generator = RatesBridge(known.rbm, known.rows), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return run(forward_log_partition(path, temperatures, 100, generator))


def both(
    known: Known, temperatures: int = 200, particles: int = 100, seed: int = 0
) -> LogPartition:
    path, generator = RatesBridge(known.rbm, known.rows), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return run(log_partition(path, temperatures, particles, generator, known.rows))


def agrees(found: LogPartition, log_z: float) -> bool:
    """Whether it is within `LIMIT` of its own standard errors, and has any."""
    error = found.standard_error
    return error is not None and abs(found.value - log_z) < LIMIT * error


@pytest.mark.parametrize("estimated", [forward, both])
def test_estimate_agrees_with_enumeration(
    known: Known, estimated: Callable[[Known], LogPartition]
) -> None:
    found = estimated(known)
    assert agrees(found, known.log_z)
    assert found.standard_error is not None
    assert found.standard_error < 0.05


def test_hasty_estimates_enclose_the_truth(known: Known) -> None:
    """From one particle and 5 temperatures E[log w] is below it, and above on the way back: by 5
    standard errors of 200. So are the bounds, nearly always; an error bar is not told.
    """
    found = [both(known, 5, 1, seed) for seed in range(200)]
    for sign, values in ((-1, [f.forward for f in found]), (1, [f.backward for f in found])):
        excess = sign * (torch.tensor(values) - known.log_z)
        assert excess.mean() > LIMIT * excess.std() / math.sqrt(200)
    assert all(f.standard_error is None and "count" in str(f.doubt) for f in found)
    inside = sum(f.at_least <= known.log_z <= (f.at_most or 0.0) for f in found)
    assert inside >= 0.9 * 200


def test_the_standard_error_is_the_spread_of_estimates(known: Known) -> None:
    """Over 40 seeds: the ratio's own standard error is about 1 / sqrt(80) = 0.11, and 0.5 is 4 of
    it away.
    """
    found = [both(known, 50, seed=seed) for seed in range(40)]
    spread = torch.tensor([one.value for one in found]).std()
    assert 0.5 < spread / torch.tensor([one.standard_error for one in found]).mean() < 1.5


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
    assert not agrees(forward(known), known.log_z)


def test_temperatures_are_placed_at_equal_distances() -> None:
    """From N(0, 1) to N(0, 10^2), 1 / s^2 = 1 - 0.99 beta: the length of the path from 0 to beta is
    proportional to log s. Evenly spaced betas are 0.46 off. A tenth is placed otherwise.
    """
    laws = (Gaussian(torch.zeros(1), variance * torch.eye(1)) for variance in (1.0, 100.0))
    with torch.no_grad():
        schedule = run(place(Bridge(*laws), 400, 100, torch.Generator().manual_seed(0)))
    betas, even = schedule.betas.double(), torch.linspace(0, 1, 401, dtype=torch.float64)
    assert (betas[0], betas[-1]) == (0.0, 1.0)
    assert (betas.diff() > 0).all()
    assert float((-(1 - 0.99 * even).log() / math.log(100) - even).abs().max()) > 0.4
    assert float((-(1 - 0.99 * betas).log() / math.log(100) - even).abs().max()) < 0.2


def test_a_short_path_has_few_temperatures() -> None:
    """From N(0, 1) to N(0, s^2) along 1 / variance the path's length is sqrt(1/2) |log s^2|: 0.40
    for s^2 = 1.75, where 200 temperatures are enough, and 2.0 for s^2 = 17, where 400 are. A
    trial of 100 particles knows the square within some 30 %.
    """
    for variance, temperatures in ((1.75, 200), (17.0, 400)):
        laws = (Gaussian(torch.zeros(1), s * torch.eye(1)) for s in (1.0, variance))
        with torch.no_grad():
            schedule = run(place(Bridge(*laws), 1000, 100, torch.Generator().manual_seed(0)))
        assert max(200, 0.7 * temperatures) <= schedule.temperatures <= 1.3 * temperatures


def shaped(bump: float) -> MLPEnergy:
    """A perceptron in 5 dimensions on N(0, 1.5^2 I): E = base + `bump` silu(x_1 - 1)."""
    energy = MLPEnergy((5,), hidden=(1,), base_scale=1.5, spectral_norm=False).requires_grad_(False)
    for parameter in energy.parameters():
        parameter.zero_()
    first, last = [module for module in energy.modules() if isinstance(module, torch.nn.Linear)]
    first.weight[0, 0], first.bias[0], last.weight[0, 0] = 1.0, -1.0, bump
    return energy


@pytest.mark.parametrize(("bump", "near"), [(0.3, True), (40.0, False)])
def test_a_model_near_its_base_law_is_annealed_from_there(bump: float, near: bool) -> None:
    """log Z is 4 log sqrt(2 pi 1.5^2) and an integral over x_1. Rows are far narrower than the
    model: a law fitted to them is a long way from it.
    """
    energy, x = shaped(bump), torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    values = x.square() / 4.5 + bump * torch.nn.functional.silu(x - 1)
    log_z = float(torch.logsumexp(-values, 0)) + math.log(24 / 200_000)
    log_z += 2 * math.log(2 * math.pi * 2.25)
    rows = 0.3 * torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    config = compose(["evaluation.ais_temperatures=400", "evaluation.ais_particles=100"])
    with torch.no_grad():
        figures = run(likelihood.log_z_by_annealing(energy, rows, config))
    assert ("200 temperatures" in figures["method"]) == near
    assert abs(figures["log_z"] - log_z) < LIMIT * figures["log_z_standard_error"]


def test_path_of_a_gaussian_machine_is_that_of_the_joint_law() -> None:
    """Free energies, conditionals and base law from E_beta(v, h), summed over the hidden states."""
    torch.manual_seed(0)
    rbm = GaussianRBM((3,), 4, 0.7).double().requires_grad_(False)
    rbm.log_variance.copy_(torch.tensor([0.3, -0.5, 0.0]))
    rbm.hidden_bias.copy_(torch.randn(4))
    rows = 2 * torch.randn(50, 3, dtype=torch.float64) + 1
    path, h = MomentsBridge(rbm, rows), torch.cat(list(all_states(2, 4)))
    v = torch.randn(20, 3, dtype=torch.float64)
    m, t2, s2 = rows.mean(0), rows.var(0), rbm.log_variance.exp()
    for beta in (0.0, 0.3, 1.0):
        own = ((v - rbm.visible_bias).square() / (2 * s2)).sum(1)[:, None] - (
            h @ rbm.hidden_bias + (v / s2) @ rbm.weight.T @ h.T
        )
        joint = (1 - beta) * ((v - m).square() / (2 * t2)).sum(1)[:, None] + beta * own
        betas = torch.full((20,), beta, dtype=torch.float64)
        torch.testing.assert_close(path.tempered(v, betas), -torch.logsumexp(-joint, 1))
        hidden = path.conditional("hidden", v, betas)
        for column in range(16):
            state = h[column].expand(20, 4)
            torch.testing.assert_close(
                hidden.log_prob(state).sum(1), torch.log_softmax(-joint, 1)[:, column]
            )
            excess = path.conditional("visible", state, betas).log_prob(v).sum(1) + joint[:, column]
            torch.testing.assert_close(excess, excess[:1].expand(20))
    base = torch.distributions.Normal(m, t2.sqrt())
    torch.testing.assert_close(-path.base(v) - path.base_log_partition(), base.log_prob(v).sum(1))


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
    bounds, and rows' spread.
    """
    config = compose(
        ["experiment=digits_rbm", "evaluation.ais_temperatures=200", "evaluation.ais_particles=100"]
    )
    train, test = known.rows[:600], known.rows[600:]
    steps = likelihood.by_annealing(known.rbm, test, train, config)
    stages = []
    with torch.no_grad():
        while True:
            try:
                stages.append(next(steps).stage)
            except StopIteration as stop:
                figures = stop.value
                break
        truth = likelihood.exact(known.rbm, known.log_z, test, train[: len(test)])
        values = -known.rbm(test).double()
    assert list(dict.fromkeys(stages)) == [
        "placing temperatures",
        "annealed importance sampling",
        "draws of the model",
        "reverse annealed importance sampling",
    ]
    assert abs(figures["log_z"] - known.log_z) < LIMIT * figures["log_z_standard_error"]
    for name in ("test_log_likelihood", "train_log_likelihood"):
        assert figures[name] - truth[name] == pytest.approx(
            known.log_z - figures["log_z"], abs=1e-6
        )
    for side, other in (("at_least", "at_most"), ("at_most", "at_least")):
        assert figures[f"test_log_likelihood_{side}"] + figures[f"log_z_{other}"] == pytest.approx(
            float(values.mean())
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
    assert summary["method"] == "AIS there and back, 50 temperatures, 200 particles"
    assert abs(summary["log_z_reverse"] - summary["log_z_forward"]) < 0.5
    assert summary["test_log_likelihood"] > summary["baselines"]["untrained"]
    assert "log Z at least" in capsys.readouterr().out
    assert main([*short, "evaluation.ais_temperatures=0"]) == 0
    assert "test_pseudo_log_likelihood" in json.loads((tmp_path / "summary.json").read_text())


def test_continuous_annealing_there_and_back() -> None:
    """A Gaussian is reached from a wider one elsewhere; the rows are far from draws."""
    law = Gaussian(torch.zeros(6), 4 * torch.eye(6))
    model = Gaussian(torch.ones(6), 0.25 * torch.eye(6))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(100, 6, generator=generator) - 1
    found = run(log_partition(Bridge(law, model), 200, 100, generator, rows))
    assert agrees(found, model.log_partition())
    assert found.standard_error is not None
    assert found.standard_error < 0.1


def test_chains_that_do_not_mix_are_found_out() -> None:
    """Two modes are far apart. A path that begins at rows of both reaches both. One that begins at
    those of the lesser mode misses the other, and particles that go back from rows of that stay
    there until the end.
    """
    means = torch.tensor([[-4.0], [4.0]]).expand(2, 4)
    covariances = 0.25 * torch.eye(4).expand(2, -1, -1)
    law = GaussianMixture(torch.tensor([1.0, 9.0]), means, covariances)
    generator = torch.Generator().manual_seed(0)
    rows = law.sample(1000, generator)
    whole = run(log_partition(Bridge(Gaussian.fit(rows, 0.0), law), 200, 200, generator, rows))
    assert agrees(whole, law.log_partition())
    lesser = Gaussian.fit(rows[rows[:, 0] < 0], 0.0)
    found = run(log_partition(Bridge(lesser, law), 200, 200, generator, rows))
    assert found.standard_error is None
    assert "apart" in str(found.doubt)
    assert found.at_most is not None
    assert found.at_least < 0.1 < law.log_partition() - 0.3 < found.at_most
