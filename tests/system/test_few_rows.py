"""Runs on as little as is taken, and on rows of odd shapes, up to their summaries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.train import main
from tests.unit.test_json_text import strict

COMMON = (
    *("cluster=inline", "metrics.port=0", "trainer.steps=2", "chains.per_pool=2"),
    *("chains.pools=1", "trainer.batch_size=2", "optimizer.warmup=0", "kernel.transitions=1"),
    *("evaluation.samples=1", "evaluation.transitions=4", "evaluation.ais_temperatures=3"),
    *("evaluation.ais_particles=1", "data.held_out=1"),
)
FEW = {
    "by annealing": ("data=columns", "data.path={}", "energy.hidden=[4]"),
    "binary": (
        *("data=columns", "data.path={}", "experiment=digits_rbm", "energy.hidden=30"),
        "data.encoding=binary",
    ),
    "by quadrature": ("experiment=toy", "data.rows=3", "energy.hidden=[4]"),
    "given contexts": ("experiment=conditional_regression", "data.rows=3", "energy.hidden=[4]"),
    "pseudo-likelihood": (
        *("data=columns", "data.path={}", "experiment=digits_rbm", "energy.hidden=30"),
        *("data.encoding=binary", "evaluation.ais_temperatures=0"),
    ),
}


def train(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    assert main([*arguments, f"output={tmp_path}/run"]) == 0
    summary: dict[str, Any] = strict((tmp_path / "run" / "summary.json").read_text())
    return summary


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("kind", FEW)
def test_two_rows_and_one_of_everything_else(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What one of a kind cannot tell is null in the files, and is left out of the words."""
    rows = np.random.RandomState(0).randint(0, 2, (3, 40)).astype(np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 40)
    pq.write_table(pa.table({"x": lists}), tmp_path / "rows.parquet")
    arguments = [text.format(tmp_path / "rows.parquet") for text in FEW[kind]]
    summary = train(tmp_path, *COMMON, *arguments)
    errors = {key: value for key, value in summary.items() if key.endswith("standard_error")}
    assert errors
    assert set(errors.values()) == {None}
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        assert strict(line)["step"] in (1, 2)
    out = capsys.readouterr().out
    assert "held-out" in out
    assert "±" not in out
    assert "nan" not in out


@pytest.mark.parametrize("shape", [(2, 4, 4), (6, 6, 3), (2, 2, 2, 4)])
def test_rows_of_odd_shapes(
    shape: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run ends with its pictures; axes that look mixed up are told of before it starts."""
    size = int(np.prod(shape))
    values = np.random.RandomState(0).randn(30, size).astype(np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), size)
    pq.write_table(pa.table({"x": lists}), tmp_path / "rows.parquet")
    shaped = f"data.shape=[{','.join(map(str, shape))}]"
    path = f"data.path={tmp_path}/rows.parquet"
    train(tmp_path, "data=columns", path, shaped, "energy.hidden=[4]", *COMMON)
    assert (tmp_path / "run" / "samples.png").stat().st_size > 5000
    out = capsys.readouterr().out
    warned = f"warning: data.shape={list(shape)} looks like height, width and channels" in out
    assert warned == (shape == (6, 6, 3))
    assert out.index("warning") < out.index("done") if warned else True


def test_a_picture_that_cannot_be_drawn_ends_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line of the picture says why there is none, and so does the summary."""

    def broken(*_: object, **__: object) -> None:
        raise ValueError("no such colour")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", broken)
    summary = train(tmp_path, "experiment=toy", "data.rows=30", "energy.hidden=[4]", *COMMON)
    assert summary["undrawn_samples"] == summary["undrawn_curves"] == "ValueError: no such colour"
    out = capsys.readouterr().out
    assert "  samples     no picture: ValueError: no such colour" in out
    assert "  curves      no picture: ValueError: no such colour" in out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["version"] == 2
