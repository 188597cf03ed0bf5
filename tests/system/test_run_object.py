"""The object that `pipeline.train.run` returns and `pipeline.open_run` opens."""

from __future__ import annotations

import base64
import builtins
import io
import json
import math
import re
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import pipeline
from pipeline.common.errors import ArgumentError, CheckpointError, ConfigError
from pipeline.config.compose import compose
from pipeline.evaluation import report
from pipeline.evaluation.samples import Drawn
from pipeline.runs import interruption
from pipeline.runs.interruption import Interrupted, Interruption
from pipeline.runs.page import in_short, read
from pipeline.runs.run import Execution
from pipeline.storage.figures import drawn
from pipeline.train import run
from tests.system.conftest import TINY, Runs

pytestmark = pytest.mark.xdist_group("trained runs")
CUSTOM = (
    *("energy=custom", "metrics.every=1", "kernel.transitions=2", "chains.per_pool=8"),
    *("evaluation.ais_temperatures=0", *TINY),
)


class Quartic(nn.Module):
    """f(x) = sum_i a_i x_i^4."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 64))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).pow(4) @ self.scale.exp()


def test_a_run_is_its_summary_and_opens_its_files(runs: Runs) -> None:
    opened = pipeline.open_run(runs["ring"])
    summary = json.loads(Path(runs["ring"], "summary.json").read_text())
    assert dict(opened) == summary
    assert opened == summary
    assert opened.output == summary["output"]
    assert opened.report == f"{opened.output}/report.html"
    assert opened.config.trainer.steps == 5
    assert repr(opened) == f"Run({opened.output!r}: step 5 of 5)"
    x = torch.randn(3, 2)
    torch.testing.assert_close(opened.energy(x), pipeline.load(runs["ring"])(x))
    assert pipeline.open_run(summary["checkpoint"]).output == opened.output


def test_the_curves_are_the_rows_of_the_series(runs: Runs) -> None:
    """A null is a NaN."""
    curves = pipeline.open_run(runs["rbm"]).curves
    lines = Path(runs["rbm"], "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert curves.index.tolist() == [row["step"] for row in rows] == [10, 20]
    assert set(curves.columns) == {key for row in rows for key in row} - {"step"}
    for row in rows:
        for key, value in row.items():
            if key != "step":
                found = curves.loc[row["step"], key]
                assert math.isnan(found) if value is None else found == value


def test_without_pandas_curves_say_what_to_install(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name == "pandas":
            raise ModuleNotFoundError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install pandas"):
        pipeline.open_run(runs["rbm"]).curves  # noqa: B018


def test_samples_are_those_of_the_picture_in_the_units_of_the_data(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undrawn: None,  # noqa: ARG001
) -> None:
    """Bit for bit; the energy sees standardised rows, and samples are rows of the table."""
    frame = pd.DataFrame({"a": np.linspace(1000, 2000, 60), "b": np.sin(np.arange(60)) / 1000})
    frame["c"] = frame["b"] ** 2  # of two columns the likelihood is integrated, which takes seconds
    ends: list[Tensor] = []

    def noted(config: Any, energy: Any, data: Any) -> Any:
        found: tuple[Drawn, Any, Any] = yield from real(config, energy, data)
        ends.append(found[0].position)
        return found

    real = report.samples_from_noise
    monkeypatch.setattr(report, "samples_from_noise", noted)
    frame.to_csv(tmp_path / "table.csv", index=False)
    settings = [
        *TINY,
        "data=columns",
        f"data.path={tmp_path}/table.csv",
        "data.scale=standard",
        "data.held_out=10",
    ]
    asked = [
        *settings,
        "evaluation.ais_temperatures=0",
        "evaluation.samples=6",
        "chains.per_pool=8",
        f"output={tmp_path}/run",
    ]
    done = run(compose(asked))
    monkeypatch.undo()
    scale = done.energy.row_scale
    assert scale is not None
    assert torch.equal(done.samples, scale.in_own_units(ends[0]))
    again = pipeline.open_run(tmp_path / "run")
    assert torch.equal(again.samples, done.samples)
    drawn = again.sample(4, transitions=3, seed=1)
    assert drawn.shape == (4, 3)
    assert bool((drawn[:, 0].abs() > 100).any() and (drawn[:, 1:].abs() < 1).all())
    assert torch.equal(drawn, done.sample(4, transitions=3, seed=1))
    assert not torch.equal(drawn, done.sample(4, transitions=3, seed=2))


def test_samples_given_a_context_and_arguments_that_are_refused(runs: Runs) -> None:
    labelled = pipeline.open_run(runs["regression"])
    assert labelled.sample(5, transitions=2, given=[[0.5]]).shape[0] == 5
    ring = pipeline.open_run(runs["ring"])
    for name, value in (("n", 0), ("n", 2.5), ("transitions", 0), ("seed", -1)):
        with pytest.raises(ArgumentError, match=f"^{name}={value}: "):
            ring.sample(**{"n": 2, name: value})
    with pytest.raises(ConfigError, match=r"given=\[0\.5\]: .* conditions on nothing"):
        ring.sample(2, given=[0.5])


@pytest.mark.usefixtures("undrawn")
def test_what_was_given_in_code_stays_with_the_run(tmp_path: Path) -> None:
    """In what `run` returned; who opens it gives the module again, as for `load`. Torch's threads
    are left as they were.
    """
    torch.set_num_threads(2)
    done = run(compose([*CUSTOM, f"output={tmp_path}/a"]), energy=Quartic())
    assert torch.get_num_threads() == 2
    x = torch.randn(3, 8, 8)
    opened = pipeline.open_run(f"{tmp_path}/a", energy=Quartic())
    assert torch.equal(done.energy(x), opened.energy(x))
    assert torch.equal(done.samples, opened.samples)
    assert done.samples.shape == (40, 8, 8)  # none were asked for at the end
    assert torch.get_num_threads() == 2
    without = pipeline.open_run(f"{tmp_path}/a")
    assert len(without.curves) == 5
    with pytest.raises(CheckpointError, match="given in code"):
        without.energy  # noqa: B018


def test_what_is_no_run_is_refused(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        pipeline.open_run(tmp_path)
    with pytest.raises(ConfigError, match="a module given in code goes with energy=custom"):
        pipeline.open_run(runs["ring"], energy=Quartic())
    with pytest.raises(ArgumentError, match="should be a run's output"):
        pipeline.open_run("")


def test_a_run_shows_itself_in_short(runs: Runs) -> None:
    """Pictures are within, and a name that looks like HTML is none."""
    found = read(runs["rbm"])
    picture = drawn(lambda: Figure(figsize=(4, 2)))
    config = {**found.config, "name": "<b>"}
    shown = in_short(found._replace(pictures={"curves.png": picture}, config=config))
    assert "&lt;b&gt;</b>: step 20 of 20, in" in shown
    assert "held-out log-likelihood" in shown
    (inside,) = re.findall(r"data:image/png;base64,([^\"]+)", shown)
    with Image.open(io.BytesIO(base64.b64decode(inside))) as image:
        assert image.size == (480, 240)


def stopping(at: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal comes while step `at` is made."""
    real = Execution._observe

    def observe(self: Execution, step: Any, rounds: Any, flow: Any) -> None:
        real(self, step, rounds, flow)
        if step.version == at:
            signal.raise_signal(number)

    monkeypatch.setattr(Execution, "_observe", observe)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_returns_the_run_at_a_prompt_alone(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Elsewhere a script must not go on as if training were done; nor where somebody ends the
    process.
    """
    config = compose([*CUSTOM, f"output={tmp_path}/a"])
    before = signal.getsignal(number)
    stopping(3, number, monkeypatch)
    with pytest.raises(Interrupted, match="interrupted at step 3 of 5; the checkpoint is"):
        run(config, energy=Quartic())
    stopping(4, number, monkeypatch)
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    if number == signal.SIGTERM:
        with pytest.raises(Interrupted, match="interrupted at step 4"):
            run(config, energy=Quartic())
    else:
        stopped = run(config, energy=Quartic())
        assert "interrupted at step 4 of 5; the checkpoint is" in capsys.readouterr().out
        assert sorted(stopped) == ["checkpoint", "name", "output", "version"]
        assert repr(stopped).endswith("step 4 of 5, not evaluated)")
        assert stopped.curves.index[-1] == 4
        assert "not evaluated" in Path(stopped.report).read_text()
        assert torch.isfinite(stopped.energy(torch.randn(3, 8, 8))).all()
    assert signal.getsignal(number) == before


def test_a_second_interrupt_leaves_a_prompt_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "SAME", -1.0)
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with Interruption() as noted:
        signal.raise_signal(signal.SIGINT)
        assert noted.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
