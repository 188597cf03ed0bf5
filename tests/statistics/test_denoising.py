"""Denoising score matching against the smoothed laws: in closed form, and by t-tests (see
`test_score_matching.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from pipeline.energies.base import Energy
from pipeline.energies.laws import GaussianMixture
from pipeline.objectives.base import Objective, Part, PositiveSide
from pipeline.objectives.probes import PROBES
from pipeline.objectives.score_matching import DenoisingScoreMatching, FiniteDifferenceDenoising
from tests.statistics.laws import double, seeded
from tests.statistics.test_score_matching import (
    ALARM,
    BLOCKS,
    COVARIANCE,
    MEAN,
    ROWS,
    SIGMAS,
    TrainableGaussian,
    TrainableMixture,
    close,
    drawn,
    estimates,
    found,
    gaussian,
    loss_of,
    mixture,
    normal,
    of_gaussian_data,
    p_value,
    require_unbiased,
    with_gradient,
)
from tests.statistics.trainable import sides

pytestmark = pytest.mark.slow  # as a group

EYE = torch.eye(4, dtype=torch.float64)
OBJECTIVES: dict[str, Callable[[tuple[float, ...]], Objective]] = {
    "denoising": lambda sigmas: DenoisingScoreMatching(sigmas, 1),
    "denoising of several draws": lambda sigmas: DenoisingScoreMatching(sigmas, 3),
    # differences of a quadratic are exact
    "finite differences": lambda sigmas: FiniteDifferenceDenoising(
        sigmas, 2, PROBES["rademacher"], 0.5
    ),
    "finite differences in a frame": lambda sigmas: FiniteDifferenceDenoising(
        sigmas, 2, PROBES["orthogonal"], 0.5
    ),
}


def expected(energy: TrainableGaussian, sigmas: tuple[float, ...]) -> Tensor:
    """E|sigma P (y - m) - n|^2 / 2, y = x + sigma n, x ~ N(MEAN, COVARIANCE), over the levels."""
    p, shift = energy.precision, MEAN - energy.mean
    data = (p @ p @ COVARIANCE).trace() + (p @ shift).square().sum()
    return torch.stack([s**2 * data + (s**2 * p - EYE).square().sum() for s in sigmas]).mean() / 2


def smoothed(sigma: float) -> TrainableGaussian:
    return TrainableGaussian(
        MEAN, torch.linalg.cholesky((COVARIANCE + sigma**2 * EYE).inverse()), (2, 2)
    )


def check_expectation(objective: Objective, sigmas: tuple[float, ...]) -> None:
    energy = gaussian()
    require_unbiased(
        estimates(objective, energy, of_gaussian_data()),
        with_gradient(energy, expected(energy, sigmas)),
    )


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("sigmas", [(0.5,), SIGMAS])
def test_expectation_over_gaussian_data(name: str, sigmas: tuple[float, ...]) -> None:
    check_expectation(OBJECTIVES[name](sigmas), sigmas)


def test_one_level_is_stationary_at_the_smoothed_law() -> None:
    """And at no other: neither at the data's own nor at that of another level."""
    for sigma in SIGMAS:
        own = smoothed(sigma)
        truth = with_gradient(own, expected(own, (sigma,)))
        close(truth[1:], torch.zeros_like(truth[1:]), 1e-12)
        require_unbiased(
            estimates(DenoisingScoreMatching((sigma,), 1), own, of_gaussian_data()), truth
        )
        for other in (smoothed(0.0), smoothed(2 * sigma)):
            values = estimates(DenoisingScoreMatching((sigma,), 1), other, of_gaussian_data())[
                :, 1:
            ]
            assert p_value(values, torch.zeros_like(values[0])) < ALARM


def test_one_level_is_explicit_score_matching_on_the_smoothed_law() -> None:
    """Its gradient is that of sigma^2 E|grad E(y) - P_s (y - m_s)|^2 / 2, in closed form, anywhere;
    the rest is a constant.
    """
    gaps = []
    for seed in range(3):
        energy, law, sigma = (
            TrainableGaussian(normal(50 + seed, 4), normal(60 + seed, 4, 4), (2, 2)),
            smoothed(1.25),
            1.25,
        )
        apart, shift = (
            energy.precision - law.precision.detach(),
            energy.precision @ (MEAN - energy.mean),
        )
        distance = (apart @ apart @ (COVARIANCE + sigma**2 * EYE)).trace() + shift.square().sum()
        gaps.append(with_gradient(energy, expected(energy, (sigma,)) - sigma**2 * distance / 2))
        close(gaps[-1][1:], torch.zeros_like(gaps[-1][1:]))
    close(gaps[0][0], gaps[1][0])
    close(gaps[0][0], gaps[2][0])


# -- mixtures of levels ----------------------------------------------------------------------------

WEIGHTS, MEANS = double([0.3, 0.7]), double([[-1.0, 0.5], [1.0, 0.0]])
COVARIANCES = double([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]]])


def law_of(levels: dict[float, float]) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and covariances of the data smoothed by N(0, sigma^2 I), for each sigma with
    its weight.
    """
    eye = torch.eye(2, dtype=torch.float64)
    weights = torch.cat([weight / sum(levels.values()) * WEIGHTS for weight in levels.values()])
    return (
        weights,
        MEANS.repeat(len(levels), 1),
        torch.cat([COVARIANCES + sigma**2 * eye for sigma in levels]),
    )


WEIGHTED = {sigma: sigma**2 for sigma in SIGMAS}
EVEN = dict.fromkeys(SIGMAS, 1.0)


def of_mixture_data() -> Callable[[], Tensor]:
    data, generator = GaussianMixture(WEIGHTS, MEANS, COVARIANCES), seeded(13)
    return lambda: data.sample(ROWS, generator)


def gradients_at(levels: dict[float, float], objective: Objective) -> Tensor:
    """Gradients at the mixture of the smoothed laws with these weights, `[100, parameters]`."""
    return estimates(objective, TrainableMixture.of(*law_of(levels)), of_mixture_data())[:, 1:]


def check_stationary(levels: dict[float, float], objective: Objective) -> None:
    gradients = gradients_at(levels, objective)
    require_unbiased(gradients, torch.zeros_like(gradients[0]))


class Unweighted(DenoisingScoreMatching):
    """|grad E(y) - n / sigma|^2 / 2: without the weight sigma^2."""

    def of_positives(self, energy: Energy, positives: PositiveSide) -> Iterator[Part]:
        for noise, sigma in zip(*positives.drawn, strict=True):
            y = positives.position + sigma[:, None] * noise
            residual = energy.differentiable_gradient(y) - noise / sigma[:, None]
            yield Part("denoising", residual.square().sum() / 2, positives.drawn[1].numel())


def test_several_levels_are_stationary_at_the_mixture_weighted_by_sigma_squared() -> None:
    check_stationary(WEIGHTED, DenoisingScoreMatching(SIGMAS, 20))
    check_stationary(EVEN, Unweighted(SIGMAS, 20))
    for levels, objective in [
        (EVEN, DenoisingScoreMatching(SIGMAS, 20)),
        (WEIGHTED, Unweighted(SIGMAS, 20)),
        ({SIGMAS[0]: 1.0}, DenoisingScoreMatching(SIGMAS, 20)),
    ]:
        with pytest.raises(AssertionError, match="p = "):
            check_stationary(levels, objective)


def test_finite_differences_are_stationary_where_denoising_is() -> None:
    """Up to their bias, of order epsilon^2 = 1e-6, which is far below the standard errors."""
    check_stationary(WEIGHTED, FiniteDifferenceDenoising(SIGMAS, 20, PROBES["gaussian"], 1e-3))
    with pytest.raises(AssertionError, match="p = "):
        check_stationary(EVEN, FiniteDifferenceDenoising(SIGMAS, 20, PROBES["gaussian"], 1e-3))


def test_denoising_is_explicit_score_matching_on_the_mixture() -> None:
    """For a model that is not the law: gradients less those of w |grad E(y) - s(y)|^2 / 2, with y ~
    the weighted mixture and w the mean of sigma^2, have mean 0.
    """
    energy, law = (
        TrainableMixture(
            mixture().logits.detach(), mixture().means.detach()[:, :2], 0.8 * normal(14, 3, 2, 2)
        ),
        GaussianMixture(*law_of(WEIGHTED)),
    )
    rows, generator, weight = of_mixture_data(), seeded(15), sum(WEIGHTED.values()) / len(WEIGHTED)
    differences = []
    for _ in range(BLOCKS):
        y = law.sample(5 * ROWS, generator)
        explicit = weight * (energy.derivatives(y)[0] + law.score(y)).square().sum(1).mean() / 2
        objective = DenoisingScoreMatching(SIGMAS, 5)
        differences.append(
            with_gradient(
                energy,
                loss_of(objective, energy, drawn(objective, energy, rows(), generator)) - explicit,
            )[1:]
        )
    values = torch.stack(differences)
    require_unbiased(values, torch.zeros_like(values[0]))


# -- directions ------------------------------------------------------------------------------------


def check_directions(probe: str, scale: float = 1.0) -> None:
    """10,000 directions for one noise: the mean is denoising score matching's, and the gradient."""
    energy, objective = gaussian(), FiniteDifferenceDenoising(SIGMAS, 3, PROBES[probe], 0.5)
    x, noise, sigmas = normal(16, 1, 2, 2), normal(17, 1, 1, 2, 2), double([[1.25]])
    truth = found(DenoisingScoreMatching(SIGMAS, 1), energy, sides(x, (noise, sigmas)))
    generator, values = seeded(18), []
    for _ in range(BLOCKS):
        many = x.expand(34, 2, 2)
        v = scale * objective.draw(energy, many, generator)[2]
        batch = sides(many, (noise.expand(*v.shape), sigmas.expand(v.shape[:2]), v))
        values.append(found(objective, energy, batch))
    require_unbiased(torch.stack(values), truth)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian", "sphere", "orthogonal"])
def test_directions_are_unbiased(probe: str) -> None:
    check_directions(probe)


def test_unscaled_directions_are_caught() -> None:
    with pytest.raises(AssertionError, match="p = "):
        check_directions("sphere", 0.5)


def test_levels_are_drawn_evenly_and_noises_are_standard_normal() -> None:
    """And neither depends on the other: moments of 100 blocks, in each level's share."""
    objective, x, generator = (
        DenoisingScoreMatching((0.25, *SIGMAS), 10),
        normal(19, ROWS, 2),
        seeded(20),
    )
    rows = []
    for _ in range(BLOCKS):
        noise, sigmas = objective.draw(gaussian(), x, generator)
        assert noise.shape == (10, ROWS, 2)
        assert sigmas.shape == (10, ROWS)
        for_each = []
        for sigma in (0.25, *SIGMAS):
            chosen = (sigmas == sigma).double()[..., None]
            for_each += [chosen.mean()[None]]
            for_each += [(chosen * noise**power).mean((0, 1)) for power in (1, 2, 3, 4)]
            for_each += [(chosen[..., 0] * noise.prod(2)).mean()[None]]
        rows.append(torch.cat(for_each))
    moments = double([1, 0, 0, 1, 1, 0, 0, 3, 3, 0]) / 3
    require_unbiased(torch.stack(rows), moments.repeat(3))
