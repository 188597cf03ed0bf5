"""scikit-learn's digits: the encoding, the split, and the noise added to what is drawn."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from pipeline.assembly.data import open_data
from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.data.base import DataSet, TensorPositives

BINARY = ("energy=rbm", "kernel=gibbs", "data.encoding=binary", "data.noise=0")


@cache
def digits(*overrides: str) -> DataSet:
    return open_data(compose(["data=digits", *overrides]))


@cache
def levels(split_seed: int = 0) -> np.ndarray:
    """scikit-learn's raw grey levels 0..16 in the order of the split, `[1797, 8, 8]`."""
    images = load_digits().images
    return images[np.random.RandomState(split_seed).permutation(len(images))]


def test_sizes() -> None:
    """1,500 rows to train on and 297 held out, of 8x8 pixels, float32."""
    data = digits()
    assert data.shape == (8, 8)
    assert data.rows == 1500
    assert data.sample.shape == (1500, 8, 8)
    assert data.held_out.shape == (297, 8, 8)
    assert data.sample.dtype == data.held_out.dtype == torch.float32
    assert data.noise == 0.15
    assert data.log_density is None


@pytest.mark.parametrize("split_seed", [0, 3])
def test_real_encoding_and_split(split_seed: int) -> None:
    """level / 8 - 1 exactly, without noise, in the order of RandomState's permutation, the last 297
    held out.
    """
    data = digits(f"data.split_seed={split_seed}")
    expected = torch.from_numpy((levels(split_seed) / 8 - 1).astype(np.float32))
    assert torch.equal(data.sample, expected[:1500])
    assert torch.equal(data.held_out, expected[1500:])
    assert (data.sample.min(), data.sample.max()) == (-1, 1)


@pytest.mark.parametrize("count", [2, 3, 4, 17])
def test_categorical_encoding(count: int) -> None:
    """17 grey levels cut into equal parts, 0, ..., count-1; with 17 they are what they were."""
    data = digits(
        "energy=potts_rbm",
        "kernel=gibbs",
        "data.encoding=categorical",
        "data.noise=0",
        f"data.levels={count}",
        f"energy.levels={count}",
    )
    assert torch.equal(
        data.sample, torch.from_numpy(np.floor(levels()[:1500] * count / 17).astype(np.float32))
    )
    assert data.sample.unique().tolist() == list(range(count))


def test_binary_encoding() -> None:
    """1 where the raw level is 8 or more, else 0; in what is stored and in what is drawn."""
    data = digits(*BINARY)
    expected = torch.from_numpy((levels() >= 8).astype(np.float32))
    assert torch.equal(data.sample, expected[:1500])
    assert torch.equal(data.held_out, expected[1500:])
    drawn = data.positives(0).next(2000).position
    assert torch.isin(drawn, torch.tensor([0.0, 1.0])).all()


def test_sampled_encoding() -> None:
    """1 with probability level / 16: mean of 115,008 pixels within 5 standard errors (6e-7), 0 and
    16 without error.
    """
    data, rates = digits(*BINARY[:2], "data.encoding=sampled", "data.noise=0"), levels() / 16
    rows = torch.cat([data.sample, data.held_out]).double().numpy()
    assert set(np.unique(rows)) == {0.0, 1.0}
    assert (rows[rates == 0] == 0).all()
    assert (rows[rates == 1] == 1).all()
    for weights in (np.ones_like(rates), rates):
        error = math.sqrt((weights**2 * rates * (1 - rates)).sum())
        assert abs((weights * (rows - rates)).sum()) < 5 * error


@pytest.mark.parametrize("held_out", [1, 600])
def test_held_out_size(held_out: int) -> None:
    """`data.held_out` rows are kept out, the rest trained on."""
    data = digits(f"data.held_out={held_out}")
    assert (data.rows, len(data.sample), len(data.held_out)) == (
        1797 - held_out,
        1797 - held_out,
        held_out,
    )


def test_held_out_too_large() -> None:
    """Keeping out every row is refused."""
    with pytest.raises(ConfigError, match=r"data\.held_out=1797"):
        digits("data.held_out=1797")


def test_noise_is_fresh_and_of_the_stated_deviation() -> None:
    """Two epochs' noise on the same rows: Gaussian deviation 0.15 in each, uncorrelated between
    them.

    Bounds of 5 standard errors, false-alarm rate 6e-7 each: sigma / sqrt(2 n) for a deviation, 1 /
    sqrt(n) for a correlation.
    """
    data, seed = digits(), 5
    positives = data.positives(seed)
    numbers = TensorPositives(torch.arange(float(data.rows)), seed, 0.0)  # which row each draw is
    epochs = []
    for _ in range(2):
        drawn, number = positives.next(data.rows).position, numbers.next(data.rows).position.long()
        noise = torch.empty_like(drawn)
        noise[number] = drawn - data.sample[number]
        epochs.append(noise.double().flatten().numpy())
    count = len(epochs[0])
    for noise_values in epochs:
        assert noise_values.mean() == pytest.approx(0, abs=5 * 0.15 / math.sqrt(count))
        assert noise_values.std() == pytest.approx(0.15, abs=5 * 0.15 / math.sqrt(2 * count))
        kurtosis = (noise_values**4).mean() / 0.15**4
        assert kurtosis == pytest.approx(3, abs=5 * math.sqrt(96 / count))
    assert abs(np.corrcoef(*epochs)[0, 1]) < 5 / math.sqrt(count)


def test_drawing_leaves_the_stored_rows_alone() -> None:
    """Noise goes to copies: `sample` and `held_out` are as stored after draws."""
    data = digits()
    before = data.sample.clone(), data.held_out.clone()
    data.positives(0).next(3000)
    assert torch.equal(data.sample, before[0])
    assert torch.equal(data.held_out, before[1])
