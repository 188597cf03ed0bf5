"""Sums over a run, for its summary."""

from __future__ import annotations

import math
import time
from typing import Any

from pipeline.common.types import Flow, RoundReport, StepReport


class Totals:
    """Sums over this process's part of a run."""

    def __init__(self) -> None:
        self.steps = self.negatives = self.transitions = self.lags = self.batches = self.max_lag = 0
        self.ess, self.ess_count = 0.0, 0
        self.skipped = self.dropped = self.restarts = self.reseeded = 0
        self.start()

    def start(self) -> None:
        """Starts the clock."""
        self._began = time.perf_counter()
        self._ended: float | None = None

    def stop(self) -> None:
        """Stops the clock."""
        self._ended = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds from the start to the stop, or to now."""
        return (self._ended or time.perf_counter()) - self._began

    def add(self, report: StepReport, rounds: list[RoundReport], flow: Flow) -> None:
        """Adds one step, the rounds that ended since the last one, and what the driver saw."""
        self.steps += 1
        self.negatives += report.negatives
        self.transitions += sum(round.transitions for round in rounds)
        self.batches += len(report.lags)
        self.lags += sum(report.lags)
        self.max_lag = max((self.max_lag, *report.lags))
        finite = [ratio for ratio in report.ess if math.isfinite(ratio)]
        self.ess += sum(finite)
        self.ess_count += len(finite)
        self.skipped += report.skipped
        self.reseeded += sum(round.reseeded for round in rounds)
        self.add_flow(flow)

    def add_flow(self, flow: Flow) -> None:
        """The losses that the runner saw, with a step or while it waited for one."""
        self.dropped += sum(flow.dropped.values())
        self.restarts += sum(flow.restarts.values())

    def figures(self) -> dict[str, Any]:
        """Returns the sums, and means and speeds made of them, by their names in summary.json."""
        seconds = max(self.seconds, 1e-9)
        return {
            "wall_seconds": round(seconds, 3),
            "steps": self.steps,
            "steps_per_second": self.steps / seconds,
            "negatives_per_second": self.negatives / seconds,
            "transitions_per_second": self.transitions / seconds,
            "mean_lag": self.lags / max(self.batches, 1),
            "max_lag": self.max_lag,
            "mean_ess": self.ess / max(self.ess_count, 1) if self.ess_count else None,
            "restarts": self.restarts,
            "dropped_batches": self.dropped,
            "skipped_steps": self.skipped,
            "reseeded_chains": self.reseeded,
        }
