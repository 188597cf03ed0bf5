"""Contrastive divergence and its persistent form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.energies.base import Energy


class Part(NamedTuple):
    """One additive piece of a loss: `weight * total / rows`. `total` (a scalar) carries the graph.

    Totals and row counts, not means, so that a learner may split rows into chunks, or over ranks, and still take one mean.
    """

    name: str
    total: Tensor
    rows: int
    weight: float = 1.0


class ContrastiveDivergence:
    """The gradient of the negative log-likelihood, with its model expectation from chains (Hinton 2002; Tieleman 2008):

        -grad log p(x) = grad E(x+) - E_{x ~ p}[grad E(x)]
        loss = mean_i E(x_i+) - sum_j w_j E(x_j-) + l2 (mean_i E(x_i+)^2 + sum_j w_j E(x_j-)^2)

    w is uniform, or the importance weights of stale negatives, and carries no gradient. CD-k and PCD differ only in where
    the chains start, which is the pools' affair. The l2 term keeps the energies' free constant, and so their magnitude,
    near zero (Du & Mordatch 2019, section 3.3: weight 0.1 to 1 for deep nets on images).
    """

    def __init__(self, energy_l2: float) -> None:
        self.energy_l2 = energy_l2

    def parts(self, energy: Energy, positives: Tensor, negatives: Tensor, weigh: Callable[[Tensor], Tensor]) -> Iterator[Part]:
        """Parts named positive, negative and energy_l2.

        `positives` [N, *shape]; `negatives` [M, *shape]; `weigh` maps E_now(negatives) [M] to weights [M] of mean 1.
        """
        values = energy(positives)
        yield from self._both("positive", values, torch.ones_like(values), 1.0)
        values = energy(negatives)
        yield from self._both("negative", values, weigh(values.detach()), -1.0)

    def _both(self, name: str, values: Tensor, weights: Tensor, sign: float) -> Iterator[Part]:
        yield Part(name, (weights * values).sum(), len(values), sign)
        if self.energy_l2:
            yield Part("energy_l2", (weights * values.square()).sum(), len(values), self.energy_l2)
