"""Parquet and Arrow files: what counts as a row, where files may be, what is refused."""

from __future__ import annotations

import math
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

from pipeline.assembly.data import open_data
from pipeline.common.errors import ConfigError, DataError, PipelineError
from pipeline.config.compose import compose
from pipeline.config.run import RunConfig
from pipeline.data.base import DataSet, TensorPositives

BINARY = ("energy=rbm", "kernel=gibbs", "data.encoding=binary")
Matrix = NDArray[np.float32]


def matrix(rows: int, start: int = 0) -> Matrix:
    """Rows [n, -n, n / 2]: a row read says which it is."""
    number = np.arange(start, start + rows, dtype=np.float32)
    return np.stack([number, -number, number / 2], 1)


def listed(values: Matrix) -> pa.Table:
    """The rows as one column `x` of fixed-size lists."""
    return pa.table(
        {"x": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])}
    )


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


# -- what a row is ---------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [listed, numbered])
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_one_list_column_or_several_numeric_ones(table: Any, suffix: str, tmp_path: Path) -> None:
    """Both give the same rows, in the files' order before the split, over all row groups or record
    batches.
    """
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
    assert_rows(
        read(f"{tmp_path}/rows.parquet"), np.concatenate([matrix(30), matrix(30)[:, :1]], 1)
    )


@pytest.mark.parametrize(
    "kind", ["int8", "uint16", "int64", "float16", "float32", "float64", "bool"]
)
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
    assert data.positives(0).next(9).position.shape == (9, 2, 3)
    assert_rows(data, values)


def test_wrong_shape(tmp_path: Path) -> None:
    """A shape of another number of numbers: both are said."""
    write(f"{tmp_path}/rows.parquet", listed(matrix(30)))
    with pytest.raises(ConfigError, match=r"data\.shape=\[2, 2\]: .*3 numbers.* 4"):
        read(f"{tmp_path}/rows.parquet", shape=(2, 2))


# -- where the files are ---------------------------------------------------------------------------


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder on disk, or in fsspec's memory: rows 0..19 in 1.parquet, 20..39 in 2.arrow, 40..59
    in deep/3.parquet.
    """
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


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["{}/nothing.parquet", "{}/*.parquet", "{}", "memory://no-such-folder/*.arrow"]
)
def test_no_files(url: str, tmp_path: Path) -> None:
    """A missing file, a glob that matches nothing, an empty folder: the remedy is said."""
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
    "null": (
        pa.table({"x": pa.array([1.0, None] * 15)}),
        DataError,
        r"data\.path=.*column x, row 1 of .*15 missing",
    ),
    "null list": (
        pa.table({"x": pa.array([[1.0, 2.0], None] * 15, pa.list_(pa.float32(), 2))}),
        DataError,
        r"data\.path=.*column x.*15 missing",
    ),
    "null in a list": (
        pa.table({"x": pa.array([[1.0, None]] * 30, pa.list_(pa.float32(), 2))}),
        DataError,
        r"data\.path=.*column x, row 0 of .*: number 1 of its list is missing",
    ),
    "NaN": (
        pa.table({"x": [1.0, math.nan] * 15}),
        DataError,
        r"data\.path=.*column x, row 1 of .*: nan is not finite",
    ),
    "infinity": (
        pa.table({"x": [[1.0, math.inf]] * 30}, pa.schema({"x": pa.list_(pa.float64(), 2)})),
        DataError,
        r"data\.path=.*column x, row 0 of .*: inf is not finite",
    ),
    "string": (pa.table({"x": ["1", "2"] * 15}), ConfigError, r"data\.columns=x: .*string"),
    "lists of any length": (
        pa.table({"x": [[1.0], [1.0, 2.0]] * 15}),
        DataError,
        r"data\.path=.*column x, row 1 of .*: a list of 2 numbers, but row 0 has one of 1",
    ),
    "lists of strings": (
        pa.table({"x": pa.array([["1", "2"]] * 30, pa.list_(pa.string(), 2))}),
        ConfigError,
        r"data\.columns=x",
    ),
    "lists of lists of words": (
        pa.table({"x": pa.array([[["1"], ["2"]]] * 30, pa.list_(pa.list_(pa.string(), 1), 2))}),
        ConfigError,
        r"data\.columns=x",
    ),
}


@pytest.mark.parametrize("kind", BAD_VALUES)
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_bad_values(kind: str, suffix: str, tmp_path: Path) -> None:
    """Values that are missing, not finite, or not numbers: an error that names the file or the
    column.
    """
    table, error, message = BAD_VALUES[kind]
    write(f"{tmp_path}/rows.{suffix}", table, unit=30)
    with pytest.raises(error, match=message):
        read(f"{tmp_path}/rows.{suffix}")


def test_categorical_values(tmp_path: Path) -> None:
    """0, ..., levels-1 pass as they are; one value beyond them is refused."""
    values = np.arange(120, dtype=np.float32).reshape(30, 4) % 3
    write(f"{tmp_path}/rows.parquet", listed(values))
    categorical = ("energy=potts_rbm", "kernel=gibbs", "data.encoding=categorical")
    data = read(f"{tmp_path}/rows.parquet", *categorical, "data.levels=3", "energy.levels=3")
    assert data.sample.unique().tolist() == [0, 1, 2]
    values[3, 1] = 3
    write(f"{tmp_path}/rows.parquet", listed(values))
    with pytest.raises(
        DataError, match=r"data\.levels=3: column x, row 3 of .* holds 3, .* use data\.levels=4"
    ):
        read(f"{tmp_path}/rows.parquet", *categorical, "data.levels=3", "energy.levels=3")


@pytest.mark.parametrize("value", [0.5, 2.0, -1.0])
def test_binary_with_other_values(value: float, tmp_path: Path) -> None:
    """One value that is neither 0 nor 1 is enough to refuse data.encoding=binary."""
    values = np.zeros((30, 4), np.float32)
    values[17, 2] = value
    write(f"{tmp_path}/rows.parquet", listed(values))
    with pytest.raises(DataError, match=r"data\.encoding=binary: column x, row 17 of .* holds"):
        read(f"{tmp_path}/rows.parquet", *BINARY)


def test_held_out_too_large(tmp_path: Path) -> None:
    """As many held out as there are rows is refused, loaded or streamed."""
    write(f"{tmp_path}/rows.parquet", listed(matrix(30)))
    for limit in (100, 10_000):
        with pytest.raises(ConfigError, match=r"data\.held_out=30: .*30 rows"):
            read(f"{tmp_path}/rows.parquet", held_out=30, memory_limit=limit)


def test_batch_larger_than_the_data(tmp_path: Path) -> None:
    """A batch of more rows than there are, loaded or streamed, is refused by its key."""
    write(f"{tmp_path}/rows.parquet", listed(matrix(30)))
    for limit in (100, 10_000):
        with pytest.raises(ConfigError, match=r"trainer\.batch_size=25: .*24 training rows"):
            read(f"{tmp_path}/rows.parquet", "trainer.batch_size=25", memory_limit=limit)


def test_neither_parquet_nor_arrow(tmp_path: Path) -> None:
    """Something else under a known suffix."""
    (tmp_path / "rows.parquet").write_bytes(b"a,b\n1,2\n")
    with pytest.raises(
        DataError, match=r"data\.path=.*rows\.parquet: neither a Parquet nor an Arrow file"
    ):
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
    """Files whose rows have different numbers of numbers are not one data set; said before or when
    they are met.
    """
    write(f"{tmp_path}/1.parquet", listed(matrix(30)))
    write(f"{tmp_path}/2.parquet", listed(matrix(30)[:, :2]))
    with pytest.raises(PipelineError, match=r"data\."):
        read(str(tmp_path), memory_limit=limit).positives(0).next(60)


def test_unknown_protocol() -> None:
    """A URL of a file system that does not exist is an error in words, naming data.path."""
    with pytest.raises(PipelineError, match=r"data\.path=nosuch://"):
        read("nosuch://bucket/rows.parquet")
