"""Couplings of all pairs of sites, stored once, and the sums over sequences that they need.

`coupling` [L (L-1) / 2, q, q] has J_ij(a, b) of the pairs i < j in the order of
`torch.triu_indices`: (0, 1), (0, 2), ... A sequence has one letter a site, so that a sum over sites
of rows of J costs q times less than the product of J with a one-hot encoding. Sums are worked out
for some sites at a time: the square J [L q, L q] is never there as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator

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


def _pairs(sites: int, first: int, last: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The numbers of the pairs (j, s), j of all `sites` and s from `first` to `last` - 1, and the
    sign of s - j, `[L, B]` int64; of j = s the number means nothing.
    """
    j = torch.arange(sites, device=device)[:, None]
    s = torch.arange(first, last, device=device)[None]
    low, high = torch.minimum(j, s), torch.maximum(j, s)
    number = low * (2 * sites - low - 1) // 2 + high - low - 1
    return number.masked_fill_(j == s, 0), torch.sign(s - j)


def columns(coupling: Tensor, sites: int, first: int, last: int) -> Tensor:
    """The columns of J of the sites from `first` to `last` - 1, and a row of zeros below them,
    which letters that are missing point at: `[L q + 1, B q]`.
    """
    levels = coupling.shape[1]
    number, sign = _pairs(sites, first, last, coupling.device)
    pieces = coupling[number]  # [L, B, q, q]: the letter of the lower site, then the other's
    sign = sign[..., None, None]
    pieces = torch.where(sign > 0, pieces, pieces.transpose(2, 3)).masked_fill_(sign == 0, 0.0)
    table = coupling.new_zeros(sites * levels + 1, (last - first) * levels)
    table[:-1] = pieces.transpose(1, 2).reshape(len(table) - 1, -1)
    return table


def add_columns_(total: Tensor, part: Tensor, first: int, last: int) -> None:
    """Adds the `part` [L, q, B, q] of a sum over pairs (j, s) in both orders, s from `first` to
    `last` - 1, to the `total` [L (L-1) / 2, q, q].
    """
    number, sign = _pairs(len(part), first, last, total.device)
    pieces = part.transpose(1, 2)
    for before, own in ((sign > 0, pieces), (sign < 0, pieces.transpose(2, 3))):
        total.index_add_(0, number[before], own[before])


class Letters:
    """Sequences `x` [N, L] of letters 0, ..., q-1, as places in the rows of J; one below 0 is
    missing, and adds to no sum.
    """

    def __init__(self, x: Tensor, levels: int) -> None:
        self.x, self.levels = x.int(), levels
        sites = torch.arange(x.shape[1], device=x.device, dtype=torch.int32) * levels
        missing = x.shape[1] * levels
        self.places = torch.where(self.x < 0, missing, self.x + sites)

    def sums(self, table: Tensor) -> Tensor:
        """sum_j of row (j, x_j) of a `table` [L q + 1, W], `[N, W]`."""
        return embedding_bag(self.places, table, mode="sum")

    def by_letter(self, values: Tensor) -> Tensor:
        """The sums of the rows of `values` [N, W] over the sequences with letter a at site j,
        `[L, q, W]`.
        """
        sites, bags = self.x.shape[1], self.levels + 1
        order, starts = self._sorted()
        sums = embedding_bag(order, values, starts, mode="sum")
        return sums.view(sites, bags, -1)[:, 1:]

    def _sorted(self) -> tuple[Tensor, Tensor]:
        """The sequences by their letters at each site, end to end, missing ones first; and where
        each letter begins.
        """
        if not hasattr(self, "_order"):
            letters, order = (self.x.T + 1).sort(dim=1, stable=True)
            bags = self.levels + 1
            site = torch.arange(len(letters), device=letters.device)[:, None] * bags
            counts = torch.bincount((letters + site).flatten(), minlength=len(letters) * bags)
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
    sites, levels = letters.x.shape[1], letters.levels
    single = letters.by_letter(weights[:, None])[..., 0]
    pairs = torch.zeros_like(coupling)
    for first, last in site_blocks(sites, levels):
        own = one_hot(letters.x[:, first:last], levels, weights.dtype) * weights[:, None, None]
        part = letters.by_letter(own.flatten(1)).view(sites, levels, last - first, levels)
        add_columns_(pairs, part, first, last)
    return single, pairs.div_(2)  # each pair was met in both orders
