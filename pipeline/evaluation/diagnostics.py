"""Diagnostics of mixing: rank-normalised split R-hat, and bulk effective sample size by the
arviz-stats package.
"""

from __future__ import annotations

import numpy as np
import torch


def effective_sample_size(draws: np.ndarray) -> np.ndarray:
    """Returns the bulk ESS (Vehtari et al. 2021) of `draws` [chains, draws, ...], summed over
    chains; one number a component.

    nan where a component is not finite, or constant in any one chain: such a chain has not moved,
    and tells nothing.
    """
    # a second's import, that a run does without
    from arviz_stats.base.array import array_stats

    return np.where(_usable(draws), array_stats.ess(draws, chain_axis=0, draw_axis=1), np.nan)


def split_r_hat(draws: np.ndarray) -> np.ndarray:
    """Returns the larger of bulk and folded rank-normalised split R-hat (Vehtari et al. 2021) of
    `draws` [chains, draws, ...], one number a component; 1 is mixed, over 1.01 is not.

    Each chain is cut into halves of n draws. Draws, or their distances from the median of all S of
    them (folded), are replaced by normal scores, Phi^-1((rank - 3/8) / (S + 1/4)). W is their mean
    variance within halves, and B / n the variance of the halves' means:

        R-hat^2 = (n - 1) / n + B / (n W)

    nan for one chain, for fewer than 4 draws, and where a component is not finite or constant in a
    chain.
    """
    found, half = np.full(draws.shape[2:], np.nan), draws.shape[1] // 2
    if len(draws) < 2 or half < 2:
        return found
    halves = np.concatenate([draws[:, :half], draws[:, -half:]])
    usable = _usable(draws)
    for component in np.ndindex(found.shape):
        if usable[component]:
            values = halves[(slice(None), slice(None), *component)].astype(np.float64)
            folded = np.abs(values - np.median(values))
            found[component] = max(_r_hat(_normal_scores(each)) for each in (values, folded))
    return found


def _normal_scores(values: np.ndarray) -> np.ndarray:
    """Phi^-1((rank - 3/8) / (S + 1/4)) of S values, of their shape; equal ones share the mean of
    their ranks (Blom 1958).
    """
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = counts.cumsum() - (counts - 1) / 2
    scores = torch.special.ndtri(torch.from_numpy((ranks - 3 / 8) / (values.size + 1 / 4)))
    found: np.ndarray = scores.numpy()[place].reshape(values.shape)
    return found


def _r_hat(values: np.ndarray) -> float:
    """R-hat of `values` [chains, n] (Gelman & Rubin 1992)."""
    n = values.shape[1]
    between, within = values.mean(1).var(ddof=1), values.var(1, ddof=1).mean()
    with np.errstate(divide="ignore", invalid="ignore"):  # halves that do not move: inf or nan
        return float(np.sqrt((n - 1) / n + between / within))


def _usable(draws: np.ndarray) -> np.ndarray:
    """Return whether a component is finite and moves in every chain, for each."""
    moving: np.ndarray = (draws != draws[:, :1]).any(1).all(0)
    return moving & np.isfinite(draws).all((0, 1))
