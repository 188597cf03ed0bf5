"""The ends of a run before its last step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from pipeline.common.types import Figures, StepReport
from pipeline.config.energies import PottsEnergy
from pipeline.config.run import RunConfig
from pipeline.runs.patience import Patience
from pipeline.storage.checkpoint import Checkpoint


class Agreement:
    """Waits until the two-site covariances of chains and data correlate as well as `target` says,
    at step `first` or later; with None it never ends a run.
    """

    def __init__(self, target: float | None, first: int) -> None:
        self._target, self._first = target, first
        self._reached: Figures | None = None

    @property
    def over(self) -> bool:
        """True once they do."""
        return self._reached is not None

    def begin(self) -> None:
        """Says that a run begins, goes on or goes back."""
        self._reached = None

    def observe(self, report: StepReport) -> None:
        """Takes in a step. One at which nobody looked says nothing."""
        pearson = report.figures.get("two_site", math.nan)
        if self._target is None or report.version < self._first:
            return
        if pearson >= self._target:
            slope = report.figures["two_site_slope"]
            self._reached = {"reached": pearson, "slope": slope, "step": report.version}

    def figures(self) -> Figures:
        """Returns what `summary.json` says of a run that ended so."""
        if self._reached is None:
            return {}
        asked = {"figure": "ebm_two_site_pearson", "until_pearson": self._target}
        return {"ended_early": {**asked, **self._reached}}


class Ends:
    """All that may end a run of `config` before its last step."""

    def __init__(self, config: RunConfig) -> None:
        self._patience = Patience(config.trainer.patience, config.checkpoint.keep_best)
        self._agreement = Agreement(config.trainer.until_pearson, _decimated(config))
        self._looks = config.metrics.held_out_every if config.trainer.until_pearson else 0

    @property
    def over(self) -> bool:
        return self._patience.over or self._agreement.over

    def begin(self, version: int, checkpoints: Iterable[Checkpoint]) -> None:
        """Says that the run goes on from `version`, with these checkpoints."""
        self._patience.begin(version, checkpoints)
        self._agreement.begin()

    def before(self, version: int, last: int) -> int:
        """Returns the step, `last` at most, up to which a run at `version` cannot end early."""
        return min(last, (version // self._looks + 1) * self._looks) if self._looks else last

    def see(self, report: StepReport) -> None:
        """Takes in a step."""
        self._agreement.observe(report)

    def observe(self, version: int, row: Mapping[str, float]) -> None:
        """Takes in a row of metrics.jsonl."""
        self._patience.observe(version, row)

    def figures(self) -> Figures:
        """Returns what `summary.json` says of a run that ended early."""
        return self._agreement.figures() or self._patience.figures()


def _decimated(config: RunConfig) -> int:
    """Returns the step at which pairs of sites have been let go, all that are to go."""
    energy = config.energy
    if isinstance(energy, PottsEnergy) and energy.graph == "decimated":
        return energy.edge_steps
    return 0
