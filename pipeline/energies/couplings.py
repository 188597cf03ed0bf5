"""Couplings of all pairs of sites, stored once, and the sums over sequences that they need.

`coupling` [L (L-1) / 2, q, q] has J_ij(a, b) of the pairs i < j in the order of
`torch.triu_indices`: (0, 1), (0, 2), ... A sequence has one letter a site, so that a sum over sites
of rows of J costs q times less than the product of J with a one-hot encoding. Sums are worked out
for some sites at a time: the square J [L q, L q] is never there as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

WIDTH = 128
"""Columns of J that are worked on at once: what a sum reads then stays in a core's cache."""


def site_blocks(sites: int, levels: int) -> Iterator[tuple[int, int]]:
    """The first site of each block, and the one behind its last."""
    size = max(1, WIDTH // levels)
    for first in range(0, sites, size):
        yield first, min(first + size, sites)


def _behind(sites: int, site: int) -> slice:
    """The numbers of the pairs (site, j) of all j behind it, which follow one another."""
    first = site * (2 * sites - site - 1) // 2
    return slice(first, first + sites - site - 1)


def _before(sites: int, site: int, device: torch.device) -> Tensor:
    """The numbers of the pairs (j, site) of all j before it, `[site]` int64."""
    j = torch.arange(site, device=device)
    return j * (2 * sites - j - 1) // 2 + site - j - 1


def columns(coupling: Tensor, sites: int, first: int, last: int) -> Tensor:
    """The columns of J of the sites from `first` to `last` - 1, and a row of zeros below them,
    which letters that are missing point at: `[L q + 1, B q]`.
    """
    levels = coupling.shape[1]
    table = coupling.new_zeros(sites * levels + 1, (last - first) * levels)
    pieces = table[:-1].view(sites, levels, last - first, levels)
    for site in range(first, last):
        pieces[:site, :, site - first] = coupling[_before(sites, site, coupling.device)]
        pieces[site + 1 :, :, site - first] = coupling[_behind(sites, site)].transpose(1, 2)
    return table


def add_columns_(total: Tensor, part: Tensor, first: int, last: int) -> None:
    """Adds the `part` [L, q, B, q] of a sum over pairs (j, s) in both orders, s from `first` to
    `last` - 1, to the `total` [L (L-1) / 2, q, q].
    """
    sites = len(part)
    for site in range(first, last):
        own = part[:, :, site - first]
        total.index_add_(0, _before(sites, site, total.device), own[:site])
        total[_behind(sites, site)] += own[site + 1 :].transpose(1, 2)


class Letters:
    """Sequences `x` [N, L] of letters 0, ..., q-1, as places in the rows of J; one below 0 is
    missing, and adds to no sum.
    """

    def __init__(self, x: Tensor, levels: int) -> None:
        self.x, self.levels = x.int(), levels
        self._rows = torch.arange(x.shape[1], device=x.device, dtype=torch.int32) * levels
        self.places = torch.empty_like(self.x)
        self.replace(0, self.x)

    def replace(self, first: int, x: Tensor) -> None:
        """Puts the letters `x` [N, B] int32 into the place of those from site `first` on."""
        some = slice(first, first + x.shape[1])
        self.x[:, some] = x
        missing = self.x.shape[1] * self.levels
        self.places[:, some] = torch.where(x < 0, missing, x + self._rows[some])

    def sums(self, table: Tensor) -> Tensor:
        """sum_j of row (j, x_j) of a `table` [L q + 1, W], `[N, W]`."""
        return embedding_bag(self.places, table, mode="sum")

    def by_letter(self, values: Tensor, first: int = 0) -> Tensor:
        """The sums of the rows of `values` [N, W] over the sequences with letter a at site j, of
        all j from `first` on, `[J, q, W]`.
        """
        skipped, bags = first * len(self.x), self.levels + 1
        order, starts = self._sorted()
        sums = embedding_bag(order[skipped:], values, starts[first * bags :] - skipped, mode="sum")
        return sums.view(-1, bags, sums.shape[1])[:, 1:]

    def _sorted(self) -> tuple[Tensor, Tensor]:
        """The sequences by their letters at each site, end to end, missing ones first; and where
        each letter begins.
        """
        if not hasattr(self, "_order"):
            bags, letters = self.levels + 1, (self.x.T + 1).contiguous()
            if letters.device.type == "cpu":  # of so few values NumPy's radix sort is far quicker
                narrow = letters.to(torch.uint8 if bags <= 256 else torch.int32).numpy()
                order = torch.from_numpy(np.argsort(narrow, axis=1, kind="stable"))
            else:
                order = letters.argsort(dim=1, stable=True)
            rows = torch.arange(len(letters), device=letters.device, dtype=torch.int32)
            codes = letters.add_(rows[:, None] * bags)
            counts = torch.bincount(codes.flatten(), minlength=len(letters) * bags)
            self._order = order.flatten(), counts.cumsum(0) - counts
        return self._order


def pair_energies(letters: Letters, coupling: Tensor) -> Tensor:
    """sum_{i<j} J_ij(x_i, x_j), `[N]`."""
    total = coupling.new_zeros(len(letters.x))
    for first, last, pulls in pulls_of(letters, coupling):
        total += chosen(pulls, letters.x[:, first:last]).sum(1)
    return total / 2


def pulls_of(letters: Letters, coupling: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """sum_j J_ij(a, x_j) for all letters a of some sites i at a time, `[N, B, q]`, with the first
    of them and the one behind the last.
    """
    sites = letters.x.shape[1]
    for first, last in site_blocks(sites, letters.levels):
        sums = letters.sums(columns(coupling, sites, first, last))
        yield first, last, sums.view(len(sums), last - first, letters.levels)


def chosen(values: Tensor, letters: Tensor) -> Tensor:
    """Of `values` [N, B, q] those of the `letters` [N, B], 0 where one is missing; `[N, B]`."""
    picked = values.gather(2, letters.clamp(min=0).long()[..., None])[..., 0]
    return picked.masked_fill_(letters < 0, 0.0)


def one_hot(letters: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    """`[N, B]` to `[N, B, q]`, zeros where a letter is missing."""
    every = torch.arange(levels, device=letters.device, dtype=letters.dtype)
    return (letters[..., None] == every).to(dtype)


def weighted_counts(letters: Letters, weights: Tensor, coupling: Tensor) -> tuple[Tensor, Tensor]:
    """sum_n w_n [x_ni = a], `[L, q]`, and sum_n w_n [x_ni = a][x_nj = b] of the pairs, of the shape
    of `coupling`.
    """
    sites = letters.x.shape[1]
    single = letters.by_letter(weights[:, None])[..., 0]
    pairs = torch.empty_like(coupling)
    for first, last, part in pair_counts(letters, weights):
        for site in range(first, last):
            pairs[_behind(sites, site)] = part[site + 1 - first :, :, site - first].transpose(1, 2)
    return single, pairs


def pair_counts(letters: Letters, weights: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """sum_n w_n [x_nj = b][x_ni = a] of some sites i at a time and all j from the first of them on,
    `[J, q, B, q]`, with the first of them and the one behind the last.
    """
    sites, levels = letters.x.shape[1], letters.levels
    for first, last in site_blocks(sites, levels):
        own = one_hot(letters.x[:, first:last], levels, weights.dtype) * weights[:, None, None]
        part = letters.by_letter(own.flatten(1), first)
        yield first, last, part.view(sites - first, levels, last - first, levels)
