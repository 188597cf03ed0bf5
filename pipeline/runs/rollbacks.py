"""The way back of a run that diverges: to which checkpoint, how often, at what learning rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.common.errors import DivergenceError
from pipeline.common.types import RoundReport, StepReport
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.runs.divergence import DivergenceWatch
from pipeline.runs.starts import Start, begun_from
from pipeline.storage.store import CheckpointStore, candidates

CALM = 50
"""Steps without suspicion after which a checkpoint is known to be good."""
SLOWER = 0.1
"""The learning rate is multiplied by it at each rollback."""


class Rollbacks:
    """Watches a run, and knows which of its checkpoints are good.

    A checkpoint is good where the watch saw nothing suspicious when it was written, nor in the
    `CALM` steps behind it. One of which that is not known, from an earlier process or written too
    lately, is tried once.
    """

    def __init__(self, config: RunConfig, store: CheckpointStore, energy: Energy) -> None:
        self._config, self._store, self._energy = config, store, energy
        self._watch = DivergenceWatch(energy)
        self._began = 0
        self._good: set[int] = set()
        self._bad: set[int] = set()
        self._calm: set[int] = set()  # nothing was suspicious when they were written
        self._waiting: set[int] = set()  # nor since then
        self.count = 0
        self.factor = 1.0

    def begin(self, version: int) -> None:
        """Says at which version this process began."""
        self._began, self._waiting = version, {version}

    def saved(self, step: int) -> None:
        """Says that there is a new checkpoint of `step`."""
        self._good.discard(step)
        if self._watch.suspicious:
            self._bad.add(step)
        else:
            self._bad.discard(step)
            self._calm.add(step)
            self._waiting.add(step)

    def observe(self, report: StepReport, rounds: Sequence[RoundReport]) -> None:
        """Takes in a step. Raises `DivergenceError` where the run diverges, unless
        `trainer.rollbacks` is null.
        """
        self.factor = report.rate_factor
        if self._config.trainer.rollbacks is None:
            return
        last = report.version >= self._config.trainer.steps
        cause = self._watch.observe(report, rounds, last)
        if cause is not None:
            raise DivergenceError(cause)
        if self._watch.suspicious:
            self._waiting.clear()
        known = {step for step in self._waiting if step + CALM <= report.version}
        self._good |= known
        self._waiting -= known

    def spend(self, error: DivergenceError) -> None:
        """Counts one rollback more, for what `error` says, and makes the learning rate smaller.

        Raises `DivergenceError` where `trainer.rollbacks` allows no more; checkpoints that are not
        good are removed then, so that the same command does not go on from them.
        """
        allowed = self._config.trainer.rollbacks
        if allowed is None:
            raise error
        if self.count < allowed:
            self.count += 1
            self.factor *= SLOWER
            self._watch.reset()
            return
        checkpoint = next(self.starts())[0]
        self.went_back(checkpoint.step if checkpoint is not None else 0)
        tried = (
            f"after {self.count} rollbacks, the last to {self.factor:g} of optimizer.learning_rate"
            if self.count
            else "trainer.rollbacks=0 allows no rollback"
        )
        kept = f"is {checkpoint.folder}" if checkpoint is not None else "would be its beginning"
        raise DivergenceError(
            f"the run diverged: {error} ({tried}; the newest good checkpoint {kept})"
        ) from error

    def starts(self) -> Iterator[Start]:
        """Yields what the run may go back to, the best first; at last its beginning."""
        there = list(self._store.complete())
        doubtful = [each for each in there if each.step not in self._good | self._bad]
        inherited = [each for each in doubtful if each.step <= self._began]
        lately = [each for each in doubtful if each.step in self._calm and each not in inherited]
        for checkpoint in (
            *(each for each in there if each.step in self._good),
            *inherited,
            *reversed(lately),
        ):
            yield checkpoint, None
        if self._config.init_from:
            for other in candidates(self._config.init_from):
                yield begun_from(self._config, other, self._energy)
        else:
            yield None, None

    def went_back(self, version: int) -> None:
        """Says that the run goes on from `version`: what was kept of later ones is moved
        aside."""
        self._store.go_on_from(version)
        self._good = {step for step in self._good if step <= version}
        self._bad |= {version} - self._good  # unless it proves to be good now
        self._waiting = {version}
