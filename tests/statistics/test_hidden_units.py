"""Gaussian and double rectified linear hidden units against quadrature over h, with U as the paper
writes it, and machines that have them against enumeration.

Quadrature is Gauss-Legendre's on each side of 0, exact to 1e-9 of these integrands. z-tests allow
|z| < 5, a false-alarm rate of 6e-7 each, Kolmogorov-Smirnov tests p > 1e-6; seeds are fixed. Broken
variants must fail the very check that the units pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from pipeline.energies import hidden_units
from pipeline.energies.base import Energy
from pipeline.energies.clamped import Clamped
from pipeline.energies.discrete import CategoricalEnergy
from pipeline.energies.hidden_units import DoubleReLU, DoubleReLUUnits, draw_tail, tail_of
from pipeline.energies.rbm import PottsRBM
from pipeline.energies.target import Target
from pipeline.evaluation.ais import log_partition
from pipeline.evaluation.paths import RatesBridge
from pipeline.kernels import gibbs
from tests.statistics.test_evaluation import run

Z_LIMIT, P_LIMIT = 5.0, 1e-6
DRAWS = 40_000
KINDS = ["bernoulli", "gaussian", "drelu"]
LEVELS, SITES, HIDDEN = 3, 3, 3
ASYMMETRIES, THRESHOLDS = (1.5, -0.4, 0.2), (0.7, -1.2, 2.5)
NODES = 400
REACH = 40.0


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(kind: str) -> PottsRBM:
    """Weights from N(0, 0.5^2), biases from N(0, 1), float64; of drelu units one has two humps, and
    one a mean that rises four times as fast on one side.
    """
    machine = PottsRBM((SITES,), LEVELS, HIDDEN, 1.0, kind).double().requires_grad_(False)
    for parameter in (machine.weight, machine.visible_bias, machine.hidden_bias):
        parameter.copy_(torch.randn(parameter.shape, generator=seeded(parameter.numel())))
    machine.weight.mul_(0.5)
    if isinstance(machine.units, DoubleReLUUnits):
        machine.units.asymmetry.copy_(torch.tensor(ASYMMETRIES))
        machine.units.threshold.copy_(torch.tensor(THRESHOLDS))
    return machine


def states() -> Tensor:
    return torch.cartesian_prod(*[torch.arange(LEVELS).double()] * SITES)


def values_and_measure(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Values of a unit [H], the measure of each, and U [H, m] with the parameters of the paper."""
    if kind == "bernoulli":
        return torch.arange(2).double(), torch.ones(2).double(), torch.zeros(2, HIDDEN).double()
    nodes, measure = np.polynomial.legendre.leggauss(NODES)
    side, measure = (torch.tensor(nodes) + 1) * REACH / 2, torch.tensor(measure) * REACH / 2
    h, measure = torch.cat([-side, side]), torch.cat([measure, measure])
    if kind == "gaussian":
        return h, measure, (h.square() / 2)[:, None].expand(-1, HIDDEN)
    xi, delta = torch.tensor(ASYMMETRIES).double(), torch.tensor(THRESHOLDS).double()
    eta = xi / (1 + xi.abs())
    up, down = h.clamp(min=0)[:, None], h.clamp(max=0)[:, None]
    curved = up.square() / (1 + eta) / 2 + down.square() / (1 - eta) / 2
    return h, measure, curved + delta * up - delta * down


def fields(machine: PottsRBM, v: Tensor) -> tuple[Tensor, Tensor]:
    """A(v) [N] and what each hidden unit receives [N, m], letter by letter."""
    columns = v.long() + LEVELS * torch.arange(SITES)
    received = machine.hidden_bias + machine.weight.T[columns].sum(1)
    return -machine.visible_bias[columns].sum(1), received


def log_integrals(kind: str, received: Tensor) -> Tensor:
    """log of the sum or integral over h of exp(-U(h) + I h), of each unit, `[N, m]`."""
    h, measure, potential = values_and_measure(kind)
    logs = measure.log()[:, None] - potential + received[:, None] * h[:, None]
    return torch.logsumexp(logs, 1)


def exact_law(machine: PottsRBM, kind: str, beta: float = 1.0) -> tuple[Tensor, float]:
    """p(v) of all states by quadrature over h, and log Z."""
    alone, received = fields(machine, states())
    energies = alone - log_integrals(kind, beta * received).sum(1)
    return torch.softmax(-energies, 0), float(torch.logsumexp(-energies, 0))


@pytest.mark.parametrize("a", [-200.0, -30.0, -8.01, -4.01, -3.99, -1.0, 0.0, 0.7, 6.0, 30.0])
def test_tails_are_those_of_quadrature(a: float) -> None:
    """The mass and both moments of exp(a u - u^2 / 2), to 1e-8 of themselves on either side of the
    place from which the continued fraction is used, and log M' by autograd.
    """
    scale, middle = 1 / max(1.0, abs(a)), max(a, 0.0)
    parts = sorted({0.0, *(max(0.0, middle + k * scale) for k in (-200, -30, -5, 0, 5, 30, 200))})

    def moment(power: int) -> float:
        def integrand(u: float) -> float:
            return u**power * math.exp(a * u - u * u / 2 - middle**2 / 2)

        return sum(
            integrate.quad(integrand, low, high, epsabs=0, epsrel=1e-12)[0]
            for low, high in pairwise(parts)
        )

    mass, first, second = (moment(power) for power in range(3))
    point = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    found = tail_of(point)
    expected = (math.log(mass) + middle**2 / 2, first / mass, second / mass)
    assert [float(value.detach()) for value in found] == pytest.approx(expected, rel=1e-8)
    (slope,) = torch.autograd.grad(found.log_mass, point)
    assert float(slope) == pytest.approx(first / mass, rel=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("a", [-100.0, -8.5, -7.5, -2.0, 0.0, 3.0])
def test_draws_of_a_tail_have_its_law(a: float, dtype: torch.dtype) -> None:
    """u is uniform in its distribution function 1 - exp(a u - u^2 / 2) M(a - u) / M(a)."""
    drawn = draw_tail(torch.full((DRAWS, 1), a, dtype=dtype), seeded(0)).double()
    assert bool(((drawn > 0) & drawn.isfinite()).all())
    start = tail_of(torch.tensor(a).double()).log_mass
    beyond = (a * drawn - drawn.square() / 2 + tail_of(a - drawn).log_mass - start).exp()
    assert stats.kstest(beyond.flatten().numpy(), "uniform").pvalue > P_LIMIT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_hidden_units_are_integrated_out(kind: str, beta: float) -> None:
    """E_beta(v) = A(v) - log of the integral over h of exp(-U(h) + beta I h), and at 1 E(v)."""
    machine, v = make(kind), states()
    alone, received = fields(machine, v)
    truth = alone - log_integrals(kind, beta * received).sum(1)
    found = machine.tempered(v, torch.full((len(v),), beta, dtype=torch.float64))
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-8)
    if beta == 1:
        torch.testing.assert_close(machine(v), truth, rtol=0, atol=1e-8)
    if beta == 0:
        torch.testing.assert_close(machine.base(v), truth, rtol=0, atol=1e-8)
        log_z = exact_law(machine, kind, 0.0)[1]
        assert machine.base_log_partition() == pytest.approx(log_z, abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_log_partition_is_the_sum_over_the_joint_law(kind: str) -> None:
    machine = make(kind)
    assert machine.log_partition() == pytest.approx(exact_law(machine, kind)[1], abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_means_and_laws_are_those_of_the_joint_law(kind: str) -> None:
    """E[h | v] and log p(h | v) of every value, by quadrature."""
    machine, v = make(kind), states()
    h, measure, potential = values_and_measure(kind)
    _, received = fields(machine, v)
    logs = received[:, None] * h[:, None] - potential - log_integrals(kind, received)[:, None]
    law = machine.conditional("hidden", v.repeat_interleave(len(h), 0))
    own = law.log_prob(h.repeat(len(v))[:, None].expand(-1, HIDDEN))
    torch.testing.assert_close(own.view(len(v), len(h), HIDDEN), logs, rtol=0, atol=1e-7)
    means = (measure[:, None] * h[:, None] * logs.exp()).sum(1)
    torch.testing.assert_close(machine.activations(v), means, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tempered", [False, True])
def test_gradient_by_hand_is_autograds(kind: str, tempered: bool) -> None:
    machine, v = make(kind), states()
    beta = torch.linspace(0, 1, len(v)).double() if tempered else None
    by_hand = machine.energy_and_gradient(v, beta)
    by_autograd = CategoricalEnergy.energy_and_gradient(machine, v, beta)
    torch.testing.assert_close(by_hand, by_autograd, rtol=0, atol=1e-8)


def check_pull(machine: PottsRBM) -> None:
    """The way back to all parameters is autograd's, to 1e-8, and adds to what is there."""
    v, slopes = states(), torch.randn(LEVELS**SITES, generator=seeded(1), dtype=torch.float64)
    machine.requires_grad_(True)
    energies = machine(v)
    truth = torch.autograd.grad(energies @ slopes, list(machine.parameters()))
    found = machine.energies_and_pull(v)
    assert found is not None
    torch.testing.assert_close(found[0], energies.detach(), rtol=0, atol=1e-10)
    for parameter in machine.parameters():
        parameter.grad = torch.ones_like(parameter)
    found[1](slopes)
    for parameter, expected in zip(machine.parameters(), truth, strict=True):
        torch.testing.assert_close(parameter.grad, expected + 1, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_way_back_to_the_weights_is_autograds(kind: str) -> None:
    check_pull(make(kind))


def test_a_wrong_way_back_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    own = hidden_units.Sides.firsts
    monkeypatch.setattr(hidden_units.Sides, "firsts", lambda s: (own(s)[0], -own(s)[1]))
    with pytest.raises(AssertionError):
        check_pull(make("drelu"))


def far_from_it(machine: PottsRBM, kind: str) -> float:
    """The largest |z| of counts of states, those that are not rare, after two Gibbs sweeps from
    exact draws.
    """
    law, _ = exact_law(machine, kind)
    generator, v = seeded(2), states()
    start = v[torch.multinomial(law, DRAWS, replacement=True, generator=generator)]
    state, target = gibbs.init(start, Target(machine)), Target(machine)
    for _ in range(2):
        state, _ = gibbs.step(generator, state, target)
    number = (state.position @ LEVELS ** torch.arange(SITES - 1, -1, -1).double()).long()
    counts = torch.bincount(number, minlength=len(law)) / DRAWS
    often = law * DRAWS > 25
    return float(((counts - law) / (law * (1 - law) / DRAWS).sqrt())[often].abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_gibbs_leaves_the_law_invariant(kind: str) -> None:
    assert far_from_it(make(kind), kind) < Z_LIMIT


def sides_swapped(law: DoubleReLU, generator: torch.Generator) -> Tensor:
    return -law._replace(field=-law.field).sample(generator)


def means_alone(law: DoubleReLU, _: torch.Generator) -> Tensor:
    above, below = law.sides.firsts()
    return above - below


def one_side(law: DoubleReLU, generator: torch.Generator) -> Tensor:
    above = draw_tail(law.places[0], generator) * law.sides.up.sqrt()
    return torch.where(law.field > 0, above, -draw_tail(law.places[1], generator))


@pytest.mark.parametrize("broken", [sides_swapped, means_alone, one_side])
def test_broken_draws_are_caught(
    broken: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def law(units: DoubleReLUUnits, field: Tensor) -> object:
        own = DoubleReLU(field, units.places(field), units.threshold, units.sides(field))

        class Broken:
            def sample(self, generator: torch.Generator) -> Tensor:
                return broken(own, generator)

        return Broken()

    monkeypatch.setattr(DoubleReLUUnits, "law", law)
    assert far_from_it(make("drelu"), "drelu") > Z_LIMIT


def test_gaussian_units_make_a_hopfield_potts_model() -> None:
    """E(v) = -b.phi - |c + W phi|^2 / 2 - m log(2 pi) / 2: the coupling of two letters at two sites
    is the product of their columns of W, which is left where one-site parts cancel.
    """
    machine = make("gaussian")
    weight = machine.weight.view(HIDDEN, SITES, LEVELS)
    v = torch.tensor([[0.0, 0, 0], [1, 2, 0], [0, 2, 0], [1, 0, 0]]).double()
    apart = machine(v) @ torch.tensor([1.0, 1, -1, -1]).double()
    step = (weight[:, 0, 1] - weight[:, 0, 0]) @ (weight[:, 1, 2] - weight[:, 1, 0])
    assert float(apart) == pytest.approx(-float(step), abs=1e-10)


def test_units_without_asymmetry_and_threshold_are_gaussian() -> None:
    gaussian, drelu = make("gaussian"), make("drelu")
    assert isinstance(drelu.units, DoubleReLUUnits)
    for parameter in drelu.units.parameters():
        parameter.zero_()
    torch.testing.assert_close(drelu(states()), gaussian(states()), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_some_sites_are_drawn_given_the_others(kind: str) -> None:
    """Long chains with one site held: counts of the two free ones against the exact conditional."""
    machine, v = make(kind), states()
    free = torch.tensor([True, False, True])
    clamped = Clamped(machine, torch.full((1, SITES), 2.0).double(), free)
    law, _ = exact_law(machine, kind)
    kept = v[:, 1] == 2
    truth = law[kept] / law[kept].sum()
    start, generator = clamped.sample_base(4000, seeded(0)).double(), seeded(4)
    state, target = gibbs.init(start, Target(clamped)), Target(clamped)
    for _ in range(60):
        state, _ = gibbs.step(generator, state, target)
    number = (state.position @ torch.tensor([LEVELS, 1.0]).double()).long()
    counts = torch.bincount(number, minlength=len(truth)) / len(start)
    assert float(((counts - truth) / (truth * (1 - truth) / 4000).sqrt()).abs().max()) < Z_LIMIT


@pytest.mark.parametrize("kind", ["gaussian", "drelu"])
def test_annealing_agrees_with_enumeration(kind: str) -> None:
    """There and back from the rates of rows: within 5 standard errors, and the bounds enclose."""
    machine = make(kind).float()
    law, log_z = exact_law(make(kind), kind)
    rows = states().float()[torch.multinomial(law, 500, replacement=True, generator=seeded(0))]
    path: Energy = RatesBridge(machine, rows)
    found = run(log_partition(path, 100, 200, seeded(1), rows))
    assert found.standard_error is not None
    assert abs(found.value - log_z) < 5 * found.standard_error
    assert found.at_most is not None
    assert found.at_least - 0.1 < log_z < found.at_most + 0.1
    assert abs(found.value - found.backward) < 0.3
