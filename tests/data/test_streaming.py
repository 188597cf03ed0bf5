"""Columns streamed rather than loaded: every row once an epoch, resumable anywhere."""

from __future__ import annotations

import math
import pickle
from functools import cache
from pathlib import Path

import pytest
import torch

from pipeline.data.base import DataSet, TensorPositives
from pipeline.data.columns import StreamedPositives
from pipeline.errors import ConfigError, DataError
from tests.data.test_columns import listed, matrix, read, write

TOTAL, UNIT, LIMIT = 600, 10, 1440  # 600 rows of 12 bytes in 60 units; a window holds 1440 / 2 / 12 = 60 rows


@pytest.fixture(params=["parquet", "arrow"], scope="module")
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """600 rows in two files of 30 units each."""
    folder = tmp_path_factory.mktemp("streamed")
    for number in range(2):
        write(f"{folder}/{number}.{request.param}", listed(matrix(300, start=300 * number)), UNIT)
    return str(folder)


@cache
def streamed(stored: str, *overrides: str, **data: object) -> DataSet:
    return read(stored, *overrides, **{"memory_limit": LIMIT, "held_out": 100, **data})


def stream(stored: str, *overrides: str, seed: int = 0, **data: object) -> StreamedPositives:
    positives = streamed(stored, *overrides, **data).positives(seed)
    assert isinstance(positives, StreamedPositives)
    return positives


def numbers(rows: torch.Tensor) -> list[int]:
    """Which rows these are; each must be whole."""
    assert torch.equal(rows, torch.from_numpy(matrix(TOTAL))[rows[:, 0].long()])
    return rows[:, 0].long().tolist()


def epochs(positives: StreamedPositives, count: int) -> list[list[int]]:
    """The rows of the next `count` epochs, drawn one by one from an epoch's start."""
    found: dict[int, list[int]] = {}
    while len(found) <= count:
        drawn = numbers(positives.next(1).position)
        found.setdefault(positives.state_dict()["epoch"], []).extend(drawn)
    return [found[epoch] for epoch in sorted(found)[:count]]


def test_streamed_when_larger_than_the_limit(stored: str) -> None:
    """7,200 bytes are loaded under a limit of 7,200 and streamed under one of 7,199."""
    assert isinstance(read(stored, memory_limit=7200).positives(0), TensorPositives)
    assert isinstance(read(stored, memory_limit=7199).positives(0), StreamedPositives)


def test_stream_gives_each_training_row_once_an_epoch(stored: str) -> None:
    """The same training rows in each epoch, each once; about 100 of 600 never come; every unit is visited."""
    first, second, third = epochs(stream(stored), 3)
    training = set(first)
    assert len(first) == len(training)
    assert sorted(first) == sorted(second) == sorted(third)
    assert len({tuple(order) for order in (first, second, third, sorted(first))}) == 4
    assert {row // UNIT for row in training} == set(range(TOTAL // UNIT))
    deviation = math.sqrt(TOTAL * 1 / 6 * 5 / 6)  # held out by chance 1/6; 5 deviations: false-alarm rate 6e-7
    assert abs(TOTAL - len(training) - 100) < 5 * deviation


def test_stream_keeps_held_out_rows_apart(stored: str) -> None:
    """No held-out row is drawn in two epochs nor in the sample, and the sample holds training rows only."""
    data = streamed(stored)
    training = {row for order in epochs(stream(stored), 2) for row in order}
    held_out, sample = numbers(data.held_out), numbers(data.sample)
    assert 0 < len(held_out) <= 100
    assert len(set(held_out)) == len(held_out)
    assert len(set(sample)) == len(sample) > 0
    assert not set(held_out) & training
    assert set(sample) <= training


def test_split_of_a_stream_depends_on_split_seed_alone(stored: str) -> None:
    """Another `seed` draws the same training rows; another split_seed keeps others out."""
    split = [
        set(epochs(stream(stored, "seed=4"), 1)[0]),
        set(epochs(stream(stored, seed=7), 1)[0]),
        set(epochs(stream(stored, split_seed=1), 1)[0]),
    ]
    assert split[0] == split[1] != split[2]
    assert torch.equal(streamed(stored).held_out, streamed(stored, "seed=4").held_out)


def test_stream_order_depends_on_the_seed(stored: str) -> None:
    """The same seed gives the same order, another seed another, in units and within them."""
    orders = [epochs(stream(stored, seed=seed), 1)[0] for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == sorted(orders[2])
    assert sum(a == b for a, b in zip(orders[0], orders[2], strict=True)) < 20  # about one, by chance
    first_units = [{row // UNIT for row in order[:30]} for order in (orders[0], orders[2])]
    assert first_units[0] != first_units[1]


def test_stream_mixes_units(stored: str) -> None:
    """Rows of different units come mixed: thirty in a row are of more than the three or four units they would fill."""
    order = epochs(stream(stored), 1)[0]
    for start in range(0, len(order) - 30, 50):  # a window is of six units
        assert len({row // UNIT for row in order[start : start + 30]}) >= 5


def test_stream_batches_do_not_change_the_order(stored: str) -> None:
    """The same rows come however they are cut, across windows and epochs."""
    one, other = stream(stored), stream(stored)
    whole = numbers(one.next(1500).position)
    pieces = [row for size in (1, 70, 300, 600, 529) for row in numbers(other.next(size).position)]
    assert whole == pieces


def test_stream_stays_within_memory(stored: str) -> None:
    """What is in hand at once is at most half the limit, and the sample and held-out rows fit the limit."""
    positives, data = stream(stored), streamed(stored)
    windows = set()
    for _ in range(100):
        positives.next(13)
        windows.add(positives.state_dict()["window"])
        assert positives._rows.nbytes <= LIMIT // 2
    assert windows == set(range(10))
    assert data.sample.nbytes + data.held_out.nbytes <= LIMIT


@pytest.mark.parametrize("noise", [0, 0.25])
def test_stream_resumes_bitwise_anywhere(stored: str, noise: float) -> None:
    """From states saved in the middle of windows and in later epochs, by way of bytes, noise included."""
    data = streamed(stored, noise=noise)
    positives, saved, drawn = data.positives(3), [], []
    sizes = [1, 7, 42, 50, 120, 1, 33, 260, 9, 480, 77, 100, 90, 90]
    for size in sizes:
        saved.append(pickle.dumps(positives.state_dict()))
        drawn.append(positives.next(size).position)
    positions = {(state["epoch"], state["window"]) for state in map(pickle.loads, saved)}
    assert len(positions) >= 6
    assert len({epoch for epoch, _ in positions}) >= 3
    fresh, used = data.positives(3), data.positives(3)
    used.next(333)
    for start in range(len(sizes) - 2):
        for resumed in (fresh, used) if start == 4 else (used,):
            resumed.load_state_dict(pickle.loads(saved[start]))
            for expected in drawn[start : start + 3]:
                assert torch.equal(resumed.next(len(expected)).position, expected)


def test_stream_resumes_at_the_edge_of_a_window_and_of_an_epoch(stored: str) -> None:
    """A state saved with the window, or the epoch, just used up goes on with the next."""
    data = streamed(stored, noise=0.1)
    positives, resumed = data.positives(0), data.positives(0)
    edges = {"window": 0, "epoch": 0}
    saved = positives.state_dict()
    while edges["epoch"] < 2:
        row, state = positives.next(1).position, positives.state_dict()
        kind = next((name for name in ("epoch", "window") if state[name] > saved[name]), None)
        if kind:
            edges[kind] += 1
            resumed.load_state_dict(saved)
            assert torch.equal(resumed.next(1).position, row)
        saved = state
    assert edges["window"] >= 10


def test_stream_of_one_large_unit(tmp_path: Path) -> None:
    """A unit larger than the limit is read whole, and comes in another order each epoch, and under each seed."""
    write(f"{tmp_path}/rows.parquet", listed(matrix(TOTAL)), unit=TOTAL)
    orders = [order for seed in (0, 1) for order in epochs(stream(f"{tmp_path}/rows.parquet", seed=seed), 2)]
    assert len({frozenset(order) for order in orders}) == 1
    assert len({tuple(order) for order in orders}) == 4


def test_stream_noise(stored: str) -> None:
    """Noise of the stated deviation (5 standard errors, false-alarm rate 6e-7), on the same order of rows, none stored."""
    clean, noisy = stream(stored).next(1000).position, stream(stored, noise=0.25).next(1000).position
    noise = (noisy - clean).double()
    assert noise.std().item() == pytest.approx(0.25, abs=5 * 0.25 / math.sqrt(2 * noise.numel()))
    assert noise.mean().item() == pytest.approx(0, abs=5 * 0.25 / math.sqrt(noise.numel()))
    data = streamed(stored, noise=0.25)
    numbers(data.sample)
    numbers(data.held_out)


def test_stream_shape(stored: str) -> None:
    """`data.shape` holds for what is drawn, held out and sampled."""
    data = streamed(stored, shape=(3, 1))
    assert data.shape == (3, 1)
    assert {tuple(rows.shape[1:]) for rows in (data.held_out, data.sample, data.positives(0).next(5).position)} == {(3, 1)}


def test_stream_without_held_out_rows_in_hand(stored: str) -> None:
    """One row of 600 is not among the few first read: refused, rather than evaluated on nothing."""
    with pytest.raises(ConfigError, match=r"data\.held_out=1: .*keep out more"):
        streamed(stored, held_out=1, split_seed=1)


def test_stream_without_training_rows_in_hand(stored: str) -> None:
    """599 rows of 600 held out leave no training row among the first: refused, rather than a mean of nothing."""
    with pytest.raises(ConfigError, match=r"data\.held_out=599: .*keep out fewer"):
        streamed(stored, "trainer.batch_size=1", held_out=599)


def test_stream_meets_a_bad_value(tmp_path: Path) -> None:
    """A value that is not finite, in a unit not read at first, is a `DataError` when its turn comes."""
    values = matrix(TOTAL)
    values[411, 1] = math.nan
    write(f"{tmp_path}/rows.parquet", listed(values), UNIT)
    with pytest.raises(DataError, match=r"data\.path=.*not finite"):
        streamed(f"{tmp_path}/rows.parquet").positives(0).next(TOTAL)
