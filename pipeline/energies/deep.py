"""Deep energies on R^d: E(x) = f_theta(x) + |x|^2 / (2 s^2).

The Gaussian base term of scale s keeps Z finite where the network alone may have none. Networks use SiLU, which is smooth:
Langevin dynamics needs a gradient that is Lipschitz, and ReLU energies are piecewise flat (Du & Mordatch 2019, appendix; Du
et al. 2021 use Swish = SiLU). Spectral normalisation (Miyato et al. 2018) bounds the slope of f and so the drift.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.nn.utils.parametrizations import spectral_norm as spectrally_normalised

from pipeline.energies.base import Energy
from pipeline.errors import ConfigError


class DeepEnergy(Energy):
    """A network `[N, *shape] -> [N]` plus the Gaussian base term; the base is also where chains start."""

    def __init__(self, shape: Sequence[int], base_scale: float) -> None:
        super().__init__(shape)
        self.base_scale = base_scale

    def network(self, x: Tensor) -> Tensor:
        """f_theta(x), `[N, *shape] -> [N]`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) + x.flatten(1).square().sum(1) / (2 * self.base_scale**2)

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        return self.base_scale * torch.randn((count, *self.shape), generator=generator, device=generator.device)


class MLPEnergy(DeepEnergy):
    """f_theta a SiLU perceptron with layers d - hidden - 1; the last layer starts small (but where
    its spectrum is normalised), so that E starts near its base."""

    def __init__(self, shape: Sequence[int], hidden: Sequence[int], base_scale: float, spectral_norm: bool) -> None:
        super().__init__(shape, base_scale)
        widths = [self.dimension, *hidden]
        hidden_layers = [_maybe(nn.Linear(*pair), spectral_norm) for pair in pairwise(widths)]
        self.layers = nn.ModuleList([*hidden_layers, _maybe(_small(nn.Linear(widths[-1], 1)), spectral_norm)])

    def network(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        value = x.flatten(1)
        for layer in hidden:
            value = silu(layer(value))
        return last(value).squeeze(1)

    @torch.no_grad()
    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As autograd would, with one pass forward and one back by hand: silu'(h) = s + h s (1 - s), s = sigmoid(h)."""
        *hidden, last = cast(list[nn.Linear], list(self.layers))
        flat = value = x.flatten(1)
        slopes = []
        for layer in hidden:
            before = layer(value)
            gate = torch.sigmoid(before)
            value = before.mul_(gate)
            slopes.append(torch.addcmul(gate, value, 1 - gate))
        precision = 1 / self.base_scale**2
        energy = last(value).squeeze(1).add_(flat.square().sum(1), alpha=precision / 2)
        gradient: Tensor = last.weight
        for layer, slope in zip(reversed(hidden), reversed(slopes), strict=True):
            gradient = slope.mul_(gradient) @ layer.weight
        return energy, gradient.add_(flat, alpha=precision).view_as(x)


class ConvEnergy(DeepEnergy):
    """f_theta of 3x3 convolutions (the first at full size, each further one halving it) and a dense layer.

    `shape` is (H, W) or (C, H, W).
    """

    def __init__(
        self, shape: Sequence[int], channels: Sequence[int], hidden: int, base_scale: float, spectral_norm: bool
    ) -> None:
        super().__init__(shape, base_scale)
        if len(self.shape) not in (2, 3):
            raise ConfigError("energy", "conv", f"convolutions need images; rows of shape {self.shape} suit energy=mlp")
        self.image = (1, *self.shape) if len(self.shape) == 2 else self.shape
        size, inputs = self.image[1:], self.image[0]
        layers: list[nn.Module] = []
        for number, outputs in enumerate(channels):
            stride = 1 if number == 0 else 2
            layers += [_maybe(nn.Conv2d(inputs, outputs, 3, stride, padding=1), spectral_norm), nn.SiLU()]
            inputs, size = outputs, tuple(math.ceil(side / stride) for side in size)
        dense = nn.Linear(inputs * math.prod(size), hidden)
        layers += [nn.Flatten(), _maybe(dense, spectral_norm), nn.SiLU(), _maybe(_small(nn.Linear(hidden, 1)), spectral_norm)]
        self.layers = nn.Sequential(*layers)

    def network(self, x: Tensor) -> Tensor:
        return self.layers(x.view(-1, *self.image)).squeeze(1)


@torch.no_grad()
def _small(layer: nn.Linear) -> nn.Linear:
    layer.weight.mul_(0.1)
    layer.bias.zero_()
    return layer


def _maybe(layer: nn.Module, spectral_norm: bool) -> nn.Module:
    return spectrally_normalised(layer) if spectral_norm else layer


@torch.no_grad()
def iterate_spectral_norms(energy: nn.Module) -> None:
    """One power iteration per spectrally normalised layer (Miyato et al. 2018, algorithm 1).

    The learner calls it once a step, after the update: forward passes leave the buffers alone, so that every copy of one
    version is the same function.
    """
    for layer in energy.modules():
        if nn.utils.parametrize.is_parametrized(layer, "weight"):
            layer.train()
            _ = layer.weight
            layer.eval()
