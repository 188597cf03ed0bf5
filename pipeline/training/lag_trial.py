"""The course of a run that chooses its lag: when it looks, what it looks at, and what it does
then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from statistics import fmean, median
from typing import NamedTuple

from pipeline.common.types import LagChoice
from pipeline.config.run import CHOSEN_LAG, RunConfig
from pipeline.training.lag_choice import Ratio, Treatment, choose, possible_gain, relative_bias

PROBES = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8)
"""The parts of a run after which it looks whether a lag is free."""
PROBE_STEPS = 32
"""Steps that a look takes."""
TIMED_STEPS = 50
"""Steps that a speed is the median of."""
LEAST_GAIN = 1.1
"""The speed, of lock-step's, that lag must be able to bring before it is looked at."""
LEAST_MEASURED = 1.05
"""The speed, of lock-step's, that it must be measured to bring."""


class Pace(NamedTuple):
    """The seconds of a step: the `interval` since the one before ended, and what of it the learner
    computed, `ahead` of its negatives and in the `step` itself.
    """

    interval: float
    ahead: float
    step: float


class Look(NamedTuple):
    """One step's figures: the estimates of the squared bias by treatment, the variance of the
    fresh gradient, and the ESS, a ratio, None where weights are not valid.
    """

    squares: dict[Treatment, float]
    variance: float
    ess: float | None


class Seen(NamedTuple):
    """A rank's part in a step: its pace in the one before, and its look, each None where there is
    none.
    """

    pace: Pace | None = None
    look: Look | None = None


class Stage(StrEnum):
    """The stages of the choice."""

    WATCH = "watch"  # in lock-step, until the next probe
    PROBE = "probe"  # in lock-step, comparing stale negatives with fresh ones
    TRY = "try"  # under the lag, whether it is quicker
    KEEP = "keep"  # under the lag, until the next probe
    SETTLED = "settled"  # in lock-step for good: lag is not quicker


class LagTrial:
    """Watches lock-step's pace. Where lag could be quicker (`possible_gain`), it looks at some
    parts of the run (`PROBES`) what one version of lag would do to the gradient, chooses the
    cheapest treatment that is free (`choose`), tries once whether the lag is quicker indeed, and
    goes on under it until the next look. Else, and in between, it is lock-step.

    Nothing of it is in a checkpoint: a resumed run may be on another machine, and looks anew.
    """

    def __init__(self, config: RunConfig) -> None:
        self._parts = [int(part * config.trainer.steps) for part in PROBES]
        self._due: list[int] | None = None  # the versions of the looks to come
        self._least_ess = config.trainer.min_ess
        self.stage = Stage.WATCH
        self.treatment = Treatment.NONE
        self._left = 0  # steps left of the stage, of one that ends by itself
        self._paces: deque[Pace] = deque(maxlen=TIMED_STEPS)
        self._looks: list[Look] = []
        self._lock_step: float | None = None  # seconds of a step
        self._possible: float | None = None
        self._gain: float | None = None
        self._bias: dict[Treatment, Ratio] = {}
        self._ess: float | None = None

    @property
    def probing(self) -> bool:
        """True where the next step is to be looked at."""
        return self.stage is Stage.PROBE

    @property
    def bound(self) -> int:
        """The bound on lag: of the negatives that come next."""
        return CHOSEN_LAG if self.stage in (Stage.TRY, Stage.KEEP) else 0

    def observe(self, version: int, seen: Sequence[Seen]) -> None:
        """Takes in the step that ended at `version`: what every rank saw of it."""
        if self._due is None:
            resumed = [version] if version > 1 else []
            self._due = [*resumed, *(part for part in self._parts if part > version)]
        paces = [rank.pace for rank in seen if rank.pace is not None]
        if paces and self.stage in (Stage.WATCH, Stage.TRY):
            self._paces.append(Pace(*(fmean(times) for times in zip(*paces, strict=True))))
        if self.stage is Stage.PROBE:
            self._look([rank.look for rank in seen if rank.look is not None])
        elif self.stage is Stage.TRY:
            self._left -= 1
            if not self._left:
                self._compare()
        elif self._timed and self._due and version >= self._due[0]:
            self._due = [due for due in self._due if due > version]
            self._begin_probe()

    @property
    def _timed(self) -> bool:
        """True where lock-step's pace is known, and lag not to be slower."""
        known = self._possible is not None or len(self._paces) == TIMED_STEPS
        return known and self.stage is not Stage.SETTLED

    def _begin_probe(self) -> None:
        """Looks, unless lag could not be quicker anyway."""
        if self._possible is None:
            interval, ahead, step = (median(times) for times in zip(*self._paces, strict=True))
            self._lock_step, self._possible = interval, possible_gain(interval, ahead, step)
        if self._possible < LEAST_GAIN:
            self.stage = Stage.SETTLED
            return
        self.stage, self._left = Stage.PROBE, PROBE_STEPS
        self._looks = []

    def _look(self, looks: Sequence[Look]) -> None:
        """A step of the probe, each rank's look at its own chains; at its end the choice."""
        if looks:
            squares = {
                name: fmean(look.squares[name] for look in looks) for name in looks[0].squares
            }
            ratios = [look.ess for look in looks if look.ess is not None]
            # the gradient is a mean over ranks, and has so much less noise
            noise = fmean(look.variance for look in looks) / len(looks)
            self._looks.append(Look(squares, noise, fmean(ratios) if ratios else None))
        self._left -= 1
        if self._left:
            return
        if len(self._looks) < PROBE_STEPS // 2:  # pools came and went: too little was seen
            self.stage, self.treatment = Stage.WATCH, Treatment.NONE
            return
        variances = [look.variance for look in self._looks]
        self._bias = {
            name: relative_bias([look.squares[name] for look in self._looks], variances)
            for name in self._looks[0].squares
        }
        ratios = [look.ess for look in self._looks if look.ess is not None]
        self._ess = fmean(ratios) if ratios else None
        self.treatment = choose(self._bias, self._ess, self._least_ess)
        if self.treatment is Treatment.NONE:
            self.stage = Stage.WATCH
        elif self._gain is None:
            self.stage, self._left = Stage.TRY, TIMED_STEPS
            self._paces.clear()
        else:
            self.stage = Stage.KEEP

    def _compare(self) -> None:
        """The end of the trial: goes on under the lag where that was quicker."""
        assert self._lock_step is not None
        self._gain = self._lock_step / median(pace.interval for pace in self._paces)
        if self._gain >= LEAST_MEASURED:
            self.stage = Stage.KEEP
        else:
            self.stage, self.treatment = Stage.SETTLED, Treatment.NONE

    @property
    def choice(self) -> LagChoice:
        """The findings so far."""
        return LagChoice(
            treatment=self.treatment.value if self.bound else Treatment.NONE.value,
            bias={name.value: ratio.value for name, ratio in self._bias.items()},
            ess=self._ess,
            possible=self._possible,
            gain=self._gain,
            settled=self.stage is Stage.SETTLED,
        )
