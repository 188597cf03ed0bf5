"""Estimators with scikit-learn's own interface.

    from pipeline.sklearn import EnergyDetector
    p = EnergyDetector(random_state=0).fit(X).p_values(X_new)

`EBM`, `RBM` and `DBM` are densities, `RBMFeatures` a transformer, `EnergyDetector` finds outliers,
`EBMClassifier` classifies. They train in this process, without Ray, and keep no files, unless
`cluster` or `output` say otherwise.
"""

from pipeline.estimators.classifier import EBMClassifier
from pipeline.estimators.density import DBM, EBM, RBM
from pipeline.estimators.features import RBMFeatures
from pipeline.estimators.outliers import EnergyDetector

__all__ = ["DBM", "EBM", "RBM", "EBMClassifier", "EnergyDetector", "RBMFeatures"]
