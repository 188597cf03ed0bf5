"""Closed-form laws against quadrature, autograd, `torch.distributions` and their own samples.

Kolmogorov-Smirnov tests ask for p > 2e-9 (|z| < 6, so to speak), fixed seeds: under 1e-7 false
alarms for the file.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

from pipeline.energies.base import Energy
from pipeline.energies.laws import (
    LAWS,
    Funnel,
    Gaussian,
    GaussianMixture,
    Law,
    Rings,
    TruncatedGaussian,
)

P_LIMIT = 2e-9
DRAWS = 100_000
DIRECTIONS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, -0.6]], dtype=torch.float64)


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gaussian() -> Gaussian:
    return Gaussian(double([0.5, -1.0]), double([[1.0, 0.6], [0.6, 0.8]]))


def mixture() -> GaussianMixture:
    """Weights that do not sum to 1, so that log Z is not 0."""
    covariances = double([[[0.6, 0.4], [0.4, 0.5]], [[0.5, -0.2], [-0.2, 0.6]]])
    return GaussianMixture(double([0.9, 2.1]), double([[-1.2, -0.8], [1.5, 0.4]]), covariances)


def rings() -> Rings:
    """The inner one is cut off at the origin: its two terms of Z are of one size."""
    return Rings(double([0.3, 2.0]), 0.5, double([2.0, 0.7]))


def funnel(dimension: int = 3) -> Funnel:
    return Funnel(dimension, 1.5).double()


def box() -> TruncatedGaussian:
    """One component with its mean inside, one with it outside."""
    return TruncatedGaussian(double([0.5, -2.5]), double([0.6, 0.9]), (-2.0, 1.0))


OWN = {"gaussian": gaussian, "mixture": mixture, "rings": rings, "funnel": funnel, "box": box}
EVERY = [*OWN.values(), *LAWS.values()]
NAMES = [*OWN, *(f"default {name}" for name in LAWS)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid(*sides: Tensor) -> Tensor:
    """All points of a product grid, `[N, len(sides)]`."""
    return torch.cartesian_prod(*sides)


def span(radius: float, points: int) -> tuple[Tensor, float]:
    """Midpoints of `points` cells of [-radius, radius], and their width."""
    width = 2 * radius / points
    return (torch.arange(points).double() + 0.5) * width - radius, width


def p_value(distribution: Tensor) -> float:
    """Kolmogorov-Smirnov, of the claimed distribution function at every draw: uniform if the claim
    holds.
    """
    return float(stats.kstest(distribution.numpy(), "uniform").pvalue)


def midpoint_log_z(law: Law) -> float:
    """log of the integral of exp(-E) by the midpoint rule, in coordinates where the law is no wider
    than a unit or three.
    """
    if isinstance(law, Funnel):  # x_i = y_i exp(x_0 / 2)
        neck, neck_width = span(12.0, 60)
        rest, rest_width = span(8.0, 24)
        y = grid(neck, *[rest] * (law.dimension - 1))
        x = torch.cat([y[:, :1], y[:, 1:] * torch.exp(y[:, :1] / 2)], 1)
        logs = -law(x) + (law.dimension - 1) * y[:, 0] / 2
        return (
            float(torch.logsumexp(logs, 0))
            + math.log(neck_width)
            + (law.dimension - 1) * math.log(rest_width)
        )
    if isinstance(law, Rings):  # radius and angle: E depends on the radius alone
        radius, width = span(4.0, 40_000)
        radius = radius + 4.0
        x = torch.stack([0.6 * radius, -0.8 * radius], 1)
        return float(torch.logsumexp(-law(x) + (2 * math.pi * radius).log(), 0)) + math.log(width)
    if law.box is not None:
        side, width = span((law.box[1] - law.box[0]) / 2, 2000)
        side = side + sum(law.box) / 2
    else:
        side, width = span(10.0, 200)
    return float(torch.logsumexp(-law(grid(side, side)), 0)) + 2 * math.log(width)


@pytest.mark.parametrize("make", EVERY, ids=NAMES)
def test_log_partition_is_the_integral(make: Callable[[], Law]) -> None:
    law = make().double()
    assert law.log_partition() == pytest.approx(midpoint_log_z(law), abs=1e-6)


@pytest.mark.parametrize("make", EVERY, ids=NAMES)
def test_score_is_minus_the_gradient(make: Callable[[], Law]) -> None:
    law = make().double()
    x = 2 * torch.randn(50, law.dimension, dtype=torch.float64, generator=generator())
    beta = torch.rand(50, dtype=torch.float64, generator=generator())
    torch.testing.assert_close(
        law.score(x), -Energy.energy_and_gradient(law, x)[1], rtol=1e-9, atol=1e-9
    )
    base = 0.0 if law.box is not None else (1 - beta)[:, None] * x / law.base_scale**2
    tempered = base - beta[:, None] * law.score(x)
    torch.testing.assert_close(law.energy_and_gradient(x, beta)[1], tempered, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", EVERY, ids=NAMES)
def test_samples_come_in_the_buffers_dtype_and_repeat(make: Callable[[], Law]) -> None:
    for dtype in (torch.float32, torch.float64):
        law = make().to(dtype)
        x = law.sample(7, generator())
        assert x.dtype == law(x).dtype == dtype
        assert x.shape == (7, *law.shape)
        assert torch.equal(x, law.sample(7, generator()))
        assert not torch.equal(x, law.sample(7, generator(1)))


def test_gaussian_density_is_torchs() -> None:
    law = gaussian()
    x = 2 * torch.randn(20, 2, dtype=torch.float64, generator=generator())
    truth = MultivariateNormal(double([0.5, -1.0]), double([[1.0, 0.6], [0.6, 0.8]])).log_prob(x)
    torch.testing.assert_close(law.log_density(x), truth)


def test_mixture_density_is_torchs() -> None:
    law = mixture()
    x = 2 * torch.randn(20, 2, dtype=torch.float64, generator=generator())
    covariances = double([[[0.6, 0.4], [0.4, 0.5]], [[0.5, -0.2], [-0.2, 0.6]]])
    components = MultivariateNormal(double([[-1.2, -0.8], [1.5, 0.4]]), covariances)
    torch.testing.assert_close(
        law.log_density(x),
        MixtureSameFamily(Categorical(double([0.3, 0.7])), components).log_prob(x),
    )


def test_funnel_density_is_that_of_its_conditionals() -> None:
    x = 2 * torch.randn(20, 3, dtype=torch.float64, generator=generator())
    neck = Normal(0.0, 1.5).log_prob(x[:, 0])
    rest = Normal(torch.zeros(20, 1), torch.exp(x[:, :1] / 2)).log_prob(x[:, 1:]).sum(1)
    torch.testing.assert_close(funnel().log_density(x), neck + rest)


def test_rings_energy_is_the_formulas() -> None:
    x = 2 * torch.randn(20, 2, dtype=torch.float64, generator=generator())
    for row, value in zip(x.tolist(), rings()(x).tolist(), strict=True):
        terms = [
            w * math.exp(-((math.hypot(*row) - radius) ** 2) / (2 * 0.25))
            for radius, w in ((0.3, 2.0), (2.0, 0.7))
        ]
        assert value == pytest.approx(-math.log(sum(terms)), abs=1e-12)
    assert torch.equal(
        rings().score(torch.zeros(1, 2, dtype=torch.float64)),
        torch.zeros(1, 2, dtype=torch.float64),
    )


def test_gaussian_of_other_shapes() -> None:
    """Rows are flattened for the mean and the covariance, and come back in their shape."""
    covariance = torch.diag(double([1.0, 4.0, 9.0, 16.0]))
    law = Gaussian(double([0.0, 1.0, 2.0, 3.0]), covariance, (2, 2))
    x = law.sample(5, generator())
    assert x.shape == law.score(x).shape == (5, 2, 2)
    flat = Gaussian(double([0.0, 1.0, 2.0, 3.0]), covariance)
    torch.testing.assert_close(law(x), flat(x.flatten(1)))
    torch.testing.assert_close(law.score(x).flatten(1), flat.score(x.flatten(1)))


def test_gaussian_fit_has_the_rows_moments() -> None:
    rows = torch.randn(400, 3, 1, generator=generator()) * torch.tensor([[1.0], [2.0], [0.5]]) + 3
    law = Gaussian.fit(rows, 0.2)
    flat = rows.flatten(1).numpy().astype(np.float64)
    covariance = np.cov(flat.T) + (0.04 + 1e-3 * flat.var(0, ddof=1).mean() + 1e-8) * np.eye(3)
    assert law.shape == (3, 1)
    assert law.mean.dtype == torch.float32
    np.testing.assert_allclose(law.mean.numpy(), flat.mean(0), rtol=1e-6)
    np.testing.assert_allclose(
        (law.factor @ law.factor.T).numpy(), covariance, rtol=1e-5, atol=1e-6
    )
    assert Gaussian.fit(torch.zeros(5, 1), 0.0).log_partition() < 0, (
        "constant rows have a Gaussian too"
    )


@pytest.mark.parametrize("make", [gaussian, mixture, LAWS["gaussian"], LAWS["mixture"]])
def test_samples_of_gaussians_have_their_projections(
    make: Callable[[], Gaussian | GaussianMixture],
) -> None:
    """Along u the law is a mixture of N(u.m_k, u'C_k u); four directions fix every mean and
    covariance in the plane.
    """
    law = make().double()
    if isinstance(law, Gaussian):
        shares, means, factors = torch.ones(1).double(), law.mean[None], law.factor[None]
    else:
        shares, means, factors = law.weights / law.weights.sum(), law.means, law.factors
    x = law.sample(DRAWS, generator())
    for u in DIRECTIONS:
        components = Normal(means @ u, torch.linalg.vector_norm(u @ factors, dim=1))
        assert p_value((components.cdf((x @ u)[:, None]) * shares).sum(1)) > P_LIMIT


@pytest.mark.parametrize("make", [box, LAWS["box"]])
def test_samples_of_a_truncated_gaussian(make: Callable[[], TruncatedGaussian]) -> None:
    """Component by component the distribution function of scipy's truncated normal, the two
    uncorrelated.
    """
    law = make().double()
    assert law.box is not None
    x, (low, high) = law.sample(DRAWS, generator()), law.box
    uniform = []
    for column, mean, std in zip(x.T, law.mean.tolist(), law.std.tolist(), strict=True):
        truth = stats.truncnorm((low - mean) / std, (high - mean) / std, mean, std)
        uniform.append(torch.from_numpy(truth.cdf(column.numpy())))
        assert p_value(uniform[-1]) > P_LIMIT
    assert abs(math.sqrt(DRAWS) * float(torch.corrcoef(torch.stack(uniform))[0, 1])) < 6


def test_truncated_gaussian_fit_has_the_rows_moments() -> None:
    rows = torch.rand(400, 3, 1, generator=generator()) * torch.tensor([[1.0], [0.5], [0.2]])
    law = TruncatedGaussian.fit(rows, 0.2, (0.0, 1.0))
    flat = rows.flatten(1).numpy().astype(np.float64)
    assert law.shape == (3, 1)
    assert law.box == (0.0, 1.0)
    np.testing.assert_allclose(law.mean.numpy(), flat.mean(0), rtol=1e-6)
    np.testing.assert_allclose(
        law.std.numpy(), np.sqrt(flat.var(0, ddof=1) + 0.04 + 1e-3), rtol=1e-6
    )


@pytest.mark.parametrize("make", [rings, LAWS["rings"]])
def test_samples_of_rings_have_the_energys_radii_and_any_angle(make: Callable[[], Rings]) -> None:
    """The radius's distribution function from the energy itself: a cumulative sum of 2 pi r
    exp(-E).
    """
    law = make().double()
    x = law.sample(DRAWS, generator())
    radius = torch.linalg.vector_norm(x, dim=1)
    edges = torch.linspace(0, 6, 60_001, dtype=torch.float64)
    middle = (edges[1:] + edges[:-1]) / 2
    masses = middle * torch.exp(-law(torch.stack([middle, torch.zeros_like(middle)], 1)))
    distribution = np.concatenate([[0.0], (masses.cumsum(0) / masses.sum()).numpy()])
    assert p_value(torch.from_numpy(np.interp(radius, edges, distribution))) > P_LIMIT
    angle = torch.atan2(x[:, 1], x[:, 0])
    assert p_value((angle + math.pi) / (2 * math.pi)) > P_LIMIT
    # radius and angle independent: their correlation's z is N(0, 1)
    z = math.sqrt(DRAWS) * float(torch.corrcoef(torch.stack([radius, angle]))[0, 1])
    assert abs(z) < 6


def test_samples_of_the_funnel_are_its_conditionals() -> None:
    """x_0 / a and x_i exp(-x_0 / 2) are standard normal, and uncorrelated, squares too."""
    x = funnel().sample(DRAWS, generator())
    white = torch.cat([x[:, :1] / 1.5, x[:, 1:] * torch.exp(-x[:, :1] / 2)], 1)
    for column in white.T:
        assert p_value(Normal(0.0, 1.0).cdf(column)) > P_LIMIT
    both = torch.cat([white, white.square()], 1)
    correlation = torch.corrcoef(both.T)
    for i, j in itertools.combinations(range(6), 2):
        assert abs(math.sqrt(DRAWS) * float(correlation[i, j])) < 6
