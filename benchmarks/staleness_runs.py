"""The runs of `benchmarks.staleness`: what is trained, in which ways, and one run's figures."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.assembly.chains import make_chains
from pipeline.assembly.data import open_data
from pipeline.assembly.learner import make_learner
from pipeline.common.errors import DivergenceError
from pipeline.common.types import Figures, Progress, StepReport, Weights
from pipeline.config.compose import compose
from pipeline.config.run import RunConfig
from pipeline.evaluation.report import evaluate
from pipeline.runs.inline import InlineRunner

COMMON = ("cluster=inline", "metrics.port=0", "evaluation.samples=0")
QUICK = ("trainer.steps=20", "evaluation.ais_temperatures=20", "evaluation.ais_particles=8")
STRETCHES = 100  # points in the curve of a steered run's lag


class Task(NamedTuple):
    """A model and its data, and the runs that are made of it.

    `lags` are exact ones, 0 the first; `bounds` are those of steered runs. Where `plain`, negatives
    are also counted as they are, and where `moved`, also after transitions under the newest
    weights.
    """

    arguments: tuple[str, ...]
    rates: tuple[float, ...]
    lags: tuple[int, ...]
    bounds: tuple[int, ...]
    plain: bool
    seeds: int
    moved: bool = False


class Trial(NamedTuple):
    """One run, in one of the ways that `SETTINGS` names; a steered one has `lag` as its bound."""

    task: str
    learning_rate: float
    lag: int
    way: str
    seed: int
    arguments: tuple[str, ...]


LAGS = (0, 4, 16, 64)
DEEP = ("trainer.steps=1500", "evaluation.ais_temperatures=2000", "evaluation.ais_particles=100")
TASKS = {
    "rbm": Task(("experiment=digits_rbm",), (0.05, 0.2), LAGS, (), True, 10),
    "8gaussians": Task(("experiment=toy", "trainer.steps=2000"), (5e-3,), LAGS, (), True, 2),
    "digits64": Task(
        ("trainer.steps=3000", "evaluation.ais_temperatures=2000", "evaluation.ais_particles=100"),
        (1e-3,),
        (0, 1, 4, 16),
        (16,),
        False,
        2,
    ),
    "deep": Task(DEEP, (1e-3, 4e-3), (0, 1, 4), (), True, 1, moved=True),
    "deep_slow": Task(DEEP, (2e-4,), (0, 1), (), True, 1),
}
MOVED = 2  # transitions
SETTINGS = {
    "lock-step": ("trainer.lag=0",),
    "plain": ("trainer.lag_mode=exact", "trainer.reweight=false"),
    "reweighted": ("trainer.lag_mode=exact", "trainer.reweight=true"),
    "moved": ("trainer.lag_mode=exact", f"trainer.refresh={MOVED}"),
    "steered": ("trainer.lag_mode=bound", "trainer.reweight=true"),
}


def quick(task: Task) -> Task:
    """Return the task in a form that takes seconds: two lags, two seeds, 20 steps."""
    return task._replace(
        arguments=(*task.arguments, *QUICK), lags=task.lags[:2], bounds=task.bounds[:1], seeds=2
    )


def trials_of(name: str, task: Task) -> Iterator[Trial]:
    """Give the task's trials: every way, for each seed and rate."""
    kinds = {"plain": task.plain, "reweighted": True, "moved": task.moved}
    exact = [(lag, way) for lag in task.lags[1:] for way, made in kinds.items() if made]
    ways = [(0, "lock-step"), *exact, *((bound, "steered") for bound in task.bounds)]
    for seed in range(task.seeds):
        for rate in task.rates:
            for lag, way in ways:
                given = (f"optimizer.learning_rate={rate}", f"seed={seed}", *SETTINGS[way])
                given += (f"trainer.lag={lag}",) if lag else ()
                yield Trial(name, rate, lag, way, seed, (*COMMON, *task.arguments, *given))


class SteeredRunner:
    """An `InlineRunner` under an exact lag, which is what the learner's controller allows.

    Step t consumes one round under version max(0, t - bound). Where the bound falls, the chains go
    on under newer weights from where they are; where it rises by one, they go on under the same.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        torch.set_num_threads(config.cluster.threads)
        self._data = open_data(config)
        self._learner = make_learner(config, self._data)
        self._pools = [make_chains(config, self._data.shape, pool) for pool in range(config.pools)]
        self._window: deque[Weights] = deque([self._learner.publish()], maxlen=config.lag + 1)
        self._bound = config.lag

    def step(self) -> tuple[StepReport]:
        window = self._window
        weights = window[max(0, len(window) - 1 - self._bound)]
        pools = self._config.pools_of_step(self._learner.version)
        report, newest = self._learner.step(
            [self._pools[pool].advance(weights)[0] for pool in pools]
        )
        window.append(newest)
        self._bound = report.lag_bound
        return (report,)

    def evaluate(self, output: str) -> Iterator[Progress | Figures]:
        return evaluate(self._config, self._learner.averaged(), self._data, output)


def run(trial: Trial) -> dict[str, Any]:
    """Make one run, and return its figures.

    `nats` are of a held-out row, None where the run diverged. ESS are ratios in (0, 1], lags are in
    versions.
    """
    clock = time.perf_counter()
    config = compose(trial.arguments)
    runner: SteeredRunner | InlineRunner
    if trial.way == "steered":
        runner = SteeredRunner(config)
    else:
        runner = InlineRunner(config)
        runner.start(None, None)
    ess, lags, nats, error = [], [], math.nan, None
    try:
        for _ in range(config.trainer.steps):
            report = runner.step()[0]
            lags.append(report.lags[0])
            if trial.way in (
                "reweighted",
                "steered",
            ):  # negatives that are counted as they are have no weights
                ess.append(sum(report.ess) / len(report.ess))
        *_, figures = runner.evaluate("")  # no samples: nothing is written
        assert isinstance(figures, dict)
        nats, error = figures["test_log_likelihood"], figures.get("log_z_standard_error")
    except DivergenceError:
        pass
    return {
        "nats": nats if math.isfinite(nats) else None,
        "log_z_standard_error": error,
        "mean_ess": float(np.nanmean(ess)) if ess else None,
        "worst_ess": float(np.nanmin(ess)) if ess else None,
        "lag_curve": [
            float(stretch.mean())
            for stretch in np.array_split(np.array(lags), STRETCHES)
            if len(stretch)
        ],
        "settled_lag": float(np.mean(lags[-max(1, len(lags) // 4) :])),
        "seconds": round(time.perf_counter() - clock, 1),
    }
