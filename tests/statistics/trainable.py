"""Energies on R^d with parameters and a known log Z, and what is measured of an objective: its loss
and its gradient.
"""

from __future__ import annotations

import math

import torch
from scipy import stats
from torch import Tensor, nn

from pipeline.energies.base import Energy
from pipeline.objectives.base import Batch, NegativeSide, Objective, PositiveSide, Replayed

# each comparison of sampled means asks at most this chance of a false alarm of all its components
# together
FALSE_ALARM = 1e-6


class TrainableGaussian(Energy):
    """E(x) = |L'(x - m)|^2 / 2: N(m, P^-1) with P = L L', L lower triangular. Without `log_sum`:
    log Z has to be found.
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        super().__init__(
            mean.shape, base_scale=math.sqrt(float((mean.square() + covariance.diagonal()).mean()))
        )
        self.mean = nn.Parameter(mean.clone())
        self.factor = nn.Parameter(torch.linalg.cholesky(torch.linalg.inv(covariance)).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean) @ self.factor.tril()).square().sum(1) / 2

    def log_z(self) -> Tensor:
        """(d log 2 pi - log det P) / 2."""
        return self.dimension * math.log(2 * math.pi) / 2 - self.factor.diagonal().abs().log().sum()

    def covariance(self) -> Tensor:
        factor = self.factor.detach().tril()
        return torch.linalg.inv(factor @ factor.T)


class TrainableMixture(Energy):
    """E(x) = -log sum_k exp(a_k) N(x; m_k, (L_k L_k')^-1), log Z = logsumexp a."""

    def __init__(self, logits: Tensor, means: Tensor, covariances: Tensor) -> None:
        super().__init__(
            means.shape[1:], base_scale=float(means.square().sum(1).max().sqrt()) + 1.0
        )
        self.logits = nn.Parameter(logits.clone())
        self.means = nn.Parameter(means.clone())
        self.factors = nn.Parameter(
            torch.linalg.cholesky(torch.linalg.inv(covariances)).contiguous()
        )

    def forward(self, x: Tensor) -> Tensor:
        factors = self.factors.tril()
        squares = torch.einsum("nkd,kde->nke", x[:, None] - self.means, factors).square().sum(2)
        log_norms = (
            factors.diagonal(dim1=1, dim2=2).abs().log().sum(1)
            - self.dimension * math.log(2 * math.pi) / 2
        )
        return -torch.logsumexp(self.logits + log_norms - squares / 2, 1)

    def log_z(self) -> Tensor:
        return torch.logsumexp(self.logits, 0)


class Scaled(Energy):
    """E(x) = k |x - m|^2 / 2, k and m learned: transitions replayed on it can be worked out by
    hand.
    """

    def __init__(self, k: float, mean: Tensor) -> None:
        super().__init__(mean.shape)
        self.k = nn.Parameter(torch.tensor(k, dtype=mean.dtype))
        self.mean = nn.Parameter(mean.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.k * (x - self.mean).square().sum(1) / 2


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """To this tolerance, absolute and relative."""
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def sides(
    positives: Tensor | None = None,
    drawn: tuple[Tensor, ...] = (),
    negatives: Tensor | None = None,
    *,
    context: Tensor | None = None,
    negative_context: Tensor | None = None,
    weights: Tensor | None = None,
    past: Replayed | None = None,
) -> Batch:
    """A batch of the sides that are there."""
    return Batch(
        None if positives is None else PositiveSide(positives, drawn, context),
        None if negatives is None else NegativeSide(negatives, negative_context, weights, past),
    )


def loss_of(objective: Objective, energy: Energy, batch: Batch) -> Tensor:
    """What one step descends: the sum of weight x total / rows."""
    return torch.stack(
        [part.weight * part.total / part.rows for part in objective.parts(energy, batch)]
    ).sum()


def gradient_of(loss: Tensor, module: nn.Module) -> Tensor:
    """End to end, `[P]`; 0 where the loss does not depend on a parameter."""
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def gradients_by_row(energy: Energy, x: Tensor) -> Tensor:
    """grad_theta E(x_i), `[N, P]`."""
    return torch.stack([gradient_of(energy(row[None]).sum(), energy) for row in x])


def largest_z(samples: Tensor, truth: Tensor) -> float:
    """Of the means of `samples` [S, P] of unknown variance against `truth` [P]; 0 where both are
    constant.
    """
    error = samples.std(0) / math.sqrt(len(samples))
    return float(((samples.mean(0) - truth).abs() / error.clamp(min=1e-12)).max())


def z_limit(components: int) -> float:
    """|z| that all of them stay below but for `FALSE_ALARM` (Bonferroni)."""
    return float(stats.norm.isf(FALSE_ALARM / (2 * components)))
