"""A detector of outliers by energy, its threshold from rows that it has not learned from."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import OutlierMixin
from sklearn.utils.validation import check_is_fitted

from pipeline.common.errors import ArgumentError
from pipeline.estimators.base import LEAST_ROWS, ScaledEstimator
from pipeline.estimators.training import Settings


class EnergyDetector(OutlierMixin, ScaledEstimator):
    """Outliers of real rows: those of high energy, under a perceptron learned by denoising score
    matching (Vincent 2011) at standard deviations `sigmas` of the noise, in units of a column's
    own deviation.

    `held_out`, a share, is kept out of training to calibrate: a row has the conformal p-value

        p(x) = (1 + #{calibration rows with energy at least E(x)}) / (n + 1),

    which of rows from the law of those fitted is at most `alpha` with a chance of at most `alpha`
    (Vovk, Gammerman & Shafer 2005). With contamination="auto" rows of p(x) <= `alpha` are outliers;
    with fewer than 1 / `alpha` - 1 calibration rows, which no p-value could be so small with,
    those above all of them. A number in (0, 0.5] is the share of the fitted rows that are to be
    called outliers. The other parameters are those of `EBM`.
    """

    def __init__(
        self,
        *,
        hidden: tuple[int, ...] = (128, 128),
        steps: int = 500,
        learning_rate: float = 0.003,
        batch_size: int = 128,
        sigmas: tuple[float, ...] = (0.3,),
        alpha: float = 0.05,
        contamination: float | str = "auto",
        held_out: float = 0.2,
        random_state: Any = None,
        cluster: str = "inline",
        output: str | None = None,
        settings: Settings | None = None,
        verbose: int = 0,
    ) -> None:
        self.hidden = hidden
        self.steps = steps
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.sigmas = sigmas
        self.alpha = alpha
        self.contamination = contamination
        self.held_out = held_out
        self.random_state = random_state
        self.cluster = cluster
        self.output = output
        self.settings = settings
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: Any = None) -> Self:  # noqa: ARG002 - as scikit-learn has it
        """Learns from rows X [N, d], most of which should be no outliers. Raises `ValueError` where
        X or a parameter is refused.
        """
        if not 0 < self.alpha < 1:
            raise ArgumentError("alpha", self.alpha, "a rate between 0 and 1 is wanted")
        share = self.contamination
        if share != "auto" and not (isinstance(share, int | float) and 0 < share <= 0.5):
            raise ArgumentError("contamination", share, "should be auto, or in (0, 0.5]")
        rows = self._checked(X, reset=True, ensure_min_samples=LEAST_ROWS)
        kept = self._learn(rows)
        scores = -self._energies(X)  # with the names of its columns, where it has any
        self.calibration_ = np.sort(scores[kept])
        if isinstance(share, str):
            count = max(0, math.floor(self.alpha * (len(kept) + 1)) - 1)
            self.offset_ = float(self.calibration_[min(count, len(kept) - 1)])
        else:
            self.offset_ = float(np.percentile(scores, 100 * share))
        return self

    def score_samples(self, X: ArrayLike) -> np.ndarray:
        """-E(x) of rows X [N, d] as they are scaled, [N] nats: log p(x) up to a constant."""
        return -self._energies(X)

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """`score_samples` less `offset_`: below 0 for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> np.ndarray:
        """-1 for outliers among rows X [N, d], 1 for others."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def p_values(self, X: ArrayLike) -> np.ndarray:
        """The conformal p-value of each of the rows X [N, d], in [1 / (n + 1), 1] for n calibration
        rows.
        """
        check_is_fitted(self)
        lower = np.searchsorted(self.calibration_, self.score_samples(X), side="right")
        return (1 + lower) / (len(self.calibration_) + 1)

    def _settings(self, rows: np.ndarray) -> dict[str, Any]:  # noqa: ARG002
        return {
            "energy": "mlp",
            "energy.hidden": self.hidden,
            "objective": "denoising",
            "objective.sigmas": self.sigmas,
            "evaluation.ais_temperatures": 0,
        }
