"""The law of some components of a position, given the others."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.common.rng import Source
from pipeline.energies.base import Energy
from pipeline.energies.conditionals import Conditional
from pipeline.energies.rbm import RestrictedBoltzmannMachine


class Clamped(Energy):
    """E of the `free` components z, `[N, free] -> [N]`, where the others are held at `values`:
    p(z | others) = exp(-E(x(z))) / Z(others). Any kernel that samples from exp(-E) samples from it.

    `values` [K, *shape] are K positions, of which only the components that are held matter; `free`
    [*shape] bool says which are not. Row i of z has those of position i mod K. A restricted
    Boltzmann machine keeps its blocks: the visible units that are free are drawn given the hidden
    ones. Any other energy has none.
    """

    held: Tensor
    index: Tensor

    def __init__(self, energy: Energy, values: Tensor, free: Tensor) -> None:
        index = free.flatten().nonzero()[:, 0]
        super().__init__(
            (len(index),), levels=energy.levels, box=energy.box, base_scale=energy.base_scale
        )
        self.energy, self.contexts = energy, len(values)
        self.register_buffer("held", values.flatten(1).masked_fill(free.flatten(), 0.0))
        self.register_buffer("index", index)
        if isinstance(energy, RestrictedBoltzmannMachine):
            self.blocks = energy.blocks

    def whole(self, z: Tensor) -> Tensor:
        """The positions [N, *shape] whose free components are `z` [N, free]."""
        held = self.held.to(z.dtype).repeat(len(z) // len(self.held), 1)
        return held.index_copy(1, self.index, z).view(-1, *self.energy.shape)

    def chosen(self, x: Tensor) -> Tensor:
        """The free components of positions [N, *shape], `[N, free]`."""
        return x.flatten(1)[:, self.index]

    def forward(self, z: Tensor) -> Tensor:
        value: Tensor = self.energy(self.whole(z))
        return value

    def energy_and_gradient(self, x: Tensor, beta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The energy's own, of which the free components' part is taken."""
        energy, gradient = self.energy.energy_and_gradient(self.whole(x))
        # over several levels it is in the one-hot encoding, which has one more axis
        by_component = gradient.flatten(1).view(len(x), self.energy.dimension, -1)
        own = by_component[:, self.index]
        own = own.squeeze(-1) if gradient.ndim == 1 + len(self.energy.shape) else own
        return self.on_ladder(x, energy, own.contiguous(), beta)

    def conditional(self, block: str, value: Tensor, beta: Tensor | None = None) -> Conditional:
        """Of the hidden units given the whole position, or of its free components given those."""
        if block == self.blocks[0]:
            return self.energy.conditional(block, self.whole(value), beta)
        return Chosen(self.energy.conditional(block, value, beta), self)


class Chosen(NamedTuple):
    """The free components of a law [N, *shape] whose components are independent."""

    law: Conditional
    of: Clamped

    def sample(self, generator: Source) -> Tensor:
        return self.of.chosen(self.law.sample(generator))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.of.chosen(self.law.log_prob(self.of.whole(value)))


def by_pattern(rows: Tensor) -> list[Tensor]:
    """The numbers of the `rows` [N, *shape] that have NaN in the same components, pattern by
    pattern.
    """
    _, pattern = torch.unique(rows.flatten(1).isnan(), dim=0, return_inverse=True)
    return [(pattern == number).nonzero()[:, 0] for number in range(int(pattern.max()) + 1)]
