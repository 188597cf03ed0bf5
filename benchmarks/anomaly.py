"""Outliers told by energy, beside PyOD's detectors, on public tables.

    python -m benchmarks.anomaly [--json FILE] [--data FOLDER] [--seeds N]

Tables are scikit-learn's own and those of R's mlbench, which Debian ships (`apt-get download
r-cran-mlbench`, then `dpkg -x`); --data is its folder of .rda files, without which they are left
out. PyOD and rdata come with the extra `anomaly`.

The most frequent class of a table is normal, all others are anomalies. Detectors learn from half of
the normal rows, at most 2,000, and are judged by the area under the ROC curve on the other half and
as many anomalies at most. All have their defaults. PyOD's see columns standardised by the rows they
learn from; ours standardises by itself. `EnergyDetector` is also held to its false alarms: the
share of the normal rows judged that it calls outliers at alpha=0.05.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from pipeline.common.json_text import to_json
from pipeline.sklearn import EnergyDetector

MLBENCH = {
    "BreastCancer": "Class",
    "Glass": "Type",
    "Ionosphere": "Class",
    "LetterRecognition": "lettr",
    "PimaIndiansDiabetes": "diabetes",
    "Satellite": "classes",
    "Shuttle": "Class",
    "Sonar": "Class",
    "Vehicle": "Class",
    "Vowel": "Class",
}
"""The column that holds a row's class."""
MOST = 2000
OWN = "EnergyDetector"
Table = tuple[np.ndarray, np.ndarray]
"""Rows [N, d], and whether each is an anomaly [N]."""


def tables(folder: str | None) -> dict[str, Table]:
    """Every table there is, by name."""
    own = {
        "breast_cancer": load_breast_cancer(return_X_y=True),
        "wine": load_wine(return_X_y=True),
        "digits": load_digits(return_X_y=True),
    }
    found = {name: (X, anomalies(y)) for name, (X, y) in own.items()}
    if folder is not None:
        found |= {name: of_r(Path(folder) / f"{name}.rda", name) for name in MLBENCH}
    return found


def of_r(path: Path, name: str) -> Table:
    """A table of mlbench: factors by their levels' numbers, rows with a missing value left out."""
    import pandas as pd
    import rdata

    frame = rdata.read_rda(path)[name]
    labels = frame[MLBENCH[name]]
    columns = frame.drop(columns=[MLBENCH[name], "Id"], errors="ignore")
    numbers = columns.apply(
        lambda column: (
            column.cat.codes.where(column.notna(), np.nan)
            if isinstance(column.dtype, pd.CategoricalDtype)
            else column
        )
    ).astype(float)
    whole = numbers.notna().all(axis=1)
    return numbers[whole].to_numpy(), anomalies(labels[whole].astype(str).to_numpy())


def anomalies(labels: np.ndarray) -> np.ndarray:
    """All rows but those of the most frequent class."""
    classes, counts = np.unique(labels, return_counts=True)
    return np.asarray(labels != classes[counts.argmax()])


def split(table: Table, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normal rows to learn from, rows to be judged, and whether each of these is an anomaly."""
    X, odd = table
    rng = np.random.default_rng(seed)
    normal, others = (rng.permutation(np.flatnonzero(mask)) for mask in (~odd, odd))
    half = len(normal) // 2
    train, inside = normal[:half][:MOST], normal[half:][:MOST]
    outside = others[: len(inside)]
    judged = np.concatenate([inside, outside])
    return X[train], X[judged], odd[judged]


def peers(seed: int) -> dict[str, Any]:
    """PyOD's detectors with their defaults."""
    from pyod.models.ecod import ECOD
    from pyod.models.iforest import IForest
    from pyod.models.knn import KNN
    from pyod.models.lof import LOF

    return {"kNN": KNN(), "LOF": LOF(), "IForest": IForest(random_state=seed), "ECOD": ECOD()}


def judge(table: Table, seed: int) -> dict[str, float]:
    """The areas of all detectors on one split, and our false alarms and seconds."""
    train, judged, odd = split(table, seed)
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scaler = StandardScaler().fit(train)
        for name, detector in peers(seed).items():
            detector.fit(scaler.transform(train))
            scores = detector.decision_function(scaler.transform(judged))
            found[name] = float(roc_auc_score(odd, scores))
        began = time.perf_counter()
        ours = EnergyDetector(random_state=seed).fit(train)
        found[OWN] = float(roc_auc_score(odd, -ours.score_samples(judged)))
        found["seconds"] = time.perf_counter() - began
    found["false_alarms"] = float((ours.predict(judged[~odd]) == -1).mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    figures = {}
    for name, table in tables(asked.data).items():
        runs = [judge(table, seed) for seed in range(asked.seeds)]
        figures[name] = {
            "rows": len(table[0]),
            "columns": table[0].shape[1],
            **{key: float(np.mean([run[key] for run in runs])) for key in runs[0]},
        }
        print(name, {key: round(value, 3) for key, value in figures[name].items()}, flush=True)
    means = {
        key: float(np.mean([row[key] for row in figures.values()]))
        for key in next(iter(figures.values()))
        if key not in ("rows", "columns")
    }
    print("mean", {key: round(value, 3) for key, value in means.items()})
    if asked.json is not None:
        asked.json.write_text(
            to_json({"seeds": asked.seeds, "tables": figures, "mean": means}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
