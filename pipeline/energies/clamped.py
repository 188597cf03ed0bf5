"""The law of some components of a position, given the others."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.common.rng import Source
from pipeline.energies.base import Energy
from pipeline.energies.conditionals import Conditional
from pipeline.energies.potts import PottsModel
from pipeline.energies.rbm import RestrictedBoltzmannMachine


class Clamped(Energy):
    """E of the `free` components z, `[N, free] -> [N]`, where the others are held at `values`:
    p(z | others) = exp(-E(x(z))) / Z(others). Any kernel that samples from exp(-E) samples from it.

    `values` [K, *shape] are K positions, of which only the components that are held matter; `free`
    [*shape] bool says which are not. Row i of z has those of position i mod K. Boltzmann machines,
    restricted and deep ones, keep their blocks: the units of a layer are independent given the
    layers next to it, and the free ones alone are drawn, from their exact law. So does a Potts
    model, whose sweeps then pass the free sites alone. Any other energy has none. A ladder is the
    energy's own, with the same components held on each rung.
    """

    held: Tensor
    index: Tensor

    def __init__(self, energy: Energy, values: Tensor, free: Tensor) -> None:
        index = free.flatten().nonzero()[:, 0]
        super().__init__(
            (len(index),), levels=energy.levels, box=energy.box, base_scale=energy.base_scale
        )
        self.energy, self.contexts, self.blocks = energy, len(values), energy.blocks
        self.register_buffer("held", values.flatten(1).masked_fill(free.flatten(), 0.0))
        self.register_buffer("index", index)

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

    def base(self, x: Tensor) -> Tensor:
        return self.energy.base(self.whole(x))

    def base_log_partition(self) -> float:
        """Raises `NotImplementedError`: samples need none."""
        raise NotImplementedError("the base law of some components has no log Z here")

    def sample_base(self, count: int, generator: torch.Generator) -> Tensor:
        """The free components of `count` draws of the energy's base law, `[count, free]`."""
        return self.chosen(self.energy.sample_base(count, generator))

    def tempered(self, x: Tensor, beta: Tensor) -> Tensor:
        return self.energy.tempered(self.whole(x), beta)

    def energy_and_gradient(self, x: Tensor, beta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The energy's own, of which the free components' part is taken."""
        energy, gradient = self.energy.energy_and_gradient(self.whole(x), beta)
        # over several levels it is in the one-hot encoding, which has one more axis
        by_component = gradient.flatten(1).view(len(x), self.energy.dimension, -1)
        own = by_component[:, self.index]
        own = own.squeeze(-1) if gradient.ndim == 1 + len(self.energy.shape) else own
        return energy, own.contiguous()

    def conditional(self, block: str, value: Tensor, beta: Tensor | None = None) -> Conditional:
        """The block's law in the energy, of which the free components are taken. A restricted
        machine's first block is of its hidden units, which no position holds: all of them.
        """
        if isinstance(self.energy, PottsModel):
            free = torch.zeros(self.energy.dimension, dtype=torch.bool, device=self.index.device)
            free[self.index] = True
            return Chosen(self.energy.sweep(block, self.whole(value), beta, free), self)
        if not isinstance(self.energy, RestrictedBoltzmannMachine):
            return Chosen(self.energy.conditional(block, self.whole(value), beta), self)
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


def as_positions(energy: Energy, rows: Tensor) -> Tensor:
    """Positions `[N, *shape]` of the `rows` `[N, *data_shape]`, NaN where they are NaN and in the
    latent columns, of which rows say nothing.
    """
    numbers = torch.arange(energy.dimension).view(1, *energy.shape)
    positions = rows.new_full((len(rows), energy.dimension), torch.nan)
    positions[:, energy.visible(numbers).flatten()] = rows.flatten(1)
    return positions.view(-1, *energy.shape)


def by_pattern(rows: Tensor) -> list[Tensor]:
    """The numbers of the `rows` [N, *shape] that have NaN in the same components, pattern by
    pattern.
    """
    _, pattern = torch.unique(rows.flatten(1).isnan(), dim=0, return_inverse=True)
    return [(pattern == number).nonzero()[:, 0] for number in range(int(pattern.max()) + 1)]
