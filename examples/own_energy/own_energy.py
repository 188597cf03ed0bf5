"""A product of Student-t experts: any `nn.Module` from `[N, *shape]` to `[N]` (nats) will do."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class StudentExperts(nn.Module):
    """f(x) = sum_k a_k log(1 + (w_k.x + b_k)^2 / 2), a_k > 0 (Welling, Hinton & Osindero 2003)."""

    def __init__(self, shape: Sequence[int], experts: int) -> None:
        super().__init__()
        self.filters = nn.Linear(math.prod(shape), experts)
        self.log_weights = nn.Parameter(torch.full((experts,), -1.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.log1p(self.filters(x.flatten(1)).square() / 2) @ self.log_weights.exp()


def make(shape: Sequence[int], experts: int = 128) -> nn.Module:
    """The entry point: called with a row's shape and with `energy.options`."""
    return StudentExperts(shape, experts)
