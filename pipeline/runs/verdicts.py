"""The verdicts of a run, told to whoever watches it: in its lines, its metrics and its page."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.common.types import Figures, RoundReport, StepReport, Verdict
from pipeline.diagnosis.ending import ending, numbers_of
from pipeline.diagnosis.watch import Diagnosis
from pipeline.runs.display import Display
from pipeline.runs.metrics import RunMetrics


class Verdicts:
    """Hands the reports of a run with so many `chains` to its `diagnosis`, and tells at once what
    that finds.
    """

    def __init__(
        self, diagnosis: Diagnosis, chains: int, display: Display, metrics: RunMetrics
    ) -> None:
        self._diagnosis, self._chains = diagnosis, chains
        self._display, self._metrics = display, metrics
        for verdict in diagnosis.verdicts:
            self._tell(verdict, 0)

    def begin(self, version: int, from_scratch: bool = False) -> None:
        """Says that the run goes on from `version`, maybe with weights that nothing has shaped."""
        self._diagnosis.begin(version, from_scratch)

    def observe(self, report: StepReport, rounds: Sequence[RoundReport]) -> None:
        """Takes in a step, and the rounds that came with it."""
        for verdict in self._diagnosis.observe(report, rounds):
            self._tell(verdict, report.version)
        self._metrics.observe_verdicts(self._diagnosis.verdicts)

    def diverged(self, version: int, why: str) -> None:
        """Takes in that the run diverged."""
        self._tell(self._diagnosis.diverged(version, why), version)

    def _tell(self, verdict: Verdict, version: int) -> None:
        self._display.say(f"verdict at step {version}, {verdict.cause}: {verdict.words}")

    def now(self) -> Figures:
        """Returns `diagnosis` as it stands."""
        look = self._diagnosis.last
        return {
            "diagnosis": {
                "verdicts": [verdict._asdict() for verdict in self._diagnosis.verdicts],
                "figures": {} if look is None else numbers_of(look, self._chains),
            }
        }

    def at_the_end(self, figures: Figures) -> Figures:
        """Returns `diagnosis` with what the `figures` of the run's evaluation show."""
        return ending(self._diagnosis, self._chains, figures)
