"""Sequences of letters, and counts of letters at one site and at two.

Counts of pairs are worked out for some sites at a time, so that those of all pairs need never be
there as a whole.
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


class Letters:
    """Sequences `x` [N, L] of letters 0, ..., q-1, as places in the rows of J; one below 0 is
    missing, and adds to no sum.
    """

    def __init__(self, x: Tensor, levels: int) -> None:
        self.x, self.levels = x.int(), levels
        self._order: tuple[Tensor, Tensor] | None = None
        self._rows = torch.arange(x.shape[1], device=x.device, dtype=torch.int32) * levels
        self.places = torch.empty_like(self.x)
        self.replace(0, self.x)

    def replace(self, first: int, x: Tensor) -> None:
        """Puts the letters `x` [N, B] int32 into the place of those from site `first` on."""
        some = slice(first, first + x.shape[1])
        self.x[:, some], self._order = x, None
        missing = self.x.shape[1] * self.levels
        self.places[:, some] = torch.where(x < 0, missing, x + self._rows[some])

    def sums(self, table: Tensor, first: int = 0) -> Tensor:
        """sum_j of row (j, x_j) of a `table` [J q + 1, W] of the sites j from `first` on,
        `[N, W]`.
        """
        places = self.places[:, first:] - first * self.levels if first else self.places
        return embedding_bag(places, table, mode="sum")

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
        if self._order is None:
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


def one_hot(letters: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    """`[N, B]` to `[N, B, q]`, zeros where a letter is missing."""
    every = torch.arange(levels, device=letters.device, dtype=letters.dtype)
    return (letters[..., None] == every).to(dtype)


def pair_counts(letters: Letters, weights: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """sum_n w_n [x_nj = b][x_ni = a] of some sites i at a time and all j from the first of them on,
    `[J, q, B, q]`, with the first of them and the one behind the last.
    """
    sites, levels = letters.x.shape[1], letters.levels
    for first, last in site_blocks(sites, levels):
        own = one_hot(letters.x[:, first:last], levels, weights.dtype) * weights[:, None, None]
        part = letters.by_letter(own.flatten(1), first)
        yield first, last, part.view(sites - first, levels, last - first, levels)
