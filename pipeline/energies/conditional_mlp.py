"""The conditional perceptron, with its gradient by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from pipeline.energies.deep import DeepEnergy, small
from pipeline.energies.given import ConditionalEnergy
from pipeline.energies.mlp import output, pull_back, silu_inputs


class ConditionalMLP(ConditionalEnergy, DeepEnergy):
    """E(x | c) = f_theta([x, c]) + E_0(x), f_theta a SiLU perceptron that sees a position and its
    context side by side.

    On R^d E_0 is the Gaussian base term of scale `base_scale`; in a `box` there is none. A context
    enters in the first layer, W_x x + W_c c + b: its encoding is W_c c + b, [N, width]. The last
    layer starts small, so that E starts near its base.
    """

    def __init__(
        self,
        shape: Sequence[int],
        context_shape: Sequence[int],
        hidden: Sequence[int],
        base_scale: float,
        box: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(shape, context_shape, base_scale=base_scale, box=box)
        widths = [self.dimension, *hidden]
        self.from_context = nn.Linear(math.prod(self.context_shape), widths[1])
        layers = [nn.Linear(*pair, bias=depth > 0) for depth, pair in enumerate(pairwise(widths))]
        self.layers = nn.ModuleList([*layers, small(nn.Linear(widths[-1], 1))])
        # the same modules without nn.Module's bookkeeping, as in `MLPEnergy`
        self._linears = cast(tuple[nn.Linear, ...], tuple(self.layers))

    def encode(self, context: Tensor) -> Tensor:
        return linear(
            context.reshape(context.shape[0], -1), self.from_context.weight, self.from_context.bias
        )

    def of(self, x: Tensor, encoding: Tensor) -> Tensor:
        first, *others = self._linears
        value = torch.addmm(encoding, x.flatten(1), first.weight.T)
        return self.with_base(output(value, others).squeeze(1), x)

    @torch.no_grad()
    def gradient_of(self, x: Tensor, encoding: Tensor) -> tuple[Tensor, Tensor]:
        """The energies and their gradient by hand, as autograd would have them."""
        *hidden, last = self._linears
        inputs = silu_inputs(torch.addmm(encoding, x.flatten(1), hidden[0].weight.T), hidden[1:])
        energy = linear(silu(inputs[-1]), last.weight, last.bias).squeeze(1)
        return self.with_base(energy, x), self.with_base_gradient(
            pull_back(last.weight, inputs, hidden), x
        )
