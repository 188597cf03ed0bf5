"""Statistics of the sequences that a model draws, against those of the alignment that it learned.

Frequencies are weighted, and are those of sequences that have a letter at all of the sites asked
for: codes below 0 are missing.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import NamedTuple

import numpy as np

from pipeline.common.types import Figures

TRIPLES = 200
"""Triples of sites whose correlations are compared, at most."""
CELLS = 501
"""Of a histogram of pairs, to a side."""
SECOND, THIRD = 0.25, 0.1
"""What no central moment of two, or of three, numbers of 0 and 1 is beyond: p (1 - p), and
p (1 - p) (1 - 2 p)."""


class Weighted(NamedTuple):
    """Sequences of L sites: `codes` [N, L] of letters 0, ..., q-1, below 0 where one is missing,
    and `weights` [N] above 0.
    """

    codes: np.ndarray
    weights: np.ndarray


class Agreement:
    """Running sums of pairs of numbers, one of the data and one of samples, and how many pairs fall
    into each cell of the square [-`reach`, `reach`]^2, `cells` [CELLS, CELLS]: the first axis is
    the data's.
    """

    def __init__(self, reach: float) -> None:
        self.reach = reach
        self.cells = np.zeros((CELLS, CELLS), np.int64)
        self._count, self._sums = 0, np.zeros(2)
        self._products = np.zeros((2, 2))

    def add(self, data: np.ndarray, samples: np.ndarray) -> None:
        """Takes in pairs, two arrays of one shape."""
        pairs = np.stack([data.ravel(), samples.ravel()])
        self._count += pairs.shape[1]
        self._sums += pairs.sum(1)
        self._products += pairs @ pairs.T
        at = np.rint((pairs / self.reach + 1) / 2 * (CELLS - 1)).clip(0, CELLS - 1).astype(np.int64)
        added = np.bincount(at[0] * CELLS + at[1], minlength=CELLS * CELLS)
        self.cells += added.reshape(CELLS, CELLS)

    @property
    def pearson(self) -> float | None:
        """Pearson's correlation; None where one side does not vary, or there are no pairs."""
        (data, both), (_, samples) = self._scatter()
        if data <= 0 or samples <= 0:
            return None
        return float(both / math.sqrt(data * samples))

    @property
    def slope(self) -> float | None:
        """The slope of the least-squares line of samples on data; None where data do not vary."""
        (data, both), _ = self._scatter()
        return float(both / data) if data > 0 else None

    def _scatter(self) -> np.ndarray:
        """Returns the sums of squares and products about the means, `[2, 2]`."""
        return self._products - np.outer(self._sums, self._sums) / max(self._count, 1)


class Comparison(NamedTuple):
    """Samples against data: the one-site frequencies of both, `[L, q]`, and how the two-site
    covariances and the three-site correlations of `triples` triples of sites agree.
    """

    data: np.ndarray
    samples: np.ndarray
    two_site: Agreement
    three_site: Agreement
    triples: int

    def figures(self) -> Figures:
        """Returns Pearson's correlations, and the slope of the covariances."""
        one_site = Agreement(1.0)
        one_site.add(self.data, self.samples)
        return {
            "one_site": one_site.pearson,
            "two_site": self.two_site.pearson,
            "two_site_slope": self.two_site.slope,
            "three_site": self.three_site.pearson,
        }


def frequencies(rows: Weighted, levels: int) -> np.ndarray:
    """The frequencies f_i(a) of letters at each site, `[L, q]` float64."""
    sites = rows.codes.shape[1]
    return _joint(rows, np.arange(sites)[:, None], levels)


def covariances(rows: Weighted, levels: int, site: int) -> np.ndarray:
    """C_ij(a, b) = f_ij(a, b) - f_i(a) f_j(b) of i = `site` and all j behind it, `[J, q, q]`."""
    behind = np.arange(site + 1, rows.codes.shape[1])
    joint = _joint(rows, np.stack([np.full_like(behind, site), behind], 1), levels)
    return joint - joint.sum(2, keepdims=True) * joint.sum(1, keepdims=True)


def three_site_correlations(rows: Weighted, levels: int, triples: np.ndarray) -> np.ndarray:
    """The connected correlations of `triples` [T, 3] of sites,

        f_ijk(a, b, c) - f_ij f_k - f_ik f_j - f_jk f_i + 2 f_i f_j f_k, `[T, q, q, q]`:

    the third central moments of the one-hot letters.
    """
    joint = _joint(rows, triples, levels)
    first, second, third = (joint.sum(axes, keepdims=True) for axes in ((2, 3), (1, 3), (1, 2)))
    return (
        joint
        - joint.sum(3, keepdims=True) * third
        - joint.sum(2, keepdims=True) * second
        - joint.sum(1, keepdims=True) * first
        + 2 * first * second * third
    )


def _joint(rows: Weighted, groups: np.ndarray, levels: int) -> np.ndarray:
    """Returns the joint frequencies of the letters at groups of sites, `[G, k]` to `[G, q, ...]`,
    among the sequences that have all of them; 0 where none has.
    """
    count, size = groups.shape
    bags = levels + 1  # the first is of what is missing
    places = np.arange(count) * bags**size
    for power, sites in enumerate(groups.T[::-1]):
        places = places + (np.maximum(rows.codes[:, sites], -1) + 1) * bags**power
    weights = np.repeat(rows.weights, count)
    sums = np.bincount(places.ravel(), weights, minlength=count * bags**size)
    joint = sums.reshape(count, *[bags] * size)[(slice(None), *[slice(1, None)] * size)]
    totals = joint.sum(tuple(range(1, size + 1)), keepdims=True)
    shares: np.ndarray = joint / np.where(totals > 0, totals, 1)
    return shares


def chosen_triples(sites: int, most: int = TRIPLES) -> np.ndarray:
    """At most `most` triples i < j < k of sites, `[T, 3]`: all, or always the same random ones."""
    if math.comb(sites, 3) <= most:
        return np.array(list(combinations(range(sites), 3)), np.int64).reshape(-1, 3)
    generator, found = np.random.RandomState(0), set[tuple[int, ...]]()
    while len(found) < most:
        found.add(tuple(sorted(generator.choice(sites, 3, replace=False).tolist())))
    return np.array(sorted(found))


def compare(data: Weighted, samples: Weighted, levels: int) -> Comparison:
    """Compares the statistics of one, two and three sites. Pairs are worked out a site at a time,
    and triples one by one, so that memory is N L numbers.
    """
    two_site, three_site = Agreement(SECOND), Agreement(THIRD)
    sites = data.codes.shape[1]
    for site in range(sites - 1):
        two_site.add(*(covariances(rows, levels, site) for rows in (data, samples)))
    triples = chosen_triples(sites)
    for triple in triples[:, None]:
        three_site.add(*(three_site_correlations(rows, levels, triple) for rows in (data, samples)))
    one, other = (frequencies(rows, levels) for rows in (data, samples))
    return Comparison(one, other, two_site, three_site, len(triples))
