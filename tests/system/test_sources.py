"""Sources of rows through the door: trained from, and files of the same kinds as points."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import h5py
import numpy as np
import pyarrow as pa
import pytest

from pipeline.evaluate import main as evaluate
from pipeline.train import main as train
from tests.unit.data.test_columns import write
from tests.unit.data.test_tables import saved

SHORT = (
    *("cluster=inline", "data=columns", "metrics.port=0", "recorders=[]", "trainer.steps=3"),
    *("trainer.batch_size=16", "chains.per_pool=8", "chains.pools=1", "energy.hidden=[8]"),
    *("evaluation.samples=0", "evaluation.ais_temperatures=0"),
)
ROWS = np.random.default_rng(0).normal(size=(90, 3)).astype(np.float32)


def table(**more: np.ndarray) -> pa.Table:
    return pa.table({**dict(zip("abc", ROWS.T, strict=True)), **more})


def sources(folder: Path) -> dict[str, tuple[str, ...]]:
    """Writes one source of each kind, and returns how it is asked for."""
    with h5py.File(folder / "rows.h5", "w") as file:
        file["train/x"], file["w"] = ROWS, np.resize([1, 3], 90)
    saved(folder / "hugging_face" / "train", table())
    write("memory://sources/train.parquet", table(), unit=30)
    with fsspec.open("memory://sources/test.csv", "w") as test:
        test.write("a,b,c\n" + "\n".join(",".join(map(str, row)) for row in ROWS[:30]))
    write(f"{folder}/marked.arrow", table(test=np.arange(90) % 3 == 0), unit=30)
    count = "data.held_out=30"
    return {
        "HDF5": (f"{folder}/rows.h5", "data.columns=[train/x]", "data.weight=w", count),
        "Hugging Face": (f"{folder}/hugging_face/train", count),
        "files kept out": (
            *("memory://sources/train.parquet", "data.held_out_path=memory://sources/test.csv"),
            "data.memory_limit=800",
        ),
        "a column": (f"{folder}/marked.arrow", "data.held_out_column=test"),
    }


@pytest.mark.parametrize("kind", ["HDF5", "Hugging Face", "files kept out", "a column"])
def test_a_run_from_each_source(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, *asked = sources(tmp_path)[kind]
    arguments = [*SHORT, f"data.path={path}", *asked, f"output={tmp_path}/run"]
    assert train(arguments) == 0
    assert train([*arguments, "trainer.steps=5"]) == 0
    assert "resuming at step 3" in capsys.readouterr().out
    points = [f"points={tmp_path}/rows.h5", "columns=[train/x]", f"output={tmp_path}/again"]
    assert evaluate([f"run={tmp_path}/run", *points]) == 0
    found = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert found["ranking"]["points"] == 90
