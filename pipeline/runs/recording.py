"""The recorders of a run, found by their names and fed as one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import Counter

from pipeline.common import plugins
from pipeline.common.errors import ConfigError
from pipeline.common.types import Figures
from pipeline.runs.recorders.base import RecordedRun, Recorder
from pipeline.runs.recorders.mlflow import MLflow
from pipeline.runs.recorders.paced import Paced
from pipeline.runs.recorders.prometheus import Prometheus
from pipeline.runs.recorders.series import Series
from pipeline.runs.recorders.tensorboard import TensorBoard
from pipeline.runs.recorders.wandb import WandB

log = logging.getLogger(__name__)
GROUP = "pipeline.recorders"
# a new recorder is a file in pipeline/runs/recorders and a line here
RECORDERS: dict[str, Callable[[], Recorder]] = {
    "prometheus": Prometheus,
    "series": Series,
    "tensorboard": lambda: Paced(TensorBoard()),
    "mlflow": lambda: Paced(MLflow()),
    "wandb": lambda: Paced(WandB()),
}


def make_recorder(name: str) -> Recorder:
    """Makes the recorder called `name`: one of this project's, or an installed package's.

    Raises `ConfigError` where there is none of that name, or it lacks a method.
    """
    if name in RECORDERS:
        return RECORDERS[name]()
    added = plugins.installed(GROUP)
    if name not in added:
        known = ", ".join([*RECORDERS, *sorted(added)])
        raise ConfigError(
            "recorders",
            name,
            f"no such recorder, of this project or of the group {GROUP} ({known})",
        )
    recorder: Recorder = plugins.call(plugins.find(GROUP, name, "recorders"), "recorders", {})
    missing = [way for way in ("start", "record", "finish") if not hasattr(recorder, way)]
    if missing:
        raise ConfigError("recorders", name, f"what it makes has no {', '.join(missing)}")
    return recorder


class Recording:
    """The recorders of a run, as one.

    Whatever one of them raises is counted in `failures`, by its name, and told the first time. The
    run and the other recorders go on. One that could not start is left out. Raises `ConfigError`
    where a name stands twice, or is no recorder's.
    """

    def __init__(self, names: Sequence[str], failures: Counter) -> None:
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError("recorders", ", ".join(names), f"names {', '.join(twice)} twice")
        self._waiting = {name: make_recorder(name) for name in names}
        self._started: dict[str, Recorder] = {}
        self._failures = failures
        self._told: set[str] = set()
        for name in names:
            failures.labels(name)  # there from the start, at 0, so that a rate can be taken of it

    def start(self, run: RecordedRun) -> None:
        """Starts them, in order. Raises the `ConfigError` of one that refuses the configuration."""
        for name, recorder in self._waiting.items():
            if self._carry_out(name, recorder.start, run):
                self._started[name] = recorder

    def record(self, step: int, figures: dict[str, float]) -> None:
        """Hands the value of every series at `step` to all of them."""
        self._each("record", step, figures)

    def rewind(self, step: int) -> None:
        """Says that the run stands at `step`: what was recorded of later ones holds no more."""
        self._each("rewind", step)

    def flush(self) -> None:
        """Says that a checkpoint was written."""
        self._each("flush")

    def finish(self, summary: Figures | None) -> None:
        """Ends them. `summary` is None where the run did not come to its end."""
        self._each("finish", summary)

    @property
    def rows(self) -> list[dict[str, float]]:
        """The rows of the series, which the curves are drawn from; none without that recorder, or
        where they cannot be read.
        """
        series, rows = self._started.get("series"), list[dict[str, float]]()
        if isinstance(series, Series):
            self._carry_out("series", lambda: rows.extend(series.rows))
        return rows

    def _each(self, way: str, *arguments: Any) -> None:
        for name, recorder in self._started.items():
            method = getattr(recorder, way, None)  # some have no way to rewind, or to flush
            if method is not None:
                self._carry_out(name, method, *arguments)

    def _carry_out(self, name: str, method: Callable[..., None], *arguments: Any) -> bool:
        """Calls `method`, and returns whether it did what it was to do."""
        try:
            method(*arguments)
            return True
        except Exception as error:
            if isinstance(error, ConfigError) and name not in self._started:
                raise
            self._failures.labels(name).inc()
            if name not in self._told:
                self._told.add(name)
                log.warning(
                    "the recorder %s failed (%s: %s); the run goes on, and further failures are"
                    " counted in ebm_recorder_failures_total alone",
                    name,
                    type(error).__name__,
                    error,
                )
            return False
