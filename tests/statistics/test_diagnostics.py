"""ESS and R-hat of the library against known values."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from arviz_stats.base.array import array_stats

from pipeline.evaluation.diagnostics import effective_sample_size, split_r_hat


def autoregression(rho: float, chains: int, draws: int) -> np.ndarray:
    """x_t = rho x_{t-1} + sqrt(1 - rho^2) e_t from its stationary law, `[chains, draws]`."""
    noise = np.random.default_rng(0).standard_normal((chains, draws))
    x = noise.copy()
    for t in range(1, draws):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * noise[:, t]
    return x


@pytest.mark.parametrize("rho", [-0.3, 0.0, 0.5, 0.9])
def test_ess_of_an_autoregression(rho: float) -> None:
    """N (1 - rho) / (1 + rho), within 10 % (in trials of this size the estimate's standard
    deviation was under 3 %).
    """
    x = autoregression(rho, 64, 4000)
    assert float(effective_sample_size(x)) == pytest.approx(x.size * (1 - rho) / (1 + rho), rel=0.1)


def test_components_are_those_of_the_last_axes() -> None:
    """[chains, draws, d] gives d numbers, each that of its component alone."""
    x = np.stack(
        [autoregression(0.5, 8, 500), np.random.default_rng(1).standard_normal((8, 500))], 2
    )
    for statistic in (effective_sample_size, split_r_hat):
        assert statistic(x).shape == (2,)
        assert statistic(x).tolist() == [float(statistic(x[..., i])) for i in range(2)]


def test_r_hat_sees_what_has_not_mixed() -> None:
    """Near 1 for independent draws; above 1.1 for a chain shifted, one three times as wide, and a
    common trend.
    """
    x = np.random.default_rng(0).standard_normal((4, 1000))
    assert float(split_r_hat(x)) == pytest.approx(1, abs=0.01)
    shifted, wide, trend = x.copy(), x.copy(), x + np.linspace(-2, 2, 1000)
    shifted[0] += 2
    wide[0] *= 3
    for broken in (shifted, wide, trend):
        assert float(split_r_hat(broken)) > 1.1


@pytest.mark.parametrize("draws", [7, 100])
def test_r_hat_is_that_of_arviz(draws: int) -> None:
    """Of normal draws, heavy tails, few levels with ties, and a chain apart; to rounding."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((5, draws, 4))
    x[..., 1] = generator.standard_cauchy((5, draws))
    x[..., 2] = generator.integers(0, 3, (5, draws))
    x[0, :, 3] += 1
    expected = array_stats.rhat(x, chain_axis=0, draw_axis=1)
    np.testing.assert_allclose(split_r_hat(x), expected, rtol=1e-12)


def test_what_tells_nothing_is_nan() -> None:
    """A chain that is stuck or not finite, one chain alone: never a good figure."""
    x = np.random.default_rng(0).standard_normal((4, 100, 3))
    x[2, :, 0] = 0.5
    x[1, 7, 1] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for statistic in (effective_sample_size, split_r_hat):
            assert np.isnan(statistic(x)).tolist() == [True, True, False]
        assert np.isnan(split_r_hat(x[:1])).all()
