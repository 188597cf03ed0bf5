"""HDF5 files: their data sets as columns, streamed, at any URL, and what is refused of them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pytest

from pipeline.common.errors import PipelineError
from pipeline.data import hdf5_files
from tests.unit.data.test_columns import assert_rows, matrix, read

CLASSES = ("energy=label_mlp", "energy.classes=3", "objective=pcd")
WORDS = ["up", "down", "strange"] * 10


def hdf5(path: Path, **sets: Any) -> str:
    """Writes data sets; a name with two underscores is one of a group."""
    with h5py.File(path, "w") as file:
        for name, values in sets.items():
            file[name.replace("__", "/")] = values
    return str(path)


@pytest.mark.parametrize("kind", ["<f4", ">f8", "<i2", "|b1", "<f2"])
def test_data_sets_are_columns(kind: str, tmp_path: Path) -> None:
    """The only one needs no name; of any type of numbers, with the shape of its rows."""
    values = (np.arange(30 * 6).reshape(30, 2, 3) % 2).astype(kind)
    data = read(hdf5(tmp_path / "rows.h5", images=values))
    assert data.shape == (2, 3)
    assert_rows(data, values.astype(np.float32))
    assert_rows(read(str(tmp_path)), values.astype(np.float32))


@pytest.mark.parametrize("words", [WORDS, np.array(WORDS, "S7")], ids=["text", "bytes"])
def test_groups_labels_and_weights(words: Any, tmp_path: Path) -> None:
    """`group/name` names one within a group; text is a label."""
    weights = np.arange(30.0) + 1
    path = hdf5(tmp_path / "rows.h5", train__x=matrix(30), train__y=words, w=weights, other=[1, 2])
    asked: dict[str, Any] = {"columns": ("train/x",), "context": ("train/y",), "weight": "w"}
    data = read(path, *CLASSES, **asked)
    assert data.labels == {"train/y": ["down", "strange", "up"]}
    assert data.context is not None
    number = data.sample[:, 0].long().numpy()
    told = np.array(data.labels["train/y"])[data.context.sample.flatten().long().numpy()]
    assert (told == np.array(WORDS)[number]).all()
    assert data.row_weights.sample is not None
    np.testing.assert_array_equal(data.row_weights.sample.numpy(), number + 1.0)
    assert_rows(read(path, columns=("train/x",)), matrix(30))


def test_units_are_of_whole_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a window of streamed rows reads its own alone; at any URL."""
    monkeypatch.setattr(hdf5_files, "UNIT", 12 * 5)
    with (
        fsspec.open("memory://hdf5/rows.h5", "wb") as stored,
        h5py.File(stored, "w") as file,
    ):
        file.create_dataset("x", data=matrix(60), chunks=(4, 3))
    data = read("memory://hdf5/rows.h5", memory_limit=400, held_out=0.1)
    assert (data.streamed, data.rows) == (True, 54)
    seen = data.positives(0).next(200).position[:, 0].tolist()
    count = len(set(seen))
    assert 44 <= count == len(set(seen[:count])) < 60
    assert_rows(read("memory://hdf5/rows.h5"), matrix(60))
    source = hdf5_files.HDF5(fsspec.open("memory://hdf5/rows.h5", "rb").open(), "rows.h5")
    assert source.rows(("x",), ()) == [4] * 15


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"x": [1.0, np.nan]}, {}, "column x, row 1 of F: nan is not finite"),
    ({"x": matrix(3), "y": [1, 2]}, {}, "F: holds the arrays x, y; name the one to learn from"),
    (
        {"x": matrix(3), "y": [1, 2]},
        {"columns": ("x",), "context": ("y",)},
        "F: its arrays have not equally many rows (x 3, y 2)",
    ),
    ({"x": 1.0}, {}, "F: x: is a single value; rows are wanted"),
    ({"x": np.zeros(3, [("a", "f4")])}, {}, "each field as a data set of its own"),
    ({"x": np.zeros(3, "c8")}, {}, "F: x: holds values of type complex64; numbers are wanted"),
    ({"x": ["a", "b"]}, {}, "data.columns=x: is of type string in F, row 0 is 'a'"),
    ({}, {}, "F: holds no data set"),
    ({"g__x": matrix(3)}, {"columns": ("x",)}, "data.columns=['x']: F has only g/x"),
]


@pytest.mark.parametrize(("sets", "asked", "message"), BAD)
def test_bad_files(sets: Any, asked: Any, message: str, tmp_path: Path) -> None:
    path = hdf5(tmp_path / "rows.h5", **sets)
    with pytest.raises(PipelineError, match=re.escape(message.replace("F", path))) as refused:
        read(path, **{"held_out": 1, **asked})
    assert refused.value.exit_status == 2


def test_a_file_that_is_cut_short_and_a_package_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hdf5(tmp_path / "rows.h5", x=matrix(300))
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[:1000])
    with pytest.raises(PipelineError, match=r"rows\.h5: cannot be read"):
        read(path)
    Path(path).write_bytes(content)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(PipelineError, match=r"pip install 'ebm-pipeline\[hdf5\]'"):
        read(path)
