"""The fully visible Boltzmann machine."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.energies.base import Energy
from pipeline.energies.discrete import enumerated


class QuadraticBinary(Energy):
    """E(x) = -x.W x / 2 - b.x, x in {0, 1}^d, W symmetric with zero diagonal (Hinton & Sejnowski
    1983, no hidden units).

    W is the symmetric part of the parameter `weight` [d, d] off its diagonal; its entries start at
    N(0, `weight_scale`^2).
    """

    undecayed = ("bias",)
    off_diagonal: Tensor

    def __init__(self, shape: Sequence[int], weight_scale: float) -> None:
        super().__init__(shape, levels=2)
        weight = weight_scale * torch.randn(self.dimension, self.dimension)
        self.weight = nn.Parameter((weight + weight.T) / math.sqrt(2))
        self.bias = nn.Parameter(torch.zeros(self.dimension))
        self.register_buffer("off_diagonal", 1 - torch.eye(self.dimension), persistent=False)

    def symmetric(self) -> Tensor:
        """W, `[d, d]`."""
        return (self.weight + self.weight.T) / 2 * self.off_diagonal

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return -(flat @ self.symmetric() * flat).sum(1) / 2 - flat @ self.bias

    @torch.no_grad()
    def energy_and_gradient(self, x: Tensor, beta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """grad E = -(W x + b), by hand; both times `beta` [N], for E_0 = 0. E is linear in each
        x_i, so the change on flipping x_i is exactly (1 - 2 x_i) grad_i E.
        """
        flat = x.flatten(1)
        pull = flat @ self.symmetric()
        energy = -(flat * pull).sum(1) / 2 - flat @ self.bias
        gradient = -(pull + self.bias)
        if beta is not None:
            energy, gradient = beta * energy, beta[:, None] * gradient
        return energy, gradient.view_as(x)

    @torch.no_grad()
    def initialise(self, rows: Tensor) -> None:
        """Biases at the data's log odds, from means kept off 0 and 1."""
        self.bias.copy_(torch.logit(rows.flatten(1).mean(0).clamp(0.01, 0.99)))

    def log_sum(self) -> Tensor | None:
        return enumerated(self)
