"""Score matching against closed forms, on a Gaussian and a mixture with parameters: loss, and
gradient in all of them.

Nothing random: to 1e-10, in float64. Expectations: means of 100 blocks of 100 draws or more, by a
t-test for each component of (loss, gradient). `require_unbiased` grants each comparison a false
alarm with a probability of at most 1e-9, shared among its components, and stops at 100 comparisons:
by the union bound, correct code fails anywhere in this file, `test_denoising.py` and
`test_trace_estimators.py` together with a probability of at most 1e-7, or 1e-5 with tails a hundred
times as heavy as Student's (the loss is skewed, and 10,000 are not infinitely many).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from pipeline.energies.base import Energy
from pipeline.energies.laws import GaussianMixture
from pipeline.objectives.base import Batch, Objective, Part, PositiveSide
from pipeline.objectives.probes import PROBES
from pipeline.objectives.score_matching import (
    DenoisingScoreMatching,
    FiniteDifferenceDenoising,
    FiniteDifferenceScoreMatching,
    ScoreMatching,
    SlicedScoreMatching,
)
from tests.statistics.laws import seeded
from tests.statistics.trainable import sides

ALARM, COMPARISONS = 1e-9, 100
BLOCKS, ROWS = 100, 100
SIGMAS = (0.5, 1.25)  # numbers of float32, in which the objective keeps them
_compared = 0


# -- energies with parameters and derivatives in closed form ---------------------------------------


class TrainableGaussian(Energy):
    """E(x) = (x - m)'P(x - m) / 2, P = L L', with parameters m [d] and L [d, r]."""

    def __init__(self, mean: Tensor, factor: Tensor, shape: Sequence[int] | None = None) -> None:
        super().__init__(mean.shape if shape is None else shape)
        self.mean, self.factor = nn.Parameter(mean), nn.Parameter(factor)

    def forward(self, x: Tensor) -> Tensor:
        return ((x.flatten(1) - self.mean) @ self.factor).square().sum(1) / 2

    @property
    def precision(self) -> Tensor:
        return self.factor @ self.factor.T

    def derivatives(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """grad E(x) [N, d] and H(x) [N, d, d] in closed form."""
        return (x.flatten(1) - self.mean) @ self.precision, self.precision.expand(len(x), -1, -1)


class TrainableMixture(Energy):
    """E(x) = -log sum_k exp(a_k - (x - m_k)'P_k(x - m_k) / 2), P_k = L_k L_k'; parameters a [K], m
    [K, d], L [K, d, d].
    """

    def __init__(self, logits: Tensor, means: Tensor, factors: Tensor) -> None:
        super().__init__(means.shape[1:])
        self.logits, self.means, self.factors = (
            nn.Parameter(logits),
            nn.Parameter(means),
            nn.Parameter(factors),
        )

    @classmethod
    def of(cls, weights: Tensor, means: Tensor, covariances: Tensor) -> TrainableMixture:
        """That of N(m_k, C_k) with `weights` [K], which need not sum to 1."""
        return cls(
            weights.log() - covariances.logdet() / 2,
            means,
            torch.linalg.cholesky(covariances.inverse()),
        )

    def _terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The exponents, [N, K], and P_k (x - m_k), [N, K, d]."""
        along = torch.einsum("kij,nki->nkj", self.factors, x[:, None] - self.means)
        return self.logits - along.square().sum(2) / 2, torch.einsum(
            "kij,nkj->nki", self.factors, along
        )

    def forward(self, x: Tensor) -> Tensor:
        return -torch.logsumexp(self._terms(x)[0], 1)

    def derivatives(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """With r = softmax of the exponents and g_k = P_k (x - m_k): grad E = sum_k r_k g_k and
        H = sum_k r_k (P_k - g_k g_k') + grad E grad E'.
        """
        exponents, pulls = self._terms(x)
        shares = torch.softmax(exponents, 1)
        slope = torch.einsum("nk,nki->ni", shares, pulls)
        within = self.factors @ self.factors.mT - torch.einsum("nki,nkj->nkij", pulls, pulls)
        return (
            slope,
            torch.einsum("nk,nkij->nij", shares, within) + slope[:, :, None] * slope[:, None],
        )


Known = TrainableGaussian | TrainableMixture


def normal(seed: int, *size: int) -> Tensor:
    return torch.randn(size, generator=seeded(seed), dtype=torch.float64)


def gaussian() -> TrainableGaussian:
    """In R^4, rows of shape [2, 2]."""
    return TrainableGaussian(
        normal(1, 4), torch.eye(4, dtype=torch.float64) + 0.3 * normal(2, 4, 4), (2, 2)
    )


def mixture() -> TrainableMixture:
    """Three overlapping components in R^3: the Hessian is indefinite in places."""
    factors = torch.eye(3, dtype=torch.float64) + 0.3 * normal(3, 3, 3, 3)
    return TrainableMixture(normal(4, 3), 1.5 * normal(5, 3, 3), factors)


MODELS: dict[str, Callable[[], Known]] = {"gaussian": gaussian, "mixture": mixture}


# -- what is compared ------------------------------------------------------------------------------


def with_gradient(energy: Energy, loss: Tensor) -> Tensor:
    """The loss and its gradient in all parameters, end to end."""
    gradients = torch.autograd.grad(
        loss, list(energy.parameters()), allow_unused=True, materialize_grads=True
    )
    return torch.cat([loss.detach()[None], *(gradient.flatten() for gradient in gradients)])


def loss_of(objective: Objective, energy: Energy, batch: Batch) -> Tensor:
    return torch.stack(
        [part.weight * part.total / part.rows for part in objective.parts(energy, batch)]
    ).sum()


def found(objective: Objective, energy: Energy, batch: Batch) -> Tensor:
    return with_gradient(energy, loss_of(objective, energy, batch))


def drawn(objective: Objective, energy: Energy, x: Tensor, generator: torch.Generator) -> Batch:
    return sides(x, objective.draw(energy, x, generator))


def close(one: Tensor, other: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def estimates(
    objective: Objective, energy: Energy, rows: Callable[[], Tensor], seed: int = 0
) -> Tensor:
    """(loss, gradient) of 100 blocks, `rows()` each, `[100, 1 + parameters]`."""
    generator = seeded(seed)
    return torch.stack(
        [
            found(objective, energy, drawn(objective, energy, rows(), generator))
            for _ in range(BLOCKS)
        ]
    )


def p_value(values: Tensor, truth: Tensor) -> float:
    """Of the hypothesis that rows `values` [B, K] have means `truth` [K]: the least t-test's, times
    K.
    """
    error = values.mean(0) - truth
    p = 2 * stats.t.sf((error / values.std(0) * len(values) ** 0.5).abs().numpy(), len(values) - 1)
    p[(error.abs() <= 1e-9 * (1 + truth.abs())).numpy()] = (
        1.0  # where there is no randomness but rounding
    )
    return float(p.min()) * values.shape[1]


def require_unbiased(values: Tensor, truth: Tensor) -> None:
    """Counts those that pass, which the slips do not."""
    global _compared
    p = p_value(values, truth)
    assert p > ALARM, f"p = {p:.1e}"
    _compared += 1
    assert _compared <= COMPARISONS, "more comparisons than the false-alarm rate allows for"


# -- the formulas ----------------------------------------------------------------------------------

Formula = Callable[[Known, PositiveSide], Tensor]


def exact(energy: Known, rows: PositiveSide) -> Tensor:
    slope, hessian = energy.derivatives(rows.position)
    return (slope.square().sum(1) / 2 - hessian.diagonal(dim1=1, dim2=2).sum(1)).mean()


def along(energy: Known, rows: PositiveSide) -> tuple[Tensor, Tensor, Tensor]:
    """grad E [N, d], and, [P, N], its component along the directions, and the curvature there."""
    slope, hessian = energy.derivatives(rows.position)
    v = rows.drawn[0].flatten(2)
    return slope, (v * slope).sum(2), torch.einsum("pni,nij,pnj->pn", v, hessian, v)


def hutchinson(energy: Known, rows: PositiveSide) -> Tensor:
    slope, _, curvature = along(energy, rows)
    return slope.square().sum(1).mean() / 2 - curvature.mean()


def sliced(energy: Known, rows: PositiveSide) -> Tensor:
    _, component, curvature = along(energy, rows)
    return component.square().mean() / 2 - curvature.mean()


def residuals(energy: Known, rows: PositiveSide) -> Tensor:
    """sigma grad E(x + sigma n) - n, `[P, N, d]`."""
    noise, sigmas = rows.drawn[0].flatten(2), rows.drawn[1]
    found = []
    for n, sigma in zip(noise, sigmas, strict=True):
        y = rows.position.flatten(1) + sigma[:, None] * n
        found.append(sigma[:, None] * energy.derivatives(y)[0] - n)
    return torch.stack(found)


def denoising(energy: Known, rows: PositiveSide) -> Tensor:
    return residuals(energy, rows).square().sum(2).mean() / 2


def denoising_along(energy: Known, rows: PositiveSide) -> Tensor:
    return (residuals(energy, rows) * rows.drawn[2].flatten(2)).sum(2).square().mean() / 2


# a quadratic has no bias, however long the differences
FORMULAS: list[tuple[str, Objective, Formula]] = [
    *[(model, ScoreMatching(PROBES["basis"], 0), exact) for model in MODELS],
    *[(model, SlicedScoreMatching(PROBES["basis"], 0), exact) for model in MODELS],
    *[(model, ScoreMatching(PROBES["gaussian"], 3), hutchinson) for model in MODELS],
    *[(model, SlicedScoreMatching(PROBES["sphere"], 3), sliced) for model in MODELS],
    *[(model, DenoisingScoreMatching(SIGMAS, 3), denoising) for model in MODELS],
    ("gaussian", FiniteDifferenceScoreMatching(PROBES["rademacher"], 3, 0.5), sliced),
    ("gaussian", FiniteDifferenceDenoising(SIGMAS, 3, PROBES["gaussian"], 0.5), denoising_along),
]


def check_formula(model: str, objective: Objective, formula: Formula) -> None:
    energy = MODELS[model]()
    batch = drawn(objective, energy, normal(6, 5, *energy.shape), seeded(0))
    close(found(objective, energy, batch), with_gradient(energy, formula(energy, batch.positives)))


@pytest.mark.parametrize("model", MODELS)
def test_derivatives_in_closed_form_are_autograds(model: str) -> None:
    """What everything below rests on."""
    energy, x = MODELS[model](), normal(7, 3, MODELS[model]().dimension)
    for row in x:
        slope, hessian = (value[0].detach() for value in energy.derivatives(row[None]))
        close(torch.autograd.functional.jacobian(lambda y: energy(y[None])[0], row), slope)
        close(torch.autograd.functional.hessian(lambda y: energy(y[None])[0], row), hessian)


@pytest.mark.parametrize(("model", "objective", "formula"), FORMULAS)
def test_loss_and_gradient_are_the_formulas(
    model: str, objective: Objective, formula: Formula
) -> None:
    check_formula(model, objective, formula)


class Slipped(Objective):
    """The objective with other weights of its parts."""

    def __init__(self, objective: Objective, **weights: float) -> None:
        super().__init__()
        self._objective, self._weights = objective, weights
        self.draw = objective.draw

    def of_positives(self, energy: Energy, positives: PositiveSide) -> Iterator[Part]:
        for part in self._objective.of_positives(energy, positives):
            yield part._replace(weight=self._weights.get(part.name, part.weight))


# the sign of the trace, the trace divided by d, no factor 1/2
SLIPS = [{"trace": 1.0}, {"trace": -1 / 4}, {"trace": -1 / 3}, {"score": 2.0}, {"denoising": 2.0}]


@pytest.mark.parametrize(("model", "objective", "formula"), FORMULAS)
def test_slips_in_a_formula_are_caught(model: str, objective: Objective, formula: Formula) -> None:
    names = {"denoising"} if isinstance(objective, DenoisingScoreMatching) else {"score", "trace"}
    for slip in (slip for slip in SLIPS if slip.keys() <= names):
        with pytest.raises(AssertionError, match="not close"):
            check_formula(model, Slipped(objective, **slip), formula)


# -- expectations over the data --------------------------------------------------------------------

MEAN, COVARIANCE = (
    normal(8, 4),
    torch.eye(4, dtype=torch.float64) + 0.1 * (normal(9, 4, 4) @ normal(9, 4, 4).T),
)
PLAIN = {
    "exact": ScoreMatching(PROBES["basis"], 0),
    "hutchinson": ScoreMatching(PROBES["rademacher"], 1),
    "sliced": SlicedScoreMatching(PROBES["gaussian"], 1),
    "finite_difference": FiniteDifferenceScoreMatching(PROBES["sphere"], 2, 0.5),
}


def of_gaussian_data() -> Callable[[], Tensor]:
    """Blocks of 100 rows of N(MEAN, COVARIANCE)."""
    generator, factor = seeded(10), torch.linalg.cholesky(COVARIANCE)

    def rows() -> Tensor:
        return (
            MEAN + torch.randn((ROWS, 4), generator=generator, dtype=torch.float64) @ factor.T
        ).view(-1, 2, 2)

    return rows


def expected(energy: TrainableGaussian) -> Tensor:
    """E|P(x - m)|^2 / 2 - tr P over N(MEAN, COVARIANCE)."""
    p, shift = energy.precision, MEAN - energy.mean
    return ((p @ p @ COVARIANCE).trace() + (p @ shift).square().sum()) / 2 - p.trace()


def check_expectation(objective: Objective) -> None:
    energy = gaussian()
    require_unbiased(
        estimates(objective, energy, of_gaussian_data()), with_gradient(energy, expected(energy))
    )


@pytest.mark.parametrize("name", PLAIN)
def test_expectation_over_gaussian_data(name: str) -> None:
    check_expectation(PLAIN[name])


@pytest.mark.parametrize("slip", [slip for slip in SLIPS if "denoising" not in slip])
def test_slips_in_an_expectation_are_caught(slip: dict[str, float]) -> None:
    with pytest.raises(AssertionError, match="p = "):
        check_expectation(Slipped(PLAIN["hutchinson"], **slip))


def test_the_datas_own_law_is_a_stationary_point() -> None:
    own = TrainableGaussian(MEAN, torch.linalg.cholesky(COVARIANCE.inverse()), (2, 2))
    truth = with_gradient(own, expected(own))
    close(truth[1:], torch.zeros_like(truth[1:]), 1e-12)
    require_unbiased(estimates(PLAIN["sliced"], own, of_gaussian_data()), truth)


def explicit_differences(objective: Objective) -> Tensor:
    """Gradients less those of |grad E - grad E_data|^2 / 2 (Hyvarinen 2005, theorem 1), both
    mixtures.
    """
    energy, law = mixture(), mixture().requires_grad_(False)
    law.means.mul_(1.2)
    covariances = (law.factors @ law.factors.mT).inverse()
    weights = torch.softmax(law.logits + covariances.logdet() / 2, 0)
    data, generator = GaussianMixture(weights, law.means.detach(), covariances), seeded(11)
    differences = []
    for _ in range(BLOCKS):
        x = data.sample(ROWS, generator)
        distance = (energy.derivatives(x)[0] + data.score(x)).square().sum(1).mean() / 2
        implicit = loss_of(objective, energy, drawn(objective, energy, x, generator))
        differences.append(with_gradient(energy, implicit - distance)[1:])
    return torch.stack(differences)


def test_implicit_is_explicit_score_matching() -> None:
    differences = explicit_differences(PLAIN["exact"])
    require_unbiased(differences, torch.zeros(differences.shape[1], dtype=torch.float64))
    wrong = explicit_differences(Slipped(PLAIN["exact"], trace=-1 / 3))
    assert p_value(wrong, torch.zeros(wrong.shape[1], dtype=torch.float64)) < ALARM


# -- finite differences ----------------------------------------------------------------------------


def check_second_order(objective: Callable[[float], Objective], limit: Formula) -> None:
    """Halving epsilon divides the error of the loss, and of its gradient, by 4 within 1 %."""
    energy, x = mixture(), normal(12, 20, 3)
    fixed = drawn(objective(1.0), energy, x, seeded(0))
    truth = with_gradient(energy, limit(energy, fixed.positives))
    errors = [found(objective(epsilon), energy, fixed) - truth for epsilon in (0.02, 0.01, 0.005)]
    for larger, smaller in pairwise(errors):
        assert float(larger[0] / smaller[0]) == pytest.approx(4, rel=0.01)
        assert float(larger[1:].norm() / smaller[1:].norm()) == pytest.approx(4, rel=0.01)
    assert float(errors[0].abs().max()) > 1e-6  # a bias, and no rounding


def test_bias_of_finite_differences_is_of_second_order() -> None:
    check_second_order(
        lambda epsilon: FiniteDifferenceScoreMatching(PROBES["gaussian"], 2, epsilon), sliced
    )
    check_second_order(
        lambda epsilon: FiniteDifferenceDenoising(SIGMAS, 2, PROBES["sphere"], epsilon),
        denoising_along,
    )


class Ahead(FiniteDifferenceScoreMatching):
    """Differences around x + epsilon v: one-sided."""

    def of_positives(self, energy: Energy, positives: PositiveSide) -> Iterator[Part]:
        moved = positives.position + self._epsilon * positives.drawn[0][0]
        return super().of_positives(energy, positives._replace(position=moved))


def test_bias_of_first_order_is_caught() -> None:
    with pytest.raises(AssertionError, match="== 4"):
        check_second_order(lambda epsilon: Ahead(PROBES["gaussian"], 1, epsilon), sliced)
