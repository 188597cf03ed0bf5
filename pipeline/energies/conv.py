"""Residual convolutional networks on images, at one scale or the sum over several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from pipeline.common.errors import ArgumentError
from pipeline.energies.deep import DeepEnergy, maybe_normalised, small

SMALLEST = 4  # pixels: a network halves its image until the smaller side is at most this


class ConvEnergy(DeepEnergy):
    """f(x) = sum_s f_s(x average-pooled s times by 2), s < `scales`, each f_s a network of its own
    (Du et al. 2021, improved contrastive divergence).

    `shape` is (H, W) or (C, H, W). Each f_s is a 3x3 convolution, stages of one residual block
    each, pooled by 2 between stages, and a dense layer of width `hidden`. `channels` are those of
    the stages; the last one serves all further stages, and entries beyond the number of stages go
    unused. Raises `ArgumentError` where rows are no images, or too small for as many scales.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: Sequence[int],
        hidden: int,
        scales: int,
        spectral_norm: bool,
        base_scale: float,
        box: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(shape, base_scale, box)
        if len(self.shape) not in (2, 3):
            raise ArgumentError(
                "shape", self.shape, "convolutions need images, (H, W) or (C, H, W)"
            )
        self.image = (1, *self.shape) if len(self.shape) == 2 else self.shape
        sizes = [self.image[1:]]
        while len(sizes) < scales and min(sizes[-1]) >= SMALLEST:
            sizes.append(_halved(sizes[-1]))
        if scales > 1 and min(sizes[-1]) < SMALLEST:
            raise ArgumentError(
                "scales",
                scales,
                f"images of {self.image[1:]} shrink below {SMALLEST} pixels on a side",
            )
        self.networks = nn.ModuleList(
            _network(self.image[0], size, channels, hidden, spectral_norm) for size in sizes
        )
        # a quarter to a third faster on CPUs (torch's stubs lack this form of `to`)
        self.networks.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def network(self, x: Tensor) -> Tensor:
        first, *coarser = self.networks
        image = x.flatten(1).unflatten(
            1, self.image
        )  # by way of rows, or gradients of RGB would come in channels_last too
        value = first(image)
        for network in coarser:
            image = avg_pool2d(image, 2, ceil_mode=True)
            value = value + network(image)
        return value.squeeze(1)

    def activations(self, rows: Tensor) -> Tensor:
        """The values of the last SiLU of each scale, `[N, scales hidden]`."""
        image, found = rows.flatten(1).unflatten(1, self.image), []
        for number, network in enumerate(self.networks):
            if number:
                image = avg_pool2d(image, 2, ceil_mode=True)
            features, head = cast(nn.Sequential, network)
            found.append(cast(nn.Sequential, head)[:-1](features(image)))
        return torch.cat(found, 1)


class Residual(nn.Module):
    """x + conv(silu(conv(silu(x)))), `[N, inputs, H, W] -> [N, outputs, H, W]`: pre-activation (He
    et al. 2016).
    """

    def __init__(self, inputs: int, outputs: int, spectral_norm: bool) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.SiLU(),
            maybe_normalised(nn.Conv2d(inputs, outputs, 3, padding=1), spectral_norm),
            nn.SiLU(),
            maybe_normalised(nn.Conv2d(outputs, outputs, 3, padding=1), spectral_norm),
        )
        same = inputs == outputs
        self.shortcut = (
            nn.Identity()
            if same
            else maybe_normalised(nn.Conv2d(inputs, outputs, 1, bias=False), spectral_norm)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.branch(x)


def _network(
    inputs: int, size: Sequence[int], channels: Sequence[int], hidden: int, spectral_norm: bool
) -> nn.Sequential:
    """One f_s, `[N, inputs, *size] -> [N, 1]`, as (features, head)."""
    width, *wider = channels
    features: list[nn.Module] = [
        maybe_normalised(nn.Conv2d(inputs, width, 3, padding=1), spectral_norm),
        Residual(width, width, spectral_norm),
    ]
    while min(size) > SMALLEST:
        size, inputs = _halved(size), width
        width, *wider = wider or [width]
        features += [nn.AvgPool2d(2, ceil_mode=True), Residual(inputs, width, spectral_norm)]
    head = nn.Sequential(
        nn.SiLU(),
        nn.Flatten(),
        maybe_normalised(nn.Linear(width * math.prod(size), hidden), spectral_norm),
        nn.SiLU(),
        maybe_normalised(small(nn.Linear(hidden, 1)), spectral_norm),
    )
    return nn.Sequential(nn.Sequential(*features), head)


def _halved(size: Sequence[int]) -> tuple[int, ...]:
    """The size of an image of `size` pooled by 2, odd sides rounded up."""
    return tuple(-(-side // 2) for side in size)
