"""A classifier that is a density of rows as well."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d, validate_data

from pipeline.common.errors import ArgumentError
from pipeline.energies.label_mlp import LabelMLP
from pipeline.estimators.base import LEAST_ROWS, ScaledEstimator
from pipeline.estimators.training import Settings


class EBMClassifier(ClassifierMixin, ScaledEstimator):
    """p(y | x) of one energy of rows and labels, E(x, y) = -f(x)[y] + |x|^2 / 2, learned by the
    likelihood of the label and, weighted by `generative`, by that of the row (Grathwohl et al.
    2020); with `generative` 0 by the label's alone.

    The other parameters are those of `EBM`. Fitted: `classes_`, `energy_`, `scaler_`, `summary_`.
    """

    def __init__(
        self,
        *,
        hidden: tuple[int, ...] = (64, 64),
        generative: float = 0.1,
        steps: int = 500,
        learning_rate: float = 0.003,
        batch_size: int = 128,
        held_out: float = 0.1,
        random_state: Any = None,
        cluster: str = "inline",
        output: str | None = None,
        settings: Settings | None = None,
        verbose: int = 0,
    ) -> None:
        self.hidden = hidden
        self.generative = generative
        self.steps = steps
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.held_out = held_out
        self.random_state = random_state
        self.cluster = cluster
        self.output = output
        self.settings = settings
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Learns from rows X [N, d] and their labels y [N], of two classes or more; rows count by
        `sample_weight` [N], 0 or more. Raises `ValueError` where X, y, a weight or a parameter is
        refused.
        """
        if y is not None:
            y = column_or_1d(y, warn=True)
            check_classification_targets(y)
        rows, y = validate_data(
            self,
            X,
            y,
            accept_sparse=True,
            dtype=np.float64,
            ensure_min_samples=LEAST_ROWS,
        )
        rows = rows.toarray() if hasattr(rows, "toarray") else rows
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            remedy = "there is one class; a classifier needs two or more"
            raise ArgumentError("y", self.classes_[0], remedy)
        self._learn(rows, labels.astype(np.float32), sample_weight=sample_weight)
        return self

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """p(y | x) of rows X [N, d], [N, classes], in the order of `classes_`."""
        found = []
        rows = self._rows(X)
        with torch.no_grad():
            for energy, x in self._by_pieces(rows):
                assert isinstance(energy, LabelMLP)
                found.append(energy.label_logits(x).softmax(1))
        return torch.cat(found).numpy()

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The most probable class of each of the rows X [N, d]."""
        likeliest = self.predict_proba(X).argmax(1)
        found: np.ndarray = self.classes_[likeliest]
        return found

    def _settings(self, rows: np.ndarray) -> dict[str, Any]:  # noqa: ARG002
        own = {
            "energy": "label_mlp",
            "energy.hidden": self.hidden,
            "energy.classes": len(self.classes_),
            "evaluation.ais_temperatures": 0,
        }
        if not self.generative:
            return {**own, "objective": "label_likelihood"}
        return {
            **own,
            "kernel": "mala",
            "kernel.step_size": 0.05,
            "kernel.target_acceptance": 0.6,
            "objective": "mixture",
            "objective.weights": {"pcd": self.generative, "label_likelihood": 1.0},
            "chains.restart": 0.01,
        }
