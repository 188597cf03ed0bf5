"""CSV and NumPy files: their rows, their labels, their scale, and what is refused of them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.assembly.data import doubts, open_data
from pipeline.common.errors import PipelineError
from pipeline.data import comma_separated, files
from pipeline.data.content import content_of, recorded_of
from pipeline.data.scaling import fitted, scale_of
from tests.unit.data.test_columns import (
    BINARY,
    assert_rows,
    composed,
    matrix,
    numbered,
    read,
    write,
)

CLASSES = ("energy=label_mlp", "energy.classes=3", "objective=pcd")


def text(values: Any, *more: tuple[str, list[str]], ends: str = "\n") -> str:
    """The rows as CSV, columns a, b, c, and more columns of text."""
    lines = [",".join(["a", "b", "c", *(name for name, _ in more)])]
    for number, row in enumerate(values):
        lines.append(",".join([*map(str, row), *(cells[number] for _, cells in more)]))
    return ends.join(lines) + ends


# -- rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\n\n"], ids=["lines", "Windows", "blank lines"])
@pytest.mark.parametrize("block", [16, 1 << 20])
@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.tsv"])
def test_csv(
    name: str, block: int, ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows come in the file's order, whatever the blocks; a mark at its start is no name."""
    monkeypatch.setattr(comma_separated, "BLOCK", block)
    content = ("\ufeff" + text(matrix(30), ends=ends)).encode()
    if name.endswith("tsv"):
        content = content.replace(b",", b"\t")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert_rows(read(f"{tmp_path}/{name}"), matrix(30))
    assert_rows(read(f"{tmp_path}/{name}", columns=("c", "a")), matrix(30)[:, [2, 0]])
    assert_rows(read(str(tmp_path)), matrix(30))


def test_quoted_cells_may_hold_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commas, line breaks and quotes, also where a block ends within."""
    cells = [('"x, ""y""\n"' if number % 2 else '"\n\n,"') for number in range(30)]
    (tmp_path / "rows.csv").write_text(text(matrix(30), ('"no,te"', cells)))
    for block in (5, 11, 1 << 20):
        monkeypatch.setattr(comma_separated, "BLOCK", block)
        assert_rows(read(f"{tmp_path}/rows.csv", columns=("a", "b", "c")), matrix(30))


@pytest.mark.parametrize("name", ["rows.csv", "rows.npy", "rows.npz"])
def test_streamed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit in memory comes in full, each row that is not held out once an epoch."""
    monkeypatch.setattr(comma_separated, "BLOCK", 64)
    monkeypatch.setattr(files, "PIECE", 64)
    if name.endswith("csv"):
        (tmp_path / name).write_text(text(matrix(60)))
    else:
        (np.save if name.endswith("npy") else np.savez)(tmp_path / name, matrix(60))
    data = read(f"{tmp_path}/{name}", memory_limit=400, held_out=0.1)
    assert (data.streamed, data.rows) == (True, 54)
    seen = data.positives(0).next(200).position[:, 0].tolist()
    count = len(set(seen))
    assert 44 <= count == len(set(seen[:count])) < 60
    assert set(seen) <= set(range(60))


@pytest.mark.parametrize("kind", ["<f4", ">f8", "<i2", "|b1", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(kind: str, order: Any, tmp_path: Path) -> None:
    """Arrays bring their shape; of any type of numbers, in either order."""
    values = (np.arange(30 * 6).reshape(30, 2, 3) % 2).astype(kind)
    np.save(tmp_path / "rows.npy", np.asarray(values, order=order))
    data = read(f"{tmp_path}/rows.npy")
    assert data.shape == (2, 3)
    assert_rows(data, values.astype(np.float32))


def test_npz(tmp_path: Path) -> None:
    """By key, with labels in words beside it; the only array needs no key."""
    names = np.array(["up", "down", "strange"] * 10)
    np.savez_compressed(tmp_path / "rows.npz", x=matrix(30), y=names)
    data = read(f"{tmp_path}/rows.npz", *CLASSES, columns=("x",), context=("y",))
    assert data.labels == {"y": ["down", "strange", "up"]}
    assert data.context is not None
    number = data.sample[:, 0].long().numpy()
    told = np.array(data.labels["y"])[data.context.sample.flatten().long().numpy()]
    assert (told == names[number]).all()
    assert_rows(read(f"{tmp_path}/rows.npz", context=("y",)), matrix(30))


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("3.0,-3.0", "3.0,", "column b, row 3 of F: the value is missing (1 missing"),
        ("3.0,-3.0", "NA,-3.0", "column a, row 3 of F: the value is missing"),
        ("3.0,-3.0", "3.0,n/a?", "column b, row 3 of F: 'n/a?' is no number; mend it"),
        ("3.0,-3.0", "inf,-3.0", "column a, row 3 of F: inf is not finite"),
        ("3.0,-3.0", "3.0", "row 3 has 2 cells, and the first line names 3 columns"),
        ("a,b,c\n", "", "its first line must hold the columns' names"),
        ("a,b,c\n", "a,b,a\n", "has more than one column called a"),
        (",", ";", "its columns seem to be separated by ';'; write commas"),
        ("", None, "is empty"),
    ],
)
@pytest.mark.parametrize("block", [16, 1 << 20])
def test_csv_that_is_none(
    old: str,
    new: str | None,
    message: str,
    block: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By file, column and row, counted from 0 behind the line of names."""
    monkeypatch.setattr(comma_separated, "BLOCK", block)
    content = text(matrix(30))
    (tmp_path / "F").mkdir()
    path = tmp_path / "F" / "rows.csv"
    content = "" if new is None else content.replace(old, new, -1 if new == ";" else 1)
    path.write_text(content)
    with pytest.raises(PipelineError) as error:
        read(str(path))
    assert message.replace("of F", f"of {path}") in str(error.value)
    assert str(error.value).startswith(f"data.path={path}: ")


def test_a_gzip_that_broke_off(tmp_path: Path) -> None:
    content = gzip.compress(text(np.random.RandomState(0).randn(200, 3)).encode())
    (tmp_path / "rows.csv.gz").write_bytes(content[:2000])
    with pytest.raises(PipelineError, match=r"rows\.csv\.gz: cannot be read \(Compressed file"):
        read(f"{tmp_path}/rows.csv.gz")


@pytest.mark.parametrize(
    ("arrays", "asked", "message"),
    [
        ({"x": matrix(9), "y": matrix(9)}, {}, "holds the arrays x, y; name the one"),
        ({"x": matrix(9)}, {"columns": ("z",)}, "data.columns=['z']: "),
        (
            {"x": matrix(9), "y": np.zeros(8)},
            {"columns": ("x",), "context": ("y",)},
            "its arrays have not equally many rows (x 9, y 8)",
        ),
        ({"x": np.array([1, None])}, {}, "x: holds values of type object; numbers are wanted"),
        ({"x": matrix(9) * 1j}, {}, "x: holds values of type complex64"),
        ({"x": np.float64(1)}, {}, "x: is a single number; rows are wanted"),
        ({"x": np.where(matrix(9) == 4, np.nan, 0)}, {}, "column x, row 4 of "),
    ],
)
def test_npz_that_is_none(
    arrays: dict[str, Any], asked: dict[str, Any], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "rows.npz", **arrays)
    with pytest.raises(PipelineError) as error:
        read(f"{tmp_path}/rows.npz", **asked)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["rows.npy", "rows.npz"])
def test_a_numpy_file_that_broke_off(name: str, tmp_path: Path) -> None:
    (np.save if name.endswith("npy") else np.savez)(tmp_path / name, matrix(100))
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:700])
    with pytest.raises(PipelineError, match=rf"{name}: (array: cut short|cannot be read)"):
        read(f"{tmp_path}/{name}")


# -- labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_labels_in_words(suffix: str, dictionary: bool, tmp_path: Path) -> None:
    """They are told by their places in sorted order, over all units and files, and are kept."""
    words = pa.array(["b"] * 10 + ["c"] * 10 + ["a"] * 10)
    column = words.dictionary_encode() if dictionary else words
    write(f"{tmp_path}/rows.{suffix}", numbered(matrix(30)).append_column("kind", column))
    data = read(f"{tmp_path}/rows.{suffix}", *CLASSES, context=("kind",))
    assert data.context is not None
    places = {"a": 0.0, "b": 1.0, "c": 2.0}
    wanted = [places[words[int(row[0])].as_py()] for row in data.sample]
    assert data.context.sample.flatten().tolist() == wanted
    config = composed(*CLASSES)
    assert content_of(config.data, data)["labels"] == {"kind": ["a", "b", "c"]}


def test_labels_from_one(tmp_path: Path) -> None:
    """1, ..., K are shifted where an energy of K classes needs 0, ..., K-1, and nowhere else."""
    labels = pa.array(np.arange(30) % 3 + 1)
    write(f"{tmp_path}/rows.parquet", numbered(matrix(30)).append_column("kind", labels))
    data = read(f"{tmp_path}/rows.parquet", *CLASSES, context=("kind",))
    assert data.labels == {"kind": [1, 2, 3]}
    assert data.context is not None
    assert torch.equal(data.context.sample.flatten(), data.sample[:, 0] % 3)
    data = read(f"{tmp_path}/rows.parquet", context=("kind",))
    assert data.labels == {}
    assert data.context is not None
    assert torch.equal(data.context.sample.flatten(), data.sample[:, 0] % 3 + 1)


def test_numbers_in_a_csv_are_no_labels(tmp_path: Path) -> None:
    """Nor is one of them that is missing."""
    cells = [str(number / 2) for number in range(30)]
    (tmp_path / "rows.csv").write_text(text(matrix(30), ("x", cells)))
    data = read(f"{tmp_path}/rows.csv", context=("x",))
    assert data.context is not None
    assert torch.equal(data.context.sample.flatten(), data.sample[:, 0] / 2)
    cells[7] = ""
    (tmp_path / "rows.csv").write_text(text(matrix(30), ("x", cells)))
    with pytest.raises(PipelineError, match=r"column x, row 7 of .*: the value is missing"):
        read(f"{tmp_path}/rows.csv", context=("x",))


# -- scale -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [10_000, 1200], ids=["loaded", "streamed"])
@pytest.mark.parametrize("kind", ["standard", "unit"])
def test_scale(kind: str, limit: int, tmp_path: Path) -> None:
    """Training rows have mean 0 and deviation 1, or all rows fill [0, 1]; the way back is exact to
    float32, and the content keeps it.
    """
    values = np.random.RandomState(0).randn(200, 3).astype(np.float32) * [1, 50, 0] + [9, -700, 5]
    values = values.astype(np.float32)
    write(f"{tmp_path}/rows.parquet", numbered(values))
    data = read(f"{tmp_path}/rows.parquet", scale=kind, memory_limit=limit)
    assert data.scale is not None
    rows = data.sample if kind == "standard" else torch.cat([data.sample, data.held_out])
    low, high = (
        (rows.mean(0), rows.std(0, correction=0)) if kind == "standard" else rows.aminmax(dim=0)
    )
    torch.testing.assert_close(low, torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(high, torch.tensor([1.0, 1.0, 0.0]), atol=1e-5, rtol=0)
    drawn = data.positives(0).next(100).position
    back = data.scale.in_own_units(drawn)
    distance = torch.cdist(back.double(), torch.from_numpy(values).double()).min(1).values
    assert float(distance.max()) < 1e-3
    torch.testing.assert_close(data.scale.scaled(back), drawn, atol=1e-4, rtol=0)
    assert data.constant == ["c"]
    (doubt,) = doubts(composed(), data)
    assert doubt.startswith(f"constant in the training rows: c; data.scale={kind} shifts")
    kept = recorded_of(content_of(composed().data, data))["scale"]
    assert kept.plain() == data.scale.plain()


def test_log_determinant() -> None:
    """Of a Gaussian the density in its own units is that of the scaled rows, and this."""
    rows = np.random.RandomState(0).randn(500, 2) * [3, 0.1] + [5, -2]
    scale = fitted("standard", rows)
    x = torch.from_numpy(rows)
    own = torch.distributions.Normal(torch.from_numpy(scale.shift), torch.from_numpy(scale.width))
    standard = torch.distributions.Normal(torch.zeros(2), torch.ones(2))
    wanted = own.log_prob(x).sum(1) - standard.log_prob(scale.scaled(x)).sum(1)
    torch.testing.assert_close(wanted, torch.full((500,), scale.log_determinant).double())
    assert scale_of(scale.plain()).plain() == scale.plain()


def test_rows_at_another_path_get_the_scale_of_the_run(tmp_path: Path) -> None:
    """What was recorded is used, and nothing is fitted anew."""
    write(f"{tmp_path}/rows.parquet", numbered(matrix(30)))
    recorded = {"scale": {"kind": "standard", "shift": [1, 2, 3], "width": [2, 2, 2]}}
    config = composed("data.scale=standard", "data.held_out=6")
    section = config.data.model_copy(update={"path": f"{tmp_path}/rows.parquet"})
    section = section.telling(recorded=recorded)
    data = open_data(config.model_copy(update={"data": section}))
    number = data.sample[:, 0] * 2 + 1
    torch.testing.assert_close(data.sample[:, 1], (-number - 2) / 2)


def test_levels_have_no_scale() -> None:
    with pytest.raises(PipelineError, match=r"data\.scale=standard: energy=rbm is over"):
        composed(*BINARY, "data.scale=standard")


@pytest.mark.parametrize(("held_out", "kept"), [(0.25, 10), (0.001, 1), (7, 7)])
def test_held_out_is_a_count_or_a_share(held_out: float, kept: int, tmp_path: Path) -> None:
    write(f"{tmp_path}/rows.parquet", numbered(matrix(40)))
    data = read(f"{tmp_path}/rows.parquet", held_out=held_out)
    assert (len(data.held_out), data.rows) == (kept, 40 - kept)
