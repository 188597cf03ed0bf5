"""The live likelihood of a run whose chains are on a ladder."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from statistics import NormalDist, median

from pipeline.common.types import Bridged, RoundReport, StepReport

FEWEST = 10.0
"""Systems that must count, of all pools, for a figure to be told."""
QUANTILE = NormalDist().inv_cdf(0.95)
"""Standard errors to each side of the interval, which holds 90 %."""
REMEMBERED = 16
"""Figures whose scatter widens the next interval."""
QUANTILE_OF_SCATTER = 2.02
"""The quantile of Student's t with 5 degrees of freedom in the place of `QUANTILE`: about what a
median of 14 squares is worth, where a mean of 5 would be (37 % of a mean's efficiency)."""
MEDIAN_OF_SQUARES = NormalDist().inv_cdf(0.75) ** 2
"""The median of z^2, z standard normal."""


class LadderLikelihood:
    """Joins what two sides say of one version: the learner the mean energy of held-out rows, when
    it has made the step, and pools log Z, when they have made a round under those weights.

    Until the rounds come, the energy waits here. Where none comes there is no figure.

    Systems tell how far each of them is off (`pipeline.kernels.bridging.along_ladder`). All of them
    lag behind weights that move, and err alike by that. It shows as scatter of the figures about a
    smooth curve, so that the interval is that of the scatter where that is wider.
    """

    def __init__(self) -> None:
        self._held_out: dict[int, float] = {}
        self._recent: deque[tuple[int, float]] = deque(maxlen=REMEMBERED)
        self._scored = False  # by another way, with an exact log Z

    def tell(self, report: StepReport, rounds: Iterable[RoundReport]) -> StepReport:
        """The report of a step, with the likelihood of an earlier version where the `rounds` that
        came with it tell that version's log Z.
        """
        self._scored = self._scored or "log_likelihood" in report.figures
        by_version: dict[int, list[Bridged]] = {}
        for round in rounds:
            if round.bridged is not None and round.version in self._held_out:
                by_version.setdefault(round.version, []).append(round.bridged)
        found: dict[str, float] = {}
        for version in sorted(by_version):
            energy = self._held_out.pop(version)
            if (joint := _joined(by_version[version])) is not None:
                found = self._figures(version, -energy - joint[0], joint[1])
        # a run that went back makes later versions anew; what is older than the bound never comes
        oldest = report.version - 1 - report.lag_bound
        self._held_out = {
            version: energy
            for version, energy in self._held_out.items()
            if oldest <= version < report.version
        }
        if "held_out" in report.figures:
            self._held_out[report.version] = report.figures["held_out"]
        if self._scored or not found:
            return report
        return report._replace(figures={**report.figures, **found})

    def _figures(self, version: int, value: float, variance: float) -> dict[str, float]:
        """The figures of a `version`, and its place among those that are remembered."""
        while self._recent and self._recent[-1][0] >= version:
            self._recent.pop()
        self._recent.append((version, value))
        half = max(
            QUANTILE * math.sqrt(variance),
            QUANTILE_OF_SCATTER * math.sqrt(scatter(self._recent)),
        )
        return {
            "log_likelihood": value,
            "log_likelihood_at_least": value - half,
            "log_likelihood_at_most": value + half,
            "log_likelihood_version": version,
        }


def scatter(points: Sequence[tuple[int, float]]) -> float:
    """The variance of errors that are independent from one to the next of `points` (x, y) on a
    smooth curve, from how far each lies from the straight line through its neighbours: the median
    of squares, for the curve may bend sharply where a run begins. 0 for fewer than five points.
    """
    squares = []
    triples = zip(points, islice(points, 1, None), islice(points, 2, None), strict=False)
    for (x, y), (x_1, y_1), (x_2, y_2) in triples:
        share = (x_1 - x) / (x_2 - x)
        distance = y_1 - (1 - share) * y - share * y_2
        squares.append(distance**2 / (1 + (1 - share) ** 2 + share**2))
    return median(squares) / MEDIAN_OF_SQUARES if len(squares) >= 3 else 0.0


def _joined(bridged: Sequence[Bridged]) -> tuple[float, float] | None:
    """log Z and the variance of its error from each pool's: their mean, weighted by systems. None
    where too few systems count.
    """
    systems = sum(one.systems for one in bridged)
    log_z = sum(one.systems * one.log_partition for one in bridged) / systems
    variance = sum((one.systems / systems) ** 2 * one.variance for one in bridged)
    if sum(one.counting for one in bridged) < FEWEST or not math.isfinite(variance):
        return None
    return log_z, variance
