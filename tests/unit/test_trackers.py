"""Recorders that keep a run in TensorBoard, MLflow and Weights & Biases: their stores, read."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from pipeline.common import plugins
from pipeline.config.run import RunConfig
from pipeline.runs.metrics import RunMetrics
from pipeline.runs.recorders import paced
from pipeline.runs.recorders.base import RecordedRun
from pipeline.runs.recorders.paced import Ending, Paced, tag
from pipeline.runs.recording import RECORDERS
from pipeline.train import main
from tests.conftest import SMALL

Small = Callable[..., RunConfig]
TRACKERS = ("tensorboard", "mlflow", "wandb")
Seen = dict[str, list[tuple[int, float]]]
"""The figures of a store by their names, each a list of steps and values."""


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of who runs the tests, and no word to anybody."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DIR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def train(output: Path, *overrides: str) -> int:
    return main([*SMALL["rbm"], "cluster=inline", f"output={output}", *overrides])


def events(output: Path) -> Any:
    """What TensorBoard itself has of the run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(output / "tensorboard"), {"scalars": 0, "tensors": 0})
    return found.Reload()


def scalars(output: Path) -> Seen:
    found = events(output)
    return {
        name: [(event.step, event.value) for event in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }


def mlflow_run(output: Path) -> tuple[Any, Any]:
    """MLflow's client and its only run of the run's database."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{output}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("ebm-pipeline")
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def metrics(output: Path) -> Seen:
    client, run = mlflow_run(output)
    return {
        name: [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }


def records(file: Path) -> Iterator[Any]:
    """The records of an offline run: a log of LevelDB's form, blocks of 32 KiB of pieces, behind 7
    bytes.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or the last piece of one
            yield Record.FromString(whole)
            whole = b""


def offline(output: Path) -> list[Any]:
    """The records of every process of the run, in the order of time."""
    return [
        each for file in sorted(output.glob("wandb/offline-*/*.wandb")) for each in records(file)
    ]


def history(output: Path) -> Seen:
    seen: Seen = {}
    for record in offline(output):
        if record.HasField("history"):
            values = {
                (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
                for item in record.history.item
            }
            for name, value in values.items():
                if isinstance(value, int | float) and not name.startswith("_"):
                    seen.setdefault(name, []).append((record.history.step.num, value))
    return seen


READ: dict[str, Callable[[Path], Seen]] = {
    "tensorboard": scalars,
    "mlflow": metrics,
    "wandb": history,
}


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that came to its end at step 20, and then went on to step 30; its pictures black."""
    output = tmp_path_factory.mktemp("runs") / "tracked"
    recorders = f"recorders=[series,{','.join(TRACKERS)}]"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Figure, "savefig", lambda _, to, **__: Image.new("RGB", (4, 3)).save(to, "png")
        )
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DIR", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        assert train(output, recorders) == 0
        assert train(output, recorders, "trainer.steps=30") == 0
    return output


@pytest.mark.parametrize("name", TRACKERS)
def test_a_store_holds_the_figures_of_the_run(name: str, resumed: Path) -> None:
    """Those of each step that it has are those of the series; no step is there twice; the last step
    of each process is there.
    """
    rows = [json.loads(line) for line in (resumed / "metrics.jsonl").read_text().splitlines()]
    series = {row["step"]: row for row in rows}
    seen = READ[name](resumed)
    for figure in ("ebm_loss", 'ebm_acceptance_ratio{pool="1"}', "ebm_version"):
        found = dict(seen[tag(figure)])
        assert len(found) == len(seen[tag(figure)])
        assert {20, 30} <= set(found)
        for step, value in found.items():
            # an event has float32
            assert value == pytest.approx(series[step][figure], rel=1e-6)


def test_tensorboard_shows_settings_words_and_pictures(resumed: Path) -> None:
    summary = json.loads((resumed / "summary.json").read_text())
    found = events(resumed)
    assert found.Scalars("summary/test_log_likelihood")[-1].step == 30
    assert found.Scalars("summary/test_log_likelihood")[-1].value == pytest.approx(
        summary["test_log_likelihood"], rel=1e-6
    )
    (image,) = [each for each in found.Images("samples") if each.step == 30]
    assert image.encoded_image_string == (resumed / "samples.png").read_bytes()
    assert {"samples", "curves", "energies"} <= set(found.Tags()["images"])
    (words,) = found.Tensors("summary/text_summary")[-1].tensor_proto.string_val
    assert summary["words"][0] in words.decode()
    assert "_hparams_/session_start_info" in found.summary_metadata
    shown = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"optimizer.learning_rate" in shown


def test_mlflow_has_one_run_with_parameters_figures_and_pictures(resumed: Path) -> None:
    summary = json.loads((resumed / "summary.json").read_text())
    client, run = mlflow_run(resumed)
    assert run.info.run_name == "tracked"
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.name"] == "sgd"
    assert run.data.params["trainer.steps"] == "20"
    likelihood = run.data.metrics["summary/test_log_likelihood"]
    assert likelihood == pytest.approx(summary["test_log_likelihood"])
    assert summary["words"][0] in run.data.tags["mlflow.note.content"]
    pictures = {each.path for each in client.list_artifacts(run.info.run_id, "pictures")}
    assert {"pictures/samples.png", "pictures/curves.png"} <= pictures
    (configuration,) = (resumed / "mlflow").glob("artifacts/*/artifacts/configuration.json")
    assert json.loads(configuration.read_text())["trainer"]["steps"] == 30


def test_wandb_has_one_offline_run_with_settings_figures_and_pictures(resumed: Path) -> None:
    summary = json.loads((resumed / "summary.json").read_text())
    found = offline(resumed)
    runs = [record.run for record in found if record.HasField("run")]
    assert {run.run_id for run in runs} == {json.loads((resumed / "wandb.json").read_text())["id"]}
    assert {run.display_name for run in runs} == {"tracked"}
    settings = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert settings["optimizer"]["name"] == "sgd"
    told = {
        item.key: json.loads(item.value_json)
        for record in found
        if record.HasField("summary")
        for item in record.summary.update
    }
    likelihood = told["summary/test_log_likelihood"]
    assert likelihood == pytest.approx(summary["test_log_likelihood"])
    assert summary["words"][0] in told["words"]
    pictures = {
        path.name.split("_")[0] for path in resumed.glob("wandb/offline-*/files/media/**/*.png")
    }
    assert {"samples", "curves", "energies"} <= pictures


def test_steps_that_are_made_anew_are_there_once(tmp_path: Path, small: Small) -> None:
    """A process that dies at step 30 without a word goes on from step 20; then the run is put back
    to step 40 of 50. TensorBoard forgets what was, the others keep it.
    """
    names = ("tensorboard", "wandb")
    run = RecordedRun("mine", str(tmp_path), small("rbm"), RunMetrics("mine").served)
    for name in names:
        first = RECORDERS[name]()
        first.start(run)
        first.rewind(0)
        drive(first, [10, 20, 30], 1.0)
        end_unsaid(first)
        second = RECORDERS[name]()
        second.start(run)
        second.rewind(20)
        drive(second, [30, 40, 50], 2.0)
        second.rewind(40)
        drive(second, [50, 60], 3.0)
        second.finish(None)
    assert scalars(tmp_path)["ebm_loss"] == [(10, 1), (20, 1), (30, 2), (40, 2), (50, 3), (60, 3)]
    assert history(tmp_path)["ebm_loss"] == [(10, 1), (20, 1), (30, 1), (40, 2), (50, 2), (60, 3)]


def drive(recorder: Any, steps: list[int], loss: float) -> None:
    """Records figures of these steps, each of which is taken."""
    for step in steps:
        recorder.record(step, {"time": 1e9 + step, "ebm_loss": loss, "ebm_version": float(step)})
        recorder._settle()
        recorder._next = 0.0


def end_unsaid(recorder: Any) -> None:
    """As the process's end does, of which the store is told nothing."""
    if isinstance(recorder._store, RECORDERS["wandb"]()._store.__class__):
        recorder._store._run.finish()
    else:
        recorder._store._writer.close()


class Ledger:
    """A store in memory."""

    name = "ledger"
    modules = ()

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def open(self, run: RecordedRun, step: int) -> int:  # noqa: ARG002
        self.told.append(("open", step))
        return -1

    def back(self, step: int, last: int) -> int:  # noqa: ARG002
        self.told.append(("back", step))
        return step

    def record(self, step: int, at: float, figures: dict[str, float]) -> None:  # noqa: ARG002
        self.go_on.wait(60)
        self.told.append((step, figures))

    def close(self, ending: Ending | None) -> None:
        self.told.append(("close", ending))


@pytest.fixture
def ledger(tmp_path: Path, small: Small) -> tuple[Ledger, Paced]:
    store = Ledger()
    recorder = Paced(store)
    recorder.start(RecordedRun("mine", str(tmp_path), small("rbm"), RunMetrics("mine").served))
    recorder.rewind(0)
    return store, recorder


def test_no_step_waits_for_a_store(ledger: tuple[Ledger, Paced]) -> None:
    """While it is busy rows pass it by, but for the last; figures that are none are left out."""
    store, recorder = ledger
    store.go_on.clear()
    for step in (10, 20, 30):
        recorder.record(step, {"time": 1.0, "ebm_loss": 1.0, "ebm_r_hat": float("nan")})
        recorder.rewind(step)
    store.go_on.set()
    recorder.finish(None)
    figures = {"ebm_loss": 1.0}
    assert store.told == [("open", 0), (10, figures), (30, figures), ("close", None)]


def test_a_store_gets_rows_at_the_rate_of_its_share(
    ledger: tuple[Ledger, Paced], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that took 0.02 s of the thread's time is followed by none for 2 s."""
    store, recorder = ledger
    now, spent = [100.0], iter([0.0, 5.0, 5.02, 6.0, 6.0])
    monkeypatch.setattr(paced.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(paced.time, "thread_time", lambda: next(spent))
    for step, at in ((10, 100.0), (20, 101.9), (30, 102.1)):
        now[0] = at
        recorder.record(step, {"time": 1.0, "ebm_loss": 1.0})
        recorder._settle()
    assert [each[0] for each in store.told] == ["open", 10, 30]


def test_a_row_of_steps_that_were_undone_is_not_taken(ledger: tuple[Ledger, Paced]) -> None:
    store, recorder = ledger
    recorder.record(10, {"time": 1.0, "ebm_loss": 1.0})
    recorder._settle()
    recorder._next = float("inf")
    recorder.record(20, {"time": 1.0, "ebm_loss": 2.0})
    recorder.rewind(10)
    recorder.finish(None)
    assert store.told == [("open", 0), (10, {"ebm_loss": 1.0}), ("back", 10), ("close", None)]


def test_a_store_that_cannot_be_opened_is_tried_again(
    ledger: tuple[Ledger, Paced], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, recorder = ledger

    def fail(*_: Any) -> int:
        raise OSError("no server")

    with monkeypatch.context() as patch:
        patch.setattr(store, "open", fail)
        recorder.record(10, {"time": 1.0, "ebm_loss": 1.0})
        with pytest.raises(OSError, match="no server"):
            recorder._settle()
    recorder._next = 0.0
    recorder.record(20, {"time": 1.0, "ebm_loss": 1.0})
    recorder.finish(None)
    assert [each[0] for each in store.told] == ["open", 20, "close"]


@pytest.mark.parametrize(
    ("series", "name"),
    [
        ("ebm_loss", "ebm_loss"),
        ('ebm_acceptance_ratio{pool="0"}', "ebm_acceptance_ratio/0"),
        ('ebm_swap_ratio{pool="0",pair="1"}', "ebm_swap_ratio/0/1"),
        ('ebm_loss_part{part="a b=c"}', "ebm_loss_part/a_b_c"),
    ],
)
def test_a_series_has_a_name_that_every_tool_takes(series: str, name: str) -> None:
    assert tag(series) == name


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tool_that_is_not_installed_is_refused_at_the_start(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the extra that brings it, before anything is written. A folder of its name is no
    package.
    """

    def found(module: str) -> ModuleSpec | None:
        return ModuleSpec(module, None) if module == name else find_spec(module)

    monkeypatch.setattr(plugins.importlib.util, "find_spec", found)
    output = tmp_path / "run"
    assert train(output, f"recorders=[series,{name}]") == 2
    said = capsys.readouterr().err
    assert f"refused: recorders={name}: needs {name}: pip install 'ebm-pipeline[{name}]'" in said
    assert not output.exists()


def test_an_output_in_object_storage_has_its_events_on_this_machine(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small: Small,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Which is told."""
    monkeypatch.chdir(tmp_path)
    run = RecordedRun("mine", "memory://runs/mine", small("rbm"), RunMetrics("mine").served)
    folder = tmp_path / "runs/mine/tensorboard"
    assert paced.folder_of(run, "tensorboard") == str(folder)
    assert f"the recorder tensorboard writes to a disk of this machine: {folder}" in caplog.text


def test_a_tracking_server_of_ones_own_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Small, resumed: Path
) -> None:
    """MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME as MLflow's users have them; a run that goes
    on has its steps once.
    """
    from mlflow import MlflowClient

    uri = f"sqlite:///{resumed}/mlflow/mlflow.db"
    # else MLflow puts artifacts where the process is
    MlflowClient(uri).create_experiment("together", str(tmp_path / "artifacts"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "together")
    run = RecordedRun("mine", str(tmp_path), small("rbm"), RunMetrics("mine").served)
    for began, steps, loss in ((0, [10, 20, 30], 1.0), (20, [30, 40], 2.0)):
        recorder = RECORDERS["mlflow"]()
        recorder.start(run)
        recorder.rewind(began)
        drive(recorder, steps, loss)
        recorder.finish(None)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("together")
    (found,) = client.search_runs([experiment.experiment_id])
    losses = client.get_metric_history(found.info.run_id, "ebm_loss")
    assert [(each.step, each.value) for each in losses] == [(10, 1), (20, 1), (30, 1), (40, 2)]
    assert found.info.status == "KILLED"
    assert not (tmp_path / "mlflow").exists()
