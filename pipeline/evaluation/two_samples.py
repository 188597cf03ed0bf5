"""Samples against rows, by distances alone: no energy and no Z is asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.common.types import Figures
from pipeline.training.likeness import energy_distance, mean_of_pairs

MOST = 1000
"""Rows of each kind that are looked at, at most."""
CLOSE = 0.05
"""The share of held-out rows that a memorised sample is closer to its training row than."""


def likeness(samples: Tensor, training: Tensor, held_out: Tensor) -> Figures:
    """Returns how like held-out rows `samples` are, each [N, *shape]: distances of both laws, and
    whether training rows were learned by heart.

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
    figures: Figures = {}
    for name, rows in (("", samples), ("rows_", as_many)):
        figures[f"{name}energy_distance"] = energy_distance(rows, held_out)
        figures[f"{name}mmd"] = squared_mmd(rows, held_out)
    return figures | memorisation(samples, others, held_out)


def copies(rows: Tensor, among: Tensor) -> float:
    """Returns the share of `rows` [N, *shape] that are `among` those, [M, *shape], too."""
    known = {row.numpy().tobytes() for row in among}
    return sum(row.numpy().tobytes() in known for row in rows) / max(len(rows), 1)


def squared_mmd(x: Tensor, y: Tensor) -> float:
    """Returns the squared maximum mean discrepancy of the laws of `x` [N, d] and `y` [M, d] under
    the kernel k(x, y) = exp(-|x - y|^2 / (2 s^2)), s the median distance among `y`, without bias,
    so that it may be below 0 (Gretton et al. 2012, equation 3):

        E k(X, X') + E k(Y, Y') - 2 E k(X, Y)
    """
    among = torch.cdist(y, y)
    scale = float(among[~torch.eye(len(y), dtype=torch.bool)].median()) if len(y) > 1 else 1.0
    scale = scale or 1.0

    def kernel(distances: Tensor) -> Tensor:
        return torch.exp(-distances.square() / (2 * scale * scale))

    within = mean_of_pairs(kernel(torch.cdist(x, x))) + mean_of_pairs(kernel(among))
    return within - 2 * float(kernel(torch.cdist(x, y)).mean())


def memorisation(samples: Tensor, training: Tensor, held_out: Tensor) -> Figures:
    """Returns `memorised`, the share of `samples` that are closer to a training row than 95 % of
    the `held_out` rows are, each [N, d]: 0.05 where samples are as far as those, 1 where all are
    copies; and the median distances to the nearest training row of both.
    """
    # by differences: a copy is at 0 then
    own, others = (
        torch.cdist(rows, training, compute_mode="donot_use_mm_for_euclid_dist").min(1).values
        for rows in (samples, held_out)
    )
    return {
        "memorised": float((own < others.quantile(CLOSE)).double().mean()),
        "nearest_training_row": float(own.median()),
        "held_out_nearest_training_row": float(others.median()),
    }
