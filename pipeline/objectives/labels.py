"""The classifier that is hidden in a joint energy of a position and its label."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch.nn.functional import cross_entropy

from pipeline.energies.base import Energy
from pipeline.energies.label_mlp import LabelMLP
from pipeline.objectives.base import Objective, Part, PositiveSide


class LabelLikelihood(Objective):
    """loss = -mean_i log p(y_i | x_i),   p(y | x) = exp(-E(x, y)) / sum_k exp(-E(x, k))

    The discriminative half of a joint model, exactly normalised; beside a loss for p(x) it makes
    one energy a classifier and a generator at once, log p(x, y) = log p(x) + log p(y | x)
    (Grathwohl et al. 2020).
    """

    def of_positives(self, energy: Energy, positives: PositiveSide) -> Iterator[Part]:
        """One part, label: nats a row. The labels are the rows' contexts."""
        assert positives.context is not None
        logits = cast(LabelMLP, energy).label_logits(positives.position)
        yield Part(
            "label",
            cross_entropy(logits, positives.context.flatten().long(), reduction="sum"),
            len(logits),
        )
