"""The checkpoints of a run while it goes on: written, counted, and put aside where the output is no
longer its own.
"""

from __future__ import annotations

import logging
import time
from typing import Protocol

from pipeline.common.errors import ConfigError, LostLeaseError, PipelineError
from pipeline.common.types import Part
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.runs.metrics import ROW_NAMES, RunMetrics
from pipeline.storage.binding import Content
from pipeline.storage.lease import Lease
from pipeline.storage.store import CheckpointStore

log = logging.getLogger(__name__)


class Writer(Protocol):
    """Writes the parts of a checkpoint: a runner."""

    def save(self, folder: str) -> list[Part]:
        """Writes the parts of a checkpoint to `folder`."""


class Saving:
    """Saves a run of `config` under `output`, as long as the `lease` holds. `saved` is the URL of
    its newest checkpoint, or of the one that it began with; None where there is none. `content`
    says what the data hold.

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
    ) -> None:
        self._config, self._output = config, output
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
        self._failed = 0  # saves in a row

    def save(self, runner: Writer, step: int, final: bool = False) -> bool:
        """Writes a checkpoint, and returns whether it stands. A failure is counted.

        Raises `PipelineError` where the `final` one fails, or as many in a row as
        `checkpoint.patience` says, and `LostLeaseError`.
        """
        try:
            parts = runner.save(self.store.prepare(step))
            row = self._metrics.row()
            self.saved = self.store.commit(step, parts, *self._about, row).folder
        except LostLeaseError:
            raise
        except Exception as error:
            self._fail(step, error, final)
            return False
        self._failed = 0
        self._metrics["ebm_checkpoints"].inc()
        self._metrics["ebm_checkpoint_bytes"].set(sum(part.bytes for part in parts))
        self._metrics["ebm_checkpoint_timestamp_seconds"].set(time.time())
        return True

    def _fail(self, step: int, error: Exception, final: bool) -> None:
        """Counts a save that failed. Raises `PipelineError` where it was one too many."""
        folder, patience = self.store.folder(step), self._config.checkpoint.patience
        self.store.give_up(step)
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
