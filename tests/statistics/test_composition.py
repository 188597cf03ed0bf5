"""Compositions of laws against closed forms, quadrature and enumeration; and what kernels draw of
them.

Chains are many and independent, so that means over them have standard errors; |z| < 6 fails falsely
with a probability of 2e-9, and there are some 30 of them. Seeds are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import pipeline
from pipeline.common.errors import ArgumentError
from pipeline.energies.base import Energy
from pipeline.energies.composition import (
    Composition,
    Conjunction,
    Disjunction,
    Negation,
    base_precisions,
)
from pipeline.energies.dbm import DeepBoltzmannMachine
from pipeline.energies.given import ConditionalEnergy
from pipeline.energies.laws import Gaussian, GaussianMixture, TruncatedGaussian
from pipeline.energies.mlp import MLPEnergy
from pipeline.energies.rbm import BernoulliRBM, GaussianRBM, PottsRBM
from pipeline.energies.target import Target
from pipeline.kernels import gibbs_with_gradients, hmc
from tests.statistics.laws import double, scramble, seeded

Z_LIMIT = 6.0
WEIGHTS = (0.7, 1.6)
FIRST = Gaussian(double([0.5, -1.0]), double([[1.0, 0.6], [0.6, 0.8]]))
SECOND = Gaussian(double([-0.3, 0.4]), double([[2.0, -0.3], [-0.3, 1.5]]))


def mixture(scale: float = 1.0) -> GaussianMixture:
    """Two bumps, Z = 4."""
    covariances = [[[0.6, 0.2], [0.2, 0.5]], [[0.5, -0.2], [-0.2, 0.6]]]
    return GaussianMixture(
        double([1.0, 3.0]), double([[-1.2, -0.8], [1.0, 0.9]]), scale * double(covariances)
    )


def of_gaussians(weights: tuple[float, float]) -> Gaussian:
    """prod_i N(m_i, P_i^-1)^w_i: P = sum_i w_i P_i, P m = sum_i w_i P_i m_i."""
    precision = weights[0] * FIRST.precision + weights[1] * SECOND.precision
    pull = weights[0] * FIRST.precision @ FIRST.mean + weights[1] * SECOND.precision @ SECOND.mean
    return Gaussian(torch.linalg.solve(precision, pull), torch.linalg.inv(precision))


def spread(energy: Energy, truth: Energy) -> float:
    """How far E - E_truth is from a constant."""
    difference = (energy(points()) - truth(points())).detach()
    return float(difference.max() - difference.min())


def points() -> Tensor:
    return 2 * torch.randn(200, 2, dtype=torch.float64, generator=seeded(0))


@pytest.mark.parametrize(
    ("composition", "weights"),
    [
        (Conjunction([FIRST, SECOND]), (1.0, 1.0)),
        (Conjunction([FIRST, SECOND], WEIGHTS), WEIGHTS),
        (Negation(FIRST, SECOND, 0.4), (1.0, -0.4)),
        (Negation(Conjunction([FIRST, SECOND], WEIGHTS), SECOND, 0.9), (0.7, 0.7)),
    ],
    ids=["and", "weighted and", "not", "(and) not"],
)
def test_products_and_quotients_of_gaussians_in_closed_form(
    composition: Composition, weights: tuple[float, float]
) -> None:
    assert spread(composition, of_gaussians(weights)) < 1e-10


def test_a_negation_of_the_other_sign_is_caught() -> None:
    assert spread(Negation(FIRST, SECOND, 0.4), of_gaussians((1.0, 0.4))) > 1
    assert spread(Conjunction([FIRST, SECOND], WEIGHTS), of_gaussians((1.0, 1.0))) > 1


def test_a_disjunction_is_the_mixture_where_log_z_are_right() -> None:
    """-log sum_i w_i p_i(x), of laws with Z of 5.6, 10.8 and 4."""
    parts = [FIRST, SECOND, mixture()]
    log_z = [part.log_partition() for part in parts]
    energy = Disjunction(parts, [1.0, 2.0, 0.5], log_z)
    terms = [
        part.log_density(points()) + math.log(w)
        for part, w in zip(parts, [1.0, 2.0, 0.5], strict=True)
    ]
    torch.testing.assert_close(energy(points()), -torch.logsumexp(torch.stack(terms), 0))
    total = torch.logsumexp(-energy(grid()), 0) + math.log(CELL)
    assert float(total) == pytest.approx(math.log(3.5), abs=1e-6)
    assert spread(Disjunction(parts, [1.0, 2.0, 0.5]), energy) > 0.3  # without them: another law


def test_two_of_the_same_are_what_they_are() -> None:
    assert spread(Disjunction([FIRST, FIRST]), FIRST) < 1e-12
    assert spread(Conjunction([FIRST, FIRST], [0.5, 0.5]), FIRST) < 1e-12


SIDE = torch.linspace(-9, 9, 500, dtype=torch.float64)
CELL = float(SIDE[1] - SIDE[0]) ** 2


def grid() -> Tensor:
    return torch.cartesian_prod(SIDE, SIDE)


def perceptron(seed: int, base_scale: float) -> Energy:
    energy = MLPEnergy((2,), (8, 8), base_scale=base_scale, spectral_norm=False).double()
    return scramble(energy, 0.5, seed)


CONTINUOUS: dict[str, Callable[[], Composition]] = {
    "and": lambda: Conjunction([mixture(), perceptron(1, 2.0)], WEIGHTS),
    "or": lambda: Disjunction(
        [mixture(), perceptron(1, 2.0), SECOND], [1.0, 2.0, 0.7], [1.0, 0.2, -0.5]
    ),
    "not": lambda: Negation(mixture(), perceptron(1, 3.0), 0.6),
    "nested": lambda: Conjunction(
        [Disjunction([FIRST, mixture()]), Negation(FIRST, perceptron(1, 3.0), 0.3)]
    ),
}


@pytest.mark.parametrize("tempered", [False, True])
@pytest.mark.parametrize("name", CONTINUOUS)
def test_gradients_are_autograds(name: str, tempered: bool) -> None:
    energy = CONTINUOUS[name]().requires_grad_(False)
    beta = torch.rand(200, dtype=torch.float64, generator=seeded(1)) if tempered else None
    ours, autograds = (
        energy.energy_and_gradient(points(), beta),
        Energy.energy_and_gradient(energy, points(), beta),
    )
    for one, other in zip(ours, autograds, strict=True):
        assert not one.requires_grad
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTINUOUS)
def test_kernels_draw_the_composition(name: str) -> None:
    """Means and second moments of 4,000 chains after 150 transitions of HMC from the base law,
    against quadrature.
    """
    energy, generator = CONTINUOUS[name]().float(), seeded(2)
    target = Target(energy)
    state = hmc.kernel.init(energy.sample_base(4000, generator), target)
    for _ in range(150):
        state, _ = hmc.kernel.step(
            generator, state, target, step_size=0.4, leapfrog_steps=5, jitter=0.2, mass=1.0
        )
    shares = torch.softmax(-energy.double()(grid()), 0)
    assert float(shares.view(500, 500)[[0, -1]].sum()) < 1e-6  # the grid holds the law
    for moments in (
        lambda x: x,
        lambda x: torch.stack([x[:, 0] ** 2, x[:, 0] * x[:, 1], x[:, 1] ** 2], 1),
    ):
        truth, drawn = shares @ moments(grid()), moments(state.position.double())
        z = (drawn.mean(0) - truth) / (drawn.std(0) / math.sqrt(len(drawn)))
        assert float(z.abs().max()) < Z_LIMIT


def test_base_laws() -> None:
    """Precisions add up, the widest is taken, or what is left; a ladder begins there."""
    parts = [perceptron(1, 2.0), perceptron(2, 3.0)]
    scales = {
        "and": (Conjunction(parts, WEIGHTS), 0.7 / 4 + 1.6 / 9),
        "or": (Disjunction(parts), 1 / 9),
        "not": (Negation(*parts, 0.5), 1 / 4 - 0.5 / 9),
    }
    for energy, precision in scales.values():
        assert energy.base_scale == pytest.approx(precision**-0.5)
        torch.testing.assert_close(
            energy.tempered(points(), torch.zeros(200).double()).detach(), energy.base(points())
        )
    rbm = scramble(GaussianRBM((2,), 3, 1.0).double())
    torch.testing.assert_close(base_precisions(rbm), torch.exp(-rbm.log_variance.detach()))


def binary(seed: int) -> Energy:
    return scramble(BernoulliRBM((4,), 3, 1.0).double(), seed=seed).requires_grad_(False)


def ternary(seed: int) -> Energy:
    return scramble(PottsRBM((3,), 3, 2, 1.0).double(), seed=seed).requires_grad_(False)


class Rising(Energy):
    """E(x) = theta.x over levels, its gradient that in x."""

    def __init__(self, theta: list[float], levels: int) -> None:
        super().__init__((len(theta),), levels=levels)
        self.theta = nn.Parameter(double(theta))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.theta


DISCRETE: dict[str, Callable[[], Composition]] = {
    "binary and": lambda: Conjunction([binary(1), binary(2)], WEIGHTS),
    "binary or": lambda: Disjunction([binary(1), binary(2)], [1.0, 2.0], [3.0, 1.0]),
    "binary not": lambda: Negation(binary(1), binary(2), 1.5),
    "ternary or": lambda: Disjunction([ternary(1), ternary(2)]),
    "ternary and": lambda: Conjunction([ternary(1), Rising([0.3, -0.4, 0.8], 3)]),
}


def all_of(energy: Energy) -> Tensor:
    assert energy.levels is not None
    return torch.cartesian_prod(*[torch.arange(energy.levels).double()] * energy.dimension)


@pytest.mark.parametrize("name", DISCRETE)
def test_log_partition_is_the_sum_over_all_states(name: str) -> None:
    energy = DISCRETE[name]()
    assert energy.log_partition() == pytest.approx(
        float(torch.logsumexp(-energy(all_of(energy)).detach(), 0)), abs=1e-9
    )


@pytest.mark.parametrize("name", ["binary and", "binary or", "binary not"])
def test_binary_gradients_are_autograds(name: str) -> None:
    energy = DISCRETE[name]()
    x = all_of(energy)
    for one, other in zip(
        energy.energy_and_gradient(x), Energy.energy_and_gradient(energy, x), strict=True
    ):
        torch.testing.assert_close(
            one, other, rtol=1e-6, atol=1e-7
        )  # torch's softplus is off by up to exp(-20)


def test_gradients_of_both_forms_add_up() -> None:
    """One in the one-hot encoding beside one in x: each level's estimate is the sum of theirs."""
    energy = DISCRETE["ternary and"]()
    x, (potts, rising) = all_of(energy), energy.parts
    expected = (
        potts.energy_and_gradient(x)[1] + rising.theta.detach()[:, None] * torch.arange(3).double()
    )
    torch.testing.assert_close(energy.energy_and_gradient(x)[1], expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_kernels_draw_the_composition(name: str) -> None:
    """Frequencies of all states of 4,000 chains after 120 transitions of Gibbs-with-gradients, of
    those of 10 or more draws.
    """
    energy, generator = DISCRETE[name](), seeded(3)
    target, states = Target(energy), all_of(energy)
    state = gibbs_with_gradients.kernel.init(energy.sample_base(4000, generator).double(), target)
    for _ in range(120):
        state, _ = gibbs_with_gradients.kernel.step(generator, state, target)
    law = torch.softmax(-energy(states), 0)
    hits = (state.position[:, None] == states).all(2).double().mean(0)
    common = law > 10 / 4000
    z = (hits - law) / (law * (1 - law) / 4000).sqrt()
    assert common.sum() >= 4
    assert float(z[common].abs().max()) < Z_LIMIT


class Shifted(ConditionalEnergy):
    """p(x | c) = N(c, 1)."""

    def __init__(self) -> None:
        super().__init__((2,), (2,))
        self.scale = nn.Parameter(torch.ones(()))

    def of(self, x: Tensor, code: Tensor) -> Tensor:
        return self.scale * (x - code).square().sum(1) / 2


def test_conditionals_compose_under_their_own_contexts() -> None:
    """Of N(c, 1) and N(c', 1) the product is N((c + c') / 2, 1 / 2); under several contexts row i
    has number i mod N.
    """
    model = Shifted().double()
    first, second = double([[1.0, 0.0]]), double([[-2.0, 1.0], [4.0, 4.0]])
    energy = Conjunction([model.given(first), model.given(second[:1])])
    assert spread(energy, Gaussian(double([-0.5, 0.5]), double([[0.5, 0.0], [0.0, 0.5]]))) < 1e-10
    several = Conjunction([model.given(first), model.given(second)])
    assert several.contexts == 2
    x = points()
    expected = ((x - first) ** 2 + (x - second.repeat(100, 1)) ** 2).sum(1) / 2
    torch.testing.assert_close(several(x).detach(), expected)
    torch.testing.assert_close(
        several.energy_and_gradient(x)[1], 2 * x - first - second.repeat(100, 1)
    )


def test_the_ratio_of_two_probabilities_needs_no_z() -> None:
    x, other = points(), points().flip(0)
    law = mixture()
    torch.testing.assert_close(
        pipeline.log_ratio(law, x, other), law.log_density(x) - law.log_density(other)
    )
    with pytest.raises(ValueError, match=r"x=shape \[5, 3\]: should be \[N, 2\]"):
        pipeline.log_ratio(law, torch.zeros(5, 3), x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Conjunction([FIRST, Gaussian(torch.zeros(3), torch.eye(3))]),
            r"2 real numbers, Gaussian 1 over 3 real",
        ),
        (
            lambda: Conjunction(
                [FIRST, TruncatedGaussian(torch.zeros(2), torch.ones(2), (-1.0, 1.0))]
            ),
            r"numbers in \[-1.0, 1.0\]",
        ),
        (
            lambda: Disjunction([binary(1), Rising([1.0] * 4, 3)]),
            r"4 of 2 levels, Rising 1 over 4 of 3 levels",
        ),
        (
            lambda: Conjunction([FIRST, SECOND], [1.0]),
            r"weights=\[1.0\]: one positive number for each of 2",
        ),
        (lambda: Conjunction([FIRST, SECOND], [1.0, -1.0]), "positive"),
        (lambda: Disjunction([FIRST, SECOND], None, [1.0]), r"log_partitions=\[1.0\]"),
        (
            lambda: Negation(perceptron(1, 2.0), perceptron(2, 2.0), 1.0),
            r"weight=1.0: .* allow w < 1$",
        ),
        (lambda: Negation(perceptron(1, 2.0), perceptron(2, 4.0), 4.5), r"allow w < 4$"),
        (lambda: Conjunction([DeepBoltzmannMachine((3,), (2,), 1.0, 5)] * 2), "latent units"),
        (
            lambda: Conjunction(
                [Shifted().given(torch.zeros(2, 2)), Shifted().given(torch.zeros(3, 2))]
            ),
            r"energies=\[2, 3\]: bound to so many contexts",
        ),
    ],
)
def test_what_has_no_law_is_refused(make: Callable[[], Energy], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()
