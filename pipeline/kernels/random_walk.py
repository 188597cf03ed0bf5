"""Random-walk Metropolis."""

from __future__ import annotations

from pipeline.common.rng import Source
from pipeline.energies.base import reflect
from pipeline.energies.target import Target
from pipeline.kernels.base import (
    EnergyState,
    Info,
    Kernel,
    Scale,
    add_scaled,
    init_energy,
    metropolis,
    normal_like,
)


def step(
    generator: Source, state: EnergyState, target: Target, *, step_size: Scale
) -> tuple[EnergyState, Info]:
    """x' = x + epsilon xi, xi standard normal, accepted with probability min(1, exp(E(x) - E(x')))
    (Metropolis et al. 1953).

    The proposal is symmetric, and stays so when a box's walls reflect it. exp(-E) is invariant
    exactly.
    """
    noise = normal_like(state.position, generator)
    proposal = add_scaled(state.position, noise, step_size, out=noise)
    if target.box is not None:
        proposal, _ = reflect(proposal, target.box)
    moved = init_energy(proposal, target)
    state, acceptance = metropolis(generator, state.energy - moved.energy, moved, state)
    return state, Info(acceptance)


kernel = Kernel(init_energy, step, streams=True)
