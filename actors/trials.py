"""Trials of a sweep, carried out in this process or by workers on Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from actors.launch import launch
from pipeline.assembly.data import of_kinds, open_data
from pipeline.common.errors import PipelineError, RefusedError
from pipeline.config.run import RunConfig
from pipeline.config.sweep import Sweep
from pipeline.runs.display import Silence
from pipeline.runs.halving import Advance, Result
from pipeline.storage.rows import StoredRows
from pipeline.storage.store import find_averaged

Configure = Callable[[int], RunConfig]
"""The configuration of a trial."""


def trial_to(config: RunConfig, figure: str | None, trial: int, rung: int, step: int) -> Result:
    """Trains a trial to `step`, from its newest checkpoint on, and judges it. One that diverges or
    fails is a result that says so.
    """
    began = time.process_time()
    try:
        launch(config, Silence(), until=step)
        score, low, high = _judged(config, figure)
        why = None if math.isfinite(score) else "its score is not finite"
    except RefusedError:
        raise
    except PipelineError as error:
        score, low, high, why = -math.inf, None, None, str(error)
    seconds = time.process_time() - began
    return Result(trial, rung, step, score if why is None else -math.inf, seconds, low, high, why)


def _judged(config: RunConfig, figure: str | None) -> tuple[float, float | None, float | None]:
    """The score of the newest checkpoint, the highest is best, and its bounds."""
    from pipeline.evaluation.live import Live

    output = str(config.output)
    if figure is not None:
        name = figure.removeprefix("max:")
        values = [row[name] for row in StoredRows(output) if name in row]
        value = values[-1] if values else math.nan
        return (value if figure.startswith("max:") else -value), None, None
    checkpoint, weights = find_averaged(output)
    data = open_data(config)
    found = Live(of_kinds(config, data), data).now(checkpoint.step, weights)
    value = found["log_likelihood"]
    return value, found["log_likelihood_at_least"], found["log_likelihood_at_most"]


def here(sweep: Sweep, configure: Configure) -> Advance:
    """Returns how trials are advanced one after the other, in this process."""

    def advance(trials: Sequence[int], rung: int, step: int) -> Iterator[Result]:
        for trial in trials:
            yield trial_to(configure(trial), sweep.settings.figure, trial, rung, step)

    return advance


def on_ray(sweep: Sweep, configure: Configure, output: str) -> Advance:
    """Returns how trials are advanced by workers on one Ray, which are connected to here. A worker
    that dies begins the trial again from its newest checkpoint.
    """
    import ray
    from ray.util import ActorPool

    from actors.cluster import connect

    connect(sweep.base, output)
    gpus = sweep.base.cluster.pool_gpus if sweep.base.device != "cpu" else 0
    there = ray.cluster_resources()
    fit = there.get("GPU", 0) / gpus if gpus else there.get("CPU", 1)
    count = sweep.settings.workers or max(1, min(int(fit), len(sweep.trials)))
    worker = ray.remote(max_restarts=-1, max_task_retries=3)(Worker)
    pool = ActorPool([worker.options(num_cpus=1, num_gpus=gpus).remote() for _ in range(count)])

    def advance(trials: Sequence[int], rung: int, step: int) -> Iterator[Result]:
        def begin(actor: Any, trial: int) -> Any:
            return actor.advance.remote(configure(trial), sweep.settings.figure, trial, rung, step)

        for found in pool.map_unordered(begin, trials):
            if isinstance(found, RefusedError):
                raise found
            yield found

    return advance


class Worker:
    """Carries out one trial after the other."""

    def advance(
        self, config: RunConfig, figure: str | None, trial: int, rung: int, step: int
    ) -> Result | RefusedError:
        """Returns what `trial_to` returns, or what it raises where the trial is refused: an error
        that is raised here would reach the driver as a traceback.
        """
        try:
            return trial_to(config, figure, trial, rung, step)
        except RefusedError as error:
            return error
