"""Samples against rows, by distances alone: no energy and no Z is asked for."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.common.types import Figures
from pipeline.data.row_weights import RowWeights
from pipeline.training.likeness import energy_distance, mean_between, mean_of_pairs

UNWEIGHTED = RowWeights()
MOST = 1000
"""Rows of each kind that are looked at, at most."""
CLOSE = 0.05
"""The share of held-out rows that a memorised sample is closer to its training row than."""


def likeness(
    samples: Tensor, training: Tensor, held_out: Tensor, weights: RowWeights = UNWEIGHTED
) -> Figures:
    """Returns how like held-out rows `samples` are, each [N, *shape]: distances of both laws, and
    whether training rows were learned by heart. Rows count by their `weights`.

    Beside each distance stands the one that as many training rows have from the held-out ones, as
    the samples would have it if they were draws of the data's law: `rows_energy_distance` and
    `rows_mmd`. They are other training rows than those that neighbours are looked for among.
    """
    samples, training, held_out = (
        rows[:MOST].flatten(1).double() for rows in (samples, training, held_out)
    )
    count = min(len(samples), len(training) // 2)
    if count < 2 or len(held_out) < 2 or not bool(samples.isfinite().all()):
        return {}
    as_many, others = training[:count], training[count:]
    of_held_out = None if weights.held_out is None else weights.held_out[:MOST]
    of_rows = None if weights.sample is None else weights.sample[:count]
    figures: Figures = {}
    for name, rows, of in (("", samples, None), ("rows_", as_many, of_rows)):
        both = of, of_held_out
        figures[f"{name}energy_distance"] = energy_distance(rows, held_out, weights=both)
        figures[f"{name}mmd"] = squared_mmd(rows, held_out, both)
    return figures | memorisation(samples, others, held_out, of_held_out)


def copies(rows: Tensor, among: Tensor) -> float:
    """Returns the share of `rows` [N, *shape] that are `among` those, [M, *shape], too."""
    known = {row.numpy().tobytes() for row in among}
    return sum(row.numpy().tobytes() in known for row in rows) / max(len(rows), 1)


def squared_mmd(
    x: Tensor, y: Tensor, weights: tuple[Tensor | None, Tensor | None] = (None, None)
) -> float:
    """Returns the squared maximum mean discrepancy of the laws of `x` [N, d] and `y` [M, d] under
    the kernel k(x, y) = exp(-|x - y|^2 / (2 s^2)), s the median distance among `y`, without bias,
    so that it may be below 0 (Gretton et al. 2012, equation 3):

        E k(X, X') + E k(Y, Y') - 2 E k(X, Y)

    Rows of both count by their `weights`.
    """
    among = torch.cdist(y, y)
    scale = float(among[~torch.eye(len(y), dtype=torch.bool)].median()) if len(y) > 1 else 1.0
    scale = scale or 1.0

    def kernel(distances: Tensor) -> Tensor:
        return torch.exp(-distances.square() / (2 * scale * scale))

    of_x, of_y = weights
    within = mean_of_pairs(kernel(torch.cdist(x, x)), of_x) + mean_of_pairs(kernel(among), of_y)
    return within - 2 * mean_between(kernel(torch.cdist(x, y)), of_x, of_y)


def memorisation(
    samples: Tensor, training: Tensor, held_out: Tensor, weights: Tensor | None = None
) -> Figures:
    """Returns `memorised`, the share of `samples` that are closer to a training row than 95 % of
    the `held_out` rows are, each [N, d]: 0.05 where samples are as far as those, 1 where all are
    copies; and the median distances to the nearest training row of both. Held-out rows count by
    their `weights`.
    """
    # by differences: a copy is at 0 then
    own, others = (
        torch.cdist(rows, training, compute_mode="donot_use_mm_for_euclid_dist").min(1).values
        for rows in (samples, held_out)
    )
    if weights is None:
        close, middle = float(others.quantile(CLOSE)), float(others.median())
    else:
        close, middle = np.quantile(
            others.numpy(), [CLOSE, 0.5], weights=weights.numpy(), method="inverted_cdf"
        ).tolist()
    return {
        "memorised": float((own < close).double().mean()),
        "nearest_training_row": float(own.median()),
        "held_out_nearest_training_row": middle,
    }
