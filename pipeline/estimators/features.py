"""Hidden units as features of rows."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin

from pipeline.estimators.base import LEAST_ROWS
from pipeline.estimators.density import BoltzmannMachine
from pipeline.estimators.training import Settings


class RBMFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BoltzmannMachine):
    """A transformer of rows into p(h_j = 1 | x) of the hidden units of a restricted Boltzmann
    machine. Parameters are those of `RBM`.
    """

    def __init__(
        self,
        *,
        hidden: int = 64,
        visible: str = "auto",
        steps: int = 500,
        learning_rate: float = 0.01,
        batch_size: int = 128,
        held_out: float = 0.1,
        random_state: Any = None,
        cluster: str = "inline",
        output: str | None = None,
        settings: Settings | None = None,
        verbose: int = 0,
    ) -> None:
        self.hidden = hidden
        self.visible = visible
        self.steps = steps
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.held_out = held_out
        self.random_state = random_state
        self.cluster = cluster
        self.output = output
        self.settings = settings
        self.verbose = verbose

    def fit(
        self,
        X: ArrayLike,
        y: Any = None,  # noqa: ARG002 - as scikit-learn has it
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Learns from rows X [N, d], which count by `sample_weight` [N], 0 or more. Raises
        `ValueError` where X, a weight or a parameter is refused.
        """
        rows = self._checked(X, reset=True, ensure_min_samples=LEAST_ROWS)
        self._learn(rows, sample_weight=sample_weight)
        return self

    def transform(self, X: ArrayLike) -> np.ndarray:
        """The probabilities of the hidden units given rows X [N, d], [N, hidden]."""
        found = []
        with torch.no_grad():
            for energy, x in self._by_pieces(self._rows(X)):
                activations = energy.activations(x)
                assert activations is not None
                found.append(activations)
        return torch.cat(found).numpy()

    @property
    def _n_features_out(self) -> int:
        return int(self.energy_.get_parameter("hidden_bias").numel())

    def _settings(self, rows: np.ndarray) -> dict[str, Any]:
        return {**super()._settings(rows), "evaluation.ais_temperatures": 0}
