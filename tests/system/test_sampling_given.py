"""Samples that begin at rows, are given part of them, and are watched on their way: through the
door.
"""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import csv, parquet

import pipeline
from pipeline.evaluation.samples import instants
from pipeline.sample import main
from pipeline.train import main as train
from tests.system.conftest import TINY, Runs
from tests.system.test_sample import draw, numbers

pytestmark = pytest.mark.xdist_group("trained runs")

FORMS = ("npy", "csv", "parquet", "arrow")


def binary(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2, (count, 64)).astype(np.float32)


def write(rows: np.ndarray, path: str) -> str:
    """Rows [N, 64] in the form of the ending, NaN as what is missing there; `path` itself."""
    cells = [pa.array(column, from_pandas=True) for column in rows.T]
    wide = pa.table({f"p{number}": cell for number, cell in enumerate(cells)})
    lists = pa.array([[None if np.isnan(x) else float(x) for x in row] for row in rows])
    table = pa.table({"position": lists, "energy": np.zeros(len(rows))})
    with fsspec.open(path, "wb") as file:
        if path.endswith("npy"):
            np.save(file, rows.reshape(-1, 8, 8))
        elif path.endswith("csv"):
            csv.write_csv(wide, file)
        elif path.endswith("parquet"):
            parquet.write_table(table, file)
        else:
            with pa.ipc.new_file(file, table.schema) as arrow:
                arrow.write_table(table)
    return path


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("key", ["start", "clamp"])
def test_files_of_all_forms_are_the_same(key: str, runs: Runs, tmp_path: Path) -> None:
    """Four rows over again for six chains; what is there of a clamped row stays."""
    rows, found = binary(4), []
    if key == "clamp":
        rows[:3, 32:] = np.nan  # the last lacks nothing, and stays as it is
    for form in FORMS:
        asked = (f"run={runs['rbm']}", "samples=6", "transitions=1", "format=npy")
        file = write(rows, f"memory://rows/{key}.{form}")
        assert main([*asked, f"{key}={file}", f"output={tmp_path / form}"]) == 0
        found.append(np.load(tmp_path / form / "samples.npy").reshape(6, 64))
    for other in found[1:]:
        assert np.array_equal(found[0], other)
    if key == "clamp":
        for number, sample in enumerate(found[0]):
            there = ~np.isnan(rows[number % 4])
            assert np.array_equal(sample[there], rows[number % 4][there])


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("form", FORMS)
def test_chains_begin_at_samples_that_were_written(form: str, runs: Runs, tmp_path: Path) -> None:
    """HMC of a tiny step leaves them nearly there, whatever the form."""
    asked = (f"run={runs['ring']}", "samples=3", "transitions=1", "kernel=hmc")
    still = ("kernel.step_size=1e-6", "kernel.target_acceptance=null")
    outputs = [tmp_path / name for name in ("first", "again")]
    assert main([*asked, f"format={form}", f"output={outputs[0]}"]) == 0
    start = f"start={outputs[0]}/samples.{form}"
    assert main([*asked, *still, start, "format=npy", f"output={outputs[1]}"]) == 0
    again = np.load(outputs[1] / "samples.npy")
    if form == "npy":
        first = np.load(outputs[0] / "samples.npy")
    elif form == "csv":
        table = csv.read_csv(outputs[0] / "samples.csv")
        first = np.stack([table[name].to_numpy() for name in ("x0", "x1")], 1)
    else:
        read = parquet.read_table if form == "parquet" else pa.ipc.open_file
        opened = read(str(outputs[0] / f"samples.{form}"))
        table = opened if form == "parquet" else opened.read_all()
        first = np.array(table["position"].to_pylist())
    np.testing.assert_allclose(again, first, atol=1e-3)


@pytest.mark.parametrize("name", ["rbm", "dbm"])
def test_halves_of_held_out_images(name: str, runs: Runs, tmp_path: Path) -> None:
    """By columns, and the same by a mask; latent units are drawn with the rest."""
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    np.save(tmp_path / "mask.npy", mask)
    held = {"columns": "clamp_columns=0-31", "mask": f"clamp_mask={tmp_path / 'mask.npy'}"}
    asked = (f"run={runs[name]}", "samples=5", "transitions=3", "clamp=data")
    found = []
    for how, key in held.items():
        _, table = draw(tmp_path / how, *asked, key)
        found.append(numbers(table, "position"))
        assert torch.isfinite(numbers(table, "energy")).all()
    assert torch.equal(*found)
    _, free = draw(tmp_path / "free", *asked[:3])
    unlike = numbers(free, "position")[:, :32] != found[0][:, :32]
    assert unlike.any()
    _, other = draw(tmp_path / "other", *asked, "clamp_columns=[32-62,63]", "seed=1")
    # both halves together are the held-out rows
    rows = torch.cat([found[0][:, :32], numbers(other, "position")[:, 32:]], 1)
    _, whole = draw(tmp_path / "whole", *asked, "clamp_columns=0-62")
    assert torch.equal(rows[:, :63], numbers(whole, "position")[:, :63])


@pytest.mark.usefixtures("undrawn")
def test_rows_are_given_with_their_own_labels(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of held-out rows, or the label that is given; of a file there is none unless it is given."""
    model, clamp = pipeline.load(runs["labelled"]), ("clamp=data", "clamp_columns=[0]")
    asked = [f"run={runs['labelled']}", "samples=20", f"output={tmp_path}"]
    found = []
    for given in ([], ["given=1"]):
        assert main([*asked, *clamp, *given]) == 0
        with pa.ipc.open_file(tmp_path / "samples.arrow") as file:
            table = file.read_all()
        context, position = numbers(table, "context")[:, 0], numbers(table, "position")
        assert context.tolist() == [1.0] * 20 if given else set(context.tolist()) == {0.0, 1.0}
        torch.testing.assert_close(model.given(context)(position), numbers(table, "energy"))
        found.append(position[:, 0])
    assert torch.equal(*found)
    np.save(tmp_path / "rows.npy", np.array([[0.5, np.nan]], np.float32))
    capsys.readouterr()
    assert main([*asked, f"clamp={tmp_path / 'rows.npy'}"]) == 2
    assert "give that of the rows of clamp=FILE" in capsys.readouterr().err
    assert main([*asked, f"clamp={tmp_path / 'rows.npy'}", "given=[0,1]"]) == 0


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("ring", ("kernel=hmc",)),
        ("ring", ("kernel=replica_exchange",)),
        ("rbm", ()),
        ("rbm", ("clamp=data", "clamp_columns=0-31")),
        ("regression", ()),
    ],
)
def test_order_is_a_picture_and_changes_nothing(
    name: str, others: tuple[str, ...], runs: Runs, tmp_path: Path
) -> None:
    asked = (f"run={runs[name]}", "samples=9", "transitions=23", *others)
    _, table = draw(tmp_path / "without", *asked)
    summary, watched = draw(tmp_path / "with", *asked, "order=6")
    assert table.equals(watched)
    assert summary["order"] == 6
    assert "undrawn_order" not in summary
    assert (tmp_path / "with" / "order.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not (tmp_path / "without" / "order.png").exists()


@pytest.mark.parametrize(
    ("count", "transitions", "expected"),
    [
        (2, 50, [0, 50]),
        (5, 1000, [0, 1, 10, 100, 1000]),
        (6, 8, [0, 1, 2, 3, 5, 8]),
        (9, 3, [0, 1, 2, 3]),
    ],
)
def test_instants(count: int, transitions: int, expected: list[int]) -> None:
    assert instants(count, transitions) == expected


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_columns_with_names(tmp_path: Path) -> None:
    """A table is learned from, its holes are filled, and samples in Parquet are learned from."""
    rows = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    parquet.write_table(pa.table({"a": rows[:, 0], "b": rows[:, 1]}), tmp_path / "rows.parquet")
    plane = ("experiment=toy", "objective=nce", "energy.hidden=[8]", *TINY, "data=columns")
    few = ("data.held_out=20", "trainer.batch_size=16")
    run = tmp_path / "run"
    path = f"data.path={tmp_path / 'rows.parquet'}"
    assert train([*plane, *few, path, "data.columns=[b,a]", f"output={run}"]) == 0
    (tmp_path / "holes.csv").write_text("a,b\n,1.5\n0.25,\n-1,2\n")
    asked = [f"run={run}", "transitions=5"]
    out = tmp_path / "out"
    clamp = f"clamp={tmp_path / 'holes.csv'}"
    assert main([*asked, clamp, "format=csv", f"output={out}"]) == 0
    table = csv.read_csv(out / "samples.csv")
    assert table.column_names == ["b", "a", "energy"]
    a, b = table["a"].to_pylist(), table["b"].to_pylist()
    assert (b[0], a[1], a[2], b[2]) == (1.5, 0.25, -1.0, 2.0)
    assert main([*asked, clamp, "clamp_columns=[a]", "format=csv", f"output={out}"]) == 0
    table = csv.read_csv(out / "samples.csv")
    assert table["a"].to_pylist()[1:] == [0.25, -1.0]
    assert table["b"].to_pylist()[2] != 2.0
    assert main([*asked, "samples=60", "format=parquet", f"output={out}"]) == 0
    path = f"data.path={out / 'samples.parquet'}"
    again = (path, "data.columns=[position]", f"output={tmp_path / 'again'}")
    assert train([*plane, *few, *again]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["start={bad}"], "start={bad}: row 3 holds 0.5 as its number 7"),
        (["start={nan}"], "start={nan}: row 2 holds nan as its number 9"),
        (["start={short}"], "start={short}: a row there has 60 numbers"),
        (["start=nowhere.parquet"], "start=nowhere.parquet: no files there"),
        (["start={text}"], "column b, row 0 of"),
        (["start={headless}"], "its first line must hold the columns' names"),
        (["clamp={bad}"], "clamp={bad}: row 3 holds 0.5 as its number 7"),
        (["clamp={whole}"], "clamp={whole}: no row lacks a number"),
        (["clamp=data"], "clamp_columns or clamp_mask says what is held"),
        (["clamp=data", "clamp_columns=0-64"], "clamp_columns=0-64: a row of"),
        (["clamp=data", "clamp_columns=[5-2]"], "has columns 0-63"),
        (["clamp=data", "clamp_columns=top"], "clamp_columns=top: give numbers of columns"),
        (["clamp=data", "clamp_mask={bad}"], "clamp_mask={bad}: should be rows of shape [8, 8]"),
        (["clamp=data", "clamp_mask={nan}", "clamp_columns=1"], "give clamp_columns or clamp_mask"),
        (["clamp_columns=1"], "clamp_columns=1: says what is held of the rows of clamp"),
        (["order=1"], "order=1: should be greater than or equal to 2"),
        (["kernel=mala"], "kernel=mala: energy=rbm is over {{0, 1}}^d"),
        (["kernel=nuts"], "kernel=nuts: no such choice"),
        (["kernel=gibbs", "kernel.step_size=1"], "kernel.step_size=1: unknown key"),
        (["kernel=metropolis_hastings", "kernel.proposal=none_such"], "kernel.proposal=none_such"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str],
    message: str,
    runs: Runs,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In one line, before anything is written."""
    files = {name: f"{tmp_path}/{name}.npy" for name in ("bad", "nan", "short", "whole")}
    files |= {name: f"{tmp_path}/{name}.csv" for name in ("text", "headless")}
    rows = binary(5)
    np.save(files["whole"], rows)
    np.save(files["short"], rows[:, :60])
    for name, place, value in (("bad", (3, 7), 0.5), ("nan", (2, 9), np.nan)):
        changed = rows.copy()
        changed[place] = value
        np.save(files[name], changed)
    Path(files["text"]).write_text("a,b\n1,hello\n")
    np.savetxt(files["headless"], rows, delimiter=",")
    asked = [text.format_map(files) for text in arguments]
    capsys.readouterr()
    assert main([f"run={runs['rbm']}", f"output={tmp_path / 'out'}", *asked]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("refused: ")
    assert message.format_map(files) in printed
    assert not (tmp_path / "out").exists()
