"""Energies over finitely many states: their enumeration, and a gradient that a discrete kernel can
use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.checkpoint import checkpoint

from pipeline.energies.base import Energy

ENUMERABLE_STATES = 2**20
CHUNK = 2**14


class CategoricalEnergy(Energy):
    """An energy over {0, ..., q-1}^d, written as a function of the one-hot encoding, `[N, *shape,
    q] -> [N]`.
    """

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
        """`E(x)` [N] and the gradient in the one-hot encoding, [N, *shape, q]; with two levels that
        in x, [N, *shape].
        """
        with torch.enable_grad():
            encoded = self.encode(x).requires_grad_()
            energy = self.of_one_hot(encoded, beta)
            (gradient,) = torch.autograd.grad(energy.sum(), encoded)
        return energy.detach(), self.decode_gradient(gradient)

    def decode_gradient(self, gradient: Tensor) -> Tensor:
        """`[N, *shape, q]` as it is; with two levels, encoded as (1 - x, x), level 1's less level
        0's: [N, *shape].
        """
        return gradient[..., 1] - gradient[..., 0] if self.levels == 2 else gradient


def share(there: Tensor, weights: Tensor | None) -> Tensor:
    """The share of the rows, or of their `weights` [S], for which each of `there` [S, d] holds,
    `[d]` float64.
    """
    if weights is None:
        return there.double().mean(0)
    return (weights / weights.sum()).to(there.device) @ there.double()


def log_frequencies(rows: Tensor, levels: int, weights: Tensor | None = None) -> Tensor:
    """log of each level's share of the rows `[S, *shape]`, or of their `weights` [S], shares kept
    off 0 by 0.01, `[d, q]`.
    """
    shares = torch.stack([share(rows.flatten(1) == level, weights) for level in range(levels)], 1)
    return shares.clamp(min=0.01).log().to(rows.dtype)


def all_states(levels: int, units: int, device: torch.device | None = None) -> Iterator[Tensor]:
    """{0, ..., levels-1}^units, the first unit fastest, in chunks `[<= 16384, units]` of
    float64.
    """
    powers = levels ** torch.arange(units, device=device)
    for numbers in torch.arange(levels**units, device=device).split(CHUNK):
        yield (numbers[:, None] // powers % levels).double()


def log_sum_over_states(
    levels: int, units: int, log_weight: Callable[[Tensor], Tensor], like: Tensor
) -> Tensor:
    """log of the sum over {0, ..., levels-1}^units of exp(`log_weight`), which maps [N, units] to
    [N]; in the dtype and on the device of `like`. With a graph, whose activations are made anew,
    chunk by chunk, when it is gone back.
    """
    chunks = [
        checkpoint(
            lambda states: torch.logsumexp(log_weight(states), 0),
            states.to(like.dtype),
            use_reentrant=False,
        )
        for states in all_states(levels, units, like.device)
    ]
    return torch.logsumexp(torch.stack(chunks), 0)


def enumerated(energy: Energy) -> Tensor | None:
    """log Z = log sum_x exp(-E(x)), nats, [], with a graph; None where there are more than 2^20
    states.
    """
    if energy.levels is None or energy.levels**energy.dimension > ENUMERABLE_STATES:
        return None
    like = next(iter(energy.state_dict().values()))
    return log_sum_over_states(
        energy.levels, energy.dimension, lambda x: -energy(x.view(-1, *energy.shape)), like
    )
