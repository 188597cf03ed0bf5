"""The multilayer perceptron, with its gradient by hand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from pipeline.energies.deep import DeepEnergy, maybe_normalised, small


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

    def network(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        value = x.flatten(1)
        for layer in hidden:
            value = silu(layer(value))
        return last(value).squeeze(1)

    @torch.no_grad()
    def energy_and_gradient(self, x: Tensor, beta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As autograd would, with one pass forward and one back by hand: silu'(h) = s + h s (1 - s), s = sigmoid(h)."""
        *hidden, last = cast(list[nn.Linear], list(self.layers))
        flat = value = x.flatten(1)
        slopes = []
        for layer in hidden:
            before = layer(value)
            gate = torch.sigmoid(before)
            value = before.mul_(gate)
            slopes.append(torch.addcmul(gate, value, 1 - gate))
        energy = last(value).squeeze(1)
        gradient: Tensor = last.weight
        if beta is not None:
            energy, gradient = energy * beta, gradient * beta[:, None]
        for layer, slope in zip(reversed(hidden), reversed(slopes), strict=True):
            gradient = slope.mul_(gradient) @ layer.weight
        if self.box is None:
            precision = 1 / self.base_scale**2
            energy = energy.add_(flat.square().sum(1), alpha=precision / 2)
            gradient = gradient.add_(flat, alpha=precision)
        return energy, gradient.view_as(x)
