"""The agreement of pools: their chains compared with one another while a run goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.common.types import EnergyMoments


def potential_scale_reduction(energy_moments: Sequence[EnergyMoments]) -> float:
    """Returns R-hat = sqrt(((n - 1)/n W + B/n) / W) of energies, each pool as one sequence of n
    draws (Gelman et al. 2013, "Bayesian Data Analysis", 3rd ed., eqs. 11.3 and 11.4; after Gelman &
    Rubin 1992).

    W is the mean of the pools' variances (n - 1 below the line), B/n the variance of their means.
    Chains of a pool are many and run side by side, so draws are one of each, at one time: near 1
    where pools sample the same law, beyond it where some are elsewhere, by energies that differ.
    NaN for less than two pools, or without any variance within them.
    """
    pools = [spread for spread in energy_moments if spread.chains > 1]
    if len(pools) < 2:
        return math.nan
    draws = sum(spread.chains for spread in pools) / len(pools)
    within = sum(spread.variance * spread.chains / (spread.chains - 1) for spread in pools) / len(
        pools
    )
    middle = sum(spread.mean for spread in pools) / len(pools)
    # by a product: a power would raise where it overflows
    between = sum((spread.mean - middle) * (spread.mean - middle) for spread in pools) / (
        len(pools) - 1
    )
    return math.sqrt((draws - 1) / draws + between / within) if within > 0 else math.nan
