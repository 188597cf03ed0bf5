"""Recorders: a list of places where figures go, none of which can end a run."""

from __future__ import annotations

import json
import logging
import re
import socket
import urllib.request
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from pipeline.common import plugins
from pipeline.common.errors import ConfigError, StorageError
from pipeline.common.types import Figures
from pipeline.config.run import RunConfig
from pipeline.runs.inline import InlineRunner
from pipeline.runs.metrics import RunMetrics
from pipeline.runs.recorders.base import RecordedRun
from pipeline.runs.recorders.prometheus import Prometheus, address_of
from pipeline.runs.recorders.series import Series
from pipeline.runs.recording import GROUP, Recording
from pipeline.storage import files
from pipeline.storage.local import append_durably
from pipeline.storage.store import find
from pipeline.train import main
from tests.conftest import SMALL
from tests.unit.test_metrics import FLOW, ROUND, STEP

pytestmark = pytest.mark.usefixtures("undrawn")
Small = Callable[..., RunConfig]


class Notebook:
    """A recorder of another package: the three methods, and nothing else."""

    calls: list[tuple[Any, ...]]

    def start(self, run: RecordedRun) -> None:
        Notebook.calls = [("start", run.name, run.output, run.config.name)]

    def record(self, step: int, figures: dict[str, float]) -> None:
        self.calls.append(("record", step, figures["ebm_version"]))

    def finish(self, summary: Figures | None) -> None:
        self.calls.append(("finish", None if summary is None else summary["version"]))


class Broken(Notebook):
    """Fails at whatever `at` says."""

    at = "record"

    def start(self, run: RecordedRun) -> None:
        super().start(run)
        self._fail("start")

    def record(self, step: int, figures: dict[str, float]) -> None:
        super().record(step, figures)
        self._fail("record")

    def finish(self, summary: Figures | None) -> None:
        super().finish(summary)
        self._fail("finish")

    def _fail(self, method: str) -> None:
        if method == self.at:
            raise OSError(28, "No space left on device")


class Wordless:
    def start(self, run: RecordedRun) -> None: ...


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package's entry points, as they are found when it is installed."""
    points = {
        name: EntryPoint(name, f"{__name__}:{name.capitalize()}", GROUP)
        for name in ("notebook", "broken", "wordless")
    }
    monkeypatch.setattr(plugins, "installed", lambda group: points if group == GROUP else {})


def recorded(
    output: Path | str, small: Small, *overrides: str, name: str = "mine"
) -> tuple[RecordedRun, RunMetrics]:
    metrics = RunMetrics(name)
    return RecordedRun(name, str(output), small("rbm", *overrides), metrics.served), metrics


def train(output: Path, *overrides: str) -> int:
    return main([*SMALL["rbm"], "cluster=inline", f"output={output}", *overrides])


def rows_of(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


# -- the two there are ---------------------------------------------------------------------------


def test_the_endpoint_serves_what_was_observed(tmp_path: Path, small: Small) -> None:
    """Over HTTP, under the run's name; closed when the run is over."""
    port = free_port()
    run, metrics = recorded(tmp_path, small, f"metrics.port={port}")
    endpoint, url = Prometheus(), f"http://127.0.0.1:{port}/metrics"
    endpoint.start(run)
    try:
        metrics.observe(STEP, [ROUND], FLOW)
        text = urllib.request.urlopen(url).read().decode()
        assert 'ebm_steps_total{run="mine"} 1.0' in text
        with pytest.raises(ConfigError, match=rf"metrics\.port={port}"):
            Prometheus().start(run)
    finally:
        endpoint.finish(None)
    with pytest.raises(OSError):
        urllib.request.urlopen(url)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_endpoint_listens_where_it_is_told(address: str, tmp_path: Path, small: Small) -> None:
    """Of this machine's addresses at that one alone."""
    port = free_port()
    run, _ = recorded(tmp_path, small, f"metrics.port={port}", f"metrics.address={address}")
    endpoint = Prometheus()
    endpoint.start(run)
    try:
        for other in ("127.0.0.1", "::1"):
            family = socket.AF_INET6 if ":" in other else socket.AF_INET
            with socket.socket(family) as probe:
                assert (probe.connect_ex((other, port)) == 0) == (other == address)
    finally:
        endpoint.finish(None)


@pytest.mark.parametrize("address", ["192.0.2.7", "no such name", "2001:db8::7"])
def test_an_address_of_another_machine_is_refused(
    address: str, tmp_path: Path, small: Small
) -> None:
    port = free_port()
    run, _ = recorded(tmp_path, small, f"metrics.port={port}", f"metrics.address={address}")
    with pytest.raises(ConfigError, match=rf"metrics\.address={address}: cannot listen there"):
        Prometheus().start(run)


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [("inline", {"127.0.0.1"}), ("local", {"127.0.0.1"}), ("ray", {"::", "0.0.0.0"})],
)
def test_a_run_on_this_machine_serves_this_machine(
    cluster: str, expected: set[str], small: Small
) -> None:
    """Others are to reach the driver of a run on a cluster, and nobody else that of a local one."""
    assert address_of(small("rbm", f"cluster={cluster}")) in expected


def flush(series: Series) -> None:
    series.flush()
    series.settle()


def started(output: str, small: Small, step: int) -> Series:
    """The series of a run that stands at `step`."""
    series = Series()
    series.start(recorded(output, small)[0])
    series.rewind(step)
    return series


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_the_series_resumes_at_the_checkpoint(tmp_path: Path, small: Small, where: str) -> None:
    """Rows of steps that the checkpoint has not are dropped; a last line cut off by a crash is no
    obstacle.
    """
    output = str(tmp_path) if where == "disk" else f"memory://series-{tmp_path.name}"
    series = started(output, small, 0)
    for step in (10, 20, 30):
        series.record(step, {"ebm_loss": step / 10})
        flush(series)
    if where == "disk":
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 40, "ebm_lo')
    again = started(output, small, 20)
    assert [row["step"] for row in again.rows] == [10, 20]
    again.record(30, {"ebm_loss": 9.0})
    flush(again)
    last = started(output, small, 100)
    assert [row["ebm_loss"] for row in last.rows] == [1.0, 2.0, 9.0]
    if where == "disk":
        assert [row["step"] for row in rows_of(tmp_path)] == [10, 20, 30]


def test_starting_the_series_leaves_the_file_as_it_was(tmp_path: Path, small: Small) -> None:
    """What is refused after that must not have cost the old run its rows."""
    series = started(str(tmp_path), small, 0)
    series.record(10, {})
    flush(series)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    Series().start(recorded(tmp_path, small)[0])
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_starting_the_series_writes_nothing(tmp_path: Path, small: Small) -> None:
    """A run that is refused after that, for want of a cluster, leaves no folder behind."""
    Series().start(recorded(tmp_path / "new", small)[0])
    assert not (tmp_path / "new").exists()


def test_a_run_put_back_drops_the_rows_it_makes_anew(tmp_path: Path, small: Small) -> None:
    series = started(str(tmp_path), small, 0)
    for step in (10, 20, 30):
        series.record(step, {})
    flush(series)
    series.rewind(20)
    assert [row["step"] for row in rows_of(tmp_path)] == [10, 20]
    series.record(30, {})
    flush(series)
    assert [row["step"] for row in rows_of(tmp_path)] == [10, 20, 30]


def test_a_write_that_broke_off_is_made_good(
    tmp_path: Path, small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a row in the file, from a full disk, does not hide those behind it."""
    series = started(str(tmp_path), small, 0)
    series.record(10, {})
    flush(series)
    path = tmp_path / "metrics.jsonl"

    def full(path: str, content: bytes) -> None:
        append_durably(path, content[:10])
        raise OSError(28, "No space left on device")

    series.record(20, {})
    monkeypatch.setattr(files, "append_durably", full)
    with pytest.raises(StorageError, match=r"No space left on device.*make room"):
        flush(series)
    monkeypatch.undo()
    assert path.read_text().endswith('{"step": 2')
    series.finish({"version": 20})
    assert [row["step"] for row in rows_of(tmp_path)] == [10, 20]


# -- the list ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("installed")
def test_a_recorder_of_another_package_is_told_all(tmp_path: Path) -> None:
    """Its start, a row every `metrics.every` steps and at the last, and the summary."""
    assert train(tmp_path, "recorders=[notebook]", "metrics.every=8") == 0
    assert Notebook.calls == [
        ("start", tmp_path.name, str(tmp_path), "digits_rbm"),
        ("record", 8, 8.0),
        ("record", 16, 16.0),
        ("record", 20, 20.0),
        ("finish", 20),
    ]
    assert not (tmp_path / "metrics.jsonl").exists()
    assert not (tmp_path / "curves.png").exists(), "curves are drawn from the series"


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("at", "failures"), [("start", 1), ("record", 2), ("finish", 0)])
def test_a_recorder_that_fails_ends_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    at: str,
    failures: int,
) -> None:
    """It is counted each time and told once; the others get every figure."""
    monkeypatch.setattr(Broken, "at", at)
    with caplog.at_level(logging.WARNING):
        assert train(tmp_path, "recorders=[broken,series]") == 0
    told = [record.getMessage() for record in caplog.records if "recorder" in record.getMessage()]
    assert len(told) == 1
    assert "the recorder broken failed (OSError: [Errno 28] No space left on device)" in told[0]
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == [10, 20]
    assert rows[-1]['ebm_recorder_failures_total{recorder="series"}'] == 0
    # the last row was made before it failed at that row, or at the end
    before = max(0, failures - 1) if at == "record" else failures
    assert rows[-1]['ebm_recorder_failures_total{recorder="broken"}'] == before
    assert (("finish", 20) in Broken.calls) == (at != "start"), "one that did not start is left out"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("recorders", "words"),
    [
        (
            "[seris]",
            r"recorders=seris: .*\(prometheus, series, tensorboard, mlflow, wandb, broken,"
            r" notebook, wordless\)",
        ),
        ("[series,series]", "names series twice"),
        ("[wordless]", "has no record, finish"),
    ],
)
def test_what_is_no_recorder_is_refused_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recorders: str, words: str
) -> None:
    assert train(tmp_path / "run", f"recorders={recorders}") == 2
    error = capsys.readouterr().err
    assert re.search(words, error), error
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("installed")
def test_one_that_refuses_the_configuration_is_heard(tmp_path: Path, small: Small) -> None:
    """And what had started before it is ended."""

    class Refusing(Notebook):
        def start(self, run: RecordedRun) -> None:
            raise ConfigError("recorders", run.name, "not on Sundays")

    run, metrics = recorded(tmp_path, small)
    several = Recording(["notebook"], metrics["ebm_recorder_failures"])
    several._waiting["refusing"] = Refusing()
    with pytest.raises(ConfigError, match="not on Sundays"):
        several.start(run)
    several.finish(None)
    assert Notebook.calls[-1] == ("finish", None)


@pytest.mark.usefixtures("installed")
def test_a_run_that_fails_ends_its_recorders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(runner: InlineRunner) -> None:
        raise RuntimeError(f"{type(runner).__name__}: the model is odd")

    monkeypatch.setattr(InlineRunner, "step", fail)
    with pytest.raises(RuntimeError, match="odd"):
        train(tmp_path, "recorders=[notebook]")
    assert Notebook.calls[-1] == ("finish", None)


def test_a_recorder_changes_no_name_of_a_run(small: Small) -> None:
    assert small("rbm", "recorders=[series]").digest() == small("rbm").digest()
    assert small("rbm").recorders == ("prometheus", "series")


def test_a_series_that_cannot_be_written_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storage that takes checkpoints but not the series: the run is whole, and figures are lost."""

    def fail(series: Series) -> None:
        raise OSError(28, f"No space left for {len(series.rows)} rows")

    monkeypatch.setattr(Series, "flush", fail)
    assert train(tmp_path) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["version"] == 20
    assert find(str(tmp_path)).step == 20
