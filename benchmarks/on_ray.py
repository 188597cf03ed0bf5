"""Runs of the default configuration on Ray whose steps are timed."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import ray

from actors.chain_pool import ChainPool
from actors.driver import RayRunner
from actors.parameter_server import ParameterServer
from pipeline.common.types import RoundReport, StepReport
from pipeline.config.compose import compose
from pipeline.config.run import RunConfig

COMMON = (
    "trainer.min_ess=0",
    "chains.restart=0",
    "metrics.port=0",
    "optimizer.learning_rate=1e-6",
    "optimizer.warmup=0",
    "optimizer.schedule=constant",
    "cluster.pool_cpus=0",
    "cluster.server_cpus=0",
)
WIDE = "energy.hidden=[512,512]"
IMAGE, DIGITS = (784,), (8, 8)


class Phase(NamedTuple):
    """Steps that were timed: the seconds that passed, the reports of the steps and of rounds."""

    seconds: float
    steps: list[StepReport]
    rounds: list[RoundReport]

    @property
    def steps_per_second(self) -> float:
        return len(self.steps) / self.seconds

    @property
    def round_seconds(self) -> float:
        return statistics.median(round.seconds for round in self.rounds)

    @property
    def step_seconds(self) -> float:
        return statistics.median(sum(step.seconds.values()) for step in self.steps)

    @property
    def busy(self) -> float:
        return sum(sum(step.seconds.values()) for step in self.steps) / self.seconds


def milliseconds(phases: Sequence[Phase]) -> dict[str, float]:
    """Return the median milliseconds of a round, of a step, and from one step to the next."""
    return {
        "round": 1e3 * statistics.median(p.round_seconds for p in phases),
        "step": 1e3 * statistics.median(p.step_seconds for p in phases),
        "period": 1e3 / statistics.median(p.steps_per_second for p in phases),
    }


@contextmanager
def started(
    overrides: Sequence[str],
    shape: tuple[int, ...],
    pool: type = ChainPool,
    server: type = ParameterServer,
) -> Iterator[tuple[RayRunner, RunConfig]]:
    """Give a runner of the default configuration with `overrides`, at its first step.

    Positions have the `shape`; `pool` and `server` are the classes of the actors.
    """
    config = compose([*COMMON, *overrides])
    with tempfile.TemporaryDirectory() as output:
        runner = RayRunner(config, output, shape, pool=pool, server=server)
        try:
            runner.start(None, None)
            yield runner, config
        finally:
            runner.close()


def phase(runner: RayRunner, config: RunConfig, steps: int) -> Phase:
    """Time so many steps as they are in the middle of a run.

    At its end nothing is under way, and the cores are free.
    """
    for _ in range(config.lag + 2):  # what was there from before
        runner.step()
    reports, rounds = [], []
    clock = time.perf_counter()
    for _ in range(steps):
        report, made, _ = runner.step()
        reports.append(report)
        rounds.extend(made)
    seconds = time.perf_counter() - clock
    if under_way := list(runner.pools.rounds):
        ray.wait(under_way, num_returns=len(under_way), timeout=60, fetch_local=False)
    return Phase(seconds, reports, rounds)


def some(values: Sequence[float]) -> str:
    """Return the values in a line, to three digits."""
    return " ".join(f"{value:.3f}" for value in values)


def rounded(values: dict[str, float]) -> dict[str, float]:
    """Return the values to one digit."""
    return {name: round(value, 1) for name, value in values.items()}
