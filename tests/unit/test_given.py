"""Rows given in code: every kind is the same rows, and bad ones are refused by row and column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from scipy import sparse

import pipeline
from pipeline.common.errors import CheckpointError, ConfigError, DataError, RefusedError
from pipeline.config.compose import compose
from pipeline.data.given import given_rows
from pipeline.train import run

ROWS = np.random.default_rng(0).normal(size=(30, 3)).round(3)
FRAME = pd.DataFrame(ROWS, columns=list("abc"))
SHORT = [
    *("cluster=inline", "data=rows", "data.held_out=10", "trainer.steps=4", "trainer.batch_size=8"),
    *("chains.pools=1", "chains.per_pool=8", "energy.hidden=[8]", "evaluation.samples=0"),
    *("evaluation.ais_temperatures=0", "metrics.port=0"),
]


class Labelled(torch.utils.data.Dataset):
    """Rows and their numbers, one at a time."""

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.tensor(ROWS[index]), index % 3


KINDS = {
    "float32": ROWS.astype(np.float32),
    "nested lists": ROWS.tolist(),
    "a tensor": torch.tensor(ROWS),
    "a sparse tensor": torch.tensor(ROWS).to_sparse(),
    "a torch Dataset": torch.utils.data.TensorDataset(torch.tensor(ROWS)),
    "a pandas frame": FRAME,
    "a pandas frame of lists": pd.DataFrame({"x": list(ROWS)}),
    "a polars frame": pl.DataFrame(ROWS),
    "a polars frame of lists": pl.DataFrame({"x": ROWS.tolist()}),
    "an Arrow table": pa.Table.from_pandas(FRAME),
    "an Arrow record batch": pa.RecordBatch.from_pandas(FRAME),
    "an Arrow array of lists": pa.array(ROWS.tolist()),
    "a sparse matrix": sparse.csr_matrix(ROWS),
    "a sparse array": sparse.coo_array(ROWS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_the_same_rows(kind: str) -> None:
    assert given_rows(KINDS[kind]).in_words() == given_rows(ROWS).in_words()


def test_a_data_set_of_pairs_brings_contexts() -> None:
    given = given_rows(Labelled())
    np.testing.assert_array_equal(given.rows, ROWS.astype(np.float32))
    assert given.context is not None
    np.testing.assert_array_equal(given.context, np.arange(30) % 3)
    pair = given_rows((FRAME, pd.Series(np.arange(30) % 3)))
    assert pair.in_words() == given.in_words()


def hole(frame: Any) -> Any:
    frame = frame.copy()
    frame.loc[7, "b"] = np.nan
    return frame


BAD: list[tuple[Any, type[RefusedError], tuple[str, ...]]] = [
    (hole(FRAME).to_numpy(), DataError, ("nan at row 7, column 1", "fill it in")),
    (hole(FRAME), DataError, ("column b, row 7", "missing")),
    (pl.from_pandas(hole(FRAME)), DataError, ("column b, row 7", "missing")),
    (np.where(ROWS[4, 2] == ROWS, np.inf, ROWS), DataError, ("row 4, column 2", "finite")),
    (FRAME.assign(c="x"), ConfigError, ("column c", "'x'", "encode it")),
    ([["a", "b"]], ConfigError, ("numbers are wanted",)),
    ([[1, 2], [3]], ConfigError, ("row 1 of 1 numbers", "one length")),
    ([torch.zeros(2), torch.zeros(3)], ConfigError, ("row 1 of 3 numbers", "one length")),
    (ROWS[:0], ConfigError, ("no rows",)),
    (ROWS[:, 0], ConfigError, ("shape [30]", "[N, 1]")),
    ((ROWS, ROWS[:3]), ConfigError, ("3 contexts", "30 rows")),
    (ROWS + 1j, ConfigError, ("complex128",)),
    ("file.csv", ConfigError, ("str", "an array")),
    (np.ma.masked_greater(ROWS, 1), DataError, ("masked",)),
    (ROWS[:10], ConfigError, ("data.held_out=10", "10 rows in all")),
    (ROWS[:11], ConfigError, ("single training row",)),
]


@pytest.mark.parametrize(("rows", "error", "words"), BAD)
def test_bad_rows_are_refused_and_nothing_is_written(
    rows: Any, error: type[RefusedError], words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(error) as refused:
        run(compose([*SHORT, f"output={tmp_path / 'run'}"]), rows=rows)
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert not (tmp_path / "run").exists()


def test_values_of_no_level_are_refused_by_row_and_column() -> None:
    binary = ["energy=rbm", "kernel=gibbs", "objective.energy_l2=0", "data.encoding=binary"]
    config = compose([*(text for text in SHORT if "hidden" not in text), *binary])
    values = np.zeros((30, 3))
    values[5, 1] = 2
    with pytest.raises(DataError, match="rows=2 at row 5, column 1"):
        run(config, rows=values)


def test_rows_go_with_data_rows_and_data_rows_with_rows() -> None:
    with pytest.raises(ConfigError, match="data=rows"):
        run(compose(["cluster=inline"]), rows=ROWS)
    with pytest.raises(ConfigError, match=r"run\(config, rows=...\)"):
        run(compose(SHORT))


def test_a_run_is_trained_and_resumed_on_the_same_rows_alone(tmp_path: Path) -> None:
    """Held-out rows may be given too; a run that goes on is held to the values of all."""
    given = [*SHORT, f"output={tmp_path / 'run'}"]
    first = run(compose(given), rows=ROWS, held_out=ROWS[:5])
    assert pipeline.load(first["output"]).shape == (3,)
    longer = compose([*given, "trainer.steps=6"])
    for rows, held_out in ((ROWS + 1, ROWS[:5]), (ROWS, ROWS[5:10]), (ROWS, None)):
        with pytest.raises(CheckpointError, match=r"data\.given|data\.held_out"):
            run(longer, rows=rows, held_out=held_out)
    assert run(longer, rows=FRAME, held_out=FRAME[:5])["version"] == 6
