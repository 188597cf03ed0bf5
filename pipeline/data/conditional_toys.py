"""Laws of y given x of known density, not Gaussian: a conditional likelihood can be checked against
their truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.config.data import ConditionalToyData
from pipeline.data.base import DataSet, held_out_of, in_memory, split


class Mixture(NamedTuple):
    """A mixture of K isotropic Gaussians for each of N contexts: `weights` and `stds` [N, K],
    `means` [N, K, d]; float64.
    """

    weights: Tensor
    means: Tensor
    stds: Tensor

    def sample(self, random: np.random.RandomState) -> Tensor:
        """Returns one draw for each context, `[N, d]`."""
        rows, _, dimension = self.means.shape
        uniform = torch.from_numpy(random.rand(rows, 1))
        chosen = (uniform > self.weights.cumsum(1)).sum(1).clamp(max=self.weights.shape[1] - 1)
        at = torch.arange(rows)
        return self.means[at, chosen] + self.stds[at, chosen, None] * torch.from_numpy(
            random.randn(rows, dimension)
        )

    def log_density(self, y: Tensor) -> Tensor:
        """log sum_k w_k N(y; m_k, s_k^2 I), `[N, d] -> [N]` nats."""
        squares = (y.double()[:, None] - self.means).square().sum(2) / (2 * self.stds.square())
        logs = (
            self.weights.log() - squares - y.shape[1] * (self.stds * math.sqrt(2 * math.pi)).log()
        )
        return torch.logsumexp(logs, 1)


def fork(x: Tensor) -> Mixture:
    """y in R for x in [-1, 1]: a narrow branch 0.8 + 1.2 sin 2x (s = 0.15), likelier as x grows
    (0.3 to 0.7), and a broad one x / 2 - 1 (s = 0.35), which cross on the left.
    """
    x = x.double()[:, 0]
    narrow = 0.5 + 0.2 * x
    return Mixture(
        torch.stack([narrow, 1 - narrow], 1),
        torch.stack([0.8 + 1.2 * torch.sin(2 * x), 0.5 * x - 1], 1)[:, :, None],
        torch.tensor([0.15, 0.35], dtype=torch.float64).expand(len(x), 2),
    )


def wheel(x: Tensor) -> Mixture:
    """y in R^2 for x in [-1, 1]: three spokes of shares 0.5, 0.3 and 0.2 (radius 1.5, s = 0.35),
    turned by pi x / 3.
    """
    angles = math.pi / 3 * (x.double() + 2 * torch.arange(3))
    return Mixture(
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).expand(len(x), 3),
        1.5 * torch.stack([angles.cos(), angles.sin()], 2),
        torch.full((len(x), 3), 0.35, dtype=torch.float64),
    )


LAWS: dict[str, Callable[[Tensor], Mixture]] = {"fork": fork, "wheel": wheel}


def conditional_toy(config: ConditionalToyData) -> DataSet:
    """Draws `rows` pairs, x uniform on [-1, 1] and y from the law given x; the last `held_out` are
    kept out. Raises `ConfigError` where no training row is left.
    """
    held_out_of(config.held_out, config.rows)
    law, random = LAWS[config.law], np.random.RandomState(config.split_seed)
    x = 2 * random.rand(config.rows, 1) - 1
    y = law(torch.from_numpy(x)).sample(random).numpy()
    return in_memory(
        *split(y, config.held_out, config.split_seed),
        config.noise,
        None if config.noise else lambda position, context: law(context).log_density(position),
        context=split(x, config.held_out, config.split_seed),
    )
