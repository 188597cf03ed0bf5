"""Metropolis-Hastings with any proposal."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.energies.base import squared_norm
from pipeline.energies.target import Target
from pipeline.kernels.base import EnergyState, Info, Kernel, init_energy, metropolis

Proposal = Callable[[torch.Generator, Tensor], tuple[Tensor, Tensor]]
"""`propose(generator, x)`: x' [N, *shape], a tensor of its own that the kernel may overwrite, and
log q(x | x') - log q(x' | x) [N].
"""


def with_proposal(propose: Proposal) -> Kernel:
    """The algorithm of Hastings (1970), line by line: from x_t,

        1. draw x' ~ q(. | x_t);
        2. r = min(1, p(x') q(x_t | x') / (p(x_t) q(x' | x_t))), in which Z cancels;
        3. draw u ~ U(0, 1);
        4. x_{t+1} = x' if u < r, else x_t.

    exp(-E) is invariant exactly, if the proposal's log ratio is right.
    """

    def step(
        generator: torch.Generator, state: EnergyState, target: Target
    ) -> tuple[EnergyState, Info]:
        proposal, log_proposal_ratio = propose(generator, state.position)
        moved = init_energy(proposal, target)
        log_ratio = state.energy - moved.energy + log_proposal_ratio
        state, acceptance = metropolis(generator, log_ratio, moved, state)
        return state, Info(acceptance)

    return Kernel(init_energy, step)


def independence(scale: float = 1.0) -> Proposal:
    """x' ~ N(0, scale^2) whatever x is: log q(x | x') - log q(x' | x) = (|x'|^2 - |x|^2) / (2
    scale^2) (Tierney 1994). Raises `ValueError` unless `scale` is a positive number.
    """
    if not (isinstance(scale, int | float) and scale > 0):
        raise ValueError("scale must be a positive number")

    def propose(generator: torch.Generator, x: Tensor) -> tuple[Tensor, Tensor]:
        proposal = torch.empty_like(x).normal_(generator=generator).mul_(scale)
        return proposal, (squared_norm(proposal) - squared_norm(x)) / (2 * scale**2)

    return propose


PROPOSALS: dict[str, Callable[..., Proposal]] = {"independence": independence}
