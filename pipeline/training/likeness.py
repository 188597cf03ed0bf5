"""The likeness of chains and data, by distances alone: no energy is asked for."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

MODES = 10
"""Groups that the data are put into."""
MOST = 256
"""Chains that are looked at, at most."""


class Likeness:
    """Holds chains against the same few training `rows` [M, ...], over and over.

    Rows are put into `MODES` groups by k-means, once.
    """

    def __init__(self, rows: Tensor) -> None:
        from scipy.cluster.vq import kmeans2

        self._rows = rows.flatten(1).float()
        with warnings.catch_warnings():
            # of a group without rows, which has no share, and of rows that are all the same
            warnings.simplefilter("ignore")
            groups, _ = kmeans2(self._rows.cpu().numpy(), MODES, minit="++", seed=0)
        self._groups = torch.from_numpy(groups).to(self._rows)
        self._shares = self._occupied(self._rows)
        self._among = _mean_distance(self._rows)

    def figures(self, chains: Tensor) -> dict[str, float]:
        """Returns the `energy_distance` of `chains` [N, ...] and rows, from 0, where their laws are
        the same, to 1:

            (2 E|X - Y| - E|X - X'| - E|Y - Y'|) / (2 E|X - Y|)

        (Szekely & Rizzo 2013), of the pairs that there are; and `mode_coverage`, sum_g min(p_g,
        q_g) of the shares p of the rows and q of the chains in each group: the share of the data's
        modes that chains are at.
        """
        chains = chains[:: -(-len(chains) // MOST)].flatten(1).to(self._rows)
        between = float(torch.cdist(chains, self._rows).mean())
        if not between > 0:
            return {}
        apart = 2 * between - self._among - _mean_distance(chains)
        coverage = torch.minimum(self._shares, self._occupied(chains)).sum()
        return {
            "energy_distance": max(apart, 0.0) / (2 * between),
            "mode_coverage": float(coverage),
        }

    def _occupied(self, points: Tensor) -> Tensor:
        """The share of `points` [N, d] in each group, [MODES]."""
        nearest = torch.cdist(points, self._groups).argmin(1)
        return torch.bincount(nearest, minlength=len(self._groups)) / len(points)


def _mean_distance(points: Tensor) -> float:
    """E|X - X'| of two different ones of `points` [N, d]."""
    count = len(points)
    return float(torch.cdist(points, points).sum()) / max(count * (count - 1), 1)
