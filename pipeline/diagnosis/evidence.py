"""The evidence in a run's reports: looks, each a summary of the steps since the one before."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pipeline.common.types import Motion, RoundReport, StepReport
from pipeline.diagnosis.mixing import potential_scale_reduction

STEPS = 20
"""Steps to a look."""
KEPT = 60
"""Looks that are remembered: rules ask for the last ones, of which every few have figures."""


class Sofar(NamedTuple):
    """The sum of a run's figures since it began, or went on: the largest `turnover`, NaN without
    any; and the pseudo-log-likelihood, nats, that it `began` with and its `best` since.
    """

    turnover: float = math.nan
    began: float = math.nan
    best: float = math.nan

    def with_figures(self, figures: Mapping[str, float]) -> Sofar:
        """Returns the same with the newest figures."""
        pseudo = figures.get("pseudo_log_likelihood", math.nan)
        return Sofar(
            _larger(self.turnover, figures.get("turnover", math.nan)),
            pseudo if math.isnan(self.began) else self.began,
            _larger(self.best, pseudo),
        )


class PoolLook(NamedTuple):
    """A pool's part of a look. `level` is the mean energy of its chains less that of all pools',
    and `noise` the standard error of that, both nats; NaN where they are not known. So many of its
    chains were `reseeded` a round.
    """

    acceptance: float
    memory: float
    distance: float
    level: float
    noise: float
    reseeded: float


class Look(NamedTuple):
    """The steps of a look, the last of which is `step`: medians of what was reported in them, NaN
    where nothing was.

    `gap` is the mean energy of the chains less that of the data, `spread` the standard deviation of
    the chains' energies and `change` theirs in a round, nats (`Motion`); `memory` and `distance`
    are a `Motion`'s. `restarted`, `reseeded` and `skipped` are shares, of chains a round and of
    steps. `r_hat` is that of the pools' energies (`pipeline.diagnosis.mixing`). `ess` is a ratio
    and `lag` in steps. `swaps` are by pair of rungs. `norm` is of the gradient. `figures` are the
    newest of the probe, and `sofar` sums up those of all looks.
    """

    step: int
    gap: float
    spread: float
    change: float
    memory: float
    distance: float
    acceptance: float
    restarted: float
    reseeded: float
    skipped: float
    r_hat: float
    ess: float
    lag: float
    norm: float
    swaps: tuple[float, ...]
    pools: Mapping[int, PoolLook]
    figures: Mapping[str, float]
    sofar: Sofar

    @property
    def shift(self) -> float:
        """The distance of chains from where they would come to rest under the weights of now, in
        standard deviations of their energies: the way they went in a round, over the share of the
        way that a round goes, which is the share of the energies' order that it does not leave.
        """
        return abs(self.change) / max(1 - self.memory, 1e-3) / max(self.spread, 1e-9)


class Evidence:
    """Makes looks of reports. `chains` are so many in a pool."""

    def __init__(self, chains: int) -> None:
        self._chains = max(chains, 1)
        self.looks: deque[Look] = deque(maxlen=KEPT)
        self._sofar = Sofar()
        self._reports: list[StepReport] = []
        self._rounds: list[RoundReport] = []

    def reset(self) -> None:
        """Forgets all: the run was put back."""
        self.looks.clear()
        self._sofar, self._reports, self._rounds = Sofar(), [], []

    def add(self, report: StepReport, rounds: Sequence[RoundReport]) -> Look | None:
        """Takes in a step; returns the look that it completes, if it does."""
        self._reports.append(report)
        self._rounds.extend(rounds)
        if report.version % STEPS:
            return None
        look = self._look()
        self.looks.append(look)
        self._reports, self._rounds = [], []
        return look

    def _look(self) -> Look:
        reports, rounds = self._reports, self._rounds
        motions = [each.motion for each in rounds if each.motion is not None]
        gaps = [negative - positive for positive, negative in map(_means, reports)]
        chains = self._chains * max(len(rounds), 1)
        figures: dict[str, float] = {}
        for report in reports:
            figures |= report.figures
        self._sofar = self._sofar.with_figures(figures)
        pairs = zip(*(each.swaps for each in rounds), strict=True)
        return Look(
            step=reports[-1].version,
            gap=_middle(gaps),
            spread=_of(motions, "spread"),
            change=_of(motions, "change"),
            memory=_of(motions, "memory"),
            distance=_of(motions, "distance"),
            acceptance=_middle(each.acceptance for each in rounds),
            restarted=sum(each.restarted for each in rounds) / chains,
            reseeded=sum(each.reseeded for each in rounds) / chains,
            skipped=sum(report.skipped for report in reports) / len(reports),
            r_hat=_middle(potential_scale_reduction(each.energy_moments) for each in reports),
            ess=_middle(ratio for report in reports for ratio in report.ess),
            lag=_middle(float(lag) for report in reports for lag in report.lags),
            norm=_middle(report.gradient_norm for report in reports),
            swaps=tuple(_middle(pair) for pair in pairs),
            pools=self._pools(reports, rounds),
            figures=figures,
            sofar=self._sofar,
        )

    def _pools(
        self, reports: Sequence[StepReport], rounds: Sequence[RoundReport]
    ) -> dict[int, PoolLook]:
        levels: dict[int, list[float]] = {}
        noises: dict[int, list[float]] = {}
        for report in reports:
            moments = {each.pool: each for each in report.energy_moments}
            if len(moments) < 2:
                continue
            middle = statistics.median(each.mean for each in moments.values())
            for pool, each in moments.items():
                levels.setdefault(pool, []).append(each.mean - middle)
                noises.setdefault(pool, []).append(math.sqrt(each.variance / each.chains))
        found = {}
        for pool in sorted({each.pool for each in rounds}):
            own = [each for each in rounds if each.pool == pool]
            motions = [each.motion for each in own if each.motion is not None]
            found[pool] = PoolLook(
                acceptance=_middle(each.acceptance for each in own),
                memory=_of(motions, "memory"),
                distance=_of(motions, "distance"),
                level=_middle(levels.get(pool, ())),
                noise=_middle(noises.get(pool, ())),
                reseeded=sum(each.reseeded for each in own) / (self._chains * len(own)),
            )
        return found


def _means(report: StepReport) -> tuple[float, float]:
    """The mean energies of a step's positives and negatives, whichever term of a mixture has them;
    NaN where none has.
    """
    named = {name.rpartition(".")[2]: value for name, value in report.parts.items()}
    return named.get("positive", math.nan), named.get("negative", math.nan)


def _larger(one: float, other: float) -> float:
    """The larger of two numbers that are finite; NaN of none."""
    return max((x for x in (one, other) if math.isfinite(x)), default=math.nan)


def _of(motions: Sequence[Motion], field: str) -> float:
    return _middle(getattr(motion, field) for motion in motions)


def _middle(values: Iterable[float]) -> float:
    """The median of those that are finite; NaN where none is."""
    finite = [value for value in values if math.isfinite(value)]
    return statistics.median(finite) if finite else math.nan
