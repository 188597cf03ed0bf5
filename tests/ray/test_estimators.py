"""Estimators that train on Ray: what they learn is what they learn in this process, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline
from pipeline.sklearn import EBM, EBMClassifier, EnergyDetector
from tests.ray.reused import reused_processes

pytestmark = pytest.mark.ray
SHORT: dict[str, Any] = {"steps": 6, "batch_size": 16, "hidden": (8,), "random_state": 0}
AIS = {"evaluation.ais_temperatures": 0}
X = np.random.default_rng(0).normal([10, 0], [3, 0.1], (60, 2)).repeat(2, 1)


@pytest.fixture(scope="module", autouse=True)
def _reused(local_ray: None) -> Iterator[None]:  # noqa: ARG001 - it comes first, and goes last
    """Every run after the first has processes that served an earlier one."""
    with reused_processes():
        yield


@pytest.mark.parametrize(
    ("cluster", "make", "found"),
    [
        # chains, on two pools: lock-step
        (
            "local",
            lambda **more: EBM(settings={**AIS, "chains.pools": 2}, **more),
            "score_samples",
        ),
        # no chains, and no pools
        ("ray", EnergyDetector, "p_values"),
        # labels, which travel with the rows
        ("local", EBMClassifier, "predict_proba"),
    ],
    ids=["EBM", "EnergyDetector", "EBMClassifier"],
)
def test_on_ray_an_estimator_learns_the_same(
    cluster: str, make: Callable[..., Any], found: str, tmp_path: Path
) -> None:
    y = (X[:, 0] > 10).astype(int)
    ends = [
        make(cluster=name, output=f"{tmp_path}/{name}", **SHORT).fit(X, y)
        for name in ("inline", cluster)
    ]
    figures = [getattr(end, found)(X) for end in ends]
    np.testing.assert_array_equal(figures[0], figures[1])
    assert len(np.unique(figures[0])) > 1
    assert "server_busy_share" in ends[1].summary_
    assert "server_busy_share" not in ends[0].summary_
    assert pipeline.open_run(f"{tmp_path}/{cluster}").config.cluster.name == cluster
