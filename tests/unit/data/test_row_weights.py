"""Weights of rows: how often each comes in the stream, what figures make of them, what is
refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.common.errors import DataError, PipelineError
from pipeline.config.compose import compose
from pipeline.data.base import TensorPositives
from pipeline.data.given import given_rows
from pipeline.data.row_weights import RowWeights, dealt, mean, standard_error
from pipeline.data.scaling import fitted
from pipeline.energies.laws import Gaussian, TruncatedGaussian
from pipeline.evaluation.likelihood import continuous_baselines, independent_levels
from pipeline.evaluation.outliers import outlier_score
from pipeline.evaluation.two_samples import likeness, squared_mmd
from pipeline.objectives.noise_contrastive import IndependentLevels
from pipeline.train import run
from pipeline.training.likeness import Likeness, energy_distance
from tests.unit.data.test_columns import matrix, numbered, read, write

RANDOM = np.random.default_rng(0)
WHOLE = np.array([1, 3, 0, 2, 1, 0, 1, 0])  # of mean 1
UNEVEN = RANDOM.gamma(0.5, size=40)


def table(weights: Any, rows: int = 40) -> pa.Table:
    return numbered(matrix(rows)).append_column("w", pa.array(weights))


def drawn(positives: Any, count: int) -> np.ndarray:
    """How often each row came among so many, `[rows]`."""
    return np.bincount(positives.next(count).position[:, 0].long().numpy(), minlength=40)


# -- the stream ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [8, 40, 41.7])
def test_systematic_sampling(count: float) -> None:
    """Each row comes as often as its share says, rounded down or up, and on average exactly."""
    share = count * UNEVEN / UNEVEN.sum()
    starts = (np.arange(2000) + 0.5) / 2000
    found = np.array([np.bincount(dealt(UNEVEN, count, u), minlength=40) for u in starts])
    assert (found >= np.floor(share - 1e-9)).all()
    assert (found <= np.ceil(share + 1e-9)).all()
    assert np.abs(found.mean(0) - share).max() < 1.01 / 2000


def test_rows_of_no_weight_never_come() -> None:
    """Nor where sums end short of the last point."""
    for seed in range(200):
        weights = np.random.default_rng(seed).random(30) * ([1, 1, 0] * 10)
        assert (weights[dealt(weights, 30, 1 - 1e-16)] > 0).all()


def test_an_epoch_has_each_row_as_often_as_its_weight_says() -> None:
    """Whole weights of mean 1: bitwise the rows that are repeated, in one order or another."""
    positives = TensorPositives(torch.arange(8.0)[:, None], 0, 0.0, weights=torch.tensor(WHOLE))
    orders = [positives.next(8).position[:, 0].tolist() for _ in range(3)]
    assert all(sorted(order) == np.repeat(np.arange(8), WHOLE).tolist() for order in orders)
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("limit", [10**9, 320], ids=["loaded", "streamed"])
def test_rows_of_files_come_in_proportion(limit: int, tmp_path: Path) -> None:
    """Over whole epochs, of several windows where rows are streamed; on two ranks together."""
    weights = np.where(np.arange(40) % 5 == 0, 0.0, UNEVEN)
    write(f"{tmp_path}/rows.parquet", table(weights), unit=4)
    data = read(f"{tmp_path}/rows.parquet", weight="w", memory_limit=limit, held_out=4)
    assert (data.shape, data.streamed) == ((3,), limit < 1000)
    kept = set(data.held_out[:, 0].tolist())
    assert not kept & set(range(0, 40, 5))
    if data.streamed:  # which rows are held out is drawn row by row
        seen = data.positives(7).next(4000).position[:, 0].long().tolist()
        training = np.isin(np.arange(40), seen)
    else:
        training = ~np.isin(np.arange(40), [*kept, *range(0, 40, 5)])
    share = np.where(training, weights, 0) / weights[training].sum()
    # a row's count is off by a standard deviation of 1/2 at most in each of 50 epochs of 30 rows or
    # so, and by a last window of weights of its own: 5 of these, of the shares
    assert np.abs(drawn(data.positives(3), 1500) / 1500 - share).max() < 0.02
    both = sum(drawn(data.positives(3, rank, 2), 750) for rank in (0, 1))
    assert np.abs(both / 1500 - share).max() < 0.03


@pytest.mark.parametrize("limit", [10**9, 320], ids=["loaded", "streamed"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stream_resumes_bitwise(limit: int, ranks: int, tmp_path: Path) -> None:
    write(f"{tmp_path}/rows.parquet", table(UNEVEN), unit=4)
    config = {"weight": "w", "memory_limit": limit, "noise": 0.5}
    data = read(f"{tmp_path}/rows.parquet", **config)
    for taken in (3, 50):
        whole, other = (data.positives(1, ranks - 1, ranks) for _ in range(2))
        whole.next(taken)
        other.load_state_dict(whole.state_dict())
        assert torch.equal(other.next(60).position, whole.next(60).position)


def test_ranks_share_one_stream() -> None:
    rows = torch.arange(8.0)[:, None]
    alone = TensorPositives(rows, 0, 0.1, weights=torch.tensor(WHOLE)).next(12).position
    ranks = [TensorPositives(rows, 0, 0.1, None, r, 3, torch.tensor(WHOLE)) for r in range(3)]
    assert torch.equal(torch.cat([rank.next(4).position for rank in ranks]), alone)


# -- what is worked out of rows --------------------------------------------------------------------


def test_figures_of_weighted_rows_are_those_of_repeated_ones() -> None:
    rows = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor(WHOLE, dtype=torch.float64)
    repeated, half = rows.repeat_interleave(torch.tensor(WHOLE), 0), weights / 2
    torch.testing.assert_close(mean(rows, half), repeated.mean(0))
    # covariances are over less than the rows, by what the weights are worth
    worth = 1 - 1 / float(weights.sum().square() / weights.square().sum())
    spread = torch.cov(repeated.T, correction=0) / worth
    law = Gaussian.fit(rows, 0.0, half)
    torch.testing.assert_close(law.mean, repeated.mean(0))
    found = law.factor @ law.factor.T
    extra = 1e-3 * spread.diagonal().mean() + 1e-8
    torch.testing.assert_close(found, spread + extra * torch.eye(2, dtype=torch.float64))
    boxed = TruncatedGaussian.fit(rows, 0.0, (-9.0, 9.0), half)
    torch.testing.assert_close(boxed.std.square(), spread.diagonal() + 1e-3 * 18**2)
    scale, same = (fitted("standard", *of) for of in ((rows.numpy(), WHOLE), (repeated.numpy(),)))
    np.testing.assert_allclose(scale.shift, same.shift, rtol=1e-9)
    np.testing.assert_allclose(scale.width, same.width, rtol=1e-9)
    bits = (rows > 0).double()
    law_of, same_law = (
        IndependentLevels(*of) for of in ((bits, 2, half), (bits[np.repeat(range(8), WHOLE)], 2))
    )
    torch.testing.assert_close(law_of.log_density(bits), same_law.log_density(bits))


def test_distances_count_pairs_by_their_weights() -> None:
    """Beside the sums over pairs of different rows, written out."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 2, generator=generator), torch.randn(8, 2, generator=generator) + 1
    w, v = torch.rand(6, generator=generator), torch.tensor(WHOLE, dtype=torch.float32)

    def expected(values: torch.Tensor, of: torch.Tensor, others: torch.Tensor) -> float:
        pairs = of[:, None] * others
        pairs = pairs - torch.diag(of.square()) if of is others else pairs
        return float((pairs * values).sum() / pairs.sum())

    between = expected(torch.cdist(x, y), w, v)
    within = [expected(torch.cdist(z, z), of, of) for z, of in ((x, w), (y, v))]
    truth = (2 * between - sum(within)) / (2 * between)
    assert energy_distance(x, y, weights=(w, v)) == pytest.approx(truth, rel=1e-4)
    scale = float(torch.cdist(y, y)[~torch.eye(8, dtype=torch.bool)].median())
    x_x, y_y, x_y = (
        (-torch.cdist(a, b).square() / (2 * scale**2)).exp() for a, b in ((x, x), (y, y), (x, y))
    )
    truth = expected(x_x, w, w) + expected(y_y, v, v) - 2 * expected(x_y, w, v)
    assert squared_mmd(x, y, (w, v)) == pytest.approx(truth, rel=1e-4)
    seen = Likeness(y, v).figures(y[v > 0])
    assert 0.5 < seen["mode_coverage"] < 1  # the chains have each group once


def test_alike_weights_change_no_figure() -> None:
    generator = torch.Generator().manual_seed(0)
    samples, training, held_out = (torch.randn(40, 3, generator=generator) for _ in range(3))
    ones = RowWeights(torch.full((40,), 2.0), torch.full((40,), 0.5))
    found, same = likeness(samples, training, held_out, ones), likeness(samples, training, held_out)
    middle = "held_out_nearest_training_row"  # a quantile of weighted rows is one of them
    assert found.pop(middle) == pytest.approx(same.pop(middle), rel=0.1)
    assert found == pytest.approx(same, rel=1e-6, abs=1e-9)
    values = samples[:, 0].double()
    assert standard_error(values, ones.sample) == pytest.approx(standard_error(values))
    assert outlier_score(values, values + 1, ones.sample) == pytest.approx(
        outlier_score(values, values + 1)
    )


def test_the_standard_error_is_that_of_weighted_means() -> None:
    """Against the spread of 4,000 of them: within 5 standard errors of a standard deviation, and
    the 5 % by which the ratio of sums is off at 100 rows.
    """
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4000, 100, generator=generator, dtype=torch.float64) + 1
    weights = torch.rand(4000, 100, generator=generator, dtype=torch.float64).pow(3)
    values = values * (1 + weights)  # the error of a row hangs on its weight
    found = [standard_error(*pair) for pair in zip(values, weights, strict=True)]
    means = torch.stack([mean(*pair) for pair in zip(values, weights, strict=True)])
    assert np.mean(found) == pytest.approx(float(means.std()), rel=5 / np.sqrt(8000) + 0.05)
    assert standard_error(torch.ones(1), torch.ones(1)) is None


def test_baselines_are_of_the_weighted_law(tmp_path: Path) -> None:
    write(f"{tmp_path}/rows.parquet", table(np.resize([1.0, 3.0], 40)))
    data = read(f"{tmp_path}/rows.parquet", weight="w", columns=("a", "b"), noise=0.5)
    of_held_out, of_training = data.row_weights
    assert of_held_out is not None
    assert of_training is not None
    training, held_out = (
        rows.repeat_interleave(of.long(), 0)
        for rows, of in ((data.sample, of_training), (data.held_out, of_held_out))
    )
    same = data._replace(sample=training, held_out=held_out, row_weights=RowWeights())
    found, _ = continuous_baselines(data, data.held_out, None)
    truth, _ = continuous_baselines(same, held_out, None)
    name = "independent_components"
    assert found[name] == pytest.approx(truth[name], rel=1e-6)
    assert found["gaussian"] == pytest.approx(truth["gaussian"], rel=0.02)  # of covariances over n
    bits = data._replace(sample=data.sample % 2, held_out=data.held_out % 2)
    repeated = same._replace(sample=training % 2, held_out=held_out % 2)
    # a count of 1 is added to as many rows as there are
    assert independent_levels(bits, 2) == pytest.approx(independent_levels(repeated, 2), rel=0.03)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            [-0.5, 1.0],
            "data.path=F: column w, row 12 of F: the weight -0.5 is below 0; weights",
        ),
        ([None, 1.0], "data.path=F: column w, row 12 of F: the value is missing"),
        ([float("nan"), 1.0], "data.path=F: column w, row 12 of F: nan is not finite"),
        ([float("inf"), 1.0], "data.path=F: column w, row 12 of F: inf is not finite"),
        ([0.0, 0.0], "data.weight=w: all weights are 0; some row must have one above 0"),
        ([[1.0], [2.0, 3.0]], "data.path=F: column w, row 13 of F: a list of 2 numbers"),
        ([[1.0, 2.0], [2.0, 3.0]], "data.weight=w: holds lists in F; a weight is one number"),
        (["a", "b"], "data.weight=w: is of type string in F, row 0 is"),
    ],
)
@pytest.mark.parametrize("limit", [10**9, 320], ids=["loaded", "streamed"])
def test_bad_weights(weights: list[Any], message: str, limit: int, tmp_path: Path) -> None:
    """By column and row, of rows that are streamed too, before anything begins."""
    good = [0.0] * 12 if weights == [0.0, 0.0] else [weights[1]] * 12
    path = f"{tmp_path}/rows.parquet"
    write(path, table([*good, weights[0], *[weights[1]] * 27]))
    if message.endswith("of 2 numbers"):
        write(path, table([*[weights[0]] * 13, *[weights[1]] * 27]))
    with pytest.raises(PipelineError, match=re.escape(message.replace("F", path))) as refused:
        read(path, weight="w", memory_limit=limit)
    assert refused.value.exit_status == 2


def test_the_weights_column_is_none_that_is_learned_from(tmp_path: Path) -> None:
    path = f"{tmp_path}/rows.parquet"
    write(path, table(UNEVEN))
    with pytest.raises(PipelineError, match=r"data\.weight=x: .* has only a, b, c, w"):
        read(path, weight="x")
    with pytest.raises(PipelineError, match=r"w would be taken twice \(data\.weight=w\)"):
        read(path, weight="w", columns=("a", "w"))
    (tmp_path / "rows.csv").write_text("a,w\n1,2\n2,x\n")
    with pytest.raises(PipelineError, match=r"column w, row 1 of .*: 'x' is no number"):
        read(f"{tmp_path}/rows.csv", weight="w")
    np.savez(tmp_path / "rows.npz", x=matrix(40), w=UNEVEN)
    data = read(f"{tmp_path}/rows.npz", weight="w")
    assert data.shape == (3,)
    assert data.row_weights.sample is not None
    of = data.row_weights.sample.numpy()
    np.testing.assert_allclose(of, UNEVEN[data.sample[:, 0].long().numpy()], rtol=1e-6)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -1.0, 1.0], r"weights=list: row 1: the weight -1 is below 0"),
        ([1.0, 1.0], r"weights=shape \[2\]: there are 3 rows; give each one number"),
        (np.zeros(3), r"weights=3 of them: all weights are 0"),
        ([1.0, np.nan, 1.0], r"weights=nan at row 1: is missing"),
        (["a", "b", "c"], r"weights=list: holds values of type"),
    ],
)
def test_bad_weights_in_code(weights: Any, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        given_rows(np.ones((3, 2)), weights=weights)
    with pytest.raises(PipelineError, match="held_out_" + message):
        given_rows(np.ones((5, 2)), np.ones((3, 2)), held_out_weights=weights)


def test_weights_in_code_go_with_rows() -> None:
    with pytest.raises(PipelineError, match=r"weights=list: go with rows=ROWS"):
        run(compose(["cluster=inline"]), weights=[1.0])
    with pytest.raises(PipelineError, match="held_out_weights=list: go with held_out=ROWS"):
        given_rows(np.ones((3, 2)), held_out_weights=[1.0])


def test_what_a_run_is_held_to_has_the_weights() -> None:
    rows = np.ones((3, 2))
    told = {given_rows(rows, weights=of).in_words() for of in (None, [1, 1, 1], [1, 1, 2])}
    assert len(told) == 3
    with pytest.raises(DataError):
        given_rows(rows, weights=[1, -1, 1])
