"""The two-site covariances of chains against those of the training rows, while a model learns."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.energies.letters import Letters, pair_counts


class Covariances:
    """Holds chains against the same training `rows` [M, L] of letters 0, ..., q-1, over and over.
    Rows count by their `weights` [M]; letters below 0 are missing.

    C_ij(a, b) = f_ij(a, b) - f_i(a) f_j(b), with the frequencies of the sequences that have a
    letter at both sites i < j. What is held against another is all L (L-1) / 2 q^2 of them, as the
    field does (Muntoni et al. 2021, "adabmDCA: adaptive Boltzmann machine learning for biological
    sequences").
    """

    def __init__(self, rows: Tensor, weights: Tensor | None, levels: int) -> None:
        ones = torch.ones(len(rows), device=rows.device)
        weighing = ones if weights is None else weights.to(ones)
        self._levels = levels
        self._data = list(_covariances(rows, weighing, levels))
        self._sums = sum((_sums(some) for some in self._data), torch.zeros(3, dtype=torch.float64))

    def figures(self, chains: Tensor) -> dict[str, float]:
        """Returns Pearson's correlation `two_site` of the covariances of `chains` [N, L] with the
        data's, and `two_site_slope`, that of the least-squares line of theirs on the data's; NaN
        where one side does not vary.
        """
        ones = torch.ones(len(chains), device=chains.device)
        sums, products = torch.zeros_like(self._sums), 0.0
        for own, data in zip(_covariances(chains, ones, self._levels), self._data, strict=True):
            sums += _sums(own)
            products += float(own.double() @ data.double())
        (count, total, squares), (_, own_total, own_squares) = self._sums.tolist(), sums.tolist()
        if not count:
            return {"two_site": math.nan, "two_site_slope": math.nan}
        spread, own_spread = squares - total**2 / count, own_squares - own_total**2 / count
        both = products - total * own_total / count
        slope = both / spread if spread > 0 else math.nan
        varies = spread > 0 and own_spread > 0
        pearson = both / math.sqrt(spread * own_spread) if varies else math.nan
        return {"two_site": pearson, "two_site_slope": slope}


def _covariances(rows: Tensor, weights: Tensor, levels: int) -> Iterator[Tensor]:
    """Yields C_ij(a, b) of a site i at a time with all j behind it, end to end, float32."""
    for first, last, counts in pair_counts(Letters(rows, levels), weights):
        for site in range(first, last):
            pairs = counts[site + 1 - first :, :, site - first]
            joint = pairs / pairs.sum((1, 2), keepdim=True).clamp(min=1e-30)
            apart = joint.sum(1, keepdim=True) * joint.sum(2, keepdim=True)
            yield (joint - apart).flatten()


def _sums(values: Tensor) -> Tensor:
    """Returns the number of `values`, their sum and that of their squares, float64 [3]."""
    exact = values.double()
    return torch.stack([exact.new_tensor(len(exact)), exact.sum(), exact @ exact]).cpu()
