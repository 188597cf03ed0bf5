"""The driver's records of one pool and of one round."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import ray

from actors.policy import Fleet, Life
from pipeline.common.types import RoundReport


class Round(NamedTuple):
    """A round asked of a pool: for which step (None: whichever takes it), under which version, and
    the reference of its batch.
    """

    pool: int
    step: int | None
    version: int
    batch: ray.ObjectRef


class Finished(NamedTuple):
    """A round that came in, with what its pool says of it."""

    pool: int
    step: int | None
    version: int
    batch: ray.ObjectRef
    report: RoundReport


class PoolMember:
    """The driver's record of pool `number`. The figures that decide about it are in the `fleet`.

    Its chains are with its `actor`, on their way there (`joining`), or on their way out: `leaving`
    is what it hands over, and then that this, `kept`, is in safe keeping.
    """

    def __init__(self, number: int, actor: Any, fleet: Fleet[Finished]) -> None:
        self.number, self.actor, self._fleet = number, actor, fleet
        self.incarnation = 0
        self.done = 0  # rounds that are known to be done
        self.last: ray.ObjectRef | None = None  # its newest batch: the chains it is revived with
        self.report: RoundReport | None = None  # on that batch
        self.rows: deque[ray.ObjectRef | None] = deque()  # those of its rounds under way
        self.node = ""
        self.joining: ray.ObjectRef | None = None
        # with what the run began with: too old by the time that it joins a run under way
        self.begins = False
        self.leaving: ray.ObjectRef | None = None
        self.kept: ray.ObjectRef | None = None
        self.retry_at = 0.0  # when to try again to revive it

    @property
    def life(self) -> Life:
        """The pool's place in `actors.policy.TRANSITIONS`."""
        return Life(self._fleet.life[self.number])

    @property
    def tuning(self) -> dict[str, Any] | None:
        """The tuning of the chains of its newest batch."""
        return None if self.report is None else self.report.tuning

    @property
    def available(self) -> bool:
        """Return whether it can be asked for rounds."""
        return self.life in (Life.THERE, Life.LATE)

    @property
    def rounds(self) -> int:
        """The rounds asked for so far: the number of the next one."""
        return int(self._fleet.rounds[self.number])

    @property
    def unfinished(self) -> int:
        """The rounds asked for and not come in."""
        return int(self._fleet.unfinished[self.number])

    def made_for(self, step: int) -> Finished | None:
        """Its newest batch where that was made in lock-step for the `step`, which none learned from
        yet.
        """
        if self.last is None or self.report is None or self.report.version != step:
            return None
        return Finished(self.number, step, step, self.last, self.report)
