"""The Potts model on a grid; with two levels, the Ising model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.energies.discrete import CategoricalEnergy, enumerated, log_frequencies


class PottsLattice(CategoricalEnergy):
    """E(x) = -sum_<ij> J_ij [x_i = x_j] - sum_i h_i(x_i), x in {0, ..., q-1}^shape, over nearest
    neighbours (Potts 1952).

    `coupling` [edges] holds J, one number a pair of neighbours, and `field` [d, q] holds h; both
    are learned. A `periodic` side of n > 2 has its ends joined; of 2, they are neighbours already,
    and count once. With q = 2 and spins s = 2x - 1 this is the Ising model -sum J' s_i s_j - sum_i
    B_i s_i up to a constant: [x_i = x_j] = (1 + s_i s_j) / 2, so J = 2 J' and h_i(1) - h_i(0) = 2
    B_i.
    """

    undecayed = ("field",)
    first: Tensor
    second: Tensor

    def __init__(self, shape: Sequence[int], levels: int, coupling: float, periodic: bool) -> None:
        super().__init__(shape, levels)
        first, second = neighbours(self.shape, periodic)
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("second", second, persistent=False)
        self.coupling = nn.Parameter(torch.full((len(first),), coupling))
        self.field = nn.Parameter(torch.zeros(self.dimension, levels))

    def of_one_hot(self, encoded: Tensor, beta: Tensor | None = None) -> Tensor:
        """-sum_<ij> J_ij e_i.e_j - sum_i h_i.e_i of `encoded` e [N, *shape, q], times `beta` [N]:
        E_0 = 0.
        """
        sites = encoded.flatten(1, -2)
        agreement = (sites.index_select(1, self.first) * sites.index_select(1, self.second)).sum(2)
        energy = -(agreement @ self.coupling) - (sites * self.field).sum((1, 2))
        return energy if beta is None else beta * energy

    @torch.no_grad()
    def initialise(self, rows: Tensor) -> None:
        """h starts at the data's log frequencies: with J = 0, independent sites."""
        self.field.copy_(log_frequencies(rows, self.levels))

    def log_sum(self) -> Tensor | None:
        return enumerated(self)


def neighbours(shape: Sequence[int], periodic: bool) -> tuple[Tensor, Tensor]:
    """The flat indices of both ends of every edge of a grid, each edge once, `[edges]` int64."""
    sites = torch.arange(math.prod(shape)).view(*shape)
    first, second = [], []
    for axis, side in enumerate(shape):
        count = side if periodic and side > 2 else side - 1
        first.append(sites.narrow(axis, 0, count).flatten())
        second.append(sites.roll(-1, axis).narrow(axis, 0, count).flatten())
    return torch.cat(first), torch.cat(second)
