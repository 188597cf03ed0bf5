"""Recorders that keep a run in another tool's store, at a cost that is bounded."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from math import isfinite
from typing import Any, NamedTuple, Protocol

from pipeline.common import plugins
from pipeline.common.errors import ConfigError
from pipeline.common.types import Figures
from pipeline.diagnosis.ending import in_words as diagnosis_in_words
from pipeline.runs.recorders.base import RecordedRun
from pipeline.storage.files import locate, names, read_file
from pipeline.storage.paths import resolve_output

log = logging.getLogger(__name__)
SHARE = 0.01
"""The share of one core's time that a store may take while steps are made."""
SERIES = re.compile(r"(\w+)(?:\{(.*)\})?")
LABEL = re.compile(r'\w+="([^"]*)"')


class Ending(NamedTuple):
    """The facts that a store is told of a run that came to its end.

    `figures` are the numbers of `summary.json`, by their keys with slashes between them; `text`
    says in words how well the model is and what the run's diagnosis found; `pictures` are the PNG
    files of the run's folder, by their names without a suffix.
    """

    figures: dict[str, float]
    text: str
    pictures: dict[str, bytes]


class Store(Protocol):
    """A tool's store of runs, called by one thread alone.

    `modules` are what it imports, of the extra `name` of this package.
    """

    name: str
    modules: tuple[str, ...]

    def open(self, run: RecordedRun, step: int) -> int:
        """Opens the store for a run that stands at `step`, and goes on in the entry that the run
        has there where `step` is not 0. Returns the last step that is to be left out, since it is
        there already.
        """

    def back(self, step: int, last: int) -> int:
        """Says that the run was put back to `step`, where `last` was recorded. Returns the last
        step that is to be left out from now on.
        """

    def record(self, step: int, at: float, figures: dict[str, float]) -> None:
        """Takes finite figures by their names, made at the Unix time `at`."""

    def close(self, ending: Ending | None) -> None:
        """Ends, with None where the run did not come to its end."""


class Paced:
    """The recorder that feeds a `store`.

    A thread of its own does what the store is asked for, so that no step waits. It takes a row only
    when the one before is done, and so long after it that the thread computes for `SHARE` of the
    time; the last row of a run is always taken. What the thread fails at is raised by a later call.

    Raises `ConfigError` where the store's package is not installed.
    """

    def __init__(self, store: Store) -> None:
        absent = plugins.missing(store.modules)
        if absent:
            remedy = f"needs {', '.join(absent)}: pip install 'ebm-pipeline[{store.name}]'"
            raise ConfigError("recorders", store.name, remedy)
        self._store = store
        self._thread = ThreadPoolExecutor(1, store.name)
        self._work: Future[None] | None = None
        self._next = 0.0  # when the next row may be taken, by `time.perf_counter`
        self._began: int | None = None  # the step that the run stood at when it began
        self._at = 0  # the step that it stands at
        self._open = False
        self._last = -1  # no row of a later step is in the store
        self._newest: tuple[int, dict[str, float]] | None = None  # a row that was not taken

    def start(self, run: RecordedRun) -> None:
        """Keeps what the store is to be told. It is opened with the first row."""
        self._run = run

    def rewind(self, step: int) -> None:
        """Puts the store back to `step`, where later rows were recorded."""
        if self._began is None:
            self._began = step
        elif step < self._at:
            if self._newest is not None and self._newest[0] > step:
                self._newest = None
            self._settle()
            if self._open:
                self._thread.submit(self._back, step).result()
        self._at = step

    def record(self, step: int, figures: dict[str, float]) -> None:
        """Hands the row to the thread where its turn has come, and else keeps it until the next
        one. Raises what the thread failed at before.
        """
        self._newest, self._at = (step, figures), step
        if self._work is not None and not self._work.done():
            return
        self._settle()
        if time.perf_counter() >= self._next:
            self._work = self._thread.submit(self._take, *self._newest)
            self._newest = None

    def finish(self, summary: Figures | None) -> None:
        """Has the last row and the ending taken, and waits for both. Raises what failed."""
        try:
            self._settle()
            if self._newest is not None:
                self._thread.submit(self._take, *self._newest).result()
        finally:
            if self._open:
                ending = None if summary is None else ending_of(summary, self._run.output)
                self._thread.submit(self._store.close, ending).result()
            self._thread.shutdown()

    def _settle(self) -> None:
        """Waits for the thread. Raises what it failed at."""
        work, self._work = self._work, None
        if work is not None:
            work.result()

    def _back(self, step: int) -> None:
        self._last = self._store.back(step, self._last)

    def _take(self, step: int, figures: dict[str, float]) -> None:
        """Opens the store where it is not open yet, and gives it a row."""
        began = time.thread_time()
        try:
            if not self._open:
                self._last = self._store.open(self._run, self._began or 0)
                self._open, began = True, time.thread_time()
            if step > self._last:
                values = {tag(name): value for name, value in figures.items() if isfinite(value)}
                self._store.record(step, values.pop("time"), values)
                self._last = step
        finally:
            # waiting for a disk or a server takes nothing from the steps
            self._next = time.perf_counter() + (time.thread_time() - began) / SHARE


def tag(series: str) -> str:
    """Returns the name of a series as these tools take one: `ebm_swap_ratio{pool="0",pair="1"}` is
    `ebm_swap_ratio/0/1`.
    """
    match = SERIES.fullmatch(series)
    assert match is not None, series
    name, labels = match.groups()
    values = (re.sub(r"[^\w.-]", "_", value) for value in LABEL.findall(labels or ""))
    return "/".join([name, *values])


def ending_of(summary: Figures, output: str) -> Ending:
    """Returns what a store is told of a run with this `summary` and its files under `output`."""
    words = [*summary.get("words", []), *diagnosis_in_words(summary.get("diagnosis", {}))]
    pictures = {
        name.removesuffix(".png"): read_file(f"{output}/{name}")
        for name in names(output)
        if name.endswith(".png")
    }
    told = {key: value for key, value in summary.items() if key != "evaluation"}  # settings
    return Ending(flat(told, _number), "\n".join(words), pictures)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def flat(
    nested: Mapping[str, Any], wanted: Callable[[Any], bool], separator: str = "/"
) -> dict[str, Any]:
    """Returns the leaves of nested dictionaries that are `wanted`, by their keys end to end."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            below = flat(value, wanted, separator)
            found |= {f"{key}{separator}{name}": leaf for name, leaf in below.items()}
        elif wanted(value):
            found[key] = value
    return found


def settings_of(run: RecordedRun) -> dict[str, Any]:
    """Returns the run's settings by their keys, such as `optimizer.learning_rate`, lists as text;
    without secrets.
    """
    settings = flat(run.config.model_dump(mode="json"), lambda _: True, ".")
    plain = bool | int | float | str
    return {
        key: value if isinstance(value, plain) else str(value) for key, value in settings.items()
    }


def folder_of(run: RecordedRun, name: str) -> str:
    """Returns the path of a folder on this machine for the files of the tool called `name`: in the
    run's folder, or where that is on no disk of this machine, in `runs/`, which is told.
    """
    place = locate(run.output)
    if place.local:
        return f"{place.path}/{name}"
    local = resolve_output(run.config.model_copy(update={"output": f"runs/{run.name}/{name}"}))
    log.warning("the recorder %s writes to a disk of this machine: %s", name, local)
    return local
