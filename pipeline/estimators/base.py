"""The base of all estimators: rows are checked and scaled, an energy is trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.preprocessing import StandardScaler
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor

from pipeline.common.errors import ArgumentError
from pipeline.config.run import RunConfig
from pipeline.data.given import GivenRows
from pipeline.energies.base import Energy
from pipeline.estimators.training import Settings, configured, learn

LEAST_ROWS = 4
"""Two rows to learn from, which have a spread, and one or two to judge by."""
PIECE = 4096
"""Rows whose energies are worked out at once."""


class EnergyEstimator(BaseEstimator):
    """The base of the estimators. A subclass has their parameters, and says by `_settings` what is
    trained.
    """

    hidden: Any
    steps: int
    learning_rate: float
    batch_size: int
    held_out: float
    random_state: Any
    cluster: str
    output: str | None
    settings: Settings | None
    verbose: int
    energy_: Energy
    _checkpoint: dict[str, bytes]

    def _settings(self, rows: np.ndarray) -> dict[str, Any]:
        """The part of the configuration that is this kind's, for `rows` [N, d]."""
        raise NotImplementedError

    def _prepared(
        self,
        X: np.ndarray,
        first: bool,  # noqa: ARG002
        weights: np.ndarray | None = None,  # noqa: ARG002
    ) -> np.ndarray:
        """Rows as the energy sees them, float64 [N, d]; a subclass may scale them, by what it
        learns of the `first` ones, which count by their `weights` [N].
        """
        return X

    def _checked(self, X: ArrayLike, reset: bool = False, **more: Any) -> np.ndarray:
        """X as float64 [N, d]. Raises what scikit-learn does where it is none."""
        found: Any = validate_data(
            self, X, reset=reset, accept_sparse=True, dtype=np.float64, **more
        )
        return found.toarray() if sparse.issparse(found) else found

    def _rows(self, X: ArrayLike) -> Tensor:
        """X as rows of the trained energy, float64."""
        check_is_fitted(self)
        return torch.from_numpy(self._prepared(self._checked(X), first=False))

    def _config(self, rows: np.ndarray) -> RunConfig:
        """The configuration of a run on `rows` [N, d], of which some are kept out."""
        kept = self._kept_out(len(rows))
        own = {
            "cluster": self.cluster,
            "data": "rows",
            "data.held_out": kept,
            "seed": self._seed,
            "trainer.steps": self.steps,
            "trainer.batch_size": min(self.batch_size, len(rows) - kept),
            "optimizer.learning_rate": self.learning_rate,
            "optimizer.weight_decay": 0.0,
            "optimizer.warmup": 0,
            "optimizer.ema": 0.99,
            "chains.pools": 1,
            "chains.per_pool": self.batch_size,
            "checkpoint.every": self.steps,
            "evaluation.samples": 0,
            "metrics.port": 0,
            "recorders": ("series",) if self.output else (),
            "output": self.output,
            "resume": "never",
        }
        return configured({**own, **self._settings(rows)}, self.settings or {})

    def _kept_out(self, count: int) -> int:
        """The number of rows kept out of so many. Raises `ArgumentError`."""
        if not 0 < self.held_out < 1:
            raise ArgumentError("held_out", self.held_out, "a share between 0 and 1 is wanted")
        return min(max(1, round(self.held_out * count)), count - 2)

    def _learn(
        self,
        X: np.ndarray,
        labels: np.ndarray | None = None,
        again: bool = False,
        sample_weight: ArrayLike | None = None,
    ) -> np.ndarray:
        """Trains on X [N, d], and returns the numbers of the rows that were kept out. With `again`
        it goes on from the weights there are, in the scale of the first rows. With `sample_weight`
        [N] rows count by these, and those of weight 0 are none.
        """
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(
                sample_weight, X, dtype=np.float64, ensure_non_negative=True
            )
            there = weights > 0
            if there.sum() < LEAST_ROWS:
                remedy = f"weights above 0 are wanted of {LEAST_ROWS} rows or more"
                raise ArgumentError("sample_weight", f"{there.sum()} above 0", remedy)
            X, weights = X[there], weights[there]
            labels = None if labels is None else labels[there]
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        order = np.random.RandomState(self._seed).permutation(len(X))
        kept = self._kept_out(len(X))
        train, held_out = order[:-kept], order[-kept:]
        if not again:
            # what is kept out has no say in the scale either
            self._prepared(X[train], True, None if weights is None else weights[train])
        rows = self._prepared(X, first=False)
        config = self._config(rows)
        numbers = rows.astype(np.float32)
        of_rows = [None, None] if labels is None else [labels[train], labels[held_out]]
        given = GivenRows(numbers[train], of_rows[0], numbers[held_out], of_rows[1])
        if weights is not None:
            given = given._replace(weights=weights[train], held_out_weights=weights[held_out])
        before = self._checkpoint if again else None
        learned = learn(config, given, bool(self.verbose), before)
        self.energy_, self._checkpoint = learned.energy, learned.checkpoint
        self.summary_ = learned.figures
        self.log_z_ = learned.figures.get("log_z")
        self.log_z_error_ = learned.figures.get("log_z_standard_error")
        self._told = config
        return held_out

    def _by_pieces(self, rows: Tensor) -> Iterator[tuple[Energy, Tensor]]:
        """The energy in double precision, so that a row's figure does not depend on those beside
        it, and a piece of the rows after the other.
        """
        energy = copy.deepcopy(self.energy_).double()
        yield from ((energy, piece) for piece in rows.split(PIECE))

    def _energies(self, X: ArrayLike) -> np.ndarray:
        """E of rows, -log p(x) - log Z of the rows as they are scaled, [N] float64 nats."""
        with torch.no_grad():
            pieces = [energy.of_rows(x) for energy, x in self._by_pieces(self._rows(X))]
        return torch.cat(pieces).numpy()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


class ScaledEstimator(EnergyEstimator):
    """An estimator of real rows, which it standardises."""

    scaler_: StandardScaler

    def _prepared(
        self, X: np.ndarray, first: bool, weights: np.ndarray | None = None
    ) -> np.ndarray:
        if first:
            self.scaler_ = StandardScaler().fit(X, sample_weight=weights)
        scaled: np.ndarray = self.scaler_.transform(X)
        return scaled
