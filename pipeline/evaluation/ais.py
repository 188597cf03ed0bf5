"""Annealed importance sampling: estimates of log Z from below, and for energies with conditionals
from above as well.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Generator
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.common.types import Progress
from pipeline.energies.base import Energy
from pipeline.energies.conditionals import Conditional
from pipeline.energies.laws import Law
from pipeline.energies.rbm import BernoulliRBM, PottsRBM
from pipeline.energies.target import Target
from pipeline.kernels import gibbs, mala
from pipeline.kernels.base import EnergyState, Info, Kernel, init_energy, per_chain

TARGET_ACCEPTANCE = 0.65


class Bridge(Energy):
    """A model with another base law than its own: E_beta = (1 - beta) E_0 + beta E. E_0 is the
    law's.
    """

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

    def sample_base(self, count: int, generator: torch.Generator) -> Tensor:
        return self.law.sample(count, generator)

    def energy_and_gradient(self, x: Tensor, beta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Adds each part's own: the model's may be faster than autograd's."""
        energy, gradient = self.energy.energy_and_gradient(x)
        if beta is None:
            return energy, gradient
        start = self.law(x)
        weight = per_chain(beta, gradient)
        return (1 - beta) * start + beta * energy, weight * gradient - (
            1 - weight
        ) * self.law.score(x)


class RatesBridge(Energy):
    """An RBM over levels with another base law than its own: visible units independent, at the
    rates of `rows` [S, *shape].

        E_beta(v, h) = -((1 - beta) b_0 + beta b).phi(v) - beta (c.h + phi(v).W h),

    the base-rate model of Salakhutdinov & Murray (2008): b_0 are the biases that a model starts
    from on these rows, nearer to what it has learned than its own biases b without the weights they
    were learned with.
    """

    def __init__(self, rbm: BernoulliRBM | PottsRBM, rows: Tensor) -> None:
        super().__init__(rbm.shape, levels=rbm.levels)
        self.rbm, self.start = rbm, copy.deepcopy(rbm)
        self.start.initialise(rows)
        self.blocks = rbm.blocks

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.rbm(x)
        return value

    def base(self, x: Tensor) -> Tensor:
        return self.start.base(x)

    def base_log_partition(self) -> float:
        return self.start.base_log_partition()

    def sample_base(self, count: int, generator: torch.Generator) -> Tensor:
        return self.start.sample_base(count, generator)

    def tempered(self, x: Tensor, beta: Tensor) -> Tensor:
        """The free energy of the joint law above: the RBM's own path, and what its biases lack or
        exceed at this beta.
        """
        return self.rbm.tempered(x, beta) + (1 - beta) * (
            self.start.visible_energy(x) - self.rbm.visible_energy(x)
        )

    def conditional(self, block: str, value: Tensor, beta: Tensor | None = None) -> Conditional:
        if block == "hidden" or beta is None:
            return self.rbm.conditional(block, value, beta)
        weight = beta[:, None]
        bias = torch.lerp(self.start.visible_bias, self.rbm.visible_bias, weight)
        return self.rbm.visible_law(torch.addmm(bias, weight * value, self.rbm.weight))


class AISResult(NamedTuple):
    """`log_z` in nats, its standard error (delta method over particles), the ESS ratio of the
    weights, the particles. A single particle tells nothing of error and ESS: None.
    """

    log_z: float
    standard_error: float | None
    ess: float | None
    particles: Tensor


def annealed_log_partition(
    path: Energy, temperatures: int, particles: int, generator: torch.Generator, step_size: float
) -> Generator[Progress, None, AISResult]:
    """Estimates log Z by AIS (Neal 2001) along the energy's path, beta_0 = 0 < ... < beta_T = 1,
    from its base law, whose Z_0 is known:

        log w = sum_t E_{beta_{t-1}}(x_{t-1}) - E_{beta_t}(x_{t-1}),
        x_t ~ MALA transition of E_{beta_t} from x_{t-1},
        Z / Z_0 = E[w].

    w is unbiased, so log Z is underestimated on average (and a likelihood flattered) by about half
    the square of its standard error, where that is small. Betas are squared, close together near
    the base, where weights change most. The step size follows the particles' mean acceptance
    towards 0.65 as the path goes on, which ties w to them by a little: w is unbiased exactly only
    in the limit of many. Yields progress, returns the result.
    """
    betas = torch.linspace(0, 1, temperatures + 1).square()
    start = path.sample_base(particles, generator)
    ratio = yield from _anneal(
        path, betas, start, mala.kernel, generator, "annealed importance sampling", step_size
    )
    return ratio._replace(log_z=path.base_log_partition() + ratio.log_z)


def gibbs_log_partition(
    path: Energy, temperatures: int, particles: int, generator: torch.Generator
) -> Generator[Progress, None, AISResult]:
    """Does the same with a Gibbs sweep for the transition, and betas evenly spaced: nothing adapts,
    w is unbiased.
    """
    betas, start = torch.linspace(0, 1, temperatures + 1), path.sample_base(particles, generator)
    ratio = yield from _anneal(path, betas, start, GIBBS, generator, "annealed importance sampling")
    return ratio._replace(log_z=path.base_log_partition() + ratio.log_z)


def reverse_log_partition(
    path: Energy, temperatures: int, starts: Tensor, generator: torch.Generator
) -> Generator[Progress, None, AISResult]:
    """Runs AIS from the model to its base law: Z_0 / Z = E[w], so log Z is overestimated on
    average, for draws of the model.

    Those are made by `temperatures` Gibbs sweeps of the model from `starts` [N, *shape], one
    particle each. As far as they are not yet draws of the model, the bound from above is not one
    (Grosse, Ghahramani & Adams 2015); forward and reverse estimates that agree, from starts as
    different as noise and data, say that both are right.
    """
    target = Target(path)
    state = gibbs.init(starts, target)
    for sweep in range(1, temperatures + 1):
        state, _ = gibbs.step(generator, state, target)
        yield Progress("draws of the model", sweep, temperatures)
    betas = torch.linspace(1, 0, temperatures + 1)
    ratio = yield from _anneal(
        path, betas, state.position, GIBBS, generator, "reverse annealed importance sampling"
    )
    return ratio._replace(log_z=path.base_log_partition() - ratio.log_z)


def reverse_annealed_log_partition(
    path: Energy, temperatures: int, starts: Tensor, generator: torch.Generator, step_size: float
) -> Generator[Progress, None, AISResult]:
    """Does the same with MALA transitions, along the betas of `annealed_log_partition` backward.

    `temperatures` transitions of the model draw from it, from `starts` [N, *shape] on, one particle
    each. The bound from above holds as far as these are draws.
    """
    level = torch.ones(temperatures + 1)
    drawn = yield from _anneal(
        path, level, starts, mala.kernel, generator, "draws of the model", step_size
    )
    betas = torch.linspace(1, 0, temperatures + 1).square()
    ratio = yield from _anneal(
        path,
        betas,
        drawn.particles,
        mala.kernel,
        generator,
        "reverse annealed importance sampling",
        step_size,
    )
    return ratio._replace(log_z=path.base_log_partition() - ratio.log_z)


def _gibbs_step(
    generator: torch.Generator, state: EnergyState, target: Target
) -> tuple[EnergyState, Info]:
    moved, info = gibbs.step(generator, gibbs.State(state.position), target)
    return init_energy(moved.position, target), info


GIBBS = Kernel(init_energy, _gibbs_step)
"""A Gibbs sweep that knows the energy where it ends, which the next weight begins with."""


def _anneal(
    path: Energy,
    betas: Tensor,
    start: Tensor,
    kernel: Kernel,
    generator: torch.Generator,
    doing: str,
    step_size: float | None = None,
) -> Generator[Progress, None, AISResult]:
    """Runs particles from `start` [N, *shape], draws at betas[0], along `betas`; `log_z` is that of
    Z_last / Z_first.
    """
    particles, last = len(start), len(betas) - 1
    log_weights = torch.zeros(particles, dtype=torch.float64)
    target = Target(path, betas[0].expand(particles))
    state = kernel.init(start, target)
    parameters = {} if step_size is None else {"step_size": step_size}
    for index in range(1, last + 1):
        target.beta = betas[index].expand(particles)
        moved = kernel.init(state.position, target)
        log_weights += (state.energy - moved.energy).double()
        state, info = kernel.step(generator, moved, target, **parameters)
        if step_size is not None:
            parameters["step_size"] *= math.exp(
                0.1 * (float(info.acceptance.mean()) - TARGET_ACCEPTANCE)
            )
        yield Progress(doing, index, last)
    log_mean = float(torch.logsumexp(log_weights, 0) - math.log(particles))
    if particles == 1:
        return AISResult(log_mean, None, None, state.position)
    weights = torch.softmax(log_weights, 0)
    ess = float(1 / (particles * weights.square().sum()))
    error = math.sqrt(max(1 / ess - 1, 0) / particles)
    return AISResult(log_mean, error, ess, state.position)
