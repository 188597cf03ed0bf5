"""The end of a run whose figure of merit gets no better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from pipeline.common.types import Figures
from pipeline.storage.checkpoint import Checkpoint
from pipeline.storage.retention import Kept


class Patience:
    """Watches the figure that `checkpoint.keep_best` names, the lowest best, or the highest after
    `max:`. With `steps` None it never ends a run.
    """

    def __init__(self, steps: int | None, best: str | None) -> None:
        self._steps, kept = steps, Kept(1, best=best)
        self._figure = kept.figure
        self._sign = -1.0 if best is not None and best.startswith("max:") else 1.0
        self._best: tuple[float, int] | None = None  # the best value so far, and its step
        self.over = False
        """True once the figure has not been better for so many steps."""

    def begin(self, version: int, checkpoints: Iterable[Checkpoint]) -> None:
        """Says that the run goes on from `version`, with these checkpoints, whose manifests have
        the figure too.
        """
        self._best, self.over = None, False
        if self._steps is None:
            return
        for checkpoint in checkpoints:
            figure = checkpoint.manifest.figure
            if figure is not None and figure.name == self._figure and checkpoint.step <= version:
                self._see(figure.value, checkpoint.step)

    def observe(self, version: int, row: Mapping[str, float]) -> None:
        """Takes in a row of metrics.jsonl. One without the figure says nothing."""
        value = row.get(self._figure or "", math.nan)
        if self._steps is None or not math.isfinite(value):
            return
        self._see(value, version)
        assert self._best is not None
        self.over = version - self._best[1] >= self._steps

    def _see(self, value: float, step: int) -> None:
        if self._best is None or self._sign * value < self._sign * self._best[0]:
            self._best = value, step

    def figures(self) -> Figures:
        """Returns what `summary.json` says of a run that ended early."""
        if not self.over or self._best is None:
            return {}
        ended = {"figure": self._figure, "best": self._best[0], "best_step": self._best[1]}
        return {"ended_early": {**ended, "patience": self._steps}}
