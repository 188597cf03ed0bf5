"""The likeness of chains and data, by distances alone: no energy is asked for."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from pipeline.data.row_weights import mean

MODES = 10
"""Groups that the data are put into."""
MOST = 256
"""Chains that are looked at, at most."""


class Likeness:
    """Holds chains against the same few training `rows` [M, ...], over and over.

    Rows are put into `MODES` groups by k-means, once. They count by their `weights` [M].
    """

    def __init__(self, rows: Tensor, weights: Tensor | None = None) -> None:
        from scipy.cluster.vq import kmeans2

        self._rows = rows.flatten(1).float()
        with warnings.catch_warnings():
            # of a group without rows, which has no share, and of rows that are all the same
            warnings.simplefilter("ignore")
            groups, _ = kmeans2(self._rows.cpu().numpy(), MODES, minit="++", seed=0)
        self._groups = torch.from_numpy(groups).to(self._rows)
        self._weights = None if weights is None else weights.to(self._rows)
        self._shares = self._occupied(self._rows, self._weights)
        self._among = mean_of_pairs(torch.cdist(self._rows, self._rows), self._weights)

    def figures(self, chains: Tensor) -> dict[str, float]:
        """Returns the `energy_distance` of `chains` [N, ...] and rows, 0 at least; and
        `mode_coverage`, sum_g min(p_g, q_g) of the shares p of the rows and q of the chains in each
        group: the share of the data's modes that chains are at.
        """
        chains = chains[:: -(-len(chains) // MOST)].flatten(1).to(self._rows)
        coverage = torch.minimum(self._shares, self._occupied(chains)).sum()
        apart = energy_distance(chains, self._rows, self._among, (None, self._weights))
        return {"energy_distance": max(apart, 0.0), "mode_coverage": float(coverage)}

    def _occupied(self, points: Tensor, weights: Tensor | None = None) -> Tensor:
        """The share of `points` [N, d], or of their `weights` [N], in each group, [MODES]."""
        nearest = torch.cdist(points, self._groups).argmin(1)
        total = len(points) if weights is None else weights.sum()
        return torch.bincount(nearest, weights, minlength=len(self._groups)) / total


def energy_distance(
    x: Tensor,
    y: Tensor,
    among_y: float | None = None,
    weights: tuple[Tensor | None, Tensor | None] = (None, None),
) -> float:
    """Returns the energy distance of the laws of `x` [N, d] and `y` [M, d], from 0, where they are
    the same, to 1, without bias in its numerator, so that it may be below 0 (Szekely & Rizzo 2013,
    "Energy statistics"):

        (2 E|X - Y| - E|X - X'| - E|Y - Y'|) / (2 E|X - Y|)

    `among_y` is E|Y - Y'| where it is known. Rows of both count by their `weights`. 0 where all are
    the same.
    """
    of_x, of_y = weights
    between = mean_between(torch.cdist(x, y), of_x, of_y)
    among_y = mean_of_pairs(torch.cdist(y, y), of_y) if among_y is None else among_y
    apart = 2 * between - mean_of_pairs(torch.cdist(x, x), of_x) - among_y
    return apart / (2 * between) if between > 0 else 0.0


def mean_between(
    values: Tensor, weights: Tensor | None = None, others: Tensor | None = None
) -> float:
    """Returns the mean of `values` [N, M] over pairs of rows of two kinds, which count by their
    `weights` [N] and `others` [M].
    """
    if weights is None and others is None:
        return float(values.mean())
    return float(mean(mean(values.T, others), weights))


def mean_of_pairs(values: Tensor, weights: Tensor | None = None) -> float:
    """Returns the mean over pairs of two different rows, of `values` [N, N] of all pairs, each pair
    counting by the product of its rows' `weights` [N].
    """
    count = len(values)
    if weights is None:
        return float(values.sum() - values.diagonal().sum()) / max(count * (count - 1), 1)
    shares = (weights / weights.sum()).to(values)
    alike = shares.square()
    apart = 1 - float(alike.sum())
    return float(shares @ values @ shares - alike @ values.diagonal()) / (apart or 1.0)
