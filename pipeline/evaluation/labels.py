"""The judgement of a joint energy of positions and labels beside the likelihood of positions: p(y |
x) and p(x | y).
"""

from __future__ import annotations

import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn.functional import cross_entropy

from pipeline.common.types import Figures
from pipeline.data.base import DataSet
from pipeline.data.row_weights import mean
from pipeline.energies.label_mlp import LabelMLP

NEIGHBOURS = 5


@torch.no_grad()
def label_figures(energy: LabelMLP, data: DataSet) -> Figures:
    """Returns the accuracy of argmax_y p(y | x) on held-out rows as they are, without noise, and
    the mean log p(y | x), nats; beside the share of the commonest label.
    """
    assert data.context is not None
    labels = data.context.held_out.flatten().long()
    logits, weights = energy.label_logits(data.held_out), data.row_weights.held_out
    total = len(labels) if weights is None else weights.sum()
    losses = cross_entropy(logits, labels, reduction="none")
    return {
        "test_accuracy": float(mean((logits.argmax(1) == labels).float(), weights)),
        "test_label_log_likelihood": -float(mean(losses, weights)),
        "commonest_label": float(labels.bincount(weights).max() / total),
    }


def recognised(samples: Tensor, labels: Tensor, data: DataSet) -> float:
    """Returns the share of samples `[M, *shape]` that most of the 5 nearest training rows say are
    of the class that they were drawn for, `labels` [M]: how legible they are to a judge that is not
    the model. Where there are fewer rows, all of them judge.
    """
    assert data.context is not None
    judge = KNeighborsClassifier(min(NEIGHBOURS, len(data.sample))).fit(
        data.sample.flatten(1).numpy(), data.context.sample.flatten().numpy()
    )
    return float((judge.predict(samples.flatten(1).numpy()) == labels.numpy()).mean())
