"""The estimators of `pipeline.sklearn`: scikit-learn's own checks, and their figures."""

from __future__ import annotations

import itertools
import pickle
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.utils.estimator_checks import parametrize_with_checks

import pipeline
from pipeline.sklearn import DBM, EBM, RBM, EBMClassifier, EnergyDetector, RBMFeatures

pytestmark = pytest.mark.single

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


def unequal(estimator: Any) -> dict[str, str]:
    """The check of equality that no learner by random batches meets, of those that predict."""
    why = "rows of weight 2 and rows that stand there twice are one law, and not one random stream"
    predicts = hasattr(estimator, "predict_proba") or hasattr(estimator, "transform")
    kinds = ("dense", "sparse") if predicts else ()
    return {f"check_sample_weight_equivalence_on_{kind}_data": why for kind in kinds}


@parametrize_with_checks(CHECKED, expected_failed_checks=unequal)
def test_scikit_learns_checks(estimator: Any, check: Callable[[Any], None]) -> None:
    """Every check of scikit-learn's, but for that of `unequal`."""
    check(estimator)


def test_rows_count_by_their_weights() -> None:
    """Labels that hang on nothing have the chances that their rows' weights say: 0.9 and 0.1, of
    400 rows within 5 standard errors; scales are those of the rows that count.
    """
    random = np.random.default_rng(0)
    X, y = random.normal(size=(400, 2)), np.arange(400) % 2
    model = EBMClassifier(
        hidden=(4,), generative=0.0, steps=300, learning_rate=0.03, random_state=0
    )
    found = model.fit(X, y, sample_weight=np.where(y, 9.0, 1.0)).predict_proba(X)[:, 1].mean()
    assert found == pytest.approx(0.9, abs=5 * np.sqrt(0.09 / 400))
    weights = np.where(X[:, 0] > 0, 1.0, 0.0)
    for density in (
        EBM(hidden=(4,), settings=AIS, random_state=0, **SHORT),
        RBM(hidden=2, settings=AIS, random_state=0, **SHORT),
    ):
        density.fit(X + 10, sample_weight=weights)
        mean = density.scaler_.mean_ if isinstance(density, EBM) else density.mean_
        assert mean[0] - 10 == pytest.approx(np.sqrt(2 / np.pi), abs=5 * 0.6 / np.sqrt(180))
        density.partial_fit(X + 10, sample_weight=weights)
    for bad in (-weights, np.zeros(400), np.full(400, np.nan)):
        with pytest.raises(ValueError, match=r"(?i)weight|negative|nan"):
            model.fit(X, y, sample_weight=bad)


def rows(count: int, seed: int = 0) -> np.ndarray:
    """Rows of two columns that hang together, in units far from 1."""
    z = np.random.default_rng(seed).normal(size=(count, 2))
    return np.stack([100 + 10 * z[:, 0], 0.01 * (z[:, 0] + z[:, 1])], 1)


def test_a_density_of_real_rows_integrates_to_1_in_the_units_of_the_data() -> None:
    """By the midpoint rule over 10 deviations of each column, in which all mass is."""
    X = rows(300)
    model = EBM(hidden=(16,), steps=50, random_state=0).fit(X)
    mean, deviation = X.mean(0), X.std(0)
    assert model.scaler_.n_samples_seen_ == 270  # rows that are kept out have no say
    edges = np.linspace(-10, 10, 401)
    points = (edges[1:] + edges[:-1]) / 2
    grid = mean + deviation * np.stack(np.meshgrid(points, points), -1).reshape(-1, 2)
    cell = np.prod(deviation * (edges[1] - edges[0]))
    assert np.exp(model.score_samples(grid)).sum() * cell == pytest.approx(1, abs=0.01)
    assert model.score(X) == pytest.approx(model.score_samples(X).mean())


@pytest.mark.parametrize(("model", "exact"), [(RBM(hidden=3), True), (DBM(hidden=(3, 2)), False)])
def test_probabilities_of_binary_rows_sum_to_1(model: Any, exact: bool) -> None:
    """Over all 64 states; lower bounds of them sum to less."""
    X = np.random.default_rng(0).integers(0, 2, (200, 6))
    X[:, 1] = X[:, 0]
    states = np.array(list(itertools.product((0, 1), repeat=6)))
    model.set_params(steps=100, random_state=0).fit(X)
    total = np.exp(model.score_samples(states)).sum()
    assert total == pytest.approx(1, abs=1e-3) if exact else 0.5 < total < 1 + 1e-3
    assert np.isin(model.sample(5, random_state=0, transitions=5), (0, 1)).all()


def test_a_gaussian_machine_is_a_density_in_the_units_of_the_data() -> None:
    X = rows(300)
    model = RBM(hidden=3, steps=50, random_state=0).fit(X)
    other = RBM(hidden=3, steps=50, random_state=0).fit(X * [2, 1])
    gap = model.score_samples(X) - other.score_samples(X * [2, 1])
    np.testing.assert_allclose(gap, np.log(2), atol=1e-4)


def test_p_values_are_those_of_rows_kept_out() -> None:
    """Of fresh rows of the same law a tenth has p <= 0.1: given 200 calibration rows that share has
    a standard deviation of sqrt(0.09 / 200 + 0.09 / 2000) = 0.022, and is within 4 of them.
    """
    X = rows(1000)
    model = EnergyDetector(hidden=(16,), steps=50, alpha=0.1, random_state=0).fit(X)
    fresh = rows(2000, seed=1)
    scores, p = model.score_samples(fresh), model.p_values(fresh)
    counted = [(1 + (model.calibration_ <= score).sum()) / 201 for score in scores]
    np.testing.assert_allclose(p, counted)
    assert abs((p <= 0.1).mean() - 0.1) < 0.088
    np.testing.assert_array_equal(model.predict(fresh) == -1, p <= 0.1)
    far = X.mean(0) + 20 * X.std(0) * [1, -1]
    assert model.p_values(far[None]) == pytest.approx(1 / 201)
    assert model.predict(far[None]) == -1


def test_features_are_the_hidden_units_of_the_energy() -> None:
    X = np.random.default_rng(0).integers(0, 2, (50, 6)).astype(np.float32)
    model = RBMFeatures(hidden=3, random_state=0, **SHORT).fit(X)
    rbm = model.energy_
    field = torch.tensor(X) @ rbm.weight.T + rbm.hidden_bias
    np.testing.assert_allclose(model.transform(X), field.sigmoid(), rtol=1e-5)
    torch.testing.assert_close(pipeline.features(rbm, X), field.sigmoid())


def test_a_classifier_tells_classes_apart_by_its_joint_energy() -> None:
    """Three clouds 6 deviations apart, of classes with names; p(y | x) is that of E(x, y)."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    X = rng.normal(size=(300, 2)) + 6 * np.stack([y == 1, y == 2], 1)
    names = np.array(["a", "b", "c"])[y]
    model = EBMClassifier(hidden=(16,), steps=60, learning_rate=0.02, random_state=0).fit(X, names)
    assert (model.predict(X) == names).mean() > 0.97
    z = torch.tensor(model.scaler_.transform(X))
    energies = [-model.energy_.of_class(torch.full((300,), float(k)))(z) for k in range(3)]
    wanted = torch.stack(energies, 1).softmax(1)
    np.testing.assert_allclose(model.predict_proba(X), wanted, atol=1e-4)


def test_partial_fit_goes_on_from_the_weights_and_the_scale_there_are() -> None:
    X = rows(100)
    model = RBM(hidden=3, random_state=0, learning_rate=0.05, steps=40).partial_fit(X)
    before, scale = model.score_samples(X), model.scale_
    model = pickle.loads(pickle.dumps(model)).set_params(learning_rate=1e-9, steps=1)
    model.partial_fit(X * 3)
    np.testing.assert_array_equal(model.scale_, scale)
    gap = model.score_samples(X) - before  # log Z by enumeration: nothing else has moved
    np.testing.assert_allclose(gap, 0, atol=1e-3)
    fresh = clone(model).fit(X)
    assert np.abs(fresh.score_samples(X) - before).max() > 0.01


def test_a_fit_leaves_nothing_behind_but_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        quiet = EnergyDetector(hidden=(8,), random_state=0, **SHORT).fit(rows(50))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert capsys.readouterr().out == ""
    loud = clone(quiet).set_params(verbose=1, output=str(tmp_path / "run")).fit(rows(50))
    assert "step 3/3" in capsys.readouterr().out
    assert list((tmp_path / "temporary").iterdir()) == []
    found = pipeline.load(tmp_path / "run")
    for one, other in zip(found.parameters(), loud.energy_.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (EBM(steps=0), "trainer.steps=0"),
        (EBM(settings={"kernel": "magic"}), "kernel=magic"),
        (EBM(held_out=2.0), "held_out=2.0"),
        (RBM(visible="colour"), "visible=colour"),
        (EnergyDetector(contamination=0.9), "contamination=0.9"),
        (EnergyDetector(alpha=0.0), "alpha=0.0"),
        (EBM(cluster="moon"), "cluster=moon"),
    ],
)
def test_a_bad_parameter_is_a_value_error_that_names_it(model: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        model.fit(rows(50))


def test_settings_reach_every_key() -> None:
    """Another kernel than one's own takes its settings with it."""
    chosen = {"kernel": "hmc", "evaluation.ais_temperatures": 0}
    model = EBM(hidden=(8,), settings=chosen, random_state=0, **SHORT).fit(rows(50))
    assert model.sample(3, random_state=0, transitions=5).shape == (3, 2)


@pytest.mark.parametrize("kind", [EBM, EnergyDetector, RBMFeatures])
def test_a_frame_is_taken_without_a_warning(kind: Any) -> None:
    frame = load_wine(as_frame=True).data[:60]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind(random_state=0, **SHORT).fit(frame)
