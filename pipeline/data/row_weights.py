"""Rows that count more or less than others: the law learned is sum_i w_i delta(x_i) / sum_i w_i."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class RowWeights(NamedTuple):
    """The weights of a data set's rows, above 0: `held_out` [H] and `sample` [S], float64; None
    where all rows count alike.
    """

    held_out: Tensor | None = None
    sample: Tensor | None = None
