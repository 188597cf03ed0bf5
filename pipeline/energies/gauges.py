"""Gauges of a Potts model: other fields and couplings of the same law.

A function of x_i alone may be moved between h_i and any J_ij, and E changes by a constant at most.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Gauged = tuple[Tensor, Tensor]


def zero_sum(field: Tensor, coupling: Tensor) -> Gauged:
    """Fields [L, q] and couplings [L (L-1) / 2, q, q] whose sums over any one letter are 0: the
    gauge in which couplings have the least sum of squares (Ekeberg et al. 2013).
    """
    return _moved(field, coupling, lambda values, axis: values.mean(axis, keepdim=True))


def lattice_gas(field: Tensor, coupling: Tensor, level: int) -> Gauged:
    """Fields and couplings that are 0 wherever a site has the letter `level`."""
    return _moved(field, coupling, lambda values, axis: values.narrow(axis, level, 1))


def with_fields(field: Tensor, coupling: Tensor, wanted: Tensor) -> Tensor:
    """The couplings [L (L-1) / 2, q, q] that give the same energies with the fields `wanted`
    [L, q], of two sites or more:

        J_ij(a, b) + d_i(a) + d_j(b),   d = (h - wanted) / (L - 1).

    A model whose couplings are tempered then has `wanted` for its base law, whatever its own
    fields were.
    """
    share = (field - wanted) / (len(field) - 1)
    first, second = torch.triu_indices(len(field), len(field), 1, device=field.device)
    return coupling + share[first][:, :, None] + share[second][:, None]


def _moved(field: Tensor, coupling: Tensor, reference: Callable[[Tensor, int], Tensor]) -> Gauged:
    """h and J less what they are at a `reference` of each letter, a mean or one of the letters."""
    first, second = torch.triu_indices(len(field), len(field), 1, device=field.device)
    of_first, of_second = reference(coupling, 2), reference(coupling, 1)  # of a alone, of b alone
    both = reference(of_first, 1)
    moved = field.clone()
    moved.index_add_(0, first, (of_first - both)[:, :, 0])
    moved.index_add_(0, second, (of_second - both)[:, 0])
    return moved - reference(moved, 1), coupling - of_first - of_second + both
