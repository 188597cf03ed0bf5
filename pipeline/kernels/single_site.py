"""Single-site Gibbs sampling: plain, slow, and right for any discrete energy."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.energies.base import Target
from pipeline.energies.conditionals import Categorical
from pipeline.kernels.base import EnergyState, Info, Kernel, init_energy, levels_of


def step(generator: torch.Generator, state: EnergyState, target: Target) -> tuple[EnergyState, Info]:
    """One site of each chain, chosen uniformly, drawn from its conditional given all the others (Geman & Geman 1984).

    Costs q - 1 energies a transition. `acceptance` is the probability that the site changed.
    """
    flat = state.position.flatten(1)
    site = torch.randint(flat.shape[1], (len(flat), 1), generator=generator, device=flat.device)
    candidates, energies = alternatives(state, site, target)
    offset = Categorical(-energies).sample(generator).long()
    rows = torch.arange(len(flat), device=flat.device)
    moved = EnergyState(candidates[offset, rows], energies[rows, offset])
    return moved, Info(1 - energies.neg().softmax(1)[:, 0])


def alternatives(state: EnergyState, site: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """The positions with `site` [N, 1] raised by 0, ..., q-1 (modulo q), `[q, N, *shape]`, and their energies `[N, q]`.

    Those that are not finite are given as inf, so that such a position is never entered.
    """
    levels, flat = levels_of(target), state.position.flatten(1)
    current = flat.gather(1, site)
    others = [flat.scatter(1, site, (current + offset) % levels) for offset in range(1, levels)]
    stacked = torch.stack([flat, *others]).view(levels, *state.position.shape)
    energies = target.energy(stacked[1:].flatten(0, 1)).view(levels - 1, -1)
    energies = torch.cat([state.energy[None], energies]).T
    return stacked, torch.where(energies.isfinite(), energies, torch.inf)


kernel = Kernel(init_energy, step)
