"""The live likelihood of a run, beside the steps of whoever hosts the learner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.common.types import StepReport
from pipeline.config.run import RunConfig
from pipeline.data.base import DataSet
from pipeline.training.learner import Learner

if TYPE_CHECKING:
    from pipeline.evaluation.live import Live


class Scoring:
    """Scores the learner's averaged weights while a run goes on, where `evaluation.live` is set."""

    def __init__(self, config: RunConfig, data: DataSet) -> None:
        self._live: Live | None = None
        self._found: dict[str, float] = {}  # and not told yet
        if config.evaluation.live:
            from pipeline.evaluation.live import Live  # brings SciPy

            self._live = Live(config, data)

    def go_on(self, learner: Learner) -> None:
        """Works for a share of the time since it last did."""
        if self._live is not None:
            self._found |= self._live.spend(learner.version, learner.averaged)

    def tell(self, report: StepReport) -> StepReport:
        """The report with what was found since the one before, if anything."""
        found, self._found = self._found, {}
        return report._replace(figures={**report.figures, **found}) if found else report
