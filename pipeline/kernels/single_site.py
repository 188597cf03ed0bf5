"""Single-site Gibbs sampling: plain, slow, and right for any discrete energy."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.energies.conditionals import Categorical
from pipeline.energies.target import Target
from pipeline.kernels.base import EnergyState, Info, Kernel, init_energy, levels_of


def step(
    generator: torch.Generator, state: EnergyState, target: Target
) -> tuple[EnergyState, Info]:
    """One site of each chain, chosen uniformly, drawn from its conditional given all the others
    (Geman & Geman 1984).

    Costs q - 1 energies a transition. `acceptance` is the probability that the site changed.
    """
    flat = state.position.flatten(1)
    site = torch.randint(flat.shape[1], (len(flat), 1), generator=generator, device=flat.device)
    values, energies, others = alternatives(state, site, target)
    chosen = Categorical(-energies).sample(generator).long()[:, None]
    # the first of the others is as good a copy as any
    position = others[0].scatter_(1, site, values.gather(1, chosen)).view_as(state.position)
    moved = EnergyState(position, energies.gather(1, chosen)[:, 0])
    return moved, Info(1 - energies.neg().softmax(1)[:, 0])


def alternatives(state: EnergyState, site: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor]:
    """The values that `site` [N, 1] could have, its own first, and the energies of the positions
    with them, [N, q] each; and the positions with the others, [q - 1, N, d].

    Energies that are not finite are given as inf, so that such a position is never entered.
    """
    levels, flat = levels_of(target), state.position.flatten(1)
    values = (
        flat.gather(1, site) + torch.arange(levels, dtype=flat.dtype, device=flat.device)
    ) % levels
    others = flat.repeat(levels - 1, 1).scatter_(
        1, site.repeat(levels - 1, 1), values[:, 1:].T.reshape(-1, 1)
    )
    energies = target.energy(others.view(-1, *state.position.shape[1:])).view(levels - 1, -1)
    energies = torch.cat([state.energy[None], energies]).T
    return (
        values,
        torch.where(energies.isfinite(), energies, torch.inf),
        others.view(levels - 1, *flat.shape),
    )


kernel = Kernel(init_energy, step)
