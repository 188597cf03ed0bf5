"""The checkpoints of a run while it goes on: written, counted, and put aside where the output is no
longer its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

from pipeline.common.errors import ConfigError, LostLeaseError, PipelineError
from pipeline.common.types import Part
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.runs.metric_names import ROW_NAMES
from pipeline.runs.metrics import RunMetrics
from pipeline.storage.binding import Content
from pipeline.storage.checkpoint import Checkpoint
from pipeline.storage.lease import Lease
from pipeline.storage.store import CheckpointStore

log = logging.getLogger(__name__)


class Writer(Protocol):
    """Writes the parts of a checkpoint: a runner."""

    def snapshot(self) -> Callable[[str], list[Part]]:
        """Copies the parts of a checkpoint. Returns what writes the copies to a folder, in any
        thread.
        """

    def save(self, folder: str) -> list[Part]:
        """Writes the parts of a checkpoint to `folder`, and waits for it."""


class UnderWay(NamedTuple):
    """A save that a thread is at: its step, and the checkpoint that will come of it."""

    step: int
    checkpoint: Future[tuple[Checkpoint, int]]  # with its bytes


class Saving:
    """Saves a run of `config` under `output`, as long as the `lease` holds. `content` says what the
    data hold, and `stands` is called when there is a new checkpoint.

    A thread writes a checkpoint while steps go on, which wait for a copy of the state alone. One
    save at most is under way: when the next is due, the steps wait for it. Whoever looks at the
    checkpoints of the run calls `settle` first.

    `checkpoint.patience` failed saves in a row end the run: whoever trusts in checkpoints is told
    that there are none.
    """

    def __init__(
        self,
        config: RunConfig,
        output: str,
        energy: Energy,
        metrics: RunMetrics,
        lease: Lease,
        content: Content | None = None,
        stands: Callable[[], None] = lambda: None,
    ) -> None:
        self._config, self._output, self._stands = config, output, stands
        self._about = config, energy, content
        self._metrics, self._lease = metrics, lease
        kept = config.checkpoint
        self.store = CheckpointStore(
            output,
            kept.keep,
            lease.check,
            every=kept.keep_every,
            best=_checked_figure(kept.keep_best),
            count=lambda name: metrics[name].inc(),
        )
        self.saved: str | None = None
        """The URL of the newest checkpoint, or of the one that the run began with; None where there
        is none."""
        self._step: int | None = None  # of that checkpoint, or 0 where it is the beginning
        self._failed = 0  # saves in a row
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._under_way: UnderWay | None = None

    def begin(self, checkpoint: Checkpoint | None) -> None:
        """Says what the run goes on from: a checkpoint, or its beginning."""
        self.saved = None if checkpoint is None else checkpoint.folder
        self._step = 0 if checkpoint is None else checkpoint.step

    def save(self, runner: Writer, step: int, final: bool = False) -> None:
        """Begins a save of the `runner`'s state at `step`; the `final` one is waited for, too. A
        failure is counted, now or when it is seen.

        Raises as `settle` does, of the save before this one also.
        """
        clock = time.perf_counter()
        self.settle()
        try:
            write = runner.snapshot()
        except Exception as error:
            self._fail(step, error, final)
        else:
            row = self._metrics.row()
            saved = self._thread.submit(self._write, write, step, row)
            self._under_way = UnderWay(step, saved)
        if final:
            self.settle(final)
        else:
            self._metrics["ebm_checkpoint_stall_seconds"].inc(time.perf_counter() - clock)

    def _write(
        self, write: Callable[[str], list[Part]], step: int, row: dict[str, float]
    ) -> tuple[Checkpoint, int]:
        """Writes a checkpoint, and returns it with its bytes."""
        try:
            parts = write(self.store.prepare(step))
            checkpoint = self.store.commit(step, parts, *self._about, row)
        except LostLeaseError:
            raise
        except Exception:
            self.store.give_up(step)
            raise
        return checkpoint, sum(part.bytes for part in parts)

    def poll(self) -> None:
        """Takes in a save that is done. Raises as `settle` does."""
        if self._under_way is not None and self._under_way.checkpoint.done():
            self.settle()

    def settle(self, final: bool = False) -> None:
        """Waits for the save under way, if any. A failure is counted.

        Raises `PipelineError` where the `final` one failed, or as many in a row as
        `checkpoint.patience` says, and `LostLeaseError`.
        """
        if self._under_way is None:
            return
        (step, saved), self._under_way = self._under_way, None
        try:
            checkpoint, size = saved.result()
        except LostLeaseError:
            raise
        except Exception as error:
            self._fail(step, error, final)
            return
        self.begin(checkpoint)
        self._failed = 0
        self._metrics["ebm_checkpoints"].inc()
        self._metrics["ebm_checkpoint_bytes"].set(size)
        self._metrics["ebm_checkpoint_timestamp_seconds"].set(time.time())
        self._stands()

    def holds(self, step: int) -> bool:
        """Returns whether nothing is lost of a run that ends at `step`. Raises as `settle` does."""
        self.settle()
        return self._step == step

    def close(self) -> None:
        """Waits for the save under way, if any, of a run that ends by an error."""
        try:
            self.settle()
        except PipelineError as error:
            log.warning("%s", error)

    def _fail(self, step: int, error: Exception, final: bool) -> None:
        """Counts a save that failed. Raises `PipelineError` where it was one too many."""
        folder, patience = self.store.folder(step), self._config.checkpoint.patience
        self._metrics["ebm_checkpoint_failures"].inc()
        self._failed += 1
        kept = f"the newest checkpoint is {self.saved}" if self.saved else "there is no checkpoint"
        if final:
            raise PipelineError(
                f"the last checkpoint could not be written to {folder}: {error}; {kept}"
            ) from error
        if self._failed >= patience:
            raise PipelineError(
                f"{self._failed} checkpoints in a row could not be written, the last to {folder}:"
                f" {error}; {kept}. checkpoint.patience={patience} allows no more"
            ) from error
        log.warning("no checkpoint at step %d: %s", step, error)

    def save_aside(self, runner: Writer, step: int) -> str:
        """Writes a checkpoint where the new owner of the output writes nothing, and says in words
        where. The folder has the form of an output: another run can go on from there.
        """
        output = f"{self._output.rstrip('/')}/displaced-{self._lease.owner}"
        store = CheckpointStore(output, self._config.checkpoint.keep)
        stopped = f"this run stopped at step {step} of {self._config.trainer.steps}"
        try:
            parts = runner.save(store.prepare(step))
            store.commit(step, parts, *self._about)
        except Exception as error:
            self._metrics["ebm_checkpoint_failures"].inc()
            return f"{stopped}, and could not write a checkpoint to {output}: {error}"
        return f"{stopped}, and output={output} goes on from there"


def _checked_figure(best: str | None) -> str | None:
    """Returns `checkpoint.keep_best` as it is. Raises `ConfigError` where no row of metrics.jsonl
    has such a figure.
    """
    figure = (best or "").removeprefix("max:").partition("{")[0]
    if best is not None and figure not in ROW_NAMES:
        raise ConfigError(
            "checkpoint.keep_best",
            best,
            "names no figure of metrics.jsonl; ebm_loss is one, whose lowest value is best, or"
            " after max: its highest",
        )
    return best
