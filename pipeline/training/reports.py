"""The reports of a step, of one rank and of all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain

from pipeline.common.types import StepReport


def merged(reports: Sequence[StepReport]) -> StepReport:
    """One report of a step on all its rows, from each rank's own. The loss, the gradient's norm
    and what was decided are the same in each; parts are means over ranks, and a rank without a
    part has no rows of it, and counts as 0.
    """
    first = reports[0]
    names = dict.fromkeys(name for report in reports for name in report.parts)
    return first._replace(
        parts={
            name: sum(report.parts.get(name, 0.0) for report in reports) / len(reports)
            for name in names
        },
        negatives=sum(report.negatives for report in reports),
        lags=tuple(chain.from_iterable(report.lags for report in reports)),
        ess=tuple(chain.from_iterable(report.ess for report in reports)),
        energy_moments=tuple(chain.from_iterable(report.energy_moments for report in reports)),
        usage=tuple(chain.from_iterable(report.usage for report in reports)),
    )


class Stopwatch:
    """Seconds by stage, one lap after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self._last = now - self._last, now
