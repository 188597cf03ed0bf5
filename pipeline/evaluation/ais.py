"""Annealed importance sampling: an estimate of log Z for a continuous energy."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.energies.base import Energy, Target
from pipeline.energies.laws import Law
from pipeline.kernels import mala
from pipeline.kernels.base import per_chain
from pipeline.types import Progress

TARGET_ACCEPTANCE = 0.65


class Bridge(Energy):
    """A model with another base law than its own: E_beta = (1 - beta) E_0 + beta E, E_0 the law's."""

    def __init__(self, law: Law, energy: Energy) -> None:
        super().__init__(energy.shape, levels=energy.levels, box=energy.box)
        self.law, self.energy = law, energy

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.energy(x)
        return value

    def base(self, x: Tensor) -> Tensor:
        value: Tensor = self.law(x)
        return value

    def base_log_partition(self) -> float:
        return self.law.log_partition()

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        return self.law.sample(count, generator)

    def energy_and_gradient(self, x: Tensor, beta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Each part's own: the model's may be faster than autograd's."""
        energy, gradient = self.energy.energy_and_gradient(x)
        if beta is None:
            return energy, gradient
        start = self.law(x)
        weight = per_chain(beta, gradient)
        return (1 - beta) * start + beta * energy, weight * gradient - (1 - weight) * self.law.score(x)


class AISResult(NamedTuple):
    """`log_z` in nats, its standard error (delta method over particles), the ESS ratio of the weights, the particles."""

    log_z: float
    standard_error: float
    ess: float
    particles: Tensor


def annealed_log_partition(
    path: Energy, temperatures: int, particles: int, generator: torch.Generator, step_size: float
) -> Generator[Progress, None, AISResult]:
    """AIS (Neal 2001) along the energy's path, beta_0 = 0 < ... < beta_T = 1, from its base law, whose Z_0 is known:

        log w = sum_t E_{beta_{t-1}}(x_{t-1}) - E_{beta_t}(x_{t-1}),   x_t ~ MALA transition of E_{beta_t} from x_{t-1},
        Z / Z_0 = E[w].

    w is unbiased, so log Z is underestimated on average (and a likelihood flattered) by about half the square of its standard
    error, where that is small. Betas are squared, close together near the base, where weights change most. The step size
    follows the particles' mean acceptance towards 0.65 as the path goes on, which ties w to them by a little: w is unbiased
    exactly only in the limit of many. Yields progress, returns the result.
    """
    betas = torch.linspace(0, 1, temperatures + 1).square()
    x = path.noise(particles, generator)
    log_weights = torch.zeros(particles, dtype=torch.float64)
    target = Target(path, betas[0].expand(particles))
    state = mala.kernel.init(x, target)
    for index in range(1, temperatures + 1):
        target.beta = betas[index].expand(particles)
        moved = mala.kernel.init(state.position, target)
        log_weights += (state.energy - moved.energy).double()
        state, info = mala.kernel.step(generator, moved, target, step_size=step_size)
        step_size *= math.exp(0.1 * (float(info.acceptance.mean()) - TARGET_ACCEPTANCE))
        yield Progress("annealed importance sampling", index, temperatures)
    weights = torch.softmax(log_weights, 0)
    ess = float(1 / (particles * weights.square().sum()))
    log_mean = float(torch.logsumexp(log_weights, 0) - math.log(particles))
    error = math.sqrt(max(1 / ess - 1, 0) / particles)
    return AISResult(path.base_log_partition() + log_mean, error, ess, state.position)
