"""Columns streamed rather than loaded: every row once an epoch over all ranks, read ahead,
resumable anywhere.
"""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.common.errors import CheckpointError, ConfigError, DataError
from pipeline.data import files, formats
from pipeline.data.base import DataSet, TensorPositives
from pipeline.data.files import Source, Unit
from pipeline.data.streaming import StreamedPositives
from tests.patience import PATIENCE
from tests.unit.data.test_columns import listed, matrix, read, write

pytestmark = pytest.mark.slow

TOTAL, UNIT, LIMIT = (
    600,
    10,
    1440,
)  # 600 rows of 12 bytes in 60 units; a window holds 1440 / 2 / 12 = 60 rows


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


def stream(
    stored: str, *overrides: str, seed: int = 0, rank: int = 0, ranks: int = 1, **data: object
) -> StreamedPositives:
    positives = streamed(stored, *overrides, **data).positives(seed, rank, ranks)
    assert isinstance(positives, StreamedPositives)
    return positives


def numbers(rows: torch.Tensor) -> list[int]:
    """Which rows these are; each must be whole."""
    assert torch.equal(rows, torch.from_numpy(matrix(TOTAL))[rows[:, 0].long()])
    return rows[:, 0].long().tolist()


def epochs(positives: StreamedPositives, count: int) -> list[list[int]]:
    """The rows of the first `count` epochs of a fresh stream, drawn one by one."""
    found: list[list[int]] = [[] for _ in range(count)]
    while True:
        drawn, epoch = numbers(positives.next(1).position), positives.state_dict()["epoch"]
        if epoch >= count:
            return found
        found[epoch].extend(drawn)


def test_streamed_when_larger_than_the_limit(stored: str) -> None:
    """7,200 bytes are loaded under a limit of 7,200 and streamed under one of 7,199."""
    assert isinstance(read(stored, memory_limit=7200).positives(0), TensorPositives)
    assert isinstance(read(stored, memory_limit=7199).positives(0), StreamedPositives)


def test_stream_gives_each_training_row_once_an_epoch(stored: str) -> None:
    """The same training rows in each epoch, each once; about 100 of 600 never come; every unit is
    visited.
    """
    first, second, third = epochs(stream(stored), 3)
    training = set(first)
    assert len(first) == len(training)
    assert sorted(first) == sorted(second) == sorted(third)
    assert len({tuple(order) for order in (first, second, third, sorted(first))}) == 4
    assert {row // UNIT for row in training} == set(range(TOTAL // UNIT))
    deviation = math.sqrt(
        TOTAL * 1 / 6 * 5 / 6
    )  # held out by chance 1/6; 5 deviations: false-alarm rate 6e-7
    assert abs(TOTAL - len(training) - 100) < 5 * deviation


def test_stream_keeps_held_out_rows_apart(stored: str) -> None:
    """No held-out row is drawn in two epochs nor in the sample, and the sample holds training rows
    only.
    """
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
    assert (
        sum(a == b for a, b in zip(orders[0], orders[2], strict=True)) < 20
    )  # about one, by chance
    first_units = [{row // UNIT for row in order[:30]} for order in (orders[0], orders[2])]
    assert first_units[0] != first_units[1]


def test_stream_mixes_units(stored: str) -> None:
    """Rows of different units come mixed: thirty in a row are of more than the three or four units
    they would fill.
    """
    order = epochs(stream(stored), 1)[0]
    for start in range(0, len(order) - 30, 50):  # a window is of six units
        assert len({row // UNIT for row in order[start : start + 30]}) >= 5


def test_stream_batches_do_not_change_the_order(stored: str) -> None:
    """The same rows come however they are cut, across windows and epochs."""
    one, other = stream(stored), stream(stored)
    whole = numbers(one.next(1500).position)
    pieces = [row for size in (1, 70, 300, 600, 529) for row in numbers(other.next(size).position)]
    assert whole == pieces


def test_windows_and_sample_fit_the_limit(stored: str) -> None:
    """A window is at most half the limit, and the sample and held-out rows together fit it."""
    positives, data = stream(stored), streamed(stored)
    windows = set()
    for _ in range(100):
        positives.next(13)
        windows.add(positives.state_dict()["window"])
        assert positives._window is not None
        assert positives._window.rows.nbytes <= LIMIT // 2
    assert windows == set(range(10))
    assert data.sample.nbytes + data.held_out.nbytes <= LIMIT


@contextmanager
def own_pool() -> Iterator[pa.MemoryPool]:
    """A memory pool that all of Arrow uses meanwhile, once the readers that other tests have left
    are through.
    """
    for thread in threading.enumerate():
        if thread.name == "positives":
            thread.join()
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        yield pool
    finally:
        pa.set_memory_pool(before)


@pytest.mark.parametrize("unit", [200, 8000], ids=["many units", "one unit larger than the limit"])
def test_stream_stays_within_memory(
    unit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 MB under a limit of 8 MB: what is allocated over two epochs, Arrow's share included, is
    the limit and a few pieces.
    """
    limit, piece = 8_000_000, 200_000
    monkeypatch.setattr(files, "PIECE", piece)
    monkeypatch.setattr(formats, "READ", piece)
    write(
        f"{tmp_path}/rows.parquet",
        listed(np.random.RandomState(0).randn(8000, 750).astype(np.float32)),
        unit,
    )
    positives = read(f"{tmp_path}/rows.parquet", memory_limit=limit, held_out=400).positives(0)
    assert isinstance(positives, StreamedPositives)
    windows = set()
    with own_pool() as pool:
        tracemalloc.start()
        for _ in range(32):
            positives.next(500)
            state = positives.state_dict()
            windows.add((state["epoch"], state["window"]))
        read_ahead(positives)  # the pool outlives its use
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert len(windows) > 10
    assert limit < peak + pool.max_memory() < limit + 500 * 750 * 4 + 20 * piece


@pytest.mark.parametrize("noise", [0, 0.25])
def test_stream_resumes_bitwise_anywhere(stored: str, noise: float) -> None:
    """From states saved in the middle of windows and in later epochs, by way of bytes, noise
    included.
    """
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
    """A unit larger than a window comes in windows of rows from all of it, in another order each
    epoch and under each seed.
    """
    write(f"{tmp_path}/rows.parquet", listed(matrix(TOTAL)), unit=TOTAL)
    orders = [
        order
        for seed in (0, 1)
        for order in epochs(stream(f"{tmp_path}/rows.parquet", seed=seed), 2)
    ]
    assert len({frozenset(order) for order in orders}) == 1
    assert len({tuple(order) for order in orders}) == 4
    for order in orders:
        assert len(set(order)) == len(order) > 400
        for start in range(0, 400, 40):
            assert max(order[start : start + 40]) - min(order[start : start + 40]) > TOTAL // 2


def test_stream_noise(stored: str) -> None:
    """Noise of the stated deviation (5 standard errors, false-alarm rate 6e-7), on the same order
    of rows, none stored.
    """
    clean, noisy = (
        stream(stored).next(1000).position,
        stream(stored, noise=0.25).next(1000).position,
    )
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
    assert {
        tuple(rows.shape[1:])
        for rows in (data.held_out, data.sample, data.positives(0).next(5).position)
    } == {(3, 1)}


def test_stream_without_held_out_rows_in_hand(stored: str) -> None:
    """One row of 600 is not among the few first read: refused, rather than evaluated on nothing."""
    with pytest.raises(ConfigError, match=r"data\.held_out=1: .*keep out more"):
        streamed(stored, held_out=1, split_seed=1)


def test_stream_without_training_rows_in_hand(stored: str) -> None:
    """599 rows of 600 held out leave no training row among the first: refused, rather than a mean
    of nothing.
    """
    with pytest.raises(ConfigError, match=r"data\.held_out=599: .*keep out fewer"):
        streamed(stored, "trainer.batch_size=1", held_out=599)


def test_stream_meets_a_bad_value(tmp_path: Path) -> None:
    """A value that is not finite, in a unit not read at first, is a `DataError` when its turn
    comes.
    """
    values = matrix(TOTAL)
    values[411, 1] = math.nan
    write(f"{tmp_path}/rows.parquet", listed(values), UNIT)
    with pytest.raises(DataError, match=r"data\.path=.*not finite"):
        streamed(f"{tmp_path}/rows.parquet").positives(0).next(TOTAL)


# -- ranks -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> str:
    """600 rows in three units of 200, none larger than a window under a limit of 6,000."""
    folder = tmp_path_factory.mktemp("few")
    write(f"{folder}/rows.parquet", listed(matrix(TOTAL)), 200)
    return str(folder)


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_ranks_share_each_epoch(stored: str, ranks: int) -> None:
    """Each training row once an epoch over all ranks, those of one rank alone; every rank has its
    part, another each epoch.
    """
    training = sorted(epochs(stream(stored), 1)[0])
    parts = [epochs(stream(stored, rank=rank, ranks=ranks), 3) for rank in range(ranks)]
    for epoch in range(3):
        assert sorted(row for part in parts for row in part[epoch]) == training
        assert all(abs(len(part[epoch]) - len(training) / ranks) < 40 for part in parts)
    assert all(set(part[0]) != set(part[1]) for part in parts)


def test_a_unit_comes_in_another_order_each_epoch(few: str) -> None:
    """Also where it is all that a rank has of the epoch."""
    orders = epochs(stream(few, rank=1, ranks=3, memory_limit=6000), 6)
    assert len({tuple(order) for order in orders}) == 6
    assert len({frozenset(order) for order in orders}) <= 3


@pytest.mark.parametrize("ranks", [4, 5, 12])
def test_more_ranks_than_units(few: str, ranks: int) -> None:
    """Units are cut, so that every rank has rows in every epoch, and each row still comes once."""
    training = sorted(epochs(stream(few, memory_limit=6000), 1)[0])
    parts = [
        epochs(stream(few, rank=rank, ranks=ranks, memory_limit=6000), 2) for rank in range(ranks)
    ]
    for epoch in range(2):
        assert sorted(row for part in parts for row in part[epoch]) == training
        assert all(part[epoch] for part in parts)


def test_more_ranks_than_rows(tmp_path: Path) -> None:
    """A rank without a row in some epochs goes on to one in which it has some."""
    write(f"{tmp_path}/rows.parquet", listed(matrix(40)), 10)
    where = {"memory_limit": 240, "held_out": 10}
    training = sorted(epochs(stream(str(tmp_path), **where), 1)[0])
    parts = [epochs(stream(str(tmp_path), rank=rank, ranks=60, **where), 4) for rank in range(60)]
    for epoch in range(4):
        assert sorted(row for part in parts for row in part[epoch]) == training
    assert any(not part[0] for part in parts)


def test_ranks_have_noise_of_their_own(stored: str) -> None:
    """No number of one rank's noise is another's; rank 0's is that of one rank alone."""
    noise = []
    for rank, ranks in ((0, 1), (0, 2), (1, 2)):
        clean, noisy = (
            stream(stored, rank=rank, ranks=ranks, noise=deviation) for deviation in (0, 0.25)
        )
        noise.append(
            (noisy.next(200).position.double() - clean.next(200).position.double()).flatten()
        )
    torch.testing.assert_close(
        noise[0], noise[1], atol=1e-4, rtol=0
    )  # added to other rows, so rounded otherwise
    assert not torch.isclose(noise[1], noise[2], atol=1e-4, rtol=0).float().mean() > 0.01


@pytest.mark.parametrize("ranks", [3, 5])
def test_each_rank_resumes_bitwise(few: str, ranks: int) -> None:
    """Before the first row, within windows, at their edges, in later epochs; a fresh stream, and
    one that is elsewhere.
    """
    for rank in range(ranks):
        place = {"rank": rank, "ranks": ranks, "seed": 3, "memory_limit": 2000, "noise": 0.25}
        positives, other = stream(few, **place), stream(few, **place)
        saved, drawn = [], []
        for _ in range(400):
            saved.append(pickle.dumps(positives.state_dict()))
            drawn.append(positives.next(1).position)
        states = [pickle.loads(state) for state in saved]
        assert max(state["epoch"] for state in states) >= 2
        edges = [
            n for n in range(1, 400) if states[n]["cursor"] == 1 and states[n - 1]["cursor"] > 1
        ]
        assert len(edges) >= 4
        for start in (
            0,
            1,
            17,
            *(near for edge in edges for near in (edge - 2, edge - 1, edge)),
            380,
        ):
            for resumed in (other, stream(few, **place)):
                resumed.load_state_dict(pickle.loads(saved[start]))
                assert {**resumed.state_dict(), "noise": 0} == {**states[start], "noise": 0}
                for expected in drawn[start : start + 3]:
                    assert torch.equal(resumed.next(1).position, expected)


def test_state_of_another_rank_is_refused(stored: str) -> None:
    """It would leave rows out and repeat others, unseen. A state from before there were ranks is of
    one alone.
    """
    state = stream(stored, rank=1, ranks=2).state_dict()
    for rank, ranks in ((0, 2), (1, 3), (0, 1)):
        with pytest.raises(
            CheckpointError, match=rf"rank 1 of 2; rank {rank} of {ranks} has other rows"
        ):
            stream(stored, rank=rank, ranks=ranks).load_state_dict(state)
    old = {
        key: value
        for key, value in stream(stored).state_dict().items()
        if key not in ("rank", "ranks")
    }
    stream(stored).load_state_dict(old)


# -- reading ahead ---------------------------------------------------------------------------------


def read_ahead(positives: StreamedPositives) -> None:
    """Returns when the next window is there."""
    assert positives._ahead is not None
    positives._ahead._thread.join()


def test_nothing_is_read_before_the_first_row(stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    positives = stream(stored)
    monkeypatch.setattr(Source, "pieces", None)
    positives.load_state_dict({**positives.state_dict(), "window": 3, "cursor": 20})
    assert positives.state_dict()["window"] == 3
    assert positives.waited == 0


def test_the_next_window_is_read_while_one_is_used(
    stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one row drawn the whole next window is there. What fails after it is said when its turn
    comes, and tried anew.
    """
    expected = numbers(stream(stored).next(200).position)
    positives = stream(stored)
    drawn = numbers(positives.next(1).position)
    assert positives.waited > 0
    read_ahead(positives)

    def gone(*_: object) -> None:
        raise DataError("data.path", "rows", "the network is down")

    with monkeypatch.context() as patch:
        patch.setattr(Source, "pieces", gone)
        while positives.state_dict()["window"] == 0 or positives._cursor < len(
            positives._window.rows
        ):
            drawn += numbers(positives.next(1).position)
        with pytest.raises(DataError, match="the network is down"):
            positives.next(1)
        assert positives.state_dict()["window"] == 1
    assert 90 < len(drawn) < 120
    assert drawn + numbers(positives.next(200 - len(drawn)).position) == expected


def test_the_next_epoch_is_read_ahead(stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    positives = stream(stored)
    while positives.state_dict()["window"] < 9:
        positives.next(1)
    read_ahead(positives)
    monkeypatch.setattr(Source, "pieces", None)
    while positives.state_dict()["epoch"] == 0:
        positives.next(1)


def test_a_jump_while_a_window_is_being_read(stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window being read ahead is given up at once, and never written over the one wanted."""
    elsewhere = stream(stored)
    elsewhere.next(333)
    state, expected = elsewhere.state_dict(), numbers(elsewhere.next(150).position)
    begun, given_up = threading.Event(), threading.Event()

    def endless(unit: Unit) -> Iterator[tuple[int, Any]]:
        """Nothing, for up to a minute; then the rows."""
        try:
            begun.set()
            for _ in range(6000):
                time.sleep(0.01)
                yield 0, np.empty((0, 3), np.float32)
            yield from pieces(unit)
        except GeneratorExit:
            given_up.set()
            raise

    positives = read(stored, memory_limit=LIMIT, held_out=100).positives(
        0
    )  # the only stream of its source
    assert isinstance(positives, StreamedPositives)
    pieces = positives._source.pieces
    positives.next(1)
    read_ahead(positives)
    with monkeypatch.context() as patch:
        patch.setattr(positives._source, "pieces", endless)
        positives.next(60)  # into the second window: the third is being read, and will not end
        assert begun.wait(60)
    positives.load_state_dict(state)
    assert numbers(positives.next(150).position) == expected
    assert given_up.is_set()


def test_exit_does_not_wait_for_a_window(tmp_path: Path) -> None:
    """An interpreter that ends while a window is being read, here one that has no end, ends all the
    same.
    """
    write(f"{tmp_path}/rows.parquet", listed(matrix(TOTAL)), 60)
    program = f"""
import time
from pipeline.data.columns import Source
from tests.unit.data.test_columns import read

def endless(source, unit):
    yield from pieces(source, unit)
    if started:
        while True:
            yield 0, next(pieces(source, unit))[1][:0]
            time.sleep(0.01)

pieces, started = Source.pieces, False
positives = read("{tmp_path}/rows.parquet", memory_limit={LIMIT}).positives(0)
Source.pieces = endless
positives.next(1)
positives._ahead._thread.join()
started = True
positives.next(60)
assert positives._ahead._thread.is_alive()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=Path.cwd(),
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_that_has_changed(tmp_path: Path) -> None:
    """Fewer rows than there were when it was opened are an error, not rows of whatever memory
    holds.
    """
    write(f"{tmp_path}/rows.parquet", listed(matrix(TOTAL)), UNIT)
    positives = stream(str(tmp_path))
    write(f"{tmp_path}/rows.parquet", listed(matrix(TOTAL)), UNIT - 1)
    with pytest.raises(DataError, match=r"rows\.parquet: has changed; 10 rows there are 9 now"):
        positives.next(1)
