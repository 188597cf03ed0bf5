"""The life of a run, whatever carries it: start or resume, step, checkpoint, evaluate, sum up."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from pipeline.assembly.chains import dealing_of
from pipeline.common.errors import (
    DamagedError,
    DataError,
    DivergenceError,
    LostLeaseError,
    PipelineError,
    StorageError,
)
from pipeline.common.json_text import to_json
from pipeline.common.masking import masked
from pipeline.common.types import (
    Figures,
    Flow,
    Part,
    Progress,
    RoundReport,
    StepReport,
)
from pipeline.config.run import RunConfig
from pipeline.diagnosis.causes import Facts
from pipeline.diagnosis.watch import Diagnosis
from pipeline.energies.base import Energy
from pipeline.runs.display import Display
from pipeline.runs.interruption import Interrupted, Interruption
from pipeline.runs.ladder import LadderLikelihood
from pipeline.runs.live_page import LivePage
from pipeline.runs.metrics import RunMetrics
from pipeline.runs.recorders.base import RecordedRun
from pipeline.runs.recorders.prometheus import page_of
from pipeline.runs.recording import Recording
from pipeline.runs.rollbacks import Rollbacks
from pipeline.runs.saving import Saving
from pipeline.runs.starts import Start, starts
from pipeline.runs.summaries import summary_of
from pipeline.runs.totals import Totals
from pipeline.runs.until import Ends
from pipeline.runs.verdicts import Verdicts
from pipeline.storage.binding import Content
from pipeline.storage.checkpoint import Checkpoint
from pipeline.storage.files import write_file
from pipeline.storage.folders import point_latest
from pipeline.storage.lease import Lease

log = logging.getLogger(__name__)
Watch = Callable[[Flow], None]
"""A runner's way to tell, between two steps, what has changed since its last `Flow`."""


class Runner(Protocol):
    """The carrier of the algorithm: one process (`pipeline.runs.inline`) or Ray actors
    (`actors.driver`).
    """

    def start(
        self,
        checkpoint: Checkpoint | None,
        warm_start: Checkpoint | None,
        rate_factor: float | None = None,
    ) -> None:
        """Takes up a checkpoint, or another run's weights, or neither. From then on the learning
        rate is multiplied by `rate_factor`; where that is None, by the checkpoint's.

        It may be called again, when steps were made or `DivergenceError` was raised: the run goes
        back. Raises `DamagedError` where a part of the checkpoint is damaged; it may then be called
        again with an older one.
        """

    def stretch(self, most: int) -> list[tuple[StepReport, list[RoundReport], Flow]]:
        """Makes at most so many steps, one after the other; none where an attempt failed and is to
        be made again.
        """

    def snapshot(self) -> Callable[[str], list[Part]]:
        """Copies the parts of a checkpoint. Returns what writes the copies to a folder, in any
        thread.
        """

    def save(self, folder: str) -> list[Part]:
        """Writes the parts of a checkpoint to `folder`, and waits for it."""

    def evaluate(self, output: str) -> Iterator[Progress | Figures]:
        """Evaluates the averaged weights; the figures come last, pictures go to `output`. Where
        that is in another process, it begins with the call.
        """

    def close(self) -> None:
        """Ends whatever it started."""


class Execution:
    """A run of `config` as this process carries it out, on a runner that `make_runner` starts, from
    its beginning or from a checkpoint that an earlier process left. Its files are under `output`.

    `content` says what the data hold, which checkpoints keep; `diagnosis` watches it. Raises
    `ConfigError` where a recorder is not known, or no figure is called as `checkpoint.keep_best`
    says.
    """

    def __init__(
        self,
        config: RunConfig,
        output: str,
        energy: Energy,
        display: Display,
        content: Content | None = None,
        diagnosis: Diagnosis | None = None,
    ) -> None:
        self._config, self._output, self._display = config, output, display
        self._name = masked(output).rstrip("/").rpartition("/")[2]
        self._metrics = RunMetrics(self._name)
        chains = config.chains.per_pool * config.pools
        diagnosis = diagnosis or Diagnosis(Facts(config))
        self._verdicts = Verdicts(diagnosis, chains, display, self._metrics)
        self._lease = Lease(output, display.say, self._metrics["ebm_lease_failures"].inc)
        self._recording = Recording(config.recorders, self._metrics["ebm_recorder_failures"])
        self._saving = Saving(
            config, output, energy, self._metrics, self._lease, content, self._recording.flush
        )
        self._store = self._saving.store
        self._step = 0  # where the runner stands
        self._totals = Totals(apart=config.cluster.name != "inline")
        self._rollbacks = Rollbacks(config, self._store, energy)
        self._ladder = LadderLikelihood()
        self._starts = partial(starts, config, output, self._store, energy, content)
        self._ends = Ends(config)

    def carry_out(
        self, make_runner: Callable[[Watch], Runner], until: int | None = None
    ) -> Figures:
        """Trains, evaluates, and returns what is in `summary.json`. Raises `PipelineError`,
        `Interrupted`.

        It pauses behind a checkpoint at step `until`, where that is before its last step, and
        returns the step as `version` alone. Carried out again it goes on from there.

        A run that is done already says so, and starts nothing. Raises `ConfigError` where another
        run writes to the same output, and `LostLeaseError` where one has taken it over.
        """
        done = summary_of(self._output, self._config, next(self._starts())[0])
        if done is not None:
            self._display.say(
                f"this run is done: step {done['version']} of {self._config.trainer.steps}; "
                "trainer.steps=... goes on from there, resume=never starts over"
            )
            return done
        with self._lease:
            return self._carry_out(make_runner, until)

    def _carry_out(self, make_runner: Callable[[Watch], Runner], until: int | None) -> Figures:
        """Carries the run out; its output is this process's."""
        self._store.check_places(self._config.checkpoint.every, self._config.trainer.steps)
        starts = self._starts()  # looked for again: who held the output may have gone on until now
        first = next(starts)
        summary: Figures | None = None
        try:
            facts = (self._name, self._output, self._config, self._metrics.served)
            page = LivePage(self._config, self._output, self._metrics, self._verdicts.now)
            self._recording.start(RecordedRun(*facts, page))
            if url := page_of(self._config):
                self._display.say(f"its page while it goes on: {url}")
            try:
                runner = make_runner(self._watch)
            except SystemExit as error:  # what Ray, while it starts, makes of a SIGTERM
                raise Interrupted(
                    signal.SIGTERM, "interrupted before the first step of this time"
                ) from error
            try:
                with Interruption() as interruption:
                    try:
                        version = self._begin(runner, first, starts)
                        last = min(until or math.inf, self._config.trainer.steps)
                        version = self._train(runner, version, int(last), interruption)
                        if version < self._config.trainer.steps and not self._ends.over:
                            return {"version": version}
                        summary = self._finish(runner, version, interruption)
                        return summary
                    except LostLeaseError as error:
                        self._saving.close()
                        kept = self._saving.save_aside(runner, self._step)
                        raise LostLeaseError(f"{error}; {kept}") from error
            finally:
                self._saving.close()
                runner.close()
        finally:
            self._recording.finish(summary)

    def _begin(self, runner: Runner, first: Start, others: Iterator[Start]) -> int:
        """Starts the runner from `first`, or from the next that is whole, and returns the version
        that it is then at. Raises `CheckpointError` where none is whole.
        """
        self._metrics.describe(self._config)
        checkpoint, warm_start = first
        while True:
            version = checkpoint.step if checkpoint else 0
            if checkpoint is not None:
                self._display.say(
                    f"resuming at step {version} of {self._config.trainer.steps} from"
                    f" {checkpoint.folder}"
                )
                dealing = dealing_of(self._config, checkpoint)
                if told := dealing.words(self._config.chains.newcomers):
                    self._display.say(told)
            try:
                runner.start(checkpoint, warm_start)
                break
            except DamagedError as error:
                if checkpoint is not None:
                    self._store.tell_damage(checkpoint.folder, error)
                self._display.say(f"{error}; an older checkpoint is looked for")
                checkpoint, warm_start = next(others)
        self._saving.begin(checkpoint)
        point_latest(self._output)
        self._step = version
        self._lease.check()  # to start may have taken minutes
        if self._config.resume == "never":
            self._store.start_over()  # only now that the new run stands
        elif moved := self._store.go_on_from(version):
            self._display.say(
                f"checkpoints of later steps than {version} were moved aside: {', '.join(moved)}"
            )
        self._recording.rewind(version)
        self._rollbacks.begin(version)
        self._ends.begin(version, self._store.complete())
        self._verdicts.begin(version, from_scratch=warm_start is None)
        return version

    def _train(self, runner: Runner, version: int, last: int, interruption: Interruption) -> int:
        """Makes the steps from `version` to `last`, and returns the version that it is then at.
        Raises `Interrupted` after a last checkpoint where a signal came.
        """
        config = self._config
        self._totals.start()
        self._metrics["ebm_training"].set(1)
        with self._display.training(version, config.trainer.steps):
            while version < last and interruption.signal is None and not self._ends.over:
                if self._lease.lost:
                    self._lease.check()
                every = config.checkpoint.every
                ahead = self._ends.before(version, min((version // every + 1) * every, last))
                try:
                    made = runner.stretch(ahead - version)
                    for report, rounds, flow in made:
                        version = report.version
                        self._observe(report, rounds, flow)
                except DivergenceError as error:
                    version = self._roll_back(runner, error, version)
                    continue
                except (StorageError, DataError) as error:
                    if not self._saving.holds(version):
                        self._save(runner, version)
                        self._saving.settle()
                    # no error of what was asked for: rows were there when the run began
                    raise PipelineError(f"{error}; {self._stopped(version)}") from error
                self._saving.poll()
                if not made:
                    continue
                due = version % every == 0 or flow.server_leaves
                if due and version < last:
                    self._save(runner, version)
                if flow.server_leaves:
                    self._saving.settle()
        self._metrics["ebm_training"].set(0)
        if not self._saving.holds(version):
            self._save(runner, version, final=True)
        self._totals.stop()
        if interruption.signal is not None:
            raise Interrupted(interruption.signal, f"interrupted at {self._stopped(version)}")
        return version

    def _roll_back(self, runner: Runner, error: DivergenceError, version: int) -> int:
        """Puts a run that diverged at `version` back to where it was well, at a lower learning
        rate, and returns the version that it is then at. Raises `DivergenceError` where it was
        often enough.
        """
        rollbacks = self._rollbacks
        self._verdicts.diverged(version, str(error))
        self._saving.settle()
        rollbacks.spend(error)
        for checkpoint, warm_start in rollbacks.starts():
            back = checkpoint.step if checkpoint is not None else 0
            try:
                runner.start(checkpoint, warm_start, rollbacks.factor)
                break
            except DamagedError as damage:
                log.warning("%s; an older checkpoint is looked for", damage)
        self._saving.begin(checkpoint)
        self._step = back
        rollbacks.went_back(back)
        self._ends.begin(back, self._store.complete())
        self._verdicts.begin(back)
        self._recording.rewind(back)
        self._metrics["ebm_rollbacks"].inc()
        self._totals.rollbacks = rollbacks.count
        log.warning(
            "the run diverged at step %d: %s. Rollback %d of %d: it goes on from %s at %g of"
            " optimizer.learning_rate",
            version,
            error,
            rollbacks.count,
            self._config.trainer.rollbacks,
            self._saving.saved or "its beginning",
            rollbacks.factor,
        )
        return back

    def _stopped(self, version: int) -> str:
        """Tells where training stopped, and how it goes on."""
        kept = (
            f"the checkpoint is {self._saving.saved}; run it again with resume=auto and it goes on"
            " from there"
            if self._saving.saved
            else "nothing is lost"
        )
        return f"step {version} of {self._config.trainer.steps}; {kept}"

    def _watch(self, flow: Flow) -> None:
        """Takes in what a runner tells between two steps."""
        self._metrics.observe_flow(flow)
        self._totals.add_flow(flow)

    def _observe(self, report: StepReport, rounds: list[RoundReport], flow: Flow) -> None:
        self._step = report.version
        report = self._ladder.tell(report, rounds)
        self._ends.see(report)
        self._metrics.observe(report, rounds, flow)
        self._totals.add(report, rounds, flow)
        self._display.step(report, rounds, self._totals)
        self._verdicts.observe(report, rounds)
        # the runner may have been put back behind steps that were recorded
        self._recording.rewind(report.version - 1)
        if (
            report.version % self._config.metrics.every == 0
            or report.version == self._config.trainer.steps
            or self._ends.over
        ):
            made_at = time.time() - flow.ago
            row = self._metrics.row()
            self._recording.record(report.version, {"time": made_at, **row})
            self._ends.observe(report.version, row)
        self._rollbacks.observe(report, rounds)

    def _save(self, runner: Runner, step: int, final: bool = False) -> None:
        """Begins to write a checkpoint, and waits for the `final` one. Raises as `Saving.save`
        does.
        """
        self._rollbacks.saved(step)  # now, for the watch knows the state that is saved
        self._saving.save(runner, step, final)

    def _finish(self, runner: Runner, version: int, interruption: Interruption) -> Figures:
        """Evaluates, draws, writes `summary.json`, and returns what is in it."""
        self._lease.check()
        figures: Figures = {}
        with self._display.working():
            evaluation = runner.evaluate(self._output)
            from pipeline.evaluation.curves import draw_curves  # brings Matplotlib

            undrawn = draw_curves(self._recording.rows, self._output, self._config.name)
            for item in evaluation:
                if self._lease.lost:
                    self._lease.check()
                if interruption.signal is not None:
                    words = "interrupted while evaluating; training is done, its checkpoint is"
                    raise Interrupted(interruption.signal, f"{words} {self._saving.saved}")
                if isinstance(item, Progress):
                    self._display.work(item)
                else:
                    figures = item
        from pipeline.runs.page import write_page_of

        summary: Figures = {
            "name": self._config.name,
            "version": version,
            **self._totals.figures(),
            "checkpoint": self._saving.saved,
            "output": self._output,
            "evaluation": self._config.evaluation.model_dump(),
            **figures,
            **self._verdicts.at_the_end(figures),
            **undrawn,
            **self._ends.figures(),
        }
        self._lease.check()
        summary = masked(summary)
        summary |= write_page_of(self._config, self._output, summary)
        write_file(self._output, "summary.json", to_json(summary, indent=1).encode())
        return summary
