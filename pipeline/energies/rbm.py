"""The restricted Boltzmann machine with binary visible and hidden units."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from pipeline.energies.base import Energy

ENUMERABLE_UNITS = 20


class BernoulliRBM(Energy):
    """E(v, h) = -b.v - c.h - v.W h over v in {0,1}^d, h in {0,1}^m (Smolensky 1986; Hinton 2010).

    The position is v alone, with the hidden units summed out (the free energy):

        E(v) = -b.v - sum_j softplus(c_j + v.W_j)

    Gibbs sampling sweeps h given v, then v given h, and so leaves p(v) invariant.
    """

    binary = True
    blocks = ("hidden", "visible")

    def __init__(self, shape: Sequence[int], hidden: int, weight_scale: float) -> None:
        super().__init__(shape)
        self.weight = nn.Parameter(weight_scale * torch.randn(hidden, self.dimension))
        self.visible_bias = nn.Parameter(torch.zeros(self.dimension))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))

    def forward(self, x: Tensor) -> Tensor:
        v = x.flatten(1)
        return -(v @ self.visible_bias) - softplus(linear(v, self.weight, self.hidden_bias)).sum(1)

    def conditional(self, block: str, value: Tensor) -> Tensor:
        """p(h_j = 1 | v) `[N, m]` for "hidden", p(v_i = 1 | h) `[N, *shape]` for "visible"."""
        if block == "hidden":
            return torch.sigmoid(linear(value.flatten(1), self.weight, self.hidden_bias))
        return torch.sigmoid(torch.addmm(self.visible_bias, value, self.weight)).view(-1, *self.shape)

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        uniform = torch.rand((count, *self.shape), generator=generator, device=generator.device)
        return (uniform < 0.5).to(uniform.dtype)

    @torch.no_grad()
    def initialise(self, mean: Tensor) -> None:
        """Visible biases start at the data's log odds (Hinton 2010, section 8.1), from means kept off 0 and 1."""
        self.visible_bias.copy_(torch.logit(mean.flatten().clamp(0.01, 0.99)))

    @torch.no_grad()
    def log_partition(self) -> float | None:
        """log Z = logsumexp over the states of the smaller layer, the other one summed out; float64.

        None where both layers have more than 20 units.
        """
        weight, b, c = self.weight.double(), self.visible_bias.double(), self.hidden_bias.double()
        if weight.shape[0] > weight.shape[1]:
            weight, b, c = weight.T, c, b
        units = weight.shape[0]
        if units > ENUMERABLE_UNITS:
            return None
        chunks = []
        for low in range(0, 2**units, 2**14):
            numbers = torch.arange(low, min(low + 2**14, 2**units), device=weight.device)
            states = (numbers[:, None] >> torch.arange(units, device=weight.device) & 1).double()
            chunks.append(torch.logsumexp(states @ c + softplus(states @ weight + b).sum(1), 0))
        return float(torch.logsumexp(torch.stack(chunks), 0))
