"""Held-out rows that a column or other files tell: loaded, streamed, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.common.errors import PipelineError
from pipeline.data.base import DataSet
from tests.unit.data.test_columns import matrix, numbered, read, write

TEST = np.arange(40) % 4 == 1
LIMITS = pytest.mark.parametrize("limit", [10**9, 340], ids=["loaded", "streamed"])
CLASSES = ("energy=label_mlp", "energy.classes=3", "objective=pcd")


def table(flags: Any, *more: tuple[str, Any]) -> pa.Table:
    columns = {**dict(zip("abc", matrix(40).T, strict=True)), "test": flags, **dict(more)}
    return pa.table(columns)


def numbers(rows: torch.Tensor) -> list[int]:
    return sorted(set(rows[:, 0].long().tolist()))


def assert_apart(data: DataSet, training: np.ndarray, held_out: np.ndarray, limit: int) -> None:
    """Rows of both kinds are where they belong; those of a stream come all."""
    assert data.streamed == (limit < 1000)
    assert data.shape == (3,)
    assert data.rows == len(training)
    assert numbers(data.positives(0).next(300).position) == sorted(training)
    if data.streamed:
        assert set(numbers(data.held_out)) <= set(held_out)
        assert set(numbers(data.sample)) <= set(training)
    else:
        assert numbers(data.held_out) == sorted(held_out)
        assert numbers(data.sample) == sorted(training)


@LIMITS
@pytest.mark.parametrize(
    "flags",
    [TEST, TEST.astype(int), TEST.astype(float), np.where(TEST, "True", "false")],
    ids=["booleans", "integers", "floats", "words"],
)
def test_a_column_tells(flags: Any, limit: int, tmp_path: Path) -> None:
    write(f"{tmp_path}/rows.parquet", table(flags), unit=8)
    data = read(f"{tmp_path}/rows.parquet", held_out_column="test", memory_limit=limit)
    assert_apart(data, np.flatnonzero(~TEST), np.flatnonzero(TEST), limit)
    shuffled = data.sample[:, 0].tolist()
    assert shuffled != sorted(shuffled)  # the first rows of it are any


@LIMITS
def test_a_column_of_a_csv_beside_weights_and_labels(limit: int, tmp_path: Path) -> None:
    """In whatever order the columns stand; a stream resumes bitwise."""
    rows = ["w,test,label,a"]
    rows += [f"{n % 3},{bool(TEST[n])},{'xyz'[n % 3]},{n}" for n in range(40)]
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    asked: dict[str, Any] = {"held_out_column": "test", "weight": "w", "context": ("label",)}
    data = read(f"{tmp_path}/rows.csv", *CLASSES, **asked, memory_limit=limit)
    assert data.shape == (1,)
    assert data.labels == {"label": ["x", "y", "z"]}
    drawn = data.positives(0).next(900)
    number = drawn.position[:, 0].long()
    assert torch.equal(drawn.context[:, 0].long(), number % 3)
    assert not TEST[number.numpy()].any()
    counts = np.bincount(number % 3, minlength=3) / 900  # 10 rows each of 0, 1 and 2
    np.testing.assert_allclose(counts, np.array([0, 1, 2]) / 3, atol=0.05)
    assert data.row_weights.held_out is not None
    assert torch.equal(data.row_weights.held_out, data.held_out[:, 0].double() % 3)
    whole, other = data.positives(1), data.positives(1)
    whole.next(17)
    other.load_state_dict(whole.state_dict())
    assert torch.equal(whole.next(60).position, other.next(60).position)


@LIMITS
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_files_of_their_own(suffix: str, limit: int, tmp_path: Path) -> None:
    """Of any format, with the columns of the others in any order, their scale and their labels."""
    labels = pa.array(list("xyz") * 13 + ["x"])
    write(f"{tmp_path}/train.parquet", table(TEST, ("label", labels)), unit=8)
    others = {
        "extra": np.ones(5),
        "label": list("zzyyx"),
        **dict(zip("cba", -matrix(5).T, strict=True)),
    }
    if suffix == "csv":
        lines = [
            ",".join(others),
            *(",".join(map(str, row)) for row in zip(*others.values(), strict=True)),
        ]
        (tmp_path / "test.csv").write_text("\n".join(lines))
    else:
        write(f"{tmp_path}/test.parquet", pa.table(others))
    asked: dict[str, Any] = {"columns": ("a", "b", "c"), "context": ("label",)}
    path = f"{tmp_path}/test.{suffix}"
    data = read(
        f"{tmp_path}/train.parquet", *CLASSES, **asked, held_out_path=path, memory_limit=limit
    )
    assert data.rows == 40
    assert numbers(data.positives(0).next(300).position) == list(range(40))
    assert sorted(data.held_out[:, 2].tolist()) == sorted((-matrix(5))[:, 0].tolist())
    assert data.context is not None
    assert data.context.held_out.flatten().tolist() == [2, 2, 1, 1, 0]


@LIMITS
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([2.0], "data.path=F: column test, row 12 of F: 2 is neither 0 nor 1"),
        ([None], "data.path=F: column test, row 12 of F: the value is missing"),
        (["no"], "data.path=F: column test, row 12 of F: 'no' is neither 0 nor 1"),
        ([[0.0]], "data.path=F: column test, row 0 of F holds a list; 0 or 1 is wanted"),
        ([0.0], "data.held_out_column=test: "),
        ([1.0], "data.held_out_column=test: "),
    ],
)
def test_bad_columns(flags: list[Any], message: str, limit: int, tmp_path: Path) -> None:
    path, flag = f"{tmp_path}/rows.parquet", flags[0]
    one = {"no": "0"}.get(flag, 0.0) if not isinstance(flag, list) else [0.0, 1.0]
    same = flag in (0.0, 1.0)
    others = [flag if same else one] * 12, [flag if same else one] * 27
    write(path, table([*others[0], one if isinstance(flag, list) else flag, *others[1]]), unit=8)
    with pytest.raises(PipelineError, match=re.escape(message.replace("F", path))) as refused:
        read(path, held_out_column="test", memory_limit=limit)
    assert refused.value.exit_status == 2


def test_bad_files(tmp_path: Path) -> None:
    path, other = f"{tmp_path}/rows.parquet", f"{tmp_path}/other.parquet"
    write(path, numbered(matrix(40)))

    def refused(message: str, **asked: Any) -> None:
        with pytest.raises(PipelineError, match=message) as error:
            read(path, **{"held_out_path": other, **asked})
        assert error.value.exit_status == 2

    refused(r"data\.held_out_path=.*other\.parquet")  # it is not there
    write(other, numbered(matrix(40)).drop_columns(["c"]))
    refused(r"data\.columns=\['c'\]: .*other\.parquet has only a, b")
    broken = numbered(matrix(40)).set_column(1, "b", pa.array([1.0] * 39 + [None]))
    write(other, broken)
    refused(r"data\.held_out_path=.*other\.parquet: column b, row 39 of .*: the value is missing")
    write(other, numbered(matrix(40)))
    refused(r"data\.held_out_path=.*: its 40 rows take 480 bytes, more than", memory_limit=400)
    refused(r"data\.held_out_path=.*: goes without data\.held_out_column", held_out_column="a")
    refused(
        r"data\.held_out_column=x: .* has only a, b, c", held_out_path=None, held_out_column="x"
    )
    refused(
        r"a would be taken twice \(data\.held_out_column=a\)",
        **{"held_out_path": None, "held_out_column": "a", "columns": ("a", "b")},
    )
    lists = pa.table({name: pa.array(np.ones((40, 2)).tolist()) for name in "abc"})
    write(other, lists)
    refused(r"data\.held_out_path=.*: a row has 6 numbers, one of data\.path 3")
