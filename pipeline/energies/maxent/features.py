"""Feature maps phi, `[N, *shape] -> [N, F]`: what a maximum-entropy model is told of a position
(`exponential_family`).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.common.errors import ArgumentError
from pipeline.energies.lattice import neighbours


class FeatureMap(nn.Module):
    """`forward(x)`: `[N, *shape] -> [N, F]`; `names` are for people, one a feature.

    `multilinear`: it is defined on the one-hot encoding as well, linear in each component's, so
    that a gradient there gives the exact change of phi on setting one component to another level.
    """

    names: tuple[str, ...]
    multilinear = True

    def of_one_hot(self, encoded: Tensor) -> Tensor:
        """phi of `encoded` [N, d, q], `[N, F]`."""
        raise NotImplementedError


class ComponentFeatures(FeatureMap):
    """G functions of each component alone, phi_(i,g)(x) = f_g(x_i): those of component 0 first."""

    def of_values(self, values: Tensor) -> Tensor:
        """f of `[...]` values, `[..., G]`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.of_values(x.flatten(1)).flatten(1)

    def of_one_hot(self, encoded: Tensor) -> Tensor:
        return (encoded @ self.of_values(_levels_of(encoded))).flatten(1)


class Polynomial(ComponentFeatures):
    """x_i, x_i^2, ..., x_i^degree."""

    def __init__(self, shape: Sequence[int], degree: int) -> None:
        super().__init__()
        self.degree = degree
        powers = ["", *(f"^{power}" for power in range(2, degree + 1))]
        self.names = tuple(
            component + power for component in component_names(shape) for power in powers
        )

    def of_values(self, values: Tensor) -> Tensor:
        return torch.stack([values**power for power in range(1, self.degree + 1)], -1)


class Histogram(ComponentFeatures):
    """Indicators [x_i in bin b] of `bins` equal parts of [low, high]; its end belongs to the last
    one.

    Piecewise constant: of no help to a kernel that follows gradients, which stays exact all the
    same. Moments of one component add up to the probability of [low, high], so where that is the
    whole domain they must add up to 1. Raises `ArgumentError` unless `low` is below `high`.
    """

    def __init__(self, shape: Sequence[int], low: float, high: float, bins: int) -> None:
        super().__init__()
        if low >= high:
            raise ArgumentError(
                "features", f"low {low:g}, high {high:g}", "a histogram needs low < high"
            )
        self.low, self.high, self.bins = low, high, bins
        edges = [f"{low + (high - low) * b / bins:.4g}" for b in range(bins + 1)]
        self.names = tuple(
            f"{name} in [{a}, {b})"
            for name in component_names(shape)
            for a, b in itertools.pairwise(edges)
        )

    def of_values(self, values: Tensor) -> Tensor:
        position = (values - self.low) * (self.bins / (self.high - self.low))
        index = torch.where(values == self.high, self.bins - 1.0, position.floor())
        return (index[..., None] == torch.arange(self.bins, device=values.device)).to(values.dtype)


class Pairs(FeatureMap):
    """Products x_i x_j, i < j: of all pairs, or of nearest neighbours on the grid that `shape` is
    (its sides not joined). Raises `ArgumentError` where there are no pairs.
    """

    first: Tensor
    second: Tensor

    def __init__(self, shape: Sequence[int], neighbours_only: bool) -> None:
        super().__init__()
        size = math.prod(shape)
        first, second = (
            neighbours(shape, False) if neighbours_only else torch.triu_indices(size, size, 1)
        )
        if not len(first):
            raise ArgumentError(
                "features", "pairs", f"a position of shape {list(shape)} has no two components"
            )
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("second", second, persistent=False)
        names = component_names(shape)
        self.names = tuple(
            f"{names[i]} {names[j]}" for i, j in zip(first.tolist(), second.tolist(), strict=True)
        )

    def _of_flat(self, flat: Tensor) -> Tensor:
        return flat.index_select(1, self.first) * flat.index_select(1, self.second)

    def forward(self, x: Tensor) -> Tensor:
        return self._of_flat(x.flatten(1))

    def of_one_hot(self, encoded: Tensor) -> Tensor:
        return self._of_flat(encoded @ _levels_of(encoded))


class GivenFeatures(FeatureMap):
    """A user's own function, `[N, *shape] -> [N, F]`, a module or any other callable; with `names`
    where it has them.

    Kernels that follow gradients use those that autograd finds, 0 where there are none. A module's
    parameters stay as they are, for a copy of it is kept; a function that is none works in
    float32. Raises `ArgumentError` where it is not of that form.
    """

    multilinear = False

    def __init__(self, function: Callable[[Tensor], Tensor], example: Tensor, called: str) -> None:
        super().__init__()
        self.function = (
            copy.deepcopy(function).requires_grad_(False)
            if isinstance(function, nn.Module)
            else function
        )
        wanted = (
            f"must map [{len(example)}, {', '.join(map(str, example.shape[1:]))}] to"
            f" [{len(example)}, F]"
        )
        try:
            with torch.no_grad():
                value = self.function(example)
        except Exception as error:
            raise ArgumentError("features", called, f"{wanted}; it failed ({error})") from error
        if (
            not isinstance(value, Tensor)
            or value.ndim != 2
            or len(value) != len(example)
            or not value.shape[1]
        ):
            given = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ArgumentError("features", called, f"{wanted}; it gave {given}")
        names = getattr(function, "names", None) or [
            f"{called}[{number}]" for number in range(value.shape[1])
        ]
        if len(names) != value.shape[1]:
            remedy = f"has {len(names)} names for {value.shape[1]} features"
            raise ArgumentError("features", called, remedy)
        self.names = tuple(names)

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.function(x if isinstance(self.function, nn.Module) else x.float())
        return value.to(x.dtype)


def component_names(shape: Sequence[int]) -> list[str]:
    """x of a single component, else x[i] or x[i,j], in the order that a position is flattened."""
    if math.prod(shape) == 1:
        return ["x"]
    return [f"x[{','.join(map(str, index))}]" for index in itertools.product(*map(range, shape))]


def declare(shape: Sequence[int], declared: dict[str, Any], example: Tensor) -> FeatureMap:
    """The map that one entry of a family's features declares; `example` [N, *shape] is what a
    user's function is tried on. An entry of kind "custom" holds the "function" and its "name".

    Raises `ArgumentError` where there are no such features.
    """
    options = {key: value for key, value in declared.items() if key != "kind"}
    match declared["kind"]:
        case "means":
            return Polynomial(shape, 1)
        case "polynomial":
            return Polynomial(shape, **options)
        case "histogram":
            return Histogram(shape, **options)
        case "pairs":
            return Pairs(shape, options["neighbours"])
        case _:
            return GivenFeatures(options["function"], example, options["name"])


def _levels_of(encoded: Tensor) -> Tensor:
    """0, ..., q-1 like `encoded` [..., q]."""
    return torch.arange(encoded.shape[-1], dtype=encoded.dtype, device=encoded.device)
