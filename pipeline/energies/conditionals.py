"""Exact conditional laws of a block of units, each component independent of the others: what a
Gibbs kernel draws from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pipeline.common.rng import Source, blocks, random_words, uniform_like

WORTH_BULK = 1 << 15
"""So many coins at once on a CPU are worth a stream of bits of their own."""


class Conditional(Protocol):
    """`sample` draws a value for every chain; `log_prob` is the log probability (density) of a
    value, by component.
    """

    def sample(self, generator: Source) -> Tensor: ...

    def log_prob(self, value: Tensor) -> Tensor: ...


class Bernoulli(NamedTuple):
    """Components in {0, 1} with log odds `logits` [N, ...]."""

    logits: Tensor

    def sample(self, generator: Source) -> Tensor:
        return coins(torch.sigmoid(self.logits), generator)

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.where(value > 0.5, logsigmoid(self.logits), logsigmoid(-self.logits))


def coins(means: Tensor, generator: Source) -> Tensor:
    """1 with probability `means` [N, ...], which it may overwrite, and else 0; of their shape.

    Many at once on a CPU have 16 bits k each, drawn in bulk: u = (k + v) / 2^16 < p is p - k / 2^16
    > v / 2^16, a difference that float32 has exactly where v decides. It decides once in 2^16
    times, so v in [0, 1) is drawn for each component and shared by all rows. Within a row all
    components are independent, each 1 with probability p to 40 bits. Two rows have v decide at
    the same component with a chance of 2^-32.
    """
    pieces = list(blocks(means, generator))
    if (
        means.device.type != "cpu"
        or means.dtype != torch.float32
        or pieces[0][0].numel() < WORTH_BULK
    ):
        # comparing uniforms with the means is several times faster on a CPU than torch.bernoulli
        return uniform_like(means, generator).lt_(means)
    for block, own in pieces:
        bits = random_words(math.ceil(block.numel() / 4), own).view(np.uint16)
        k = torch.from_numpy(bits)[: block.numel()].view(block.shape)
        v = torch.empty_like(block[0]).uniform_(generator=own)
        block.sub_(k.to(block.dtype), alpha=2**-16).gt_(v.mul_(2**-16))
    return means


class Categorical(NamedTuple):
    """Components in {0, ..., q-1}, as floats, with unnormalised log probabilities `logits` [N, ...,
    q].
    """

    logits: Tensor

    def sample(self, generator: Source) -> Tensor:
        return draw(self.logits.softmax(-1), generator).to(self.logits.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.logits.log_softmax(-1).gather(-1, value.long()[..., None])[..., 0]


def draw(probabilities: Tensor, generator: Source) -> Tensor:
    """Indices drawn with `probabilities` [..., q], which it overwrites, by inversion of their sums;
    int64 [...].
    """
    sums = probabilities.cumsum_(-1)
    uniform = uniform_like(sums[..., :1], generator)
    # less than the last sum, whatever that has been rounded to: what has no probability is never
    # drawn
    return torch.searchsorted(sums, uniform.mul_(sums[..., -1:]), right=True)[..., 0]


class Normal(NamedTuple):
    """Components in R with `mean` [N, ...] and standard deviation `std` [...]."""

    mean: Tensor
    std: Tensor

    def sample(self, generator: Source) -> Tensor:
        drawn = torch.empty_like(self.mean)
        for block, own in blocks(drawn, generator):
            block.normal_(generator=own)
        return drawn.mul_(self.std).add_(self.mean)

    def log_prob(self, value: Tensor) -> Tensor:
        return (
            -((value - self.mean) / self.std).square() / 2
            - self.std.log()
            - math.log(2 * math.pi) / 2
        )


class Together(NamedTuple):
    """Components of several laws in one row: `laws` has each with the numbers of its components,
    [n] int64, of a flattened row; a row is of `shape`.
    """

    laws: Sequence[tuple[Conditional, Tensor]]
    shape: tuple[int, ...]

    def sample(self, generator: Source) -> Tensor:
        drawn = torch.cat([law.sample(generator) for law, _ in self.laws], 1)
        return self._in_order(drawn)

    def log_prob(self, value: Tensor) -> Tensor:
        flat = value.flatten(1)
        return self._in_order(torch.cat([law.log_prob(flat[:, i]) for law, i in self.laws], 1))

    def _in_order(self, values: Tensor) -> Tensor:
        """Values `[N, d]` of one law after the other as rows `[N, *shape]`."""
        number = torch.cat([index for _, index in self.laws])
        return torch.empty_like(values).index_copy_(1, number, values).view(-1, *self.shape)
