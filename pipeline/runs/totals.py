"""Sums over a run, for its summary."""

from __future__ import annotations

import math
import time
from typing import Any

from pipeline.common.types import Flow, LagChoice, RoundReport, StepReport
from pipeline.runs.lag import in_words


class Totals:
    """Sums over this process's part of a run.

    `apart`: pools and parameter server are processes of their own, of which it is told how busy
    they were, and what one process would have taken for their work.
    """

    def __init__(self, apart: bool = False) -> None:
        self._work = Work() if apart else None
        self.steps = self.negatives = self.transitions = self.lags = self.batches = self.max_lag = 0
        self.ess, self.ess_count = 0.0, 0
        self.lag_choice: LagChoice | None = None
        self.skipped = self.dropped = self.restarts = self.reseeded = self.rollbacks = 0
        self.rate_factor = 1.0
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
        self.lag_choice, self.rate_factor = report.lag_choice, report.rate_factor
        self.reseeded += sum(round.reseeded for round in rounds)
        self.add_flow(flow)
        if self._work is not None:
            self._work.add(report, rounds, flow)

    def add_flow(self, flow: Flow) -> None:
        """The losses that the runner saw, with a step or while it waited for one."""
        self.dropped += sum(flow.dropped.values())
        self.restarts += sum(flow.restarts.values())

    def figures(self) -> dict[str, Any]:
        """Returns the sums, and means and speeds made of them, by their names in summary.json."""
        seconds, choice = max(self.seconds, 1e-9), self.lag_choice
        found = {} if choice is None else {"words": in_words(choice), **choice._asdict()}
        return {
            "wall_seconds": round(seconds, 3),
            "steps": self.steps,
            "steps_per_second": self.steps / seconds,
            "negatives_per_second": self.negatives / seconds,
            "transitions_per_second": self.transitions / seconds,
            "mean_lag": self.lags / max(self.batches, 1),
            "max_lag": self.max_lag,
            **({"lag_choice": found} if found else {}),
            "mean_ess": self.ess / max(self.ess_count, 1) if self.ess_count else None,
            "restarts": self.restarts,
            "dropped_batches": self.dropped,
            "skipped_steps": self.skipped,
            "reseeded_chains": self.reseeded,
            "rollbacks": self.rollbacks,
            "rate_factor": self.rate_factor,
            **({} if self._work is None else self._work.figures(seconds)),
        }


class Work:
    """Sums over what pools and parameter server did, each in a process of its own."""

    def __init__(self) -> None:
        self._steps = self._told = self._pools = 0
        self._rounds = self._updates = 0.0  # seconds by the clock
        self._of_rounds = self._of_updates = 0.0  # seconds of a processor
        self._known = True  # what one process would have taken

    def add(self, report: StepReport, rounds: list[RoundReport], flow: Flow) -> None:
        """Adds one step, the rounds that ended since the last one, and the pools there were."""
        self._steps += 1
        self._pools += flow.pools
        self._rounds += sum(round.seconds for round in rounds)
        self._of_rounds += sum(round.usage.seconds for round in rounds)
        self._updates += sum(report.seconds.values())
        # usage is of the step before: of a first step it is nothing
        if any(usage.seconds for usage in report.usage):
            self._told += 1
            self._of_updates += sum(usage.seconds for usage in report.usage)
        usages = (*report.usage, *(round.usage for round in rounds))
        self._known &= len(report.usage) == 1 and not any(usage.device for usage in usages)

    def figures(self, seconds: float) -> dict[str, Any]:
        """Returns the shares of the run's `seconds` that pools were at rounds and the parameter
        server at steps, and the seconds that one process, on one core, would have taken at most.

        The latter are the processor seconds of rounds and steps: waiting is not among them, what a
        process of an actor does beside its work is, and one process may run its pools as one batch.
        They are None where a GPU did the work, whose time nobody counts, and of several ranks,
        which spend more on their exchange than one process would on all of their rows. The share of
        pools is None where there are none.
        """
        steps, told = max(self._steps, 1), max(self._told, 1)
        pools = self._pools / steps
        return {
            "pools_busy_share": self._rounds / (seconds * pools) if pools else None,
            "server_busy_share": self._updates / seconds,
            "one_process_seconds": (
                self._of_rounds + self._of_updates * steps / told if self._known else None
            ),
        }
