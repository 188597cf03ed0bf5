"""Parquet and Arrow files: what counts as a row, where files may be, what is refused, and streams larger than memory."""

from __future__ import annotations

import math
import pickle
import re
import uuid
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from pipeline.build import open_data
from pipeline.compose import compose
from pipeline.config import RunConfig
from pipeline.data.base import DataSet, TensorPositives
from pipeline.data.columns import StreamedPositives
from pipeline.errors import ConfigError, DataError, PipelineError

BINARY = ("energy=rbm", "kernel=gibbs", "data.encoding=binary")
Matrix = NDArray[np.float32]


def matrix(rows: int, start: int = 0) -> Matrix:
    """Rows [n, -n, n / 2]: a row read says which it is."""
    number = np.arange(start, start + rows, dtype=np.float32)
    return np.stack([number, -number, number / 2], 1)


def listed(values: Matrix) -> pa.Table:
    """The rows as one column `x` of fixed-size lists."""
    return pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])})


def numbered(values: Matrix) -> pa.Table:
    """The rows as columns a, b, c."""
    return pa.table(dict(zip("abc", values.T, strict=True)))


def write(url: str, table: pa.Table, unit: int = 10) -> None:
    """By the suffix: Parquet in row groups, or an Arrow file in record batches, of `unit` rows."""
    with fsspec.open(url, "wb") as file:
        if url.endswith(".parquet"):
            pq.write_table(table, file, row_group_size=unit)
        else:
            with pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table, max_chunksize=unit)


@cache  # Hydra takes some 50 ms
def composed(*overrides: str) -> RunConfig:
    return compose(["data=columns", "data.path=there", "trainer.batch_size=4", *overrides])


def read(url: str, *overrides: str, **data: object) -> DataSet:
    """The data set at `url` with six rows held out and other keys of `data.*` as given."""
    config = composed(*overrides)
    section = {**config.data.model_dump(), "path": url, "held_out": 6, **data}
    return open_data(RunConfig.model_validate({**config.model_dump(), "data": section}))


def assert_rows(data: DataSet, expected: Matrix) -> None:
    """`expected`, in the files' order, is split by RandomState(0), the last six rows held out."""
    order = np.random.RandomState(0).permutation(len(expected))
    shuffled = torch.from_numpy(expected[order]).reshape(-1, *data.shape)
    assert (data.rows, len(data.held_out)) == (len(expected) - 6, 6)
    assert torch.equal(data.sample, shuffled[:-6])
    assert torch.equal(data.held_out, shuffled[-6:])
    assert isinstance(data.positives(0), TensorPositives)


# -- what a row is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [listed, numbered])
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_one_list_column_or_several_numeric_ones(table: Any, suffix: str, tmp_path: Path) -> None:
    """Both give the same rows, in the files' order before the split, over all row groups or record batches."""
    write(f"{tmp_path}/rows.{suffix}", table(matrix(47)))
    data = read(f"{tmp_path}/rows.{suffix}")
    assert (data.shape, data.noise, data.log_density) == ((3,), 0, None)
    assert_rows(data, matrix(47))


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_columns_are_taken_in_the_order_asked_for(suffix: str, tmp_path: Path) -> None:
    """`data.columns=[c,a]` is c, then a; columns not asked for may be anything."""
    table = numbered(matrix(30)).append_column("label", pa.array(["x"] * 30))
    write(f"{tmp_path}/rows.{suffix}", table)
    assert_rows(read(f"{tmp_path}/rows.{suffix}", columns=("c", "a")), matrix(30)[:, [2, 0]])


def test_lists_and_numbers_side_by_side(tmp_path: Path) -> None:
    """Columns are joined in their order, whatever the kind of each."""
    table = listed(matrix(30)).append_column("y", pa.array(np.arange(30, dtype=np.int64)))
    write(f"{tmp_path}/rows.parquet", table)
    assert_rows(read(f"{tmp_path}/rows.parquet"), np.concatenate([matrix(30), matrix(30)[:, :1]], 1))


@pytest.mark.parametrize("kind", ["int8", "uint16", "int64", "float16", "float32", "float64", "bool"])
def test_number_types(kind: str, tmp_path: Path) -> None:
    """Integers, floats and booleans all become float32."""
    values = (np.arange(40) % 2 if kind == "bool" else np.arange(40)).astype(kind)
    write(f"{tmp_path}/rows.parquet", pa.table({"x": values}))
    data = read(f"{tmp_path}/rows.parquet")
    assert data.sample.dtype == torch.float32
    assert_rows(data, values.astype(np.float32)[:, None])


def test_binary(tmp_path: Path) -> None:
    """Rows of 0 and 1 pass as they are under data.encoding=binary."""
    values = np.random.RandomState(0).randint(0, 2, (40, 5)).astype(np.float32)
    write(f"{tmp_path}/rows.parquet", listed(values))
    assert_rows(read(f"{tmp_path}/rows.parquet", *BINARY), values)


def test_shape(tmp_path: Path) -> None:
    """`data.shape` folds a row's numbers, the last axis fastest."""
    values = np.arange(40 * 6, dtype=np.float32).reshape(40, 6)
    write(f"{tmp_path}/rows.parquet", listed(values))
    data = read(f"{tmp_path}/rows.parquet", shape=(2, 3))
    assert data.shape == (2, 3)
    assert data.positives(0).next(9).shape == (9, 2, 3)
    assert_rows(data, values)


def test_wrong_shape(tmp_path: Path) -> None:
    """A shape of another number of numbers: both are said."""
    write(f"{tmp_path}/rows.parquet", listed(matrix(30)))
    with pytest.raises(ConfigError, match=r"data\.shape=\[2, 2\]: .*3 numbers.* 4"):
        read(f"{tmp_path}/rows.parquet", shape=(2, 2))


# -- where the files are ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder on disk, or in fsspec's memory: rows 0..19 in 1.parquet, 20..39 in 2.arrow, 40..59 in deep/3.parquet."""
    url = str(tmp_path) if request.param == "disk" else f"memory://{uuid.uuid4().hex}"
    file_system, _ = fsspec.core.url_to_fs(url)
    file_system.makedirs(f"{url}/deep", exist_ok=True)
    for number, name in enumerate(["1.parquet", "2.arrow", "deep/3.parquet"]):
        write(f"{url}/{name}", listed(matrix(20, start=20 * number)), unit=8)
    yield url
    if request.param == "memory":
        file_system.rm(url, recursive=True)


@pytest.mark.parametrize(
    ("pattern", "rows"),
    [
        ("1.parquet", range(20)),
        ("2.arrow", range(20, 40)),
        ("*.parquet", range(20)),
        ("?.*", range(40)),
        ("**/*.parquet", [*range(20), *range(40, 60)]),
        ("deep", range(40, 60)),
        ("", range(60)),
    ],
)
def test_file_glob_and_folder(folder: str, pattern: str, rows: Sequence[int]) -> None:
    """One file, a glob, or all files under a folder, of both kinds, in the order of their paths."""
    assert_rows(read(f"{folder}/{pattern}".rstrip("/")), matrix(60)[list(rows)])


def test_folder_may_hold_other_files(folder: str) -> None:
    """Only files with a known suffix are taken from a folder."""
    with fsspec.open(f"{folder}/_SUCCESS", "wb") as file:
        file.write(b"")
    with fsspec.open(f"{folder}/readme.txt", "wb") as file:
        file.write(b"rows")
    assert_rows(read(folder), matrix(60))


def test_feather(tmp_path: Path) -> None:
    """A Feather file of version 2 is an Arrow file, compressed or not."""
    pyarrow.feather.write_feather(listed(matrix(40)), f"{tmp_path}/rows.feather", compression="lz4")
    assert_rows(read(f"{tmp_path}/rows.feather"), matrix(40))


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    """An Arrow file with a Parquet file's name is read as what it is, and the other way round."""
    write(f"{tmp_path}/a.arrow", listed(matrix(30)))
    (tmp_path / "a.arrow").rename(tmp_path / "b.parquet")
    assert_rows(read(f"{tmp_path}/b.parquet"), matrix(30))
    write(f"{tmp_path}/c.parquet", listed(matrix(30)))
    (tmp_path / "c.parquet").rename(tmp_path / "d.arrow")
    assert_rows(read(f"{tmp_path}/d.arrow"), matrix(30))


def test_columns_are_matched_by_name_across_files(tmp_path: Path) -> None:
    """A file whose columns stand in another order gives the same rows: a column means its name."""
    write(f"{tmp_path}/1.parquet", numbered(matrix(20)))
    write(f"{tmp_path}/2.parquet", numbered(matrix(20, start=20)).select(["c", "a", "b"]))
    assert_rows(read(str(tmp_path)), matrix(40))


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["{}/nothing.parquet", "{}/*.parquet", "{}", "memory://no-such-folder/*.arrow"])
def test_no_files(url: str, tmp_path: Path) -> None:
    """A missing file, a glob that matches nothing, an empty folder: what would be accepted is said."""
    path = url.format(tmp_path)
    with pytest.raises(DataError, match=rf"data\.path={re.escape(path)}: no files"):
        read(path)


def test_no_rows(tmp_path: Path) -> None:
    """Files without a single row."""
    write(f"{tmp_path}/rows.parquet", listed(matrix(0)))
    with pytest.raises(DataError, match=r"data\.path=.*no rows"):
        read(f"{tmp_path}/rows.parquet")


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_missing_column(suffix: str, tmp_path: Path) -> None:
    """A name that no column has: the names there are are listed."""
    write(f"{tmp_path}/rows.{suffix}", numbered(matrix(30)))
    with pytest.raises(ConfigError, match=r"data\.columns=\['pixels'\]: .*a, b, c"):
        read(f"{tmp_path}/rows.{suffix}", columns=("a", "pixels"))


BAD_VALUES = {
    "null": (pa.table({"x": pa.array([1.0, None] * 15)}), DataError, r"data\.path=.*column x.*15 missing"),
    "null list": (
        pa.table({"x": pa.array([[1.0, 2.0], None] * 15, pa.list_(pa.float32(), 2))}),
        DataError,
        r"data\.path=.*column x.*15 missing",
    ),
    "null in a list": (
        pa.table({"x": pa.array([[1.0, None]] * 30, pa.list_(pa.float32(), 2))}),
        DataError,
        r"data\.path=.*(not finite|missing)",
    ),
    "NaN": (pa.table({"x": [1.0, math.nan] * 15}), DataError, r"data\.path=.*not finite"),
    "infinity": (pa.table({"x": [[1.0, math.inf]] * 30}, pa.schema({"x": pa.list_(pa.float64(), 2)})), DataError, "not finite"),
    "string": (pa.table({"x": ["1", "2"] * 15}), ConfigError, r"data\.columns=x: .*string"),
    "lists of any length": (pa.table({"x": [[1.0], [1.0, 2.0]] * 15}), ConfigError, r"data\.columns=x: .*list"),
    "lists of strings": (
        pa.table({"x": pa.array([["1", "2"]] * 30, pa.list_(pa.string(), 2))}),
        ConfigError,
        r"data\.columns=x",
    ),
    "lists of lists": (
        pa.table({"x": pa.array([[[1.0], [2.0]]] * 30, pa.list_(pa.list_(pa.float32(), 1), 2))}),
        ConfigError,
        r"data\.columns=x",
    ),
}


@pytest.mark.parametrize("kind", BAD_VALUES)
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_bad_values(kind: str, suffix: str, tmp_path: Path) -> None:
    """Values that are missing, not finite, or not numbers: an error that names the file or the column."""
    table, error, message = BAD_VALUES[kind]
    write(f"{tmp_path}/rows.{suffix}", table, unit=30)
    with pytest.raises(error, match=message):
        read(f"{tmp_path}/rows.{suffix}")


@pytest.mark.parametrize("value", [0.5, 2.0, -1.0])
def test_binary_with_other_values(value: float, tmp_path: Path) -> None:
    """One value that is neither 0 nor 1 is enough to refuse data.encoding=binary."""
    values = np.zeros((30, 4), np.float32)
    values[17, 2] = value
    write(f"{tmp_path}/rows.parquet", listed(values))
    with pytest.raises(DataError, match=r"data\.path=.*data\.encoding=binary"):
        read(f"{tmp_path}/rows.parquet", *BINARY)


def test_held_out_too_large(tmp_path: Path) -> None:
    """As many held out as there are rows is refused, loaded or streamed."""
    write(f"{tmp_path}/rows.parquet", listed(matrix(30)))
    for limit in (100, 10_000):
        with pytest.raises(ConfigError, match=r"data\.held_out=30: .*30 rows"):
            read(f"{tmp_path}/rows.parquet", held_out=30, memory_limit=limit)


def test_batch_larger_than_the_data(tmp_path: Path) -> None:
    """A batch of more rows than there are to train on, loaded or streamed, is refused by its key."""
    write(f"{tmp_path}/rows.parquet", listed(matrix(30)))
    for limit in (100, 10_000):
        with pytest.raises(ConfigError, match=r"trainer\.batch_size=25: .*24 training rows"):
            read(f"{tmp_path}/rows.parquet", "trainer.batch_size=25", memory_limit=limit)


def test_neither_parquet_nor_arrow(tmp_path: Path) -> None:
    """Something else under a known suffix."""
    (tmp_path / "rows.parquet").write_bytes(b"a,b\n1,2\n")
    with pytest.raises(DataError, match=r"data\.path=.*rows\.parquet: neither a Parquet nor an Arrow file"):
        read(f"{tmp_path}/rows.parquet")


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_truncated_file(suffix: str, tmp_path: Path) -> None:
    """A file cut short (an upload that broke off) is a `DataError` that names it."""
    path = tmp_path / f"rows.{suffix}"
    write(str(path), listed(matrix(100)))
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=rf"data\.path=.*rows\.{suffix}"):
        read(str(path))


@pytest.mark.parametrize("limit", [200, 10_000], ids=["streamed", "loaded"])
def test_files_of_different_widths(limit: int, tmp_path: Path) -> None:
    """Files whose rows have different numbers of numbers are not one data set; said before or when they are met."""
    write(f"{tmp_path}/1.parquet", listed(matrix(30)))
    write(f"{tmp_path}/2.parquet", listed(matrix(30)[:, :2]))
    with pytest.raises(PipelineError, match=r"data\."):
        read(str(tmp_path), memory_limit=limit).positives(0).next(60)


def test_unknown_protocol() -> None:
    """A URL of a file system that does not exist is an error a person can read, naming data.path."""
    with pytest.raises(PipelineError, match=r"data\.path=nosuch://"):
        read("nosuch://bucket/rows.parquet")


# -- streams ----------------------------------------------------------------------------------------------------------

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
        drawn = numbers(positives.next(1))
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
    whole = numbers(one.next(1500))
    pieces = [row for size in (1, 70, 300, 600, 529) for row in numbers(other.next(size))]
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
        drawn.append(positives.next(size))
    positions = {(state["epoch"], state["window"]) for state in map(pickle.loads, saved)}
    assert len(positions) >= 6
    assert len({epoch for epoch, _ in positions}) >= 3
    fresh, used = data.positives(3), data.positives(3)
    used.next(333)
    for start in range(len(sizes) - 2):
        for resumed in (fresh, used) if start == 4 else (used,):
            resumed.load_state_dict(pickle.loads(saved[start]))
            for expected in drawn[start : start + 3]:
                assert torch.equal(resumed.next(len(expected)), expected)


def test_stream_resumes_at_the_edge_of_a_window_and_of_an_epoch(stored: str) -> None:
    """A state saved with the window, or the epoch, just used up goes on with the next."""
    data = streamed(stored, noise=0.1)
    positives, resumed = data.positives(0), data.positives(0)
    edges = {"window": 0, "epoch": 0}
    saved = positives.state_dict()
    while edges["epoch"] < 2:
        row, state = positives.next(1), positives.state_dict()
        kind = next((name for name in ("epoch", "window") if state[name] > saved[name]), None)
        if kind:
            edges[kind] += 1
            resumed.load_state_dict(saved)
            assert torch.equal(resumed.next(1), row)
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
    clean, noisy = stream(stored).next(1000), stream(stored, noise=0.25).next(1000)
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
    assert {tuple(rows.shape[1:]) for rows in (data.held_out, data.sample, data.positives(0).next(5))} == {(3, 1)}


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
