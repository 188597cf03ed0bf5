"""The display: progress bars on a terminal and in a notebook, a plain line every few seconds in a
log.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from pipeline.common.masking import masked
from pipeline.common.types import Progress, RoundReport, StepReport
from pipeline.runs.notebook_bars import NotebookBars, clock
from pipeline.runs.prompt import in_notebook

LINE_SECONDS = 5.0
SETTLED = 20
"""Steps before the time that is left is told: the first ones are slow, and tell nothing of it."""
BOUNDS = ("", "_at_least", "_at_most")


class Rates(Protocol):
    """The sums that speeds are told from: `steps` and `negatives` in so many `seconds`."""

    @property
    def seconds(self) -> float: ...

    steps: int
    negatives: int


class Display:
    """Writes to standard output; terminals and notebooks get bars, anything else lines."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._notebook = in_notebook()
        self._terminal = self._console.is_terminal and not self._notebook
        self._bar: Bar | NotebookBars | None = None
        self._task: TaskID | None = None
        self._last_line = 0.0
        self._stage = ""
        self._likelihood = ""  # the newest, in words
        self._agreement = ""  # of two-site covariances, the newest
        self._gap: float | None = None  # of the energies of held-out and training rows, the newest

    def say(self, text: str) -> None:
        """Writes a line of its own, bar or no bar. Secrets in it are masked."""
        text = masked(text)
        if self._terminal:
            self._console.print(text, markup=False)
        else:
            print(text, flush=True)

    @contextmanager
    def training(self, done: int, total: int) -> Iterator[None]:
        """Shows the steps made within, `done` of `total` when it begins."""
        columns = (
            "step",
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        with self._bars("step", *columns, TextColumn("left")):
            if self._bar is not None:
                self._task = self._bar.add_task("", total=total, completed=done)
            self._total = total
            yield

    @contextmanager
    def working(self) -> Iterator[None]:
        """Shows the stages of the work done within."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with self._bars("", *columns):
            self._stage = ""
            yield

    @contextmanager
    def _bars(self, title: str, *columns: Any) -> Iterator[None]:
        """Shows bars while what is within is done: on a terminal these columns, in a notebook the
        same in HTML, each line with its title.
        """
        if self._notebook:
            bars: Bar | NotebookBars = NotebookBars(title)
        elif self._terminal:
            bars = Bar(*columns, console=self._console, refresh_per_second=5)
        else:
            yield
            return
        with bars as self._bar:
            yield
        self._bar = self._task = None

    def step(self, report: StepReport, rounds: list[RoundReport], rates: Rates) -> None:
        """Shows one step, with its rounds: on a terminal each, in a log one every few seconds."""
        now = time.monotonic()
        if "log_likelihood" in report.figures:
            value, low, high = (report.figures[f"log_likelihood{bound}"] for bound in BOUNDS)
            self._likelihood = f"log-likelihood {value:.2f} ({low:.2f} to {high:.2f})"
        if "held_out" in report.figures:
            self._gap = report.figures["held_out"] - report.figures["training"]
        if "two_site" in report.figures:
            pearson, slope = report.figures["two_site"], report.figures["two_site_slope"]
            self._agreement = f"covariances {pearson:.3f} (slope {slope:.2f})"
            if "coupled_pairs" in report.figures:
                self._agreement += f" with {report.figures['coupled_pairs']:,.0f} pairs"
        if (
            self._bar is None
            and now - self._last_line < LINE_SECONDS
            and report.version != self._total
        ):
            return
        seconds = max(rates.seconds, 1e-9)
        text = f"loss {report.loss:+.3f}  {rates.steps / seconds:,.1f} steps/s"
        if report.lags:
            acceptance = sum(round.acceptance for round in rounds) / max(len(rounds), 1)
            text = (
                f"loss {report.loss:+.3f}  acceptance {acceptance:.2f}  lag {max(report.lags)}  "
                f"{rates.negatives / seconds:,.0f} negatives/s"
            )
        if self._likelihood:
            text += f"  {self._likelihood}"
        if self._agreement:
            text += f"  {self._agreement}"
        if self._gap is not None:
            text += f"  held-out gap {self._gap:+.2f}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=report.version, description=text)
            return
        self._last_line = now
        if rates.steps >= SETTLED:
            left = (self._total - report.version) * seconds / rates.steps
            text += f"  {clock(left)} left"
        self.say(f"step {report.version}/{self._total}  {text}")

    def work(self, progress: Progress) -> None:
        """Shows how far a stage of the work after training has come."""
        if self._bar is not None:
            if progress.stage != self._stage:
                self._task = self._bar.add_task(progress.stage, total=progress.total)
            assert self._task is not None
            self._bar.update(self._task, completed=progress.done)
        elif progress.stage != self._stage or time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            self.say(f"{progress.stage}: {progress.done}/{progress.total}")
        self._stage = progress.stage


class Silence(Display):
    """Shows nothing: of a run that is one of many."""

    def __init__(self) -> None:
        super().__init__()
        self._terminal = self._notebook = False

    def say(self, text: str) -> None:
        """Says nothing."""
