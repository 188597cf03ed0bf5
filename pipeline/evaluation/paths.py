"""Paths of laws from one whose Z is known to a model, for annealed importance sampling."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from pipeline.data.base import MOST_ROWS
from pipeline.energies.base import Energy
from pipeline.energies.conditionals import Conditional, Normal
from pipeline.energies.gauges import with_fields
from pipeline.energies.laws import Gaussian, Law, TruncatedGaussian
from pipeline.energies.mixed_rbm import MixedRBM
from pipeline.energies.potts import PottsModel
from pipeline.energies.rbm import (
    BernoulliRBM,
    GaussianRBM,
    PottsRBM,
    RestrictedBoltzmannMachine,
)
from pipeline.kernels.base import per_chain


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

    def moved(
        self, x: Tensor, energy: Tensor, gradient: Tensor, beta: Tensor, new: Tensor
    ) -> tuple[Tensor, Tensor]:
        """E_new(x) [N] and its gradient [N, *shape] from those at `beta` > 0, without the model,

            E_new = E_0 + (new / beta) (E_beta - E_0),

        and so for the gradient: the path is linear in beta.
        """
        ratio, start, pull = new / beta, self.law(x), -self.law.score(x)
        return (
            start + ratio * (energy - start),
            pull + per_chain(ratio, gradient) * (gradient - pull),
        )


class MachineBridge(Energy):
    """A restricted Boltzmann machine with the base law that it would start from on `rows` [S,
    *shape]: independent visible units. As in its own, the hidden units then have 2^m states.
    """

    def __init__(self, rbm: RestrictedBoltzmannMachine, rows: Tensor) -> None:
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
        """-log sum_h exp(-E_beta(v, h)), `[N]` nats: the machine's own path, and what its visible
        energy lacks or exceeds at this beta.
        """
        return self.rbm.tempered(x, beta) + (1 - beta) * (
            self.start.visible_energy(x) - self.rbm.visible_energy(x)
        )


class RatesBridge(MachineBridge):
    """An RBM over levels with another base law than its own: visible units independent, at the
    rates of `rows` [S, *shape].

        E_beta(v, h) = -((1 - beta) b_0 + beta b).phi(v) - beta (c.h + phi(v).W h),

    the base-rate model of Salakhutdinov & Murray (2008): b_0 are the biases that a model starts
    from on these rows, nearer to what it has learned than its own biases b without the weights they
    were learned with.
    """

    def conditional(self, block: str, value: Tensor, beta: Tensor | None = None) -> Conditional:
        if block == "hidden" or beta is None:
            return self.rbm.conditional(block, value, beta)
        weight = beta[:, None]
        bias = torch.lerp(self.start.visible_bias, self.rbm.visible_bias, weight)
        return self.rbm.visible_law(torch.addmm(bias, weight * value, self.rbm.weight))


class MomentsBridge(MachineBridge):
    """A Gaussian RBM with another base law than its own: visible units independent, with the means
    m and variances t^2 of `rows` [S, *shape].

        E_beta(v, h) = (1 - beta) sum_i (v_i - m_i)^2 / (2 t_i^2) + beta E(v, h).

    Given h, v_i is Gaussian of precision (1 - beta) / t_i^2 + beta / s_i^2, with the mean of m_i
    and b_i + (W'h)_i weighted by the two terms.
    """

    rbm: GaussianRBM
    start: GaussianRBM

    def conditional(self, block: str, value: Tensor, beta: Tensor | None = None) -> Conditional:
        if block == "hidden" or beta is None:
            return self.rbm.conditional(block, value, beta)
        own = beta[:, None] * torch.exp(-self.rbm.log_variance)
        base = (1 - beta)[:, None] * torch.exp(-self.start.log_variance)
        centre = torch.addmm(self.rbm.visible_bias, value, self.rbm.weight)
        precision = own + base
        mean = (own * centre + base * self.start.visible_bias) / precision
        return Normal(mean.view(-1, *self.shape), precision.rsqrt().view(-1, *self.shape))


class MixedBridge(MachineBridge):
    """A machine of several kinds of visible units with another base law than its own: visible units
    independent, with the means, variances and rates of `rows` [S, *shape].

    The path of `MomentsBridge` for real units, and that of `RatesBridge` for the others.
    """

    rbm: MixedRBM
    start: MixedRBM

    def conditional(self, block: str, value: Tensor, beta: Tensor | None = None) -> Conditional:
        if block == "hidden" or beta is None:
            return self.rbm.conditional(block, value, beta)
        weight, reals = beta[:, None], self.rbm.reals
        bias, start, pull = self.rbm.visible_bias, self.start.visible_bias, value @ self.rbm.weight
        own = weight * torch.exp(-self.rbm.log_variance)
        base = (1 - weight) * torch.exp(-self.start.log_variance)
        mean = (own * (bias + pull)[:, :reals] + base * start[:reals]) / (own + base)
        field = torch.lerp(start[reals:], bias[reals:], weight) + weight * pull[:, reals:]
        return self.rbm.law(mean, (own + base).rsqrt(), field)


@torch.no_grad()
def from_rates(energy: PottsModel, rows: Tensor) -> PottsModel:
    """Returns the model in the gauge whose fields h_0 it would start from on `rows` [S, *shape], so
    that its own path is

        E_beta(x) = -sum_i h_0i(x_i) + beta (E(x) + sum_i h_0i(x_i)),

    from independent sites at the rates of the rows. Its own fields without the couplings that they
    were learned with are far from both.
    """
    path = PottsModel(energy.shape, energy.levels).to(energy.field).requires_grad_(False)
    path.initialise(rows)
    path.coupling.copy_(with_fields(energy.field, energy.coupling, path.field))
    return path


def path_to(energy: Energy, rows: Tensor) -> Energy:
    """Returns a path to the model from a law that is fitted to training `rows` [S, *shape], noise
    included: for restricted Boltzmann machines and Potts models from independent visible units, for
    others on R^d from a Gaussian, in a box from truncated independent ones. Any other model over
    levels has its own path, from the uniform law.
    """
    rows = rows[:MOST_ROWS]
    if isinstance(energy, BernoulliRBM | PottsRBM):
        return RatesBridge(energy, rows)
    if isinstance(energy, GaussianRBM):
        return MomentsBridge(energy, rows)
    if isinstance(energy, MixedRBM):
        return MixedBridge(energy, rows)
    if isinstance(energy, PottsModel) and energy.dimension > 1:
        return from_rates(energy, rows)
    if energy.levels is not None:
        return energy
    if energy.box is not None:
        return Bridge(TruncatedGaussian.fit(rows, 0.0, energy.box), energy)
    return Bridge(Gaussian.fit(rows, 0.0), energy)
