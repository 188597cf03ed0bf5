"""Noise-contrastive estimation: learning to tell data from noise of a known law, with Z a parameter
or cancelled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pipeline.energies.base import Energy
from pipeline.energies.conditionals import Categorical
from pipeline.energies.discrete import log_frequencies
from pipeline.energies.frozen import frozen
from pipeline.energies.laws import Gaussian, TruncatedGaussian
from pipeline.objectives.base import Objective, Part, PositiveSide


class NoiseLaw(Protocol):
    """A law that can be drawn from and whose log density is known."""

    def sample(self, count: int, generator: torch.Generator) -> Tensor: ...

    def log_density(self, x: Tensor) -> Tensor: ...


class IndependentLevels:
    """Independent components over {0, ..., q-1}, with the frequencies of the rows `[S, *shape]`
    (kept off 0).
    """

    def __init__(self, rows: Tensor, levels: int, weights: Tensor | None = None) -> None:
        self._shape = rows.shape[1:]
        # [d, q]; not normalised, where shares were kept off 0
        self._logits = log_frequencies(rows, levels, weights)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        logits = self._logits.to(generator.device)
        return (
            Categorical(logits.expand(count, *logits.shape))
            .sample(generator)
            .view(count, *self._shape)
        )

    def log_density(self, x: Tensor) -> Tensor:
        """`[N, *shape] -> [N]`, nats."""
        logits = self._logits.to(x)
        return Categorical(logits.expand(len(x), *logits.shape)).log_prob(x.flatten(1)).sum(1)


def fitted(energy: Energy, rows: Tensor, weights: Tensor | None = None) -> NoiseLaw:
    """The noise law for data `rows` [S, *shape], as training sees them, which count by their
    `weights` [S]: a Gaussian of their mean and covariance, in a box independent truncated ones,
    over levels independent components.
    """
    if energy.levels is not None:
        return IndependentLevels(rows, energy.levels, weights)
    return (
        Gaussian.fit(rows, 0.0, weights)
        if energy.box is None
        else TruncatedGaussian.fit(rows, 0.0, energy.box, weights)
    )


class NoiseContrastive(Objective):
    """Noise-contrastive estimation (Gutmann & Hyvarinen 2012, equation 8), with P draws y of the
    noise q for each row x:

        G(u) = -E(u) - c - log q(u) - log P
        loss = mean_i softplus(-G(x_i)) + P mean_ip softplus(G(y_ip))

    c, the model's log Z, is learned beside theta (an energy with a free constant of its own shares
    it). It starts at the estimate of log Z by importance sampling from the noise.
    """

    def __init__(self, draws: int) -> None:
        super().__init__()
        self._draws = draws
        self.log_z = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def initialise(
        self,
        energy: Energy,
        rows: Tensor,
        generator: torch.Generator,
        weights: Tensor | None = None,
    ) -> None:
        self.noise = fitted(energy, rows, weights)
        y = self.noise.sample(1000, generator)
        self.log_z.fill_(
            torch.logsumexp(-frozen(energy)(y) - self.noise.log_density(y), 0) - math.log(len(y))
        )

    def draw(
        self,
        energy: Energy,  # noqa: ARG002
        positives: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, ...]:
        y = self.noise.sample(self._draws * len(positives), generator)
        return (y.to(positives).view(self._draws, *positives.shape),)

    def of_positives(self, energy: Energy, positives: PositiveSide) -> Iterator[Part]:
        """Parts named data and noise: of the logistic loss of telling them apart, nats."""
        x, y = positives.position, positives.drawn[0].flatten(0, 1)
        yield Part("data", softplus(-self._logit(energy, x)).sum(), len(x))
        yield Part("noise", softplus(self._logit(energy, y)).sum(), len(y), float(self._draws))

    def _logit(self, energy: Energy, u: Tensor) -> Tensor:
        """G(u), [N]: the log odds that u is data."""
        return -energy(u) - self.log_z - self.noise.log_density(u) - math.log(self._draws)


class ConditionalNoiseContrastive(Objective):
    """Conditional noise-contrastive estimation (Ceylan & Gutmann 2018, equations 9 and 13), with y
    = x + scale n, n ~ N(0, I):

        loss = 2 mean_ip softplus(E(x_i) - E(y_ip))

    The conditional noise is symmetric, q(y | x) = q(x | y), and Z cancels. Over {0, 1}^d y flips
    each component with probability `scale` instead, which is symmetric as well.
    """

    def __init__(self, draws: int, scale: float) -> None:
        super().__init__()
        self._draws, self._scale = draws, scale

    def draw(
        self, energy: Energy, positives: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """The y, `[P, N, *shape]`."""
        size = (self._draws, *positives.shape)
        noise = torch.empty(size, dtype=positives.dtype, device=positives.device)
        if energy.levels is not None:
            return ((positives - noise.bernoulli_(self._scale, generator=generator)).abs(),)
        return (positives + self._scale * noise.normal_(generator=generator),)

    def of_positives(self, energy: Energy, positives: PositiveSide) -> Iterator[Part]:
        """One part, contrast."""
        energy = energy.given(positives.context)
        draws, rows = positives.drawn[0].shape[:2]
        points = torch.cat([positives.position[None], positives.drawn[0]]).flatten(0, 1)
        here, there = energy(points).view(1 + draws, rows).split([1, draws])
        yield Part("contrast", softplus(here - there).sum(), draws * rows, 2.0)
