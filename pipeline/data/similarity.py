"""Sequences that are alike: their weights, and clusters of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.energies.letters import Letters

BLOCK = 128
"""Sequences that all others are compared with at once."""


class Neighbours:
    """Of sequences `codes` [N, L] int8, which are alike: of at least `identity` L columns the same.

    `counts` [N] says of how many sequences, itself among them, each is a neighbour. `clusters` [N]
    are numbers of the connected components of the graph of neighbours.

    Two gaps are the same, as in plmc. Sequences are compared with `BLOCK` others at a time, by sums
    over columns of which of the others have the letter: memory is N times `BLOCK` numbers.
    """

    def __init__(self, codes: np.ndarray, identity: float) -> None:
        count = len(codes)
        self.counts = np.zeros(count, np.int64)
        self.clusters = np.arange(count)
        for first, near in _near(codes, identity):
            others = near[near.shape[1] :]
            self.counts[first:] += near.sum(1).numpy()
            self.counts[first : first + near.shape[1]] += others.sum(0).numpy()
            self._join(first, near)

    def _join(self, first: int, near: Tensor) -> None:
        """Makes one cluster of those that the neighbours [R, B] join."""
        from scipy.sparse import coo_matrix  # most data sets do without
        from scipy.sparse.csgraph import connected_components

        row, column = (ends.numpy() + first for ends in near.nonzero(as_tuple=True))
        pairs = np.stack([self.clusters[row], self.clusters[column]])
        pairs = pairs[:, pairs[0] != pairs[1]]
        if not pairs.size:
            return
        met, ends = np.unique(pairs, return_inverse=True)
        one, other = ends.reshape(pairs.shape)
        edges = coo_matrix((np.ones(len(one)), (one, other)), shape=(len(met), len(met)))
        _, joined = connected_components(edges, directed=False)
        renamed = np.arange(len(self.clusters))
        renamed[met] = met[np.unique(joined, return_index=True)[1]][joined]
        self.clusters = renamed[self.clusters]

    @property
    def weights(self) -> np.ndarray:
        """1 over the number of neighbours, `[N]` float64; their sum is the effective number of
        sequences (Morcos et al. 2011).
        """
        return 1.0 / self.counts


def _near(codes: np.ndarray, identity: float) -> Iterator[tuple[int, Tensor]]:
    """Yields, block by block, the number of its first sequence, and which of it and all behind it
    are alike to those of the block, `[R, B]` bool.
    """
    x = torch.from_numpy(codes).int()
    x = x - x.min()
    sites, levels = x.shape[1], int(x.max()) + 1
    least = identity * sites
    letters = Letters(x, levels)
    for first in range(0, len(x), BLOCK):
        places = letters.places[first : first + BLOCK].long().T  # [L, B]
        table = torch.zeros(sites * levels + 1, places.shape[1])
        table.scatter_(0, places, 1.0)
        same = Letters(x[first:], levels).sums(table)
        yield first, same >= least


def held_out_clusters(clusters: np.ndarray, held_out: int, split_seed: int) -> np.ndarray:
    """The rows that are kept out of training, `[N]` bool: whole clusters, in an order drawn by
    `split_seed`, each that fits among at most `held_out` rows in all.
    """
    numbers, sizes = np.unique(clusters, return_counts=True)
    taken, left = [], held_out
    for place in np.random.RandomState(split_seed).permutation(len(numbers)):
        if sizes[place] <= left:
            taken.append(numbers[place])
            left -= sizes[place]
        if not left:
            break
    return np.isin(clusters, taken)


def nearest(
    codes: np.ndarray, among: np.ndarray, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Of each of the sequences `codes` [M, L] the number of the first that is most like it `among`
    others [N, L], and the share of sites where both have the same letter, `[M]` each. Codes below 0
    are of letters that are missing, and like none. Sequences that are among the others themselves,
    at the places `own` [M], are not compared with themselves.
    """
    found = np.zeros(len(codes), np.int64)
    identity = np.zeros(len(codes))
    for number, letters in enumerate(codes):
        same = ((among == letters) & (letters >= 0)).mean(1)
        if own is not None:
            same[own[number]] = -1.0
        found[number] = same.argmax()
        identity[number] = same[found[number]]
    return found, identity
