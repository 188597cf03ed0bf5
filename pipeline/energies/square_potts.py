"""A Potts model as products of matrices, which exporters can follow."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.energies.base import Energy
from pipeline.energies.couplings import columns
from pipeline.energies.potts import PottsModel


class SquarePotts(Energy):
    """The same energies as those of a Potts model, from one-hot letters e and the square J,

        E(x) = -h.e - e'J e / 2.

    J is there as a whole, [L q, L q] numbers. A letter below 0 is missing, and its e is 0.
    """

    field: Tensor
    square: Tensor

    def __init__(self, energy: PottsModel) -> None:
        super().__init__(energy.shape, levels=energy.levels)
        whole = columns(energy.coupling.detach(), energy.dimension, 0, energy.dimension)
        self.register_buffer("field", energy.field.detach().flatten())
        self.register_buffer("square", whole[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self._with_pulls(x)[0]

    def energy_and_gradient(self, x: Tensor, beta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The energies and the gradient that `PottsModel` has, at `beta` = 1 alone."""
        assert beta is None
        energy, pulls = self._with_pulls(x)
        gradient = -(pulls + self.field).view(-1, self.dimension, int(self.levels or 2))
        if self.levels == 2:
            return energy, (gradient[..., 1] - gradient[..., 0]).view_as(x)
        return energy, gradient.view(*x.shape, -1)

    def _with_pulls(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E [N] and J e, `[N, L q]`."""
        every = torch.arange(int(self.levels or 2), device=x.device, dtype=x.dtype)
        letters = (x.flatten(1)[..., None] == every).to(self.square.dtype).flatten(1)
        pulls = letters @ self.square
        return -(letters * (self.field + pulls / 2)).sum(1), pulls
