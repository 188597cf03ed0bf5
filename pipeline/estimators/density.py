"""Density estimators: energies of real rows, and Boltzmann machines."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from pipeline.assembly.chains import make_plan
from pipeline.common.errors import ArgumentError
from pipeline.estimators.base import LEAST_ROWS, EnergyEstimator, ScaledEstimator
from pipeline.estimators.training import Settings
from pipeline.evaluation.samples import draw_from_noise

THRESHOLD = 0.5
"""A binary unit is 1 where a value is above this, as scikit-learn's images in [0, 1] want it."""
MACHINE = {
    "kernel": "gibbs",
    "objective": "pcd",
    "objective.energy_l2": 0.0,
    "chains.restart": 0.0,
}


class Density(DensityMixin, EnergyEstimator):
    """The methods of a density: it is fitted, scores rows and draws samples."""

    def fit(
        self,
        X: ArrayLike,
        y: Any = None,  # noqa: ARG002 - as scikit-learn has it
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Learns from rows X [N, d], which count by `sample_weight` [N], 0 or more; `held_out` of
        them are kept to judge by. Raises `ValueError` where X, a weight or a parameter is refused.
        """
        rows = self._checked(X, reset=True, ensure_min_samples=LEAST_ROWS)
        self._learn(rows, sample_weight=sample_weight)
        return self

    def partial_fit(
        self,
        X: ArrayLike,
        y: Any = None,  # noqa: ARG002
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Makes `steps` more steps on rows X [N, d], which count by `sample_weight` [N], from the
        parameters that there are. The optimizer and the chains begin anew; rows are scaled as those
        of the first call were. Raises `ValueError` where X, a weight or a parameter is refused.
        """
        again = hasattr(self, "energy_")
        if again and not self._checkpoint:
            remedy = "the files of its run are not kept here; use None to go on from its weights"
            raise ArgumentError("output", self.output, remedy)
        rows = self._checked(X, reset=not again, ensure_min_samples=LEAST_ROWS)
        self._learn(rows, again=again, sample_weight=sample_weight)
        return self

    def score_samples(self, X: ArrayLike) -> np.ndarray:
        """log p(x) of rows X [N, d], [N] nats, in the units of the data.

        Z is known exactly, by quadrature (d = 2) or by AIS: `log_z_` with its standard error
        `log_z_error_` (None where it is exact or cannot be told). With
        settings={"evaluation.ais_temperatures": 0} there is no AIS, `log_z_` is None, and the
        figure lacks it: it ranks rows all the same.
        """
        return -self._energies(X) - (self.log_z_ or 0.0) - self._log_volume()

    def score(self, X: ArrayLike, y: Any = None) -> float:  # noqa: ARG002
        """The mean of `score_samples`, nats a row."""
        return float(self.score_samples(X).mean())

    def sample(
        self, n_samples: int = 1, random_state: Any = None, transitions: int = 1000
    ) -> np.ndarray:
        """Draws rows [n_samples, d] in the units of the data: each is the end of a chain of its own
        that starts at the base law and makes so many `transitions`.
        """
        check_is_fitted(self)
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            plan = make_plan(self._told)
            drawing = draw_from_noise(self.energy_, plan, n_samples, transitions, generator)
            while True:
                try:
                    next(drawing)
                except StopIteration as end:
                    rows = self.energy_.visible(end.value.position).double().numpy()
                    return self._in_units(rows)

    def _log_volume(self) -> float:
        """The log of the volume of a row's unit: log p(x) = log p(z) less this, z as scaled."""
        return 0.0

    def _in_units(self, rows: np.ndarray) -> np.ndarray:
        """Rows as the energy has them in the units of the data."""
        return rows


class EBM(Density, ScaledEstimator):
    """A density of real rows: a perceptron's energy, by persistent contrastive divergence.

        p(x) = exp(-f(z) - |z|^2 / 2) / Z,   z = (x - mean) / deviation

    `hidden` are the widths of f's layers. `noise`, in standard deviations, is added to rows afresh
    at each step: the law learned is the smoothed one, which has a density where rows repeat.
    `held_out` is the share of rows kept out. `cluster` is "inline", this process; "local" starts a
    Ray here, "ray" joins one. `output` is a folder or URL that keeps the run's files; without, none
    are kept. `settings` are keys of the configuration, over all others. `verbose` shows progress.

    Fitted: `energy_` (a torch module, of scaled rows), `log_z_`, `log_z_error_`, `scaler_`, and
    `summary_`, the figures of the run.
    """

    def __init__(
        self,
        *,
        hidden: tuple[int, ...] = (64, 64),
        steps: int = 500,
        learning_rate: float = 0.003,
        batch_size: int = 128,
        noise: float = 0.1,
        held_out: float = 0.1,
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
        self.noise = noise
        self.held_out = held_out
        self.random_state = random_state
        self.cluster = cluster
        self.output = output
        self.settings = settings
        self.verbose = verbose

    def _settings(self, rows: np.ndarray) -> dict[str, Any]:  # noqa: ARG002
        return {
            "energy": "mlp",
            "energy.hidden": self.hidden,
            "kernel": "mala",
            "kernel.transitions": 5,
            "kernel.step_size": 0.05,
            "kernel.target_acceptance": 0.6,
            "objective": "pcd",
            "chains.restart": 0.01,
            "data.noise": self.noise,
            "evaluation.ais_temperatures": 300,
            "evaluation.ais_particles": 100,
        }

    def _log_volume(self) -> float:
        return float(np.log(self.scaler_.scale_).sum())

    def _in_units(self, rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.scaler_.inverse_transform(rows)
        return found


class BoltzmannMachine(EnergyEstimator):
    """A Boltzmann machine with one layer of hidden units, its visible ones as rows want it."""

    visible: str

    def _prepared(
        self, X: np.ndarray, first: bool, weights: np.ndarray | None = None
    ) -> np.ndarray:
        if first:
            if self.visible not in ("auto", "binary", "gaussian"):
                remedy = "should be auto, binary or gaussian"
                raise ArgumentError("visible", self.visible, remedy)
            binary = self.visible == "auto" and bool(np.isin(X, (0, 1)).all())
            self.binary_ = binary or self.visible == "binary"
            self.mean_, self.scale_ = np.zeros(X.shape[1]), np.ones(X.shape[1])
            if not self.binary_:
                self.mean_ = np.average(X, 0, weights)
                spread = np.sqrt(np.average(np.square(X - self.mean_), 0, weights))
                self.scale_ = np.where(spread > 0, spread, 1.0)
        if self.binary_:
            return (X > THRESHOLD).astype(np.float64)
        return (X - self.mean_) / self.scale_

    def _settings(self, rows: np.ndarray) -> dict[str, Any]:  # noqa: ARG002
        kind = "rbm" if self.binary_ else "gaussian_rbm"
        return {
            **MACHINE,
            "energy": kind,
            "energy.hidden": self.hidden,
            "data.encoding": "binary" if self.binary_ else "real",
        }


class RBM(Density, BoltzmannMachine):
    """A density by a restricted Boltzmann machine with `hidden` binary hidden units, learned by
    persistent contrastive divergence with Gibbs sampling.

    `visible` units are "binary" (a value counts as 1 above 0.5), "gaussian" (of rows that are
    standardised), or "auto": binary where all values are 0 and 1. The other parameters are those of
    `EBM`. Of binary units `score_samples` is log P(v).
    """

    def __init__(
        self,
        *,
        hidden: int = 16,
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

    def _settings(self, rows: np.ndarray) -> dict[str, Any]:
        ais = {"evaluation.ais_temperatures": 300, "evaluation.ais_particles": 100}
        return {**super()._settings(rows), **ais}

    def _log_volume(self) -> float:
        return float(np.log(self.scale_).sum())

    def _in_units(self, rows: np.ndarray) -> np.ndarray:
        return self.mean_ + self.scale_ * rows


class DBM(Density):
    """A density of binary rows by a deep Boltzmann machine, with `hidden` units in each layer from
    the data up; a value counts as 1 above 0.5.

    `score_samples` is a lower bound of log P(v), by mean field. The other parameters are those of
    `EBM`.
    """

    def __init__(
        self,
        *,
        hidden: tuple[int, ...] = (16, 8),
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
        self.steps = steps
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.held_out = held_out
        self.random_state = random_state
        self.cluster = cluster
        self.output = output
        self.settings = settings
        self.verbose = verbose

    def _prepared(
        self,
        X: np.ndarray,
        first: bool,  # noqa: ARG002
        weights: np.ndarray | None = None,  # noqa: ARG002
    ) -> np.ndarray:
        return (X > THRESHOLD).astype(np.float64)

    def _settings(self, rows: np.ndarray) -> dict[str, Any]:  # noqa: ARG002
        return {
            **MACHINE,
            "energy": "dbm",
            "energy.hidden": self.hidden,
            "data.encoding": "binary",
            "evaluation.ais_temperatures": 300,
            "evaluation.ais_particles": 100,
        }
