"""Diagnostics of mixing: rank-normalised split R-hat and bulk effective sample size, by the
arviz-stats package.
"""

from __future__ import annotations

import numpy as np
from arviz_stats.base.array import array_stats


def effective_sample_size(draws: np.ndarray) -> np.ndarray:
    """Returns the bulk ESS (Vehtari et al. 2021) of `draws` [chains, draws, ...], summed over
    chains; one number a component.

    nan where a component is not finite, or constant in any one chain: such a chain has not moved,
    and tells nothing.
    """
    return np.where(_usable(draws), array_stats.ess(draws, chain_axis=0, draw_axis=1), np.nan)


def split_r_hat(draws: np.ndarray) -> np.ndarray:
    """Returns the larger of bulk and folded rank-normalised split R-hat (Vehtari et al. 2021) of
    `draws` [chains, draws, ...], one number a component; 1 is mixed, over 1.01 is not.

    nan for one chain, for fewer than 4 draws, and where a component is not finite or constant in a
    chain.
    """
    if len(draws) < 2:
        return np.full(draws.shape[2:], np.nan)
    return np.where(_usable(draws), array_stats.rhat(draws, chain_axis=0, draw_axis=1), np.nan)


def _usable(draws: np.ndarray) -> np.ndarray:
    """Return whether a component is finite and moves in every chain, for each."""
    moving: np.ndarray = (draws != draws[:, :1]).any(1).all(0)
    return moving & np.isfinite(draws).all((0, 1))
