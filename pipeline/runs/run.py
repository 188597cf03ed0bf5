"""The life of a run, whatever carries it: start or resume, step, checkpoint, evaluate, sum up."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import fsspec

from pipeline.common.errors import CheckpointError, PipelineError
from pipeline.common.types import Figures, Flow, Part, Progress, RoundReport, StepReport
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.runs.display import Display
from pipeline.runs.interruption import Interrupted, Interruption
from pipeline.runs.metrics import RunMetrics
from pipeline.runs.totals import Totals
from pipeline.storage.checkpoint import Checkpoint, CheckpointStore, find
from pipeline.storage.series import SeriesFile

log = logging.getLogger(__name__)


class Runner(Protocol):
    """What carries the algorithm: one process (`pipeline.runs.inline`) or Ray actors
    (`actors.driver`).
    """

    def start(self, checkpoint: Checkpoint | None, warm_start: Checkpoint | None) -> None: ...

    def step(self) -> tuple[StepReport, list[RoundReport], Flow]: ...

    def save(self, folder: str) -> list[Part]: ...

    def evaluate(self, output: str) -> Iterator[Progress | Figures]: ...

    def close(self) -> None: ...


class Run:
    """One run of `config` on a runner that `make_runner` starts, with its files under `output`."""

    def __init__(self, config: RunConfig, output: str, energy: Energy, display: Display) -> None:
        self._config, self._output, self._energy, self._display = config, output, energy, display
        self._store = CheckpointStore(output, config.checkpoint.keep)
        self._metrics = RunMetrics(output.rstrip("/").rpartition("/")[2])
        self._saved: str | None = None
        self._totals = Totals()

    def execute(self, make_runner: Callable[[], Runner]) -> Figures:
        """Trains, evaluates, and returns what is in `summary.json`. Raises `PipelineError`,
        `Interrupted`.

        A run that is done already says so, and starts nothing.
        """
        checkpoint, warm_start = self._find_start()
        done = self._summary_of(checkpoint)
        if done is not None:
            self._display.say(
                f"this run is done: step {done['version']} of {self._config.trainer.steps}; "
                "trainer.steps=... goes on from there, resume=never starts over"
            )
            return done
        self._metrics.serve(self._config.metrics.port)
        try:
            try:
                runner = make_runner()
            except SystemExit as error:  # what Ray, while it starts, makes of a SIGTERM
                raise Interrupted(
                    signal.SIGTERM, "interrupted before the first step of this time"
                ) from error
            try:
                with Interruption() as interruption:
                    return self._train(runner, checkpoint, warm_start, interruption)
            finally:
                runner.close()
        finally:
            self._metrics.close()

    def _find_start(self) -> tuple[Checkpoint | None, Checkpoint | None]:
        """The checkpoint to resume from, or the run to take weights from, or neither."""
        if self._config.resume == "auto":
            checkpoint = self._store.latest()
            if checkpoint is not None:
                checkpoint.check_fits(self._config)
                checkpoint.check_signature(self._energy)
                return checkpoint, None
            if self._store.damaged:
                raise CheckpointError(
                    f"{self._output}: its checkpoints are damaged, every one; resume=never starts"
                    " over there"
                )
        return None, find(self._config.init_from) if self._config.init_from else None

    def _summary_of(self, checkpoint: Checkpoint | None) -> Figures | None:
        """What `summary.json` says where the checkpoint is of the last step and was evaluated, else
        None.
        """
        if checkpoint is None or checkpoint.step < self._config.trainer.steps:
            return None
        file_system, root = fsspec.core.url_to_fs(self._output)
        path = f"{root}/summary.json"
        summary = json.loads(file_system.cat_file(path)) if file_system.exists(path) else {}
        asked = self._config.evaluation.model_dump()
        return (
            summary
            if summary.get("version") == checkpoint.step and summary.get("evaluation") == asked
            else None
        )

    def _train(
        self,
        runner: Runner,
        checkpoint: Checkpoint | None,
        warm_start: Checkpoint | None,
        interruption: Interruption,
    ) -> Figures:
        config, display = self._config, self._display
        version = checkpoint.step if checkpoint else 0
        if checkpoint is not None:
            self._saved = checkpoint.folder
            display.say(
                f"resuming at step {version} of {config.trainer.steps} from {checkpoint.folder}"
            )
        self._metrics.describe(config)
        runner.start(checkpoint, warm_start)
        if config.resume == "never":
            self._store.clear()  # only now that the new run stands
        self._series = SeriesFile(self._output)
        self._series.resume(version)
        self._totals.start()
        saved_at = version
        self._metrics["ebm_training"].set(1)
        with display.training(version, config.trainer.steps):
            while version < config.trainer.steps and interruption.signal is None:
                report, rounds, flow = runner.step()
                version = report.version
                self._observe(report, rounds, flow)
                due = version % config.checkpoint.every == 0 or flow.server_leaves
                if due and version < config.trainer.steps:
                    saved_at = version if self._save(runner, version) else saved_at
        self._metrics["ebm_training"].set(0)
        if saved_at != version:
            self._save(runner, version, final=True)
        self._totals.stop()
        if interruption.signal is not None:
            kept = (
                f"the checkpoint is {self._saved}; run it again with resume=auto and it goes on"
                " from there"
                if self._saved
                else "nothing is lost"
            )
            raise Interrupted(
                interruption.signal,
                f"interrupted at step {version} of {config.trainer.steps}; {kept}",
            )
        return self._finish(runner, version, interruption)

    def _observe(self, report: StepReport, rounds: list[RoundReport], flow: Flow) -> None:
        self._metrics.observe(report, rounds, flow)
        self._totals.add(report, rounds, flow)
        self._display.step(report, rounds, self._totals)
        self._series.forget_from(report.version)
        if (
            report.version % self._config.metrics.every == 0
            or report.version == self._config.trainer.steps
        ):
            self._series.append(report.version, self._metrics.row())

    def _save(self, runner: Runner, step: int, final: bool = False) -> bool:
        """Writes a checkpoint; a failure is counted and only the last one's ends the run."""
        folder = self._store.folder(step)
        try:
            parts = runner.save(folder)
            self._saved = self._store.commit(step, parts, self._config, self._energy).folder
            self._series.flush()
        except Exception as error:
            self._metrics["ebm_checkpoint_failures"].inc()
            if final:
                raise PipelineError(
                    f"the last checkpoint could not be written to {folder}: {error}"
                ) from error
            log.warning("no checkpoint at step %d: %s", step, error)
            return False
        self._metrics["ebm_checkpoints"].inc()
        self._metrics["ebm_checkpoint_bytes"].set(sum(part.bytes for part in parts))
        self._metrics["ebm_checkpoint_timestamp_seconds"].set(time.time())
        return True

    def _finish(self, runner: Runner, version: int, interruption: Interruption) -> Figures:
        """Evaluates, draws, and writes `summary.json`."""
        figures: Figures = {}
        with self._display.working():
            for item in runner.evaluate(self._output):
                if interruption.signal is not None:
                    raise Interrupted(
                        interruption.signal,
                        "interrupted while evaluating; training is done, its checkpoint is"
                        f" {self._saved}",
                    )
                if isinstance(item, Progress):
                    self._display.work(item)
                else:
                    figures = item
        from pipeline.evaluation.curves import draw_curves  # brings Matplotlib

        draw_curves(self._series.rows, self._output, self._config.name)
        summary = {
            "name": self._config.name,
            "version": version,
            **self._totals.figures(),
            "checkpoint": self._saved,
            "output": self._output,
            "evaluation": self._config.evaluation.model_dump(),
            **figures,
        }
        file_system, root = fsspec.core.url_to_fs(self._output)
        file_system.pipe_file(f"{root}/summary.json", json.dumps(summary, indent=1).encode())
        return summary
