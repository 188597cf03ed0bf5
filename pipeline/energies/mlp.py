"""The multilayer perceptron, with its gradient by hand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from pipeline.energies.deep import DeepEnergy, maybe_normalised, small

silu_backward = torch.ops.aten.silu_backward


class MLPEnergy(DeepEnergy):
    """f_theta a SiLU perceptron with layers d - hidden - 1; the last layer starts small (but where
    its spectrum is normalised), so that E starts near its base."""

    def __init__(
        self,
        shape: Sequence[int],
        hidden: Sequence[int],
        base_scale: float,
        spectral_norm: bool,
        box: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(shape, base_scale, box)
        widths = [self.dimension, *hidden]
        hidden_layers = [maybe_normalised(nn.Linear(*pair), spectral_norm) for pair in pairwise(widths)]
        self.layers = nn.ModuleList([*hidden_layers, maybe_normalised(small(nn.Linear(widths[-1], 1)), spectral_norm)])
        # the same modules without nn.Module's bookkeeping, which costs small networks a few per cent
        self._linears = cast(tuple[nn.Linear, ...], tuple(self.layers))

    def network(self, x: Tensor) -> Tensor:
        *hidden, last = self._linears
        value = x.flatten(1)
        for layer in hidden:
            value = linear(value, layer.weight, layer.bias)
            value = silu(value, inplace=not value.requires_grad)  # autograd needs what is before it
        return linear(value, last.weight, last.bias).squeeze(1)

    @torch.no_grad()
    def energy_and_gradient(self, x: Tensor, beta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As autograd would, with one pass forward and one back by hand, which spares autograd's graph."""
        *hidden, last = self._linears
        inputs = _forward(x, hidden)
        energy = linear(silu(inputs[-1]), last.weight, last.bias).squeeze(1)
        if beta is not None:
            energy.mul_(beta)
        return self.with_base(energy, x), self._backward(x, inputs, hidden, last, beta)

    @torch.no_grad()
    def gradient(self, x: Tensor, beta: Tensor | None = None) -> Tensor:
        *hidden, last = self._linears
        return self._backward(x, _forward(x, hidden), hidden, last, beta)

    def slope_and_curvature(self, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """As double backward would, for less: with a_l = W_l z_{l-1} + b_l, z_l = silu(a_l), tangents t_0 = v,
        t_l = silu'(a_l) W_l t_{l-1}, and adjoints r_l = dE/dz_l,

            grad E = W_1' (silu'(a_1) r_1) + x / s^2,    v.H v = sum_l r_l . silu''(a_l) (W_l t_{l-1})^2 + |v|^2 / s^2
        """
        *hidden, last = self._linears
        value, tangent = x.flatten(1), directions.flatten(2)
        derivatives, pushed = [], []
        for layer in hidden:
            value, first, second = SiLUWithDerivatives.apply(linear(value, layer.weight, layer.bias))
            ahead = linear(tangent, layer.weight)
            tangent = first * ahead
            derivatives.append((first, second))
            pushed.append(ahead)
        adjoint: Tensor = last.weight
        curvatures = directions.new_zeros(directions.shape[:2])
        for layer, (first, second), ahead in zip(reversed(hidden), reversed(derivatives), reversed(pushed), strict=True):
            curvatures = curvatures + (adjoint * second * ahead.square()).sum(2)
            adjoint = (adjoint * first) @ layer.weight
        if self.box is None:
            adjoint = adjoint + x.flatten(1) / self.base_scale**2
            curvatures = curvatures + directions.flatten(2).square().sum(2) / self.base_scale**2
        return adjoint.view_as(x), curvatures

    def _backward(
        self, x: Tensor, inputs: list[Tensor], hidden: list[nn.Linear], last: nn.Linear, beta: Tensor | None
    ) -> Tensor:
        """The gradient [N, *shape], of E or E_beta, from the `inputs` of the SiLUs."""
        gradient: Tensor = last.weight if beta is None else last.weight * beta[:, None]
        for layer, before in zip(reversed(hidden), reversed(inputs), strict=True):
            gradient = silu_backward(gradient.expand_as(before), before) @ layer.weight
        if self.box is None:
            gradient.add_(x.flatten(1), alpha=1 / self.base_scale**2)
        return gradient.view_as(x)


class SiLUWithDerivatives(torch.autograd.Function):
    """silu(a), silu'(a), silu''(a), elementwise; its backward pass keeps `a` alone, and makes the rest anew.

    With s = sigmoid(a), u = s (1 - s), w = 1 - 2 s: silu' = s + a u, silu'' = u (2 + a w), silu''' = u (3 w + a (w^2 - 2 u)).
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(a)
        first, second, _ = _derivatives(a)
        return silu(a), first, second

    @staticmethod
    def backward(ctx: Any, value: Tensor, first: Tensor, second: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        d1, d2, d3 = _derivatives(a)
        return d1.mul_(value).addcmul_(d2, first).addcmul_(d3, second)


def _derivatives(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    s = torch.sigmoid(a)
    u, w = s * (1 - s), 1 - 2 * s
    return s + a * u, u * (2 + a * w), u * (3 * w + a * (w.square() - 2 * u))


def _forward(x: Tensor, hidden: list[nn.Linear]) -> list[Tensor]:
    """What goes into each SiLU, `[N, width]` each."""
    first, *others = hidden
    inputs = [linear(x.flatten(1), first.weight, first.bias)]
    for layer in others:
        inputs.append(linear(silu(inputs[-1]), layer.weight, layer.bias))
    return inputs
