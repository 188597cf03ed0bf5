"""A run from its command line to its files, in one process; what Ray adds is tested elsewhere."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import threading
import urllib.request
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.assembly.energies import make_energy
from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.config.run import RunConfig
from pipeline.energies.weights import flatten
from pipeline.runs.inline import InlineRunner
from pipeline.storage.paths import resolve_output
from pipeline.storage.store import CheckpointStore, find
from pipeline.train import main
from tests.conftest import SMALL, undrawn

REPOSITORY = Path(__file__).resolve().parent.parent.parent
REQUIRED = {
    *(
        "version",
        "wall_seconds",
        "steps_per_second",
        "negatives_per_second",
        "transitions_per_second",
    ),
    *("mean_lag", "max_lag", "mean_ess", "restarts", "checkpoint", "test_log_likelihood"),
}


def train(kind: str, output: Path | str, *overrides: str, drawn: bool = False) -> int:
    with nullcontext() if drawn else undrawn():
        return main([*SMALL[kind], "cluster=inline", f"output={output}", *overrides])


def summary(output: Path) -> dict[str, Any]:
    return json.loads((output / "summary.json").read_text())


@pytest.mark.parametrize("kind", ["rbm", "deep", "conv"])
def test_a_run_leaves_what_it_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    assert train(kind, tmp_path, drawn=True) == 0
    figures = summary(tmp_path)
    assert set(figures) >= REQUIRED
    assert figures["version"] == 20
    assert figures["restarts"] == 0
    assert {"untrained", "independent_components"} <= set(figures["baselines"])
    for name in ("samples.png", "curves.png"):
        assert (tmp_path / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [
        json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ] == [10, 20]
    printed = capsys.readouterr().out
    assert "step 20/20" in printed
    for path in (
        figures["checkpoint"],
        "samples.png",
        "curves.png",
        "metrics.jsonl",
        "summary.json",
    ):
        assert path in printed


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["deep", "conv"])
@pytest.mark.parametrize(
    "overrides",
    [
        ["kernel=ula", "kernel.transitions=2"],
        [
            "kernel=ula",
            "kernel.transitions=2",
            "kernel.noise=0.01",
            "trainer.lag=2",
            "trainer.lag_mode=exact",
        ],
        ["objective=cd", "chains.restart=0", "trainer.batch_size=16"],
        ["optimizer.name=sgd", "optimizer.learning_rate=1e-3", "energy.spectral_norm=true"],
    ],
    ids=["ula", "tempered-ula-lag", "cd", "sgd-spectral-norm"],
)
def test_every_kernel_and_objective_trains(tmp_path: Path, kind: str, overrides: list[str]) -> None:
    """Twenty steps leave a finite model whose weights have moved."""
    assert (
        train(kind, tmp_path, "evaluation.samples=0", "evaluation.ais_temperatures=0", *overrides)
        == 0
    )
    weights = find(str(tmp_path)).read("learner")["weights"]
    assert weights.isfinite().all()
    assert not torch.equal(
        weights, torch.from_numpy(flatten(make_energy(compose(list(SMALL[kind])), (8, 8))))
    )
    assert summary(tmp_path)["skipped_steps"] == 0


def test_a_scrape_in_the_middle_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Prometheus would see after step 7 of a run."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    step, seen = InlineRunner.step, []

    def scraped(self: InlineRunner) -> Any:
        done = step(self)
        if done[0].version == 8:
            seen.append(urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode())
        return done

    monkeypatch.setattr(InlineRunner, "step", scraped)
    assert train("rbm", tmp_path, f"metrics.port={port}") == 0
    of_run = f'run="{tmp_path.name}"'
    assert f"ebm_steps_total{{{of_run}}} 7.0" in seen[0]
    parts = 'energy="rbm",kernel="gibbs",name="digits_rbm",objective="pcd"'
    assert f"ebm_run_info{{{parts},{of_run}}} 1.0" in seen[0]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("law", ["8gaussians", "two_moons", "checkerboard"])
def test_toys_are_scored_against_the_truth(tmp_path: Path, law: str) -> None:
    overrides = [
        "experiment=toy",
        f"data.law={law}",
        "trainer.steps=20",
        "chains.per_pool=8",
        "energy.hidden=[8]",
    ]
    small = [
        "trainer.batch_size=16",
        "evaluation.samples=20",
        "evaluation.transitions=5",
        "metrics.port=0",
    ]
    assert main([*overrides, *small, "cluster=inline", f"output={tmp_path}"]) == 0
    figures = summary(tmp_path)
    assert figures["true_log_likelihood"] > figures["test_log_likelihood"]


def test_a_second_run_goes_on_and_a_third_has_nothing_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("rbm", tmp_path) == 0
    assert train("rbm", tmp_path, "trainer.steps=30") == 0
    assert "resuming at step 20 of 30" in capsys.readouterr().out
    assert summary(tmp_path)["steps"] == 10
    assert [
        json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ] == [10, 20, 30]
    assert train("rbm", tmp_path, "trainer.steps=30") == 0
    assert "this run is done: step 30 of 30" in capsys.readouterr().out
    assert train("rbm", tmp_path, "trainer.steps=10", "resume=never") == 0
    assert summary(tmp_path)["version"] == 10
    assert find(str(tmp_path)).step == 10


def test_a_checkpoint_of_another_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("deep", tmp_path) == 0
    assert train("deep", tmp_path, "seed=1") == 2
    assert "seed=0 there, 1 here" in capsys.readouterr().err


def test_what_is_refused_leaves_the_old_run_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """resume=never gives the old run up only once the new one stands; one may even start from the
    other in place.
    """
    assert train("deep", tmp_path / "run") == 0
    assert train("conv", tmp_path / "other") == 0
    assert train("deep", tmp_path / "run", "resume=never", f"init_from={tmp_path / 'other'}") == 2
    assert "init_from" in capsys.readouterr().err
    assert find(str(tmp_path / "run")).step == 20
    assert (
        train(
            "deep",
            tmp_path / "run",
            "resume=never",
            f"init_from={tmp_path / 'run'}",
            "trainer.steps=10",
        )
        == 0
    )
    assert find(str(tmp_path / "run")).step == 10


def test_damaged_checkpoints_are_said_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("rbm", tmp_path) == 0
    for part in (tmp_path / "checkpoints").glob("*/pool-1.safetensors"):
        part.write_bytes(b"")
    assert train("rbm", tmp_path) == 2
    assert "resume=never starts over" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_the_default_output_goes_on_with_more_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the program advises when a run is done; and a new evaluation is made where another is
    asked for.
    """
    monkeypatch.chdir(tmp_path)
    command = [*SMALL["rbm"], "cluster=inline"]
    assert main(command) == 0
    assert main([*command, "trainer.steps=30"]) == 0
    assert "resuming at step 20 of 30" in capsys.readouterr().out
    assert main([*command, "trainer.steps=30", "evaluation.transitions=30"]) == 0
    (folder,) = (each for each in (tmp_path / "runs").iterdir() if not each.is_symlink())
    assert summary(folder)["transitions_from_noise"] == 30
    assert summary(folder)["version"] == 30


def test_init_from_starts_at_another_runs_weights(tmp_path: Path) -> None:
    assert train("deep", tmp_path / "one") == 0
    assert (
        train(
            "deep",
            tmp_path / "two",
            f"init_from={tmp_path / 'one'}",
            "optimizer.learning_rate=1e-12",
        )
        == 0
    )
    one, two = (
        find(str(tmp_path / "one")).read("energy")["weights"],
        find(str(tmp_path / "two")).read("energy")["weights"],
    )
    np.testing.assert_allclose(one.numpy(), two.numpy(), atol=1e-6)


def interrupt_at(
    version: int, monkeypatch: pytest.MonkeyPatch, number: signal.Signals = signal.SIGHUP
) -> None:
    """From now on the signal comes at the end of that step."""
    step = InlineRunner.step

    def interrupted(self: InlineRunner) -> Any:
        done = step(self)
        if done[0].version == version:
            os.kill(os.getpid(), number)
        return done

    monkeypatch.setattr(InlineRunner, "step", interrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_writes_a_checkpoint_and_says_so(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    """The signal comes in the middle of step 7; the step is finished, saved, and the run can go on
    from there.
    """
    interrupt_at(7, monkeypatch, number)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    assert train("deep", tmp_path) == 128 + number
    signal.signal(signal.SIGHUP, before)
    printed = capsys.readouterr().out
    assert "interrupted at step 7 of 20" in printed
    assert find(str(tmp_path)).step == 7
    assert find(str(tmp_path)).folder in printed
    monkeypatch.undo()
    assert train("deep", tmp_path) == 0
    whole = tmp_path / "whole"
    assert train("deep", whole) == 0
    one, two = (find(str(path)).read("learner")["weights"] for path in (tmp_path, whole))
    assert np.array_equal(one.numpy(), two.numpy()), (
        "an interrupted run and a whole one must end bitwise equal"
    )
    assert threading.current_thread() is threading.main_thread()


def test_a_run_under_nohup_ignores_that_its_terminal_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(7, monkeypatch)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert train("deep", tmp_path) == 0
    signal.signal(signal.SIGHUP, before)
    assert summary(tmp_path)["version"] == 20


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    """Whatever it is, and with the status of its own."""
    script = (
        "import os, signal\n"
        "from pipeline.runs.interruption import Interruption\n"
        "with Interruption():\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        check=False,
    )
    assert done.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("gone", ["terminal", "reader"])
def test_a_run_outlives_whoever_reads_it(tmp_path: Path, gone: str) -> None:
    """A terminal that closes interrupts the run, which still has its checkpoint and its exit
    status, though nothing can be printed. Where the reader of a pipe has ended, the run goes on.
    """
    closes = gone == "terminal"
    reading, writing = pty.openpty() if closes else os.pipe()
    command = [sys.executable, "-m", "pipeline.train", *SMALL["rbm"], "cluster=inline"]
    command += [f"output={tmp_path}", f"trainer.steps={10_000_000 if closes else 20}"]

    def begin() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        if closes:
            fcntl.ioctl(writing, termios.TIOCSCTTY, 0)

    with subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=writing,
        start_new_session=True,
        preexec_fn=begin,
    ) as process:
        os.close(writing)
        seen = os.read(reading, 4096)
        while closes and b"loss" not in seen:
            seen += os.read(reading, 4096)
        os.close(reading)
    assert process.returncode == (128 + signal.SIGHUP if closes else 0)
    step = find(str(tmp_path)).step
    assert step > 0 if closes else step == 20


class DiskFull:
    """A runner's `snapshot` whose writing fails as on a full disk, a number of times."""

    def __init__(self, failures: int) -> None:
        self.failures, self.snapshot = failures, InlineRunner.snapshot

    def __call__(self, runner: InlineRunner) -> Any:
        write = self.snapshot(runner)

        def writes(folder: str) -> Any:
            parts = write(folder)
            if self.failures:
                self.failures -= 1
                raise OSError(28, "No space left on device")
            return parts

        return writes


def test_a_full_disk_is_counted_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = DiskFull(1)
    monkeypatch.setattr(InlineRunner, "snapshot", lambda self: full(self))
    assert train("rbm", tmp_path, "checkpoint.every=5") == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["ebm_checkpoint_failures_total"] == 1
    assert find(str(tmp_path)).step == 20


def test_a_last_checkpoint_that_fails_fails_the_run_and_keeps_the_older(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("rbm", tmp_path, "trainer.steps=10") == 0
    full = DiskFull(9)
    monkeypatch.setattr(InlineRunner, "snapshot", lambda self: full(self))
    assert train("rbm", tmp_path) == 1
    assert "No space left on device" in capsys.readouterr().err
    latest = CheckpointStore(str(tmp_path), 3).latest()
    assert latest is not None
    assert latest.step == 10


def test_output_resolves_against_what_lasts(
    small: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working directory; inside a submitted job EBM_RUNS, which may be a URL, or the home
    folder.
    """
    config = small("rbm")
    name = f"runs/digits_rbm-{config.digest()}"
    assert resolve_output(config) == str(Path(name).absolute())
    assert resolve_output(small("rbm", "output=memory://run")) == "memory://run"
    with pytest.raises(ConfigError, match="output=nosuch://x"):
        resolve_output(small("rbm", "output=nosuch://x"))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("EBM_RUNS", "memory://all/")
    assert resolve_output(config) == f"memory://all/{name}"
    monkeypatch.delenv("EBM_RUNS")
    assert resolve_output(config) == str(Path.home() / name)
    assert resolve_output(small("rbm", "output=/disk/run")) == "/disk/run"


def test_runs_can_live_on_any_file_system() -> None:
    """All files of a run on fsspec's memory file system, and resumed from there."""
    import fsspec

    assert train("rbm", "memory://a-run") == 0
    assert train("rbm", "memory://a-run", "trainer.steps=30") == 0
    names = {
        path.rpartition("/")[2] for path in fsspec.filesystem("memory").ls("/a-run", detail=False)
    }
    pictures = {"samples.png", "energies.png", "filters.png", "curves.png"}
    written = {"checkpoints", "metrics.jsonl", *pictures, "report.html", "summary.json"}
    assert names == {*written, "lease"}


def test_help_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "Exit status" in capsys.readouterr().out
