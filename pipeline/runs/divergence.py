"""The watch over a run's reports: it notices that what is trained is finite, but absurd."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipeline.common.types import RoundReport, StepReport
from pipeline.energies.base import Energy

SOON, LATER = 20, 100
"""So many steps a figure must have been beyond its bound; two steps within it make up for one
beyond. The longer patience is for what chains on their way from noise may show too."""
AT_THE_END = 5
"""Instead of `SOON`, at the last step: nothing will make up for them."""
SLACK, EACH, FAR = 100.0, 10.0, 100.0
"""Data may be so many nats above the chains, and `EACH` more for each dimension. Chains may be
`SLACK` nats and `FAR` for each dimension above the data, or spread: near equilibrium either is
about sqrt(d / 2), but short runs end above the data for long."""
NOISE = 10.0
"""Nats that a mean over a batch may be off by."""
LARGEST = 2.0**20
"""Energies beyond it are rounded to 1/8 nat or worse in float32."""
LEAST_ACCEPTANCE = 1e-3


class Figure(NamedTuple):
    """A figure of one step, and the most that it is in a run that is well; `at_least`: the least.

    `what` names it, and `remedy` says what to change where it was beyond its bound in `patience`
    steps.
    """

    what: str
    value: float
    bound: float
    patience: int
    remedy: str
    at_least: bool = False

    @property
    def within(self) -> bool:
        """True where the value is as it should be; NaN never is."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


class DivergenceWatch:
    """Watches the figures of each step against fixed bounds.

    The bounds are wide: what is well comes nowhere near them. One of them is exact. Over
    finitely many states, whatever the law q of the chains, the mean energy of the data less that of
    the chains is at most the data's mean -log p, since the chains' mean -log p is not negative.
    Where this gap is above log(number of states), the uniform law is a better model of the data.
    """

    def __init__(self, energy: Energy) -> None:
        self._wide = SLACK + EACH * energy.dimension
        self._far = SLACK + FAR * energy.dimension
        finite = energy.levels is not None
        self._uniform = energy.base_log_partition() + NOISE if finite else None
        self._first_loss: float | None = None
        self.reset()

    def reset(self) -> None:
        """Forgets what was seen: the run was put back."""
        self._scores: dict[str, float] = {}

    @property
    def suspicious(self) -> bool:
        """True where a figure has lately been beyond its bound."""
        return any(self._scores.values())

    def observe(
        self, report: StepReport, rounds: Sequence[RoundReport], last: bool = False
    ) -> str | None:
        """Takes in a step, maybe the run's `last`, and the rounds that came with it. Returns the
        cause, with figure, value, bound and remedy, where the run diverges; else None.
        """
        for figure in self._figures(report, rounds):
            score = max(0, self._scores.get(figure.what, 0.0) + (-0.5 if figure.within else 1))
            self._scores[figure.what] = score
            patience = AT_THE_END if last and figure.patience == SOON else figure.patience
            if score >= patience:
                side = "below" if figure.at_least else "above"
                return (
                    f"{figure.what} was {figure.value:.4g} at step {report.version}, and has been"
                    f" {side} {figure.bound:.4g} in many steps of late; {figure.remedy}"
                )
        return None

    def _figures(self, report: StepReport, rounds: Sequence[RoundReport]) -> Iterator[Figure]:
        lower = "lower optimizer.learning_rate or set optimizer.clip_norm"
        chains = f"{lower}, or change kernel.step_size or kernel.transitions"
        skipped = float(report.skipped)
        yield Figure("the share of steps that are not finite", skipped, 0.0, SOON, chains)
        if not report.negatives:
            yield self._loss(report, lower)
            return
        positive, negative = (_mean(report, side) for side in ("positive", "negative"))
        if positive is not None and negative is not None:
            high = self._wide if self._uniform is None else self._uniform
            name, gap = "the mean energy of the data less that of the chains", positive - negative
            yield Figure(f"{name} (nats)", gap, high, SOON, chains)
            # chains that begin at noise come down from there
            name = "the mean energy of the chains less that of the data"
            yield Figure(f"{name} (nats)", -gap, self._far, LATER, chains)
            name, largest = "the mean energy's magnitude", max(abs(positive), abs(negative))
            largest = math.nan if math.isnan(gap) else largest
            yield Figure(f"{name} (nats)", largest, LARGEST, SOON, lower)
        if report.energy_moments:
            moments = report.energy_moments
            spread = math.sqrt(sum(moment.variance for moment in moments) / len(moments))
            name = "the standard deviation of the chains' energies (nats)"
            yield Figure(name, spread, self._far, LATER, chains)
        if rounds:
            accepted = sum(each.acceptance for each in rounds) / len(rounds)
            remedy = (
                f"lower kernel.step_size or let it adapt (kernel.target_acceptance), or {lower}"
            )
            name = "the mean acceptance probability"
            yield Figure(name, accepted, LEAST_ACCEPTANCE, LATER, remedy, at_least=True)

    def _loss(self, report: StepReport, remedy: str) -> Figure:
        """The loss of an objective without chains: under one that tells a likelihood or a
        pseudo-likelihood, the uniform law's is known, else the first one that was seen.
        """
        if self._first_loss is None and math.isfinite(report.loss):
            self._first_loss = report.loss
        high = max(self._wide, EACH * abs(self._first_loss or 0.0))
        names = {name.rpartition(".")[2] for name in report.parts}
        if self._uniform is not None and names & {"log_z", "conditional"}:
            high = self._uniform
        return Figure("the loss", report.loss, high, SOON, remedy)


def _mean(report: StepReport, side: str) -> float | None:
    """The mean energy of a `side`, nats, whichever term of a mixture has it."""
    values = (value for name, value in report.parts.items() if name.rpartition(".")[2] == side)
    return next(values, None)
