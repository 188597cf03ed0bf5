"""Samples of trained runs, alone and composed, from the command line to the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import csv, parquet
from torch import Tensor

import pipeline
from pipeline.energies.composition import Conjunction, Disjunction
from pipeline.evaluation.likelihood import log_z_by_quadrature
from pipeline.sample import main
from tests.system.conftest import Runs

pytestmark = pytest.mark.xdist_group("trained runs")


def draw(output: Path, *arguments: str) -> tuple[dict[str, Any], pa.Table]:
    """The summary, and what is in samples.arrow."""
    assert main([*arguments, f"output={output}"]) == 0
    assert (output / "samples.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pa.ipc.open_file(output / "samples.arrow") as file:
        return json.loads((output / "summary.json").read_text()), file.read_all()


def numbers(table: pa.Table, name: str) -> Tensor:
    column = table.column(name).combine_chunks()
    if pa.types.is_fixed_size_list(column.type):
        return torch.tensor(column.flatten().to_numpy()).view(len(column), -1)
    return torch.tensor(column.to_numpy())


def test_a_runs_samples(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary, table = draw(tmp_path, f"run={runs['ring']}", "samples=30", "transitions=12")
    assert (summary["samples"], summary["transitions"], summary["compose"]) == (30, 12, None)
    assert summary["checkpoints"] == [f"{runs['ring']}/checkpoints/00000005"]
    assert 0 < summary["acceptance"] <= 1
    energy = pipeline.load(runs["ring"])
    torch.testing.assert_close(
        energy(numbers(table, "position")), numbers(table, "energy"), rtol=1e-4, atol=1e-5
    )
    printed = capsys.readouterr().out
    assert "sampling from noise: 12/12" in printed
    assert "acceptance" in printed
    assert f"{tmp_path}/samples.arrow" in printed


@pytest.mark.slow
def test_the_same_seed_draws_the_same_and_another_others(runs: Runs, tmp_path: Path) -> None:
    first, again, other = (
        numbers(
            draw(tmp_path / str(i), f"run={runs['ring']}", "samples=4", f"seed={seed}")[1],
            "position",
        )
        for i, seed in enumerate((3, 3, 4))
    )
    assert torch.equal(first, again)
    assert not torch.isin(first, other).any()


@pytest.mark.parametrize("how", ["and", "or", "not"])
def test_composed_runs(
    runs: Runs, tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The energies written are those of the composition, made here by hand."""
    weights = {"and": "[1,2]", "or": "[1,3]", "not": "[1,0.25]"}[how]
    both = f"runs=[{runs['ring']}, {runs['stripe']}]"
    summary, table = draw(
        tmp_path, both, f"compose={how}", f"weights={weights}", "samples=30", "kernel=hmc"
    )
    first, second = (pipeline.load(runs[name]) for name in ("ring", "stripe"))
    x = numbers(table, "position")
    if how == "or":
        log_z = [log_z_by_quadrature(energy, (-12.0, 12.0)) for energy in (first, second)]
        assert summary["log_partitions"] == pytest.approx(log_z, abs=1e-3)
        expected = Disjunction([first, second], [1.0, 3.0], summary["log_partitions"])(x)
        assert "log Z of the parts" in capsys.readouterr().out
    else:
        expected = {"and": first(x) + 2 * second(x), "not": first(x) - 0.25 * second(x)}[how]
        assert summary["log_partitions"] is None
    torch.testing.assert_close(numbers(table, "energy"), expected, rtol=1e-4, atol=1e-4)
    assert summary["kernel"]["name"] == "hmc"


def test_composed_rbms_need_another_kernel(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [
        f"runs=[{runs['rbm']},{runs['rbm']}]",
        "compose=and",
        "samples=10",
        f"output={tmp_path}",
    ]
    assert main(both) == 2
    assert "kernel=gibbs" in (message := capsys.readouterr().err)
    assert "use gibbs_with_gradients" in message
    _, table = draw(
        tmp_path, *both, "kernel=gibbs_with_gradients", "kernel.transitions=3", "transitions=6"
    )
    x, rbm = numbers(table, "position"), pipeline.load(runs["rbm"])
    assert torch.isin(x, torch.tensor([0.0, 1.0])).all()
    torch.testing.assert_close(
        numbers(table, "energy"), 2 * rbm(x.view(-1, *rbm.shape)), rtol=1e-4, atol=1e-3
    )


@pytest.mark.slow
def test_a_model_with_labels(runs: Runs, tmp_path: Path) -> None:
    """One label, one for each sample over again, as many of each; and the model composed with
    itself under two.
    """
    model, run = pipeline.load(runs["labelled"]), f"run={runs['labelled']}"
    for given, labels in {
        "given=1": [1.0] * 5,
        "given=[1,0]": [1.0, 0.0, 1.0, 0.0, 1.0],
        None: [0.0, 0.0, 0.0, 1.0, 1.0],
    }.items():
        _, table = draw(tmp_path / str(given), run, "samples=5", *([given] if given else []))
        context = numbers(table, "context")[:, 0]
        assert context.tolist() == labels
        torch.testing.assert_close(
            model.given(context)(numbers(table, "position")), numbers(table, "energy")
        )
    summary, table = draw(tmp_path / "and", run, "given=[0,1]", "compose=and", "samples=5")
    parts = [model.given(torch.tensor([label])) for label in (0.0, 1.0)]
    torch.testing.assert_close(
        Conjunction(parts)(numbers(table, "position")), numbers(table, "energy")
    )
    assert summary["given"] == [0, 1]
    assert "context" not in table.column_names


@pytest.mark.slow
def test_a_model_given_numbers(runs: Runs, tmp_path: Path) -> None:
    model, run = pipeline.load(runs["regression"]), f"run={runs['regression']}"
    _, table = draw(tmp_path / "rows", run, "samples=6")
    assert len(numbers(table, "context").unique()) == 6  # of held-out rows
    for given in ("given=[0.5]", "given=[[0.5]]"):
        _, table = draw(tmp_path / given, run, "samples=6", given)
        context = numbers(table, "context")
        assert context.tolist() == [[0.5]] * 6
        torch.testing.assert_close(
            model.given(context)(numbers(table, "position")), numbers(table, "energy")
        )


@pytest.mark.slow
def test_files_go_beside_the_run_or_to_any_url(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([f"run={runs['stripe']}", "samples=4"]) == 0
    assert len(list(Path(runs["stripe"]).glob("samples-*/samples.arrow"))) == 1
    assert main([f"runs=[{runs['ring']},{runs['stripe']}]", "compose=and", "samples=4"]) == 0
    assert len(list(tmp_path.glob("runs/samples-*/samples.arrow"))) == 1
    assert main([f"run={runs['ring']}", "samples=4", "output=memory://drawn"]) == 0
    names = {
        path.rpartition("/")[2] for path in fsspec.filesystem("memory").ls("/drawn", detail=False)
    }
    assert names == {"samples.arrow", "samples.png", "summary.json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "run=(missing): give the folder or the URL of a run"),
        (["run=nowhere"], "nowhere: no complete checkpoint"),
        (["run={ring}", "sample=3"], "sample=3: unknown key; did you mean samples"),
        (["run={ring}", "samples=0"], "samples=0: should be greater than or equal to 1"),
        (["run={ring}", "samples=[1,"], "samples=[1,"),
        (["run={ring}", "--fast"], "--fast=(missing): unknown option; the arguments are key=value"),
        (["run={ring}", "trainer.lag=3"], "trainer.lag=3: unknown key"),
        (["run={ring}", "kernel=gibbs"], "kernel=gibbs: energy=mlp has no conditionals"),
        (
            ["run={ring}", "kernel.stepsize=1"],
            "kernel.stepsize=1: unknown key; did you mean kernel.step_size",
        ),
        (["run={ring}", "device=cuda:7"], "device=cuda:7"),
        (["run={ring}", "given=3"], "given=3: {ring} is a model of rows alone"),
        (["run={ring}", "weights=[1,2]"], "weights=[1.0, 2.0]: goes with compose"),
        (["run={ring}", "compose=and"], "runs=['{ring}']: compose two or more runs"),
        (["runs=[{ring},{stripe}]"], "compose=null: say how"),
        (["runs=[{ring},{stripe}]", "compose=xor"], "compose=xor: should be 'and', 'or' or 'not'"),
        (
            ["runs=[{ring},{rbm}]", "compose=and"],
            "{ring} is over 2 real numbers, {rbm} over 8x8 of 2 levels",
        ),
        (
            ["runs=[{ring},{stripe}]", "compose=not", "weights=[1,1]"],
            "weights=[1.0, 1.0]: exp(-E_A + w E_B) has no Z",
        ),
        (
            ["runs=[{ring},{stripe}]", "compose=not", "weights=[2,1]"],
            "weights=[2.0, 1.0]: for compose=not should be [1,w]",
        ),
        (["runs=[{ring},{stripe},{ring}]", "compose=not"], "compose=not takes two"),
        (
            ["runs=[{ring},{stripe}]", "compose=and", "log_partitions=[1,2]"],
            "they go with compose=or",
        ),
        (["run={labelled}", "given=7"], "given=7: no such label"),
        (["run={labelled}", "given=[[1,2]]"], "a context of {labelled} has shape []"),
        (["run={labelled}", "given=yes please"], "must be a number"),
        (
            ["runs=[{labelled},{labelled}]", "compose=and"],
            "{labelled} conditions on a context: give one for each part",
        ),
        (["run={regression}", "given=0.5"], "a context of {regression} has shape [1]"),
    ],
)
def test_what_makes_no_sense_is_refused(
    runs: Runs, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in message and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main([text.format_map(runs) for text in arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("refused: ")
    assert message.format_map(runs) in printed


def test_help_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert "compose=and" in printed
    assert "transitions=null" in printed


@pytest.mark.parametrize("form", ["parquet", "csv", "npy"])
def test_samples_in_other_formats_are_the_same(form: str, runs: Runs, tmp_path: Path) -> None:
    """As those of the Arrow file, number by number."""
    found = []
    for name in ("arrow", form):
        output = tmp_path / name
        asked = ("samples=5", "transitions=3", f"format={name}", f"output={output}")
        assert main([f"run={runs['ring']}", *asked]) == 0
        file = output / f"samples.{name}"
        if name == "npy":
            found.append(np.load(file).reshape(5, 2))
        elif name == "csv":
            table = csv.read_csv(file)
            columns = [table[f"x{number}"].to_numpy() for number in range(2)]
            found.append(np.stack(columns, 1))
            assert table.column_names[-1] == "energy"
        else:
            table = parquet.read_table(file) if name == "parquet" else None
            if table is None:
                with pa.ipc.open_file(file) as opened:
                    table = opened.read_all()
            found.append(np.array(table["position"].to_pylist()))
    assert np.array_equal(*(values.astype(np.float32) for values in found))
