"""Restricted Boltzmann machines with binary hidden units and binary, Gaussian or categorical
visible ones.

    E(v, h) = A(v) - c.h - phi(v).W h,   h in {0, 1}^m

The position is v alone, the hidden units summed out (the free energy): E(v) = A(v) - sum_j
softplus(c_j + W_j.phi(v)). The kinds differ in A, in phi and in the law of v given h. Gibbs
sampling sweeps h given v, then v given h, and so leaves p(v) invariant. A ladder tempers the joint
law, E_beta(v, h) = A(v) - beta (c.h + phi(v).W h): from independent visible units to the model, by
blocks that keep their form (Salakhutdinov & Murray 2008).
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


class RestrictedBoltzmannMachine(Energy):
    """A restricted Boltzmann machine of any kind of visible units; phi(v) has `inputs` numbers."""

    blocks = ("hidden", "visible")
    undecayed = ("visible_bias", "hidden_bias", "log_variance")

    def _add_parameters(self, inputs: int, hidden: int, weight_scale: float) -> None:
        self.weight = nn.Parameter(weight_scale * torch.randn(hidden, inputs))
        self.visible_bias = nn.Parameter(torch.zeros(inputs))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))

    def features(self, x: Tensor) -> Tensor:
        """phi(v), `[N, *shape] -> [N, inputs]`."""
        raise NotImplementedError

    def visible_energy(self, x: Tensor) -> Tensor:
        """A(v), `[N, *shape] -> [N]`."""
        return -(self.features(x) @ self.visible_bias)

    def visible_gradient(self, x: Tensor, pull: Tensor) -> Tensor:
        """grad A(v) less the derivative of phi(v).`pull`; `pull` [N, inputs] is W' p(h = 1 | v),
        and may be overwritten.
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
        return self.visible_energy(x) - softplus(
            linear(self.features(x), self.weight, self.hidden_bias)
        ).sum(1)

    def activations(self, rows: Tensor) -> Tensor:
        """p(h_j = 1 | v), `[N, m]`."""
        return linear(self.features(rows), self.weight, self.hidden_bias).sigmoid()

    def base(self, x: Tensor) -> Tensor:
        """The model without its weights and hidden biases: independent visible units, 2^m states of
        the hidden ones.
        """
        return self.visible_energy(x) - len(self.hidden_bias) * math.log(2)

    def base_log_partition(self) -> float:
        return float(self.visible_log_partition(self.visible_bias[None]).detach()) + len(
            self.hidden_bias
        ) * math.log(2)

    @torch.no_grad()
    def sample_base(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` draws of the base law, p(v | h = 0), `[count, *shape]`."""
        return self.visible_law(self.visible_bias.expand(count, -1)).sample(generator)

    def tempered(self, x: Tensor, beta: Tensor) -> Tensor:
        """E_beta(v) = A(v) - sum_j softplus(beta (c_j + W_j.phi(v))), the free energy of the
        tempered joint law.
        """
        field = linear(self.features(x), self.weight, self.hidden_bias)
        return self.visible_energy(x) - softplus(beta[:, None] * field).sum(1)

    @torch.no_grad()
    def energy_and_gradient(self, x: Tensor, beta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The energies and their gradient by hand, as autograd would have them."""
        field = linear(self.features(x), self.weight, self.hidden_bias)
        if beta is not None:
            field = beta[:, None] * field
        energy = self.visible_energy(x) - softplus(field).sum(1)
        means = field.sigmoid_()
        pull = (means if beta is None else beta[:, None] * means) @ self.weight
        return energy, self.visible_gradient(x, pull)

    @torch.no_grad()
    def energies_and_pull(self, x: Tensor) -> tuple[Tensor, Pull] | None:
        """dE/dW = -p(h = 1 | v) phi(v)', dE/dc = -p(h = 1 | v), dE/db = -phi(v)."""
        features = self.features(x)
        field = linear(features, self.weight, self.hidden_bias)
        energies = -(features @ self.visible_bias) - softplus(field).sum(1)

        @torch.no_grad()
        def pull(slopes: Tensor) -> None:
            means = field.sigmoid_().mul_(slopes[:, None]).neg_()
            add_gradient(self.weight, means, features)
            add_sum(self.hidden_bias, means)
            total = slopes.neg() @ features
            grad = self.visible_bias.grad
            self.visible_bias.grad = total if grad is None else grad.add_(total)

        return energies, pull

    def conditional(self, block: str, value: Tensor, beta: Tensor | None = None) -> Conditional:
        """p(h | v), Bernoulli [N, m], for "hidden"; p(v | h), [N, *shape], for "visible"."""
        if block == "hidden":
            field = linear(self.features(value), self.weight, self.hidden_bias)
            return Bernoulli(field if beta is None else beta[:, None] * field)
        if beta is not None:
            value = beta[:, None] * value
        return self.visible_law(torch.addmm(self.visible_bias, value, self.weight))

    def log_sum(self) -> Tensor | None:
        """log Z = logsumexp over the hidden states of c.h + log sum_v exp(-A(v) + phi(v).W h).

        Or over the visible states, where they are finite and fewer; None where there are more than
        2^20 of both.
        """
        hidden_states = 2 ** len(self.hidden_bias)
        if hidden_states > ENUMERABLE_STATES or (
            self.levels is not None and self.levels**self.dimension < hidden_states
        ):
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
    Hinton 2007).
    """

    def __init__(self, shape: Sequence[int], levels: int, hidden: int, weight_scale: float) -> None:
        super().__init__(shape, levels=levels)
        self._add_parameters(self.dimension * levels, hidden, weight_scale)

    @torch.no_grad()
    def initialise(self, rows: Tensor) -> None:
        """Visible biases start at the data's log frequencies."""
        self.visible_bias.copy_(log_frequencies(rows, self.levels).flatten())

    def features(self, x: Tensor) -> Tensor:
        return self.encode(x).flatten(1)

    def of_one_hot(self, encoded: Tensor, beta: Tensor | None = None) -> Tensor:
        flat = encoded.flatten(1)
        field = linear(flat, self.weight, self.hidden_bias)
        return -(flat @ self.visible_bias) - softplus(
            field if beta is None else beta[:, None] * field
        ).sum(1)

    def visible_gradient(self, x: Tensor, pull: Tensor) -> Tensor:
        """In the one-hot encoding, [N, *shape, q]; with two levels in x, [N, *shape]."""
        return self.decode_gradient(pull.add_(self.visible_bias).neg_().view(*x.shape, self.levels))

    def visible_law(self, field: Tensor) -> Conditional:
        return Categorical(field.view(-1, *self.shape, self.levels))

    def visible_log_partition(self, field: Tensor) -> Tensor:
        return field.view(len(field), self.dimension, self.levels).logsumexp(-1).sum(1)
