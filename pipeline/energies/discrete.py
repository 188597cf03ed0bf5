"""Energies over finitely many states: their enumeration, and a gradient that a discrete kernel can use."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pipeline.energies.base import Energy

ENUMERABLE_STATES = 2**20
CHUNK = 2**14


class CategoricalEnergy(Energy):
    """An energy over {0, ..., q-1}^d, written as a function of the one-hot encoding, `[N, *shape, q] -> [N]`."""

    levels: int

    def __init__(self, shape: Sequence[int], levels: int) -> None:
        super().__init__(shape, levels=levels)

    def of_one_hot(self, encoded: Tensor, beta: Tensor | None = None) -> Tensor:
        """E (or E_beta) of `encoded` [N, *shape, q], smooth between its corners."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> Tensor:
        """`[N, *shape]` levels to `[N, *shape, q]`."""
        return one_hot(x.long(), self.levels).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.of_one_hot(self.encode(x))

    def tempered(self, x: Tensor, beta: Tensor) -> Tensor:
        return self.of_one_hot(self.encode(x), beta)

    def energy_and_gradient(self, x: Tensor, beta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`E(x)` [N] and the gradient in the one-hot encoding, [N, *shape, q]; with two levels that in x, [N, *shape]."""
        with torch.enable_grad():
            encoded = self.encode(x).requires_grad_()
            energy = self.of_one_hot(encoded, beta)
            (gradient,) = torch.autograd.grad(energy.sum(), encoded)
        return energy.detach(), self.decode_gradient(gradient)

    def decode_gradient(self, gradient: Tensor) -> Tensor:
        """`[N, *shape, q]` as it is; with two levels, encoded as (1 - x, x), level 1's less level 0's: [N, *shape]."""
        return gradient[..., 1] - gradient[..., 0] if self.levels == 2 else gradient


def log_frequencies(rows: Tensor, levels: int) -> Tensor:
    """log of each level's share of the rows `[S, *shape]`, shares kept off 0 by 0.01, `[d, q]`."""
    shares = torch.stack([(rows.flatten(1) == level).double().mean(0) for level in range(levels)], 1)
    return shares.clamp(min=0.01).log().to(rows.dtype)


def all_states(levels: int, units: int, device: torch.device | None = None) -> Iterator[Tensor]:
    """{0, ..., levels-1}^units, the first unit fastest, in chunks `[<= 16384, units]` of float64."""
    powers = levels ** torch.arange(units, device=device)
    for numbers in torch.arange(levels**units, device=device).split(CHUNK):
        yield (numbers[:, None] // powers % levels).double()


@torch.no_grad()
def enumerated_log_partition(energy: Energy) -> float | None:
    """log Z = log sum_x exp(-E(x)), nats, in float64; None where there are more than 2^20 states."""
    if energy.levels is None or energy.levels**energy.dimension > ENUMERABLE_STATES:
        return None
    exact = copy.deepcopy(energy).double()
    device = next(iter(energy.state_dict().values())).device
    chunks = [
        torch.logsumexp(-exact(x.view(-1, *energy.shape)), 0) for x in all_states(energy.levels, energy.dimension, device)
    ]
    return float(torch.logsumexp(torch.stack(chunks), 0))
