"""R-hat over pools, against arviz-stats on the same draws, and in what it is for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from arviz_stats.base import array_stats

from pipeline.common.types import EnergyMoments
from pipeline.diagnosis.mixing import potential_scale_reduction

POOLS, DRAWS = 4, 250


def energy_moments(draws: np.ndarray) -> list[EnergyMoments]:
    return [
        EnergyMoments(pool, values.mean(), values.var(), len(values))
        for pool, values in enumerate(draws)
    ]


@pytest.mark.parametrize("shift", [0.0, 0.2, 3.0])
def test_it_is_the_classical_one(shift: float) -> None:
    draws = (
        np.random.default_rng(0).standard_normal((POOLS, DRAWS)) + shift * np.arange(POOLS)[:, None]
    )
    expected = float(array_stats.rhat(draws, method="identity", chain_axis=0, draw_axis=1))
    assert potential_scale_reduction(energy_moments(draws)) == pytest.approx(expected, rel=1e-12)


def test_pools_that_agree_are_told_from_those_that_do_not() -> None:
    """(m - 1) n/(n - 1) R-hat^2 is nearly (m - 1) + chi^2(m - 1)/n where pools agree: R-hat above
    1.02 needs a chi^2(3) of 34, 2e-7 of the time.
    """
    draws = np.random.default_rng(1).standard_normal((POOLS, DRAWS))
    assert potential_scale_reduction(energy_moments(draws)) < 1.02
    draws[0] += 1
    assert potential_scale_reduction(energy_moments(draws)) > 1.05


def test_without_two_pools_or_any_variance_it_is_not_a_number() -> None:
    assert math.isnan(potential_scale_reduction([EnergyMoments(0, 1.0, 1.0, 10)]))
    assert math.isnan(
        potential_scale_reduction([EnergyMoments(0, 1.0, 1.0, 10), EnergyMoments(1, 1.0, 1.0, 1)])
    )
    assert math.isnan(
        potential_scale_reduction([EnergyMoments(0, 1.0, 0.0, 10), EnergyMoments(1, 2.0, 0.0, 10)])
    )
    assert not math.isfinite(
        potential_scale_reduction(
            [EnergyMoments(0, 1e200, 1.0, 10), EnergyMoments(1, -1e200, 1.0, 10)]
        )
    )
