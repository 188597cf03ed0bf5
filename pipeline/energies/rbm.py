"""Restricted Boltzmann machines with binary, Gaussian or categorical visible units.

    E(v, h) = A(v) + sum_j U(h_j) - c.h - phi(v).W h

The position is v alone, the hidden units summed out (the free energy): E(v) = A(v) - sum_j
Gamma(c_j + W_j.phi(v)). The potential U of a hidden unit, and Gamma, are those of
`pipeline.energies.hidden_units`: where h is binary U = 0 and Gamma is the softplus. The kinds of
machine differ in A, in phi and in the law of v given h. Gibbs sampling sweeps h given v, then v
given h, and so leaves p(v) invariant. A ladder tempers the joint law, E_beta(v, h) = A(v) + sum_j
U(h_j) - beta (c.h + phi(v).W h): from independent visible units to the model, by blocks that keep
their form (Salakhutdinov & Murray 2008).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from pipeline.energies.base import Energy, Pull, add_gradient, add_sum
from pipeline.energies.conditionals import Bernoulli, Categorical, Conditional, Normal
from pipeline.energies.discrete import (
    ENUMERABLE_STATES,
    CategoricalEnergy,
    enumerated,
    log_frequencies,
    log_sum_over_states,
)
from pipeline.energies.hidden_units import hidden_units


class RestrictedBoltzmannMachine(Energy):
    """A restricted Boltzmann machine of any kind of visible units; phi(v) has `inputs` numbers."""

    blocks = ("hidden", "visible")
    undecayed = (
        *("visible_bias", "hidden_bias", "log_variance"),
        *("units.asymmetry", "units.threshold"),
    )

    def _add_parameters(
        self, inputs: int, hidden: int, weight_scale: float, units: str = "bernoulli"
    ) -> None:
        self.weight = nn.Parameter(weight_scale * torch.randn(hidden, inputs))
        self.visible_bias = nn.Parameter(torch.zeros(inputs))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.units = hidden_units(units, hidden)

    def hidden_field(self, features: Tensor) -> Tensor:
        """c + W phi(v), `[N, inputs] -> [N, m]`: what the hidden units receive."""
        return linear(features, self.weight, self.hidden_bias)

    def features(self, x: Tensor) -> Tensor:
        """phi(v), `[N, *shape] -> [N, inputs]`."""
        raise NotImplementedError

    def visible_energy(self, x: Tensor) -> Tensor:
        """A(v), `[N, *shape] -> [N]`."""
        return -(self.features(x) @ self.visible_bias)

    def visible_gradient(self, x: Tensor, pull: Tensor) -> Tensor:
        """grad A(v) less the derivative of phi(v).`pull`; `pull` [N, inputs] is W' E[h | v], and
        may be overwritten.
        """
        raise NotImplementedError

    def visible_law(self, field: Tensor) -> Conditional:
        """p(v | h) from `field` = visible_bias + W' h, `[N, inputs]`."""
        raise NotImplementedError

    def visible_log_partition(self, field: Tensor) -> Tensor:
        """log of the sum over v of exp(-A(v) + phi(v).W h) for `field` = visible_bias + W' h, `[N,
        inputs] -> [N]`.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        field = self.hidden_field(self.features(x))
        return self.visible_energy(x) - self.units.log_cumulants(field).sum(1)

    def activations(self, rows: Tensor) -> Tensor:
        """E[h_j | v], `[N, m]`; of binary units p(h_j = 1 | v)."""
        return self.units.mean(self.hidden_field(self.features(rows)))

    def _free(self) -> Tensor:
        """sum_j Gamma_j(0), []: the hidden units' share of log Z_0."""
        return self.units.log_cumulants(torch.zeros_like(self.hidden_bias)[None]).sum()

    def base(self, x: Tensor) -> Tensor:
        """The model without its weights and hidden biases: visible and hidden units that are all
        independent.
        """
        return self.visible_energy(x) - self._free()

    def base_log_partition(self) -> float:
        visible = self.visible_log_partition(self.visible_bias[None])
        return float(visible.detach()) + float(self._free().detach())

    @torch.no_grad()
    def sample_base(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` draws of the base law, p(v | h = 0), `[count, *shape]`."""
        return self.visible_law(self.visible_bias.expand(count, -1)).sample(generator)

    def tempered(self, x: Tensor, beta: Tensor) -> Tensor:
        """E_beta(v) = A(v) - sum_j Gamma(beta (c_j + W_j.phi(v))), the free energy of the tempered
        joint law.
        """
        field = beta[:, None] * self.hidden_field(self.features(x))
        return self.visible_energy(x) - self.units.log_cumulants(field).sum(1)

    @torch.no_grad()
    def energy_and_gradient(self, x: Tensor, beta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The energies and their gradient by hand, as autograd would have them."""
        field = self.hidden_field(self.features(x))
        if beta is not None:
            field = beta[:, None] * field
        energy = self.visible_energy(x) - self.units.log_cumulants(field).sum(1)
        means = self.units.mean(field)
        pull = (means if beta is None else beta[:, None] * means) @ self.weight
        return energy, self.visible_gradient(x, pull)

    @torch.no_grad()
    def energies_and_pull(self, x: Tensor) -> tuple[Tensor, Pull] | None:
        """dE/dW = -E[h | v] phi(v)', dE/dc = -E[h | v], dE/db = -phi(v)."""
        features = self.features(x)
        field = self.hidden_field(features)
        energies = -(features @ self.visible_bias) - self.units.log_cumulants(field).sum(1)

        @torch.no_grad()
        def pull(slopes: Tensor) -> None:
            means = self.units.pull(field, slopes).mul_(slopes[:, None]).neg_()
            add_gradient(self.weight, means, features)
            add_sum(self.hidden_bias, means)
            total = slopes.neg() @ features
            grad = self.visible_bias.grad
            self.visible_bias.grad = total if grad is None else grad.add_(total)

        return energies, pull

    def conditional(self, block: str, value: Tensor, beta: Tensor | None = None) -> Conditional:
        """p(h | v), [N, m], for "hidden"; p(v | h), [N, *shape], for "visible"."""
        if block == "hidden":
            field = self.hidden_field(self.features(value))
            return self.units.law(field if beta is None else beta[:, None] * field)
        if beta is not None:
            value = beta[:, None] * value
        return self.visible_law(torch.addmm(self.visible_bias, value, self.weight))

    def log_sum(self) -> Tensor | None:
        """log Z = logsumexp over the hidden states of c.h + log sum_v exp(-A(v) + phi(v).W h).

        Or over the visible states, where they are finite and fewer or hidden units are real; None
        where there are more than 2^20 of both.
        """
        hidden_states = 2 ** len(self.hidden_bias)
        fewer = self.levels is not None and self.levels**self.dimension < hidden_states
        if not self.units.binary or hidden_states > ENUMERABLE_STATES or fewer:
            return enumerated(self)

        def log_weight(h: Tensor) -> Tensor:
            return h @ self.hidden_bias + self.visible_log_partition(
                torch.addmm(self.visible_bias, h, self.weight)
            )

        return log_sum_over_states(2, len(self.hidden_bias), log_weight, self.weight)


class BernoulliRBM(RestrictedBoltzmannMachine):
    """v in {0, 1}^d: A(v) = -b.v, phi(v) = v (Smolensky 1986; Hinton 2010)."""

    def __init__(self, shape: Sequence[int], hidden: int, weight_scale: float) -> None:
        super().__init__(shape, levels=2)
        self._add_parameters(self.dimension, hidden, weight_scale)

    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def visible_gradient(self, x: Tensor, pull: Tensor) -> Tensor:
        return pull.add_(self.visible_bias).neg_().view_as(x)

    def visible_law(self, field: Tensor) -> Conditional:
        return Bernoulli(field.view(-1, *self.shape))

    def visible_log_partition(self, field: Tensor) -> Tensor:
        return softplus(field).sum(1)

    @torch.no_grad()
    def initialise(self, rows: Tensor) -> None:
        """Visible biases start at the data's log odds (Hinton 2010, section 8.1), from means kept
        off 0 and 1.
        """
        self.visible_bias.copy_(torch.logit(rows.flatten(1).mean(0).clamp(0.01, 0.99)))


class GaussianRBM(RestrictedBoltzmannMachine):
    """v in R^d with a learned variance each: A(v) = sum_i (v_i - b_i)^2 / (2 s_i^2), phi(v)_i = v_i
    / s_i^2.

    The parametrisation of Cho, Ilin & Raiko (2011), log s_i^2 learned: v given h is N(b + W' h,
    s^2), a mixture of Gaussians all in all.
    """

    def __init__(self, shape: Sequence[int], hidden: int, weight_scale: float) -> None:
        super().__init__(shape)
        self._add_parameters(self.dimension, hidden, weight_scale)
        self.log_variance = nn.Parameter(torch.zeros(self.dimension))

    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1) * torch.exp(-self.log_variance)

    def energies_and_pull(self, x: Tensor) -> tuple[Tensor, Pull] | None:
        """None: A and phi have parameters of their own, and autograd does it."""
        return Energy.energies_and_pull(self, x)

    def visible_energy(self, x: Tensor) -> Tensor:
        return ((x.flatten(1) - self.visible_bias).square() * torch.exp(-self.log_variance)).sum(
            1
        ) / 2

    def visible_law(self, field: Tensor) -> Conditional:
        return Normal(
            field.view(-1, *self.shape), torch.exp(self.log_variance / 2).view(self.shape)
        )

    def visible_log_partition(self, field: Tensor) -> Tensor:
        """sum_i log(2 pi s_i^2) / 2 + (field_i^2 - b_i^2) / (2 s_i^2): completing the square."""
        squares = (field.square() - self.visible_bias.square()) * torch.exp(-self.log_variance)
        return (squares + math.log(2 * math.pi) + self.log_variance).sum(1) / 2

    def visible_gradient(self, x: Tensor, pull: Tensor) -> Tensor:
        return ((x.flatten(1) - self.visible_bias - pull) * torch.exp(-self.log_variance)).view_as(
            x
        )

    @torch.no_grad()
    def initialise(self, rows: Tensor) -> None:
        """Visible biases and variances start at the data's, the latter kept off 0."""
        self.visible_bias.copy_(rows.flatten(1).mean(0))
        self.log_variance.copy_(rows.flatten(1).var(0).clamp(min=1e-3).log())


class PottsRBM(RestrictedBoltzmannMachine, CategoricalEnergy):
    """v in {0, ..., q-1}^d: phi(v) is its one-hot encoding, A(v) = -b.phi(v) (Salakhutdinov, Mnih &
    Hinton 2007). `units` is the kind of the hidden ones: bernoulli, gaussian or drelu (Tubiana,
    Cocco & Monasson 2019).
    """

    def __init__(
        self,
        shape: Sequence[int],
        levels: int,
        hidden: int,
        weight_scale: float,
        units: str = "bernoulli",
    ) -> None:
        super().__init__(shape, levels=levels)
        self._add_parameters(self.dimension * levels, hidden, weight_scale, units)

    @torch.no_grad()
    def initialise(self, rows: Tensor) -> None:
        """Visible biases start at the data's log frequencies."""
        self.visible_bias.copy_(log_frequencies(rows, self.levels).flatten())

    def features(self, x: Tensor) -> Tensor:
        return self.encode(x).flatten(1)

    def of_one_hot(self, encoded: Tensor, beta: Tensor | None = None) -> Tensor:
        flat = encoded.flatten(1)
        field = self.hidden_field(flat)
        if beta is not None:
            field = beta[:, None] * field
        return -(flat @ self.visible_bias) - self.units.log_cumulants(field).sum(1)

    def visible_gradient(self, x: Tensor, pull: Tensor) -> Tensor:
        """In the one-hot encoding, [N, *shape, q]; with two levels in x, [N, *shape]."""
        return self.decode_gradient(pull.add_(self.visible_bias).neg_().view(*x.shape, self.levels))

    def visible_law(self, field: Tensor) -> Conditional:
        return Categorical(field.view(-1, *self.shape, self.levels))

    def visible_log_partition(self, field: Tensor) -> Tensor:
        return field.view(len(field), self.dimension, self.levels).logsumexp(-1).sum(1)
