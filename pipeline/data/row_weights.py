"""Rows that count more or less than others: the law learned is sum_i w_i delta(x_i) / sum_i w_i."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.common.errors import ConfigError, DataError


class RowWeights(NamedTuple):
    """The weights of a data set's rows, above 0: `held_out` [H] and `sample` [S], float64; None
    where all rows count alike.
    """

    held_out: Tensor | None = None
    sample: Tensor | None = None


def dealt(weights: np.ndarray, count: float, start: float) -> np.ndarray:
    """Returns the numbers of about `count` rows, rising, in proportion to their `weights` [N]: row
    i comes count w_i / sum w times, rounded down or up, and with `start` uniform in [0, 1) exactly
    so often on average (systematic sampling: Madow & Madow 1944).
    """
    ends = np.cumsum(weights, dtype=np.float64)
    ends *= count / ends[-1]
    numbers = np.searchsorted(ends, np.arange(start, count), side="right")
    # sums of floating-point numbers may end short of the last point
    return np.minimum(numbers, np.flatnonzero(weights)[-1])


def shuffled(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Returns the numbers of `count` rows in proportion to their `weights` [N], as `dealt` says, in
    a random order, int64 [count].
    """
    start = float(torch.rand((), generator=generator, dtype=torch.float64))
    order = torch.randperm(count, generator=generator)
    return torch.from_numpy(dealt(weights.numpy(), count, start))[order]


def mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Returns the mean of `values` [N, ...] over rows: sum_i w_i x_i / sum_i w_i."""
    if weights is None:
        return values.mean(0)
    shares = (weights / weights.sum()).to(values)
    return torch.tensordot(shares, values, 1)


def standard_error(values: Tensor, weights: Tensor | None = None) -> float | None:
    """Returns the standard error of the mean of `values` [N]; None for a single one, which tells
    nothing of it. Of weighted rows it is that of a ratio of two sums over independent rows,

        sqrt(n / (n - 1) sum_i w_i^2 (x_i - m)^2) / sum_i w_i

    (Cochran 1977, "Sampling Techniques", section 6.4), and where all weights are 1 the usual one.
    """
    count = len(values)
    if count < 2:
        return None
    if weights is None:
        return float(values.std() / math.sqrt(count))
    shares = (weights / weights.sum()).to(values)
    squares = (shares * (values - mean(values, weights))).square().sum()
    return float((squares * count / (count - 1)).sqrt())


def check_weights(weights: np.ndarray, key: str, value: object, of: Callable[[int], str]) -> None:
    """Raises `DataError` about `key` for the first of the `weights` [N] that is below 0; `of` tells
    where a row is.
    """
    below = np.flatnonzero(weights < 0)
    if len(below):
        row = int(below[0])
        remedy = f"{of(row)}: the weight {weights[row]:g} is below 0; weights are 0 or more"
        raise DataError(key, value, remedy)


def check_some(weights: np.ndarray, key: str, value: object) -> None:
    """Raises `ConfigError` about `key` where no weight is above 0."""
    if not weights.any():
        raise ConfigError(key, value, "all weights are 0; some row must have one above 0")
