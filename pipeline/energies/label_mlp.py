"""The joint energy of a position and its label: a classifier and a generator in one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from pipeline.common.errors import ArgumentError
from pipeline.energies.arguments import positions
from pipeline.energies.base import Energy
from pipeline.energies.deep import DeepEnergy, small
from pipeline.energies.given import ConditionalEnergy
from pipeline.energies.mlp import output, pull_back, silu_inputs


class LabelMLP(ConditionalEnergy, DeepEnergy):
    """E(x, y) = -f_theta(x)[y] + E_0(x), y in {0, ..., K-1}, f_theta a SiLU perceptron with K
    outputs (Grathwohl et al. 2020).

    p(y | x) = softmax f(x), a classifier; and with the label summed out, as an energy of positions
    alone,

        E(x) = -logsumexp_y f(x)[y] + E_0(x)

    Contexts are labels, `[N]` or `[N, 1]`, whole numbers as floats. With `class_conditional`,
    `given(labels)` is E(x, y) as an energy of x, whose law is p(x | y); without, it is E(x),
    whatever the labels; `of_class(labels)` is E(x, y) in either case. The last layer starts small,
    so that E starts near its base. Raises `ArgumentError` where contexts are no labels.
    """

    def __init__(
        self,
        shape: Sequence[int],
        context_shape: Sequence[int],
        hidden: Sequence[int],
        classes: int,
        class_conditional: bool,
        base_scale: float,
        box: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(shape, context_shape, base_scale=base_scale, box=box)
        if math.prod(self.context_shape) != 1:
            raise ArgumentError(
                "context_shape",
                self.context_shape,
                "a label is one number a row; contexts of another shape suit a conditional energy",
            )
        self.class_conditional, self.classes = class_conditional, classes
        widths = [self.dimension, *hidden]
        self.layers = nn.ModuleList(
            [
                *(nn.Linear(*pair) for pair in pairwise(widths)),
                small(nn.Linear(widths[-1], classes)),
            ]
        )
        # the same modules without nn.Module's bookkeeping, as in `MLPEnergy`
        self._linears = cast(tuple[nn.Linear, ...], tuple(self.layers))

    def given(self, context: Tensor | None) -> Energy:
        return self.of_class(context) if self.class_conditional and context is not None else self

    def of_class(self, labels: Tensor) -> Energy:
        """E(x, y) as an energy of positions under the `labels` y `[N]`: its law is p(x | y)."""
        return self.bound(labels)

    def forward(self, x: Tensor) -> Tensor:
        """E(x), the label summed out, `[N, *shape] -> [N]` nats."""
        return self.with_base(self.network(x), x)

    def label_logits(self, x: Tensor) -> Tensor:
        """f(x) = log p(y | x) up to a constant in y, `[N, *shape] -> [N, K]`."""
        return self._logits(positions(self, x) if self.guarded else x)

    def _logits(self, x: Tensor) -> Tensor:
        first, *others = self._linears
        return output(linear(x.flatten(1), first.weight, first.bias), others)

    def activations(self, rows: Tensor) -> Tensor:
        """The values of the last SiLU, `[N, width]`."""
        first, *others, _ = self._linears
        return silu(silu_inputs(linear(rows.flatten(1), first.weight, first.bias), others)[-1])

    def network(self, x: Tensor) -> Tensor:
        return -self._logits(x).logsumexp(1)

    def encode(self, context: Tensor) -> Tensor:
        return context.flatten().long()

    def of(self, x: Tensor, encoding: Tensor) -> Tensor:
        return self.with_base(-self._logits(x).gather(1, encoding[:, None])[:, 0], x)

    @torch.no_grad()
    def energy_and_gradient(self, x: Tensor, beta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The energies and their gradient by hand: grad E = -sum_y p(y | x) grad f(x)[y] + grad
        E_0.
        """
        inputs, logits = self._inputs_and_logits(x)
        energy = -logits.logsumexp(1)
        shares = logits.softmax(1)
        if beta is not None:
            energy, shares = beta * energy, beta[:, None] * shares
        return self.with_base(energy, x), self._backward(
            x, inputs, shares @ self._linears[-1].weight
        )

    @torch.no_grad()
    def gradient_of(self, x: Tensor, encoding: Tensor) -> tuple[Tensor, Tensor]:
        """The energies and their gradient by hand: grad E = -grad f(x)[y] + grad E_0."""
        inputs, logits = self._inputs_and_logits(x)
        energy = -logits.gather(1, encoding[:, None])[:, 0]
        return self.with_base(energy, x), self._backward(
            x, inputs, self._linears[-1].weight.index_select(0, encoding)
        )

    def _inputs_and_logits(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The inputs of each SiLU, and f(x)."""
        first, *others, last = self._linears
        inputs = silu_inputs(linear(x.flatten(1), first.weight, first.bias), others)
        return inputs, linear(silu(inputs[-1]), last.weight, last.bias)

    def _backward(self, x: Tensor, inputs: Sequence[Tensor], gradient: Tensor) -> Tensor:
        """grad E [N, *shape], from that of -(E - E_0) in the last SiLU's values, [N, width]."""
        return self.with_base_gradient(pull_back(gradient, inputs, self._linears[:-1]).neg_(), x)
