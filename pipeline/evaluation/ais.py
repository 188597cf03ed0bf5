"""Annealed importance sampling: an estimate of log Z for a continuous energy."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.energies.base import Energy, Target
from pipeline.kernels import mala
from pipeline.types import Progress

TARGET_ACCEPTANCE = 0.65


class GaussianBase(Energy):
    """N(mean, covariance) as an energy of known Z: E_0(x) = (x - m)' P (x - m) / 2, log Z_0 = (d log 2 pi + log det C) / 2."""

    def __init__(self, shape: tuple[int, ...], mean: Tensor, covariance: Tensor) -> None:
        super().__init__(shape)
        self.mean, self._factor = mean, torch.linalg.cholesky(covariance)
        self._precision = torch.cholesky_inverse(self._factor)
        self.log_z = float(self.dimension * math.log(2 * math.pi) / 2 + self._factor.diagonal().log().sum())

    @classmethod
    def fit(cls, rows: Tensor, noise: float) -> GaussianBase:
        """The Gaussian with the rows' mean and covariance `[d, d]`, plus `noise`^2 and a little more on its diagonal."""
        flat = rows.flatten(1).double()
        extra = noise**2 + 1e-3 * float(flat.var(0).mean()) + 1e-8
        covariance = torch.cov(flat.T).reshape(flat.shape[1], -1) + extra * torch.eye(flat.shape[1], dtype=torch.float64)
        return cls(tuple(rows.shape[1:]), flat.mean(0).to(rows.dtype), covariance.to(rows.dtype))

    def forward(self, x: Tensor) -> Tensor:
        centred = x.flatten(1) - self.mean
        return (centred @ self._precision * centred).sum(1) / 2

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        standard = torch.randn((count, self.dimension), generator=generator, dtype=self.mean.dtype)
        return (self.mean + standard @ self._factor.T).view(count, *self.shape)

    def log_density(self, x: Tensor) -> Tensor:
        """log N(x; m, C), `[N, *shape] -> [N]` nats."""
        return -self(x) - self.log_z


class Tempered(Energy):
    """E_beta = (1 - beta) E_0 + beta E, the geometric path; `beta` is set from outside."""

    def __init__(self, base: Energy, energy: Energy) -> None:
        super().__init__(energy.shape)
        self.base, self.energy, self.beta = base, energy, 0.0

    def forward(self, x: Tensor) -> Tensor:
        return (1 - self.beta) * self.base(x) + self.beta * self.energy(x)


class AISResult(NamedTuple):
    """`log_z` in nats, its standard error (delta method over particles), the ESS ratio of the weights, the particles."""

    log_z: float
    standard_error: float
    ess: float
    particles: Tensor


def annealed_log_partition(
    energy: Energy, base: GaussianBase, temperatures: int, particles: int, generator: torch.Generator, step_size: float
) -> Generator[Progress, None, AISResult]:
    """AIS (Neal 2001): along beta_0 = 0 < ... < beta_T = 1,

        log w = sum_t (beta_t - beta_{t-1}) (E_0(x_{t-1}) - E(x_{t-1})),   x_t ~ MALA transition of E_{beta_t} from x_{t-1},
        Z / Z_0 = E[w].

    w is unbiased, so log Z is underestimated on average (and a likelihood flattered) by about half the square of its standard
    error, where that is small. Betas are squared, close together near the base, where weights change most. The step size
    follows the particles' mean acceptance towards 0.65 as the path goes on, which ties w to them by a little: w is unbiased
    exactly only in the limit of many. Yields progress, returns the result.
    """
    path = Tempered(base, energy)
    betas = torch.linspace(0, 1, temperatures + 1).square().tolist()
    x = base.noise(particles, generator)
    log_weights = torch.zeros(particles, dtype=torch.float64)
    target = Target(path)
    for index in range(1, temperatures + 1):
        with torch.no_grad():
            log_weights += (betas[index] - betas[index - 1]) * (base(x) - energy(x)).double()
        path.beta = betas[index]
        state, info = mala.kernel.step(generator, mala.kernel.init(x, target), target, step_size=step_size)
        x = state.position
        step_size *= math.exp(0.1 * (float(info.acceptance.mean()) - TARGET_ACCEPTANCE))
        yield Progress("annealed importance sampling", index, temperatures)
    weights = torch.softmax(log_weights, 0)
    ess = float(1 / (particles * weights.square().sum()))
    log_mean = float(torch.logsumexp(log_weights, 0) - math.log(particles))
    return AISResult(base.log_z + log_mean, math.sqrt(max(1 / ess - 1, 0) / particles), ess, x)
