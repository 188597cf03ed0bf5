"""The multilayer perceptron, with its gradient by hand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, silu

from pipeline.energies.base import Pull, add_gradient, add_sum
from pipeline.energies.deep import DeepEnergy, maybe_normalised, small

silu_backward = torch.ops.aten.silu_backward
FEW_COLUMNS = 8


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
        hidden_layers = [
            maybe_normalised(nn.Linear(*pair), spectral_norm) for pair in pairwise(widths)
        ]
        self.layers = nn.ModuleList(
            [*hidden_layers, maybe_normalised(small(nn.Linear(widths[-1], 1)), spectral_norm)]
        )
        # the same modules without nn.Module's bookkeeping, which costs small networks a few per
        # cent
        self._linears = cast(tuple[nn.Linear, ...], tuple(self.layers))
        self._by_hand = not spectral_norm  # whose weights are functions of what is learned

    def network(self, x: Tensor) -> Tensor:
        first, *others = self._linears
        return output(linear(x.flatten(1), first.weight, first.bias), others).squeeze(1)

    def activations(self, rows: Tensor) -> Tensor:
        """The values of the last SiLU, `[N, width]`."""
        first, *others, _ = self._linears
        return silu(silu_inputs(linear(rows.flatten(1), first.weight, first.bias), others)[-1])

    @torch.no_grad()
    def energy_and_gradient(self, x: Tensor, beta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The energies and their gradient by one pass forward and one back by hand, which spares
        autograd's graph.
        """
        first, *others, last = self._linears
        inputs = silu_inputs(linear(x.flatten(1), first.weight, first.bias), others)
        energy = linear(silu(inputs[-1]), last.weight, last.bias).squeeze(1)
        if beta is not None:
            energy.mul_(beta)
        return self.with_base(energy, x), self._backward(x, inputs, beta)

    @torch.no_grad()
    def gradient(self, x: Tensor, beta: Tensor | None = None) -> Tensor:
        first, *others, _ = self._linears
        return self._backward(
            x, silu_inputs(linear(x.flatten(1), first.weight, first.bias), others), beta
        )

    @torch.no_grad()
    def energies_and_pull(self, x: Tensor) -> tuple[Tensor, Pull] | None:
        if not self._by_hand:
            return None
        values, inputs = [x.flatten(1)], []
        *hidden, last = self._linears
        for layer in hidden:
            inputs.append(linear(values[-1], layer.weight, layer.bias))
            values.append(silu(inputs[-1]))
        energies = linear(values[-1], last.weight, last.bias).squeeze(1)

        @torch.no_grad()
        def pull(slopes: Tensor) -> None:
            pulled = slopes[:, None]
            for number in range(len(hidden), -1, -1):
                layer = self._linears[number]
                add_gradient(layer.weight, pulled, values[number])
                add_sum(layer.bias, pulled)
                if number:
                    pulled = silu_backward(pulled @ layer.weight, inputs[number - 1])

        return self.with_base(energies, x), pull

    def gradient_and_curvature(self, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """The values of double backward in half the time and memory: see `GradientAndCurvature`."""
        *hidden, last = self._linears
        tensors = (
            [layer.weight for layer in hidden],
            [layer.bias for layer in hidden],
            [last.weight],
        )
        precision = 1 / self.base_scale**2 if self.box is None else 0.0
        slope, curvatures = GradientAndCurvature.apply(
            precision, x.flatten(1), directions.flatten(2), *chain(*tensors)
        )
        return slope.view_as(x), curvatures

    def _backward(self, x: Tensor, inputs: list[Tensor], beta: Tensor | None) -> Tensor:
        """The gradient [N, *shape], of E or E_beta, from the `inputs` of the SiLUs."""
        *hidden, last = self._linears
        gradient = pull_back(
            last.weight if beta is None else last.weight * beta[:, None], inputs, hidden
        )
        return self.with_base_gradient(gradient, x)


class GradientAndCurvature(torch.autograd.Function):
    """grad E(x) [N, d] and v.H v [P, N] of a SiLU perceptron, their gradient in its weights worked
    out by hand as well.

    With a_l = W_l z_{l-1} + b_l, z_l = silu(a_l), z_0 = x, tangents t_0 = v, p_l = W_l t_{l-1}, t_l
    = silu'(a_l) p_l, and adjoints r_l = dE/dz_l, r_{l-1} = W_l' (silu'(a_l) r_l),

        grad E = r_0 + x / s^2,    v.H v = sum_l r_l . silu''(a_l) p_l^2 + |v|^2 / s^2

    Let a bar denote a gradient of the loss, k [P, N] that of v.H v. Up the layers, from that of
    r_0, with g_l = silu'(a_l) r_l,

        bar g_l = W_l bar r_{l-1},    q_l = sum_P k p_l^2
        bar r_l = silu'(a_l) bar g_l + silu''(a_l) q_l

    and down again, from bar t_L = bar z_L = 0,

        bar p_l = silu'(a_l) bar t_l + 2 k r_l silu''(a_l) p_l
        bar a_l = r_l (silu''(a_l) bar g_l + silu'''(a_l) q_l)
                  + silu'(a_l) bar z_l + silu''(a_l) sum_P p_l bar t_l
        bar t_{l-1} = W_l' bar p_l,    bar z_{l-1} = W_l' bar a_l
        bar W_l = g_l bar r_{l-1}' + bar p_l t_{l-1}' + bar a_l z_{l-1}',    bar b_l = bar a_l

    Kept between the passes are a_l, p_l and r_l alone; what is elementwise is made anew.
    """

    @staticmethod
    def forward(
        ctx: Any, precision: float, x: Tensor, v: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        depth = len(tensors) // 2
        weights, biases, adjoint = tensors[:depth], tensors[depth:-1], tensors[-1]
        inputs, pushed, adjoints = (
            [linear(x, weights[0], biases[0])],
            [linear(v, weights[0])],
            [adjoint],
        )
        for weight, bias in zip(weights[1:], biases[1:], strict=True):
            pushed.append(
                linear(silu_backward(pushed[-1], inputs[-1].expand_as(pushed[-1])), weight)
            )
            inputs.append(linear(silu(inputs[-1]), weight, bias))
        curvatures = v.square().sum(2).mul_(precision)
        for weight, a, p in zip(reversed(weights), reversed(inputs), reversed(pushed), strict=True):
            curvatures += (_second(a).mul_(adjoint) * p).mul_(p).sum(2)
            adjoint = silu_backward(adjoint.expand_as(a), a) @ weight
            adjoints.insert(0, adjoint)
        slope = adjoints.pop(0).add_(x, alpha=precision)
        ctx.save_for_backward(x, v, *weights, *inputs, *pushed, *adjoints)
        return slope, curvatures

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, curvatures: Tensor) -> tuple[Tensor | None, ...]:
        x, v, *saved = ctx.saved_tensors
        depth = len(saved) // 4
        weights, inputs, pushed, adjoints = (saved[i * depth : (i + 1) * depth] for i in range(4))
        k = curvatures[:, :, None]
        upwards, bar_inputs = [slope], []
        for weight, a, p, r in zip(weights, inputs, pushed, adjoints, strict=True):
            bar_g = linear(upwards[-1], weight)
            q = (k * p).mul_(p).sum(0)
            second = _second(a)
            bar_inputs.append(_third(a).mul_(q).addcmul_(second, bar_g).mul_(r))
            upwards.append(silu_backward(bar_g, a).addcmul_(second, q))
            del bar_g, q, second
        bar_last = upwards.pop().sum(0, keepdim=True)
        bar_weights: list[Tensor] = []
        bar_biases: list[Tensor] = []
        bar_t = bar_z = None
        for layer in reversed(range(depth)):
            a, p, r, bar_a = inputs[layer], pushed[layer], adjoints[layer], bar_inputs.pop()
            second = _second(a)
            if bar_z is not None:
                bar_a += silu_backward(bar_z, a)
                bar_z = None
                bar_a.addcmul_(second, (p * bar_t).sum(0))
            bar_p = (k * p).mul_(second.mul_(r)).mul_(2)
            del second
            if bar_t is not None:
                bar_p += silu_backward(bar_t, a.expand_as(p))
                bar_t = None
            bar_weight = silu_backward(r.expand_as(a), a).T @ upwards.pop()
            z, t = x, v
            if layer:
                below = inputs[layer - 1]
                z, t = (
                    silu(below),
                    silu_backward(pushed[layer - 1], below.expand_as(pushed[layer - 1])),
                )
            bar_weight.addmm_(bar_a.T, z).addmm_(bar_p.flatten(0, 1).T, t.flatten(0, 1))
            bar_weights.insert(0, bar_weight)
            bar_biases.insert(0, bar_a.sum(0))
            del z, t, bar_weight
            if layer:
                bar_t, bar_z = bar_p @ weights[layer], bar_a @ weights[layer]
        return None, None, None, *bar_weights, *bar_biases, bar_last


def _second(a: Tensor) -> Tensor:
    """silu''(a) = u (2 + a (1 - 2 s)), with s = sigmoid(a) and u = s (1 - s)."""
    s = torch.sigmoid(a)
    factor = torch.rsub(s, 1, alpha=2).mul_(a).add_(2)
    return factor.mul_(s.addcmul_(s, s, value=-1))


def _third(a: Tensor) -> Tensor:
    """silu'''(a) = u (3 (1 - 2 s) + a (1 - 6 u))."""
    s = torch.sigmoid(a)
    slope = torch.rsub(s, 3, alpha=6)
    u = s.addcmul_(s, s, value=-1)
    return torch.rsub(u, 1, alpha=6).mul_(a).add_(slope).mul_(u)


def output(value: Tensor, layers: Sequence[nn.Linear]) -> Tensor:
    """The outputs [N, outputs] of a SiLU and a linear layer for each of `layers`, behind the linear
    layer that gave `value` [N, width], which may be overwritten.
    """
    for layer in layers:
        value = silu(value, inplace=not value.requires_grad)  # autograd needs what is before it
        value = linear(value, layer.weight, layer.bias)
    return value


def silu_inputs(first: Tensor, layers: Sequence[nn.Linear]) -> list[Tensor]:
    """The inputs of each SiLU, `[N, width]` each: `first`, and the output of each of the hidden
    `layers` behind it.
    """
    inputs = [first]
    for layer in layers:
        inputs.append(linear(silu(inputs[-1]), layer.weight, layer.bias))
    return inputs


def pull_back(gradient: Tensor, inputs: Sequence[Tensor], hidden: Sequence[nn.Linear]) -> Tensor:
    """The gradient in x, [N, d], from that in the last SiLU's values, [N, width] or [1, width]:
    down the `hidden` layers, with the `inputs` of their SiLUs.
    """
    for layer, before in zip(reversed(hidden), reversed(inputs), strict=True):
        pulled, weight = silu_backward(gradient.expand_as(before), before), layer.weight
        # with few columns a copy that lies the other way is multiplied 2 to 5 times as fast
        few = 1 < weight.shape[1] <= FEW_COLUMNS
        gradient = linear(pulled, weight.T.contiguous()) if few else pulled @ weight
    return gradient
