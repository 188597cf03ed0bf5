"""Sequences of tags given features of each site, from a linear-chain law that is known exactly."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.common.rng import torch_generator
from pipeline.config.data import TagsData
from pipeline.data.base import DataSet, held_out_of, in_memory, split


class TagLaw:
    """p(y | x) = exp(sum_i u(x_i)[y_i] + sum_i T[y_i, y_{i+1}]) / Z(x), u(x_i) = U x_i, y in {0,
    ..., q-1}^L; float64.

    U [q, f] and T [q, q] are standard normal draws, T's twice as large: neighbours say about as
    much of a tag as its own site.
    """

    def __init__(self, levels: int, features: int, seed: int) -> None:
        generator = torch_generator(seed, "tag-law")
        self.unary = torch.randn(levels, features, generator=generator, dtype=torch.float64)
        self.transition = 2 * torch.randn(levels, levels, generator=generator, dtype=torch.float64)

    def _scores(self, x: Tensor) -> Tensor:
        return x.double() @ self.unary.T

    def _ahead(self, scores: Tensor) -> list[Tensor]:
        """Returns the log of the sum over all tags after site i, given its own tag, `[N, q]` for
        each i: the backward recursion.
        """
        ahead = [torch.zeros_like(scores[:, 0])]
        for site in range(scores.shape[1] - 1, 0, -1):
            inner = self.transition + (scores[:, site] + ahead[0])[:, None]
            ahead.insert(0, torch.logsumexp(inner, 2))
        return ahead

    def log_density(self, y: Tensor, x: Tensor) -> Tensor:
        """Returns log p(y | x), `[N, L]` and `[N, L, f]` to `[N]` nats."""
        scores, tags = self._scores(x), y.long()
        along = scores.gather(2, tags[..., None]).sum((1, 2)) + self.transition[
            tags[:, :-1], tags[:, 1:]
        ].sum(1)
        return along - torch.logsumexp(scores[:, 0] + self._ahead(scores)[0], 1)

    def sample(self, x: Tensor, random: np.random.RandomState) -> Tensor:
        """Returns one draw for each row of x, `[N, L]`: site by site, each tag given the last."""
        scores = self._scores(x)
        ahead, tags = self._ahead(scores), torch.empty(scores.shape[:2], dtype=torch.int64)
        for site in range(scores.shape[1]):
            logits = scores[:, site] + ahead[site]
            if site:
                logits = logits + self.transition[tags[:, site - 1]]
            uniform = torch.from_numpy(random.rand(len(x), 1))
            tags[:, site] = (
                (uniform > logits.softmax(1).cumsum(1)).sum(1).clamp(max=scores.shape[2] - 1)
            )
        return tags


def tags(config: TagsData) -> DataSet:
    """Draws `rows` sequences: features standard normal, tags from a law drawn by `split_seed`.

    Raises `ConfigError` where no training row is left.
    """
    held_out_of(config.held_out, config.rows)
    law, random = (
        TagLaw(config.levels, config.features, config.split_seed),
        np.random.RandomState(config.split_seed),
    )
    x = random.randn(config.rows, config.sites, config.features).astype(np.float32)
    y = law.sample(torch.from_numpy(x), random).numpy()
    context = split(x, config.held_out, config.split_seed)
    return in_memory(
        *split(y, config.held_out, config.split_seed), 0.0, law.log_density, context=context
    )
