"""Deep Boltzmann machines of binary units (Salakhutdinov & Hinton 2009): layers h_0 = v, h_1, ...,
h_L, neighbours coupled.

    E(v, h_1, ..., h_L) = -b.v - sum_l (c_l.h_l + h_l.W_l h_{l-1})

The units of a layer are independent given the layers next to it, and so are all odd layers given
the even ones: block Gibbs sampling takes them in turn. E is linear in each unit, so that at the
means of independent units it is their expected energy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, softplus

from pipeline.common.rng import Source
from pipeline.energies.base import Energy
from pipeline.energies.conditionals import Bernoulli, Conditional
from pipeline.energies.discrete import ENUMERABLE_STATES, log_sum_over_states
from pipeline.energies.rbm import BernoulliRBM


class Redrawn(NamedTuple):
    """The law of a whole position, some of whose `layers` [N, m_l] are drawn from `laws`, by
    number; the others stay.
    """

    layers: Sequence[Tensor]
    laws: Mapping[int, Bernoulli]

    def sample(self, generator: Source) -> Tensor:
        drawn = [
            self.laws[i].sample(generator) if i in self.laws else layer
            for i, layer in enumerate(self.layers)
        ]
        return torch.cat(drawn, 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """`[N, D]`; of what stays 0 where `value` has it as it is, else -inf."""
        parts, sizes = [], [layer.shape[1] for layer in self.layers]
        for i, (layer, new) in enumerate(zip(self.layers, value.split(sizes, 1), strict=True)):
            parts.append(
                self.laws[i].log_prob(new) if i in self.laws else (new == layer).to(layer).log()
            )
        return torch.cat(parts, 1)


class DeepBoltzmannMachine(Energy):
    """`shape` is that of a row of data, `hidden` the sizes m_1, ..., m_L, `mean_field_steps` the
    sweeps of `complete`.

    A position holds v, h_1, ..., h_L end to end, `[N, D]`. E_0 = -b.v, so that a ladder tempers
    weights and hidden biases, from independent visible units and fair coins to the model, by blocks
    that keep their form.
    """

    blocks = ("odd", "even")
    undecayed = ("visible_bias", "hidden_bias")

    def __init__(
        self,
        shape: Sequence[int],
        hidden: Sequence[int],
        weight_scale: float,
        mean_field_steps: int,
    ) -> None:
        sizes = (math.prod(shape), *hidden)
        super().__init__((sum(sizes),), levels=2)
        self.data_shape = tuple(shape)
        self.sizes, self.mean_field_steps = sizes, mean_field_steps
        pairs = zip(sizes, hidden, strict=False)
        self.weights = nn.ParameterList(
            weight_scale * torch.randn(above, below) for below, above in pairs
        )
        self.visible_bias = nn.Parameter(torch.zeros(sizes[0]))
        self.hidden_bias = nn.Parameter(torch.zeros(sum(hidden)))

    def layers(self, x: Tensor) -> tuple[Tensor, ...]:
        """Positions cut into v, h_1, ..., h_L, `[N, m_l]` each."""
        return x.split(self.sizes, 1)

    def even_layers(self, x: Tensor) -> Tensor:
        """v, h_2, h_4, ... of positions end to end: what is visible in `as_rbm`."""
        return torch.cat(self.layers(x)[::2], 1)

    def visible(self, x: Tensor) -> Tensor:
        return self.layers(x)[0].view(-1, *self.data_shape)

    def _biases(self) -> tuple[Tensor, ...]:
        return self.visible_bias, *self.hidden_bias.split(self.sizes[1:])

    def _field(self, layers: Sequence[Tensor], number: int) -> Tensor:
        """Log odds of a layer's units given its neighbours, `[N, m_l]`: c_l + W_l h_{l-1} +
        W_{l+1}' h_{l+1}.
        """
        field = self._biases()[number]
        if number > 0:
            field = linear(layers[number - 1], self.weights[number - 1], field)
        if number + 1 < len(layers):
            field = torch.addmm(field, layers[number + 1], self.weights[number])
        return field

    def forward(self, x: Tensor) -> Tensor:
        layers = self.layers(x)
        energy = -(layers[0] @ self.visible_bias)
        for below, above, weight, bias in zip(
            layers, layers[1:], self.weights, self._biases()[1:], strict=False
        ):
            energy = energy - (above * linear(below, weight, bias)).sum(1)
        return energy

    def base(self, x: Tensor) -> Tensor:
        """The model without its weights and hidden biases: independent visible units, 2^m states of
        the hidden ones.
        """
        return -(self.layers(x)[0] @ self.visible_bias)

    def base_log_partition(self) -> float:
        return float(softplus(self.visible_bias.detach()).sum()) + len(self.hidden_bias) * math.log(
            2
        )

    @torch.no_grad()
    def sample_base(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` draws of the base law, `[count, D]`."""
        return Bernoulli(self._base_field().expand(count, -1)).sample(generator)

    def _base_field(self) -> Tensor:
        return pad(self.visible_bias, (0, len(self.hidden_bias)))

    @torch.no_grad()
    def energy_and_gradient(self, x: Tensor, beta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The energies and their gradient by hand: that is minus the fields, and each coupling is
        in the fields of two units.
        """
        layers = self.layers(x)
        field = torch.cat([self._field(layers, number) for number in range(len(layers))], 1)
        energy = -(x * (field + torch.cat(self._biases()))).sum(1) / 2
        if beta is None:
            return energy, field.neg_()
        return (
            torch.lerp(self.base(x), energy, beta),
            torch.lerp(self._base_field(), field, beta[:, None]).neg_(),
        )

    def conditional(self, block: str, value: Tensor, beta: Tensor | None = None) -> Conditional:
        """The law of the position with its "odd" layers h_1, h_3, ... or its "even" ones v, h_2,
        ... drawn given the others.
        """
        layers, laws = self.layers(value), {}
        for number in range(1 if block == "odd" else 0, len(layers), 2):
            field = self._field(layers, number)
            if beta is not None:
                start = self.visible_bias if number == 0 else torch.zeros_like(field[0])
                field = torch.lerp(start, field, beta[:, None])
            laws[number] = Bernoulli(field)
        return Redrawn(layers, laws)

    @torch.no_grad()
    def initialise(self, rows: Tensor) -> None:
        """Visible biases start at the data's log odds (Hinton 2010, section 8.1), from means kept
        off 0 and 1.
        """
        self.visible_bias.copy_(torch.logit(rows.flatten(1).mean(0).clamp(0.01, 0.99)))

    @torch.no_grad()
    def with_latents(self, rows: Tensor) -> Tensor:
        """Positions `[N, D]` of rows `[N, *data_shape]` and the means of q(h) = prod_i q_i(h_i),
        near p(h | v): mean field,

            mu_l <- sigmoid(c_l + W_l mu_{l-1} + W_{l+1}' mu_{l+1}),

        odd layers and then even ones, `mean_field_steps` times; each time the layers that are set
        maximise `bound`. A pass upward comes first, its weights doubled to stand in for the layer
        above (Salakhutdinov & Larochelle 2010).
        """
        means = [rows.flatten(1)]
        for number, (weight, bias) in enumerate(
            zip(self.weights, self._biases()[1:], strict=True), 1
        ):
            doubled = 1 if number == len(self.weights) else 2
            means.append(torch.sigmoid(linear(means[-1], doubled * weight, bias)))
        for _ in range(self.mean_field_steps):
            for first in (1, 2):
                for number in range(first, len(means), 2):
                    means[number] = torch.sigmoid(self._field(means, number))
        return torch.cat(means, 1)

    def bound(self, rows: Tensor) -> Tensor:
        """A lower bound of log p(v) + log Z, `[N, *data_shape] -> [N]` nats, from the mu of
        `complete`:

            log sum_h exp(-E(v, h)) >= E_q[-E(v, h)] + H(q) = -E(v, mu) - sum_i (mu_i log mu_i + (1
            - mu_i) log(1 - mu_i))

        (Neal & Hinton 1998; Salakhutdinov & Hinton 2009). What is missing is KL(q(h) || p(h | v)).
        """
        position = self.with_latents(rows)
        mean = position[:, self.sizes[0] :]
        return (torch.special.entr(mean) + torch.special.entr(1 - mean)).sum(1) - self(position)

    def activations(self, rows: Tensor) -> Tensor:
        """The mean-field means of all hidden layers from the data up, `[N, m_1 + ... + m_L]`."""
        return self.with_latents(rows)[:, self.sizes[0] :]

    def of_rows(self, rows: Tensor) -> Tensor:
        """By `bound`."""
        return -self.bound(rows)

    def _couplings(self) -> Tensor:
        """Of the odd layers' units with the even layers', `[odd units, even units]`; 0 where layers
        are not neighbours.
        """

        def between(odd: int, even: int) -> Tensor:
            if abs(odd - even) > 1:
                return self.visible_bias.new_zeros(self.sizes[odd], self.sizes[even])
            return self.weights[even] if even < odd else self.weights[odd].T

        numbers = range(len(self.sizes))
        return torch.cat(
            [torch.cat([between(odd, even) for even in numbers[::2]], 1) for odd in numbers[1::2]]
        )

    @torch.no_grad()
    def as_rbm(self) -> BernoulliRBM:
        """The same joint law as an RBM's, the even layers visible (see `even_layers`) and the odd
        ones hidden.
        """
        even, odd = torch.cat(self._biases()[::2]), torch.cat(self._biases()[1::2])
        rbm = BernoulliRBM(even.shape, len(odd), 0.0).to(even)
        rbm.weight.copy_(self._couplings())
        rbm.visible_bias.copy_(even)
        rbm.hidden_bias.copy_(odd)
        return rbm

    def log_sum(self) -> Tensor | None:
        """log Z = logsumexp over the states o of the odd layers of c.o + sum_j softplus(b_j +
        (W'o)_j), j over the even units.

        Or the other way round, whichever are fewer; None where there are more than 2^20 of both.
        """
        weight, bias, summed = (
            self._couplings(),
            torch.cat(self._biases()[1::2]),
            torch.cat(self._biases()[::2]),
        )
        if len(summed) < len(bias):
            weight, bias, summed = weight.T, summed, bias
        if 2 ** len(bias) > ENUMERABLE_STATES:
            return None

        def log_weight(states: Tensor) -> Tensor:
            return states @ bias + softplus(torch.addmm(summed, states, weight)).sum(1)

        return log_sum_over_states(2, len(bias), log_weight, weight)
