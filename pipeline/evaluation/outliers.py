"""The energy as a score that tells rows of the law from others: the area under the ROC curve."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Score(NamedTuple):
    """The chance `auroc` that a row from elsewhere has more energy than one of the law, ties
    counted half: 1 tells all of them apart, 0.5 none. `standard_error` is Hanley & McNeil's; None
    where there is a single row of either kind.
    """

    auroc: float
    standard_error: float | None


def outlier_score(inside: Tensor, outside: Tensor, weights: Tensor | None = None) -> Score:
    """Returns the score of energies of rows of the law, `inside` [N], which count by their
    `weights` [N], and from elsewhere, `outside` [M].

    With A the area, Q_1 = A / (2 - A) and Q_2 = 2 A^2 / (1 + A), as where the energies are
    exponentially distributed (Hanley & McNeil 1982),

        s^2 = (A (1 - A) + (M - 1) (Q_1 - A^2) + (N - 1) (Q_2 - A^2)) / (N M)

    Of weighted rows N is (sum w)^2 / sum w^2 (Kish 1965).
    """
    from sklearn.metrics import roc_auc_score  # half a second's import, that most runs do without

    labels = np.repeat([0, 1], [len(inside), len(outside)])
    shares, own, others = None, float(len(inside)), len(outside)
    if weights is not None:
        shares = torch.cat([weights / weights.mean(), torch.ones(others).to(weights)]).numpy()
        own = float(weights.sum().square() / weights.square().sum())
    values = torch.cat([inside, outside]).double().cpu().numpy()
    area = float(roc_auc_score(labels, values, sample_weight=shares))
    if min(len(inside), others) < 2:
        return Score(area, None)
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    spread = (others - 1) * (first - area**2) + (own - 1) * (second - area**2)
    return Score(area, math.sqrt((area * (1 - area) + spread) / (own * others)))


def shuffled(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Returns `rows` [N, *shape] with each component permuted over the rows by itself: its marginal
    stays, all dependence goes.
    """
    flat = rows.flatten(1)
    order = torch.rand(flat.shape, generator=generator).argsort(0)
    return flat.gather(0, order).view_as(rows)
