"""The estimators of `pipeline.sklearn`: scikit-learn's own checks, and their figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sklearn.utils.estimator_checks import parametrize_with_checks

from pipeline.sklearn import DBM, EBM, RBM, EBMClassifier, EnergyDetector, RBMFeatures

SHORT: dict[str, Any] = {"steps": 3, "batch_size": 16}
AIS = {"evaluation.ais_temperatures": 0}
CHECKED = [
    EBM(hidden=(8,), settings=AIS, **SHORT),
    RBM(hidden=4, settings=AIS, **SHORT),
    DBM(hidden=(4, 2), settings=AIS, **SHORT),
    RBMFeatures(hidden=4, **SHORT),
    EnergyDetector(hidden=(8,), **SHORT),
    EBMClassifier(hidden=(16,), generative=0.0, learning_rate=0.05, steps=30),
]


@parametrize_with_checks(CHECKED)
def test_scikit_learns_checks(estimator: Any, check: Callable[[Any], None]) -> None:
    """Every check of scikit-learn's, none left out."""
    check(estimator)
