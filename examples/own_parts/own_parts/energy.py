"""A sum of smooth ridges: an energy for energy=custom."""

import math
from collections.abc import Sequence

from torch import Tensor, nn


class Ridges(nn.Module):
    """f(x) = sum_k a_k cos(w_k.x + b_k), `[N, *shape] -> [N]` nats."""

    def __init__(self, shape: Sequence[int], ridges: int) -> None:
        super().__init__()
        self.filters = nn.Linear(math.prod(shape), ridges)
        self.heights = nn.Linear(ridges, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = self.heights(self.filters(x.flatten(1)).cos())[:, 0]
        return values


def make(shape: Sequence[int], ridges: int = 64) -> nn.Module:
    """The entry point: called with a row's shape and with `energy.options`."""
    return Ridges(shape, ridges)
