"""A random walk with steps of all sizes."""

from typing import ClassVar

import torch

from pipeline.config.fields import PositiveFloat, PositiveInt
from pipeline.config.kernels import KernelSection
from pipeline.energies.target import Target
from pipeline.kernels.base import (
    EnergyState,
    Info,
    Kernel,
    Scale,
    add_scaled,
    init_energy,
    metropolis,
)


class CauchyWalk(KernelSection):
    """Every field has a default: a package has no file in `conf/`."""

    at_walls: ClassVar[str] = "rejects"
    transitions: PositiveInt = 20
    step_size: PositiveFloat = 0.1


def step(
    generator: torch.Generator, state: EnergyState, target: Target, *, step_size: Scale
) -> tuple[EnergyState, Info]:
    """x' = x + epsilon c, c standard Cauchy, accepted with chance min(1, exp(E(x) - E(x')))."""
    draws = torch.empty_like(state.position).cauchy_(generator=generator)
    moved = init_energy(add_scaled(state.position, draws, step_size), target)
    state, acceptance = metropolis(generator, state.energy - moved.energy, moved, state)
    return state, Info(acceptance)


kernel = Kernel(init_energy, step)
