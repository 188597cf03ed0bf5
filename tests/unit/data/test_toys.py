"""The two-dimensional laws: each density is a density, and the rows drawn are drawn from it.

Seeds are fixed, so a test either always passes or always fails; the false-alarm rates say how
unlucky a right sampler would have to be to fail with them.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from torch import Tensor

from pipeline.assembly.data import open_data
from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.data.base import DataSet
from pipeline.data.toys import LAWS

LAW_NAMES = ("8gaussians", "two_moons", "checkerboard", "ring", "stripe")
CELLS, NODES = 16, 8  # [-4, 4]^2 in 16 x 16 cells of side 1/2, 8 x 8 Gauss-Legendre nodes in each


def half_width(law: str) -> float:
    """Of the square that holds the law: but for the stripe 4."""
    return 8.0 if law == "stripe" else 4.0


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


class Truth(NamedTuple):
    """By quadrature: the probability of each cell `[16, 16]`, and the entropy in nats."""

    cells: np.ndarray
    entropy: float


@cache
def truth(law: str) -> Truth:
    """Gauss-Legendre in every cell: the Gaussians are smooth within a cell, and the checkerboard
    constant.
    """
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    side = 2 * half_width(law) / CELLS
    left = -half_width(law) + side * np.arange(CELLS)
    axis = (left[:, None] + side * (nodes + 1) / 2).ravel()
    weight = np.tile(weights * side / 2, CELLS)
    points = torch.from_numpy(np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2))
    log_density = torch.cat([LAWS[law][1](part) for part in points.split(2048)]).numpy()
    mass = np.exp(log_density) * np.outer(weight, weight).ravel()
    entropy = -float(np.sum(mass[mass > 0] * log_density[mass > 0]))
    return Truth(mass.reshape(CELLS, NODES, CELLS, NODES).sum((1, 3)), entropy)


@cache
def toy(law: str, *overrides: str) -> DataSet:
    return open_data(compose(["data=toy", f"data.law={law}", *overrides]))


def log_density(data: DataSet, rows: Tensor) -> np.ndarray:
    assert data.log_density is not None
    return torch.cat([data.log_density(part) for part in rows.split(2048)]).numpy()


@pytest.mark.parametrize("law", LAW_NAMES)
def test_density_integrates_to_one(law: str) -> None:
    """The integral over the square is 1; what is outside (5 sigma and more) and the rule's error
    are below 1e-6.
    """
    tolerance = 1e-12 if law == "checkerboard" else 1e-6
    assert truth(law).cells.sum() == pytest.approx(1, abs=tolerance)


def test_eight_gaussians_density_in_closed_form() -> None:
    """At a centre, in the middle, and on the ring between two centres, against sums written out by
    hand (s = 0.2).
    """
    points = torch.tensor(
        [[2.0, 0.0], [0.0, 0.0], [2 * math.cos(math.pi / 8), 2 * math.sin(math.pi / 8)]]
    )
    chords = [
        [4 * math.sin(k * math.pi / 8) for k in range(8)],
        [2.0] * 8,
        [4 * math.sin((2 * k + 1) * math.pi / 16) for k in range(8)],
    ]
    expected = [
        math.log(sum(math.exp(-(d**2) / 0.08) for d in row) / (8 * 2 * math.pi * 0.04))
        for row in chords
    ]
    assert LAWS["8gaussians"][1](points).tolist() == pytest.approx(
        expected, abs=1e-4
    )  # float32 points


@pytest.mark.parametrize(
    "point", [(-0.75, 1.125), (0.75, 0.375), (0.0, 0.0), (2.25, 0.3), (-2.3, -0.5)]
)
def test_two_moons_density_against_adaptive_quadrature(point: tuple[float, float]) -> None:
    """The arcs' 512 nodes stand for an integral over the angle (s = 0.1, radius 1.5): on an arc and
    in the tails.

    The midpoint rule is worst beyond an arc's end, where the density falls off along the arc: 8e-4
    nats at the last point.
    """

    def integrand(angle: float) -> float:
        upper = (1.5 * math.cos(angle) - 0.75, 1.5 * math.sin(angle) - 0.375)
        lower = (0.75 - 1.5 * math.cos(angle), 0.375 - 1.5 * math.sin(angle))
        squares = [(point[0] - x) ** 2 + (point[1] - y) ** 2 for x, y in (upper, lower)]
        return sum(math.exp(-square / 0.02) for square in squares) / (2 * math.pi * 0.01)

    expected = scipy.integrate.quad(integrand, 0, math.pi, epsabs=0, epsrel=1e-9, limit=500)[0] / (
        2 * math.pi
    )
    log_two_moons = LAWS["two_moons"][1]
    assert log_two_moons(torch.tensor([point], dtype=torch.float64)).item() == pytest.approx(
        math.log(expected), abs=1e-3
    )


def test_checkerboard_density_is_uniform_on_eight_squares() -> None:
    """-log 8 in the middle of the eight squares, -inf in the others and all around."""
    grid = torch.arange(-3, 3) + 0.5
    values = LAWS["checkerboard"][1](torch.cartesian_prod(grid, grid)).reshape(6, 6)
    expected = torch.full((6, 6), -math.inf, dtype=torch.float64)
    for column in range(4):
        for row in range(4):
            if (column + row) % 2 == 0:
                expected[column + 1, row + 1] = -math.log(8)
    assert torch.equal(values, expected)


@pytest.mark.parametrize("radius", [0.0, 0.7, 2.0, 2.9])
def test_ring_density_against_adaptive_quadrature(radius: float) -> None:
    """N(x; c, 0.3^2 I) integrated over centres c on the circle of radius 2."""

    def integrand(angle: float) -> float:
        return math.exp(-(radius**2 + 4 - 4 * radius * math.cos(angle)) / 0.18) / (
            2 * math.pi * 0.09
        )

    expected = scipy.integrate.quad(
        integrand, -math.pi, math.pi, epsabs=0, epsrel=1e-10, limit=500
    )[0] / (2 * math.pi)
    point = torch.tensor([[0.6 * radius, -0.8 * radius]], dtype=torch.float64)
    assert LAWS["ring"][1](point).item() == pytest.approx(math.log(expected), abs=1e-8)


def test_stripe_density_in_closed_form() -> None:
    x = np.array([[0.0, 0.0], [2.0, -1.0], [-1.0, 3.0]])
    across = 0.8 * scipy.stats.norm.pdf(x[:, 1], scale=0.5) + 0.2 * scipy.stats.norm.pdf(
        x[:, 1], scale=1.5
    )
    expected = np.log(scipy.stats.norm.pdf(x[:, 0], scale=1.5) * across)
    np.testing.assert_allclose(LAWS["stripe"][1](torch.from_numpy(x)).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("part", ["sample", "held_out"])
@pytest.mark.parametrize("law", LAW_NAMES)
def test_mean_log_density_of_draws_is_minus_the_entropy(law: str, part: str) -> None:
    """Within 5 standard errors: false-alarm rate 6e-7 (two-sided). On the checkerboard every row
    has exactly -log 8.
    """
    data = toy(law, "data.rows=60000")
    values = log_density(data, getattr(data, part))
    assert np.isfinite(values).all()
    tolerance = 5 * values.std() / math.sqrt(len(values)) + 1e-6  # the last term for the quadrature
    assert values.mean() == pytest.approx(-truth(law).entropy, abs=tolerance)
    if law == "checkerboard":
        assert (values == -math.log(8)).all()


@pytest.mark.parametrize("part", ["sample", "held_out"])
@pytest.mark.parametrize("law", LAW_NAMES)
def test_cell_counts_follow_the_density(law: str, part: str) -> None:
    """Counts in 256 cells against their probabilities, chi-square, false-alarm rate 1e-6; rare
    cells are taken as one.
    """
    rows = getattr(toy(law, "data.rows=60000"), part).double().numpy()
    edges = np.linspace(-half_width(law), half_width(law), CELLS + 1)
    counts = np.histogram2d(rows[:, 0], rows[:, 1], bins=(edges, edges))[0]
    probabilities = truth(law).cells
    common = len(rows) * probabilities >= 10
    observed = np.append(counts[common], len(rows) - counts[common].sum())
    expected = len(rows) * np.append(
        probabilities[common], max(1 - probabilities[common].sum(), 1e-12)
    )
    if (
        expected[-1] < 1
    ):  # next to nothing is outside the common cells: then at most a few rows may be there
        assert observed[-1] <= scipy.stats.poisson.isf(1e-6, expected[-1])
        observed, expected = observed[:-1], expected[:-1]
    statistic = float(((observed - expected) ** 2 / expected).sum())
    assert statistic < scipy.stats.chi2.isf(1e-6, len(observed) - 1)


@pytest.mark.parametrize("law", LAW_NAMES)
def test_sizes_and_seeds(law: str) -> None:
    """20,000 rows of which 4,000 are held out; the same seed gives the same rows, another seed
    others.
    """
    data = toy(law)
    assert data.shape == (2,)
    assert (data.rows, len(data.sample), len(data.held_out)) == (16_000, 16_000, 4_000)
    again = open_data(compose(["data=toy", f"data.law={law}"]))
    assert torch.equal(again.sample, data.sample)
    assert torch.equal(again.held_out, data.held_out)
    assert not torch.isin(toy(law, "data.split_seed=1").sample, data.sample).any(1).all()
    assert len(torch.cat([data.sample, data.held_out]).unique(dim=0)) == 20_000


def test_noise_hides_the_density() -> None:
    """With noise the law learned is the smoothed one, whose density is not the one known."""
    assert open_data(compose(["data=toy", "data.noise=0.1"])).log_density is None


def test_held_out_too_large() -> None:
    """Keeping all rows out is refused before any is drawn."""
    with pytest.raises(ConfigError, match=r"data\.held_out=500"):
        open_data(compose(["data=toy", "data.rows=500", "data.held_out=500"]))
