"""Negatives of two pools through Ray beside those of two bare loops."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache, partial
from typing import Any

import ray
import torch
from torch import Tensor

from actors.chain_pool import ChainPool
from actors.driver import RayRunner
from benchmarks import harness, loops
from benchmarks.harness import say
from benchmarks.kernels import functions
from benchmarks.on_ray import IMAGE, WIDE, phase, some, started
from benchmarks.trivial_actors import TrivialServer
from pipeline.assembly.energies import make_energy
from pipeline.common.process import keep_freed_memory
from pipeline.common.types import Weights
from pipeline.config.compose import compose
from pipeline.config.run import RunConfig
from pipeline.energies.weights import flatten

POOLS, CHAINS, TRANSITIONS, STEP_SIZE = 2, 256, 40, 0.01
SAMPLING = (
    WIDE,
    f"chains.pools={POOLS}",
    f"chains.per_pool={CHAINS}",
    f"kernel.transitions={TRANSITIONS}",
    f"kernel.step_size={STEP_SIZE}",
    "trainer.lag=1",
)


class IdleServer(TrivialServer):
    """A server that does nothing with batches, and publishes the same weights as a new version."""

    def made(self, version: int) -> Weights:
        if not hasattr(self, "_flat"):
            self._flat = flatten(make_energy(self._config, IMAGE))
        return Weights(version, self._flat)

    def versions(self, batches: tuple[Any, ...]) -> tuple[int, ...]:
        return tuple(batch.column("version")[0].as_py() for batch in batches)


@cache
def bare_chains(niceness: int, seed: int) -> tuple[loops.Functions, torch.Generator, list[Tensor]]:
    """Make this process ready, and return its energy, its random stream and its chains."""
    os.setpriority(os.PRIO_PROCESS, 0, niceness)
    torch.set_num_threads(1)
    keep_freed_memory()
    energy, generator = make_energy(compose(SAMPLING), IMAGE), torch.Generator().manual_seed(seed)
    return functions(energy, None), generator, [energy.sample_base(CHAINS, generator)]


def bare(rounds: int, niceness: int, seed: int) -> tuple[float, float]:
    """Return the negatives a second of so many rounds, and the processor seconds of each."""
    of, generator, chains = bare_chains(niceness, seed)
    clock, spent = time.perf_counter(), time.process_time()
    for _ in range(rounds):
        (chains[0], _, _), _ = loops.mala(
            generator, (chains[0], *of.both(chains[0])), TRANSITIONS, of, STEP_SIZE
        )
    return rounds * CHAINS / (time.perf_counter() - clock), (time.process_time() - spent) / rounds


class TimedPool(ChainPool):
    """A pool that tells the processor seconds that its process has used."""

    def spent(self) -> float:
        return time.process_time()


def through_ray(runner: RayRunner, config: RunConfig, rounds: int) -> tuple[float, float]:
    """Return the figures of `bare`, of pools and of all that their processes do."""
    members = runner.pools.members

    def so_far() -> tuple[float, int]:
        spent = ray.get([member.actor.spent.remote() for member in members])
        return sum(spent), sum(member.rounds for member in members)

    spent, made = so_far()
    speed = phase(runner, config, rounds).steps_per_second * config.negatives
    spent_after, made_after = so_far()
    return speed, (spent_after - spent) / (made_after - made)


def throughput(pairs: int = 7, seconds: float = 3.0) -> dict[str, Any]:
    """Measure `throughput_ratio`; a side of a pair takes about so many seconds."""
    spawn = multiprocessing.get_context("spawn")
    niceness = ray.get(ray.remote(num_cpus=0)(lambda: os.getpriority(os.PRIO_PROCESS, 0)).remote())
    with ExitStack() as stack:
        processes = [stack.enter_context(ProcessPoolExecutor(1, spawn)) for _ in range(POOLS)]
        runner, config = stack.enter_context(started(SAMPLING, IMAGE, TimedPool, IdleServer))

        def loops_alone(rounds: int) -> tuple[float, float]:
            futures = [
                process.submit(bare, rounds, niceness, seed)
                for seed, process in enumerate(processes)
            ]
            speeds, spent = zip(*(future.result() for future in futures), strict=True)
            return sum(speeds), statistics.mean(spent)

        through_ray(runner, config, 2)  # warms up, as the loops' first rounds do
        rounds = max(2, min(20, round(seconds * loops_alone(2)[0] / CHAINS / POOLS)))
        ours, theirs = harness.alternate(
            pairs, partial(through_ray, runner, config, rounds), partial(loops_alone, rounds)
        )
    (speeds, spent), (bare_speeds, bare_spent) = (
        zip(*side, strict=True) for side in (ours, theirs)
    )
    ratios = harness.ratios(speeds, bare_speeds)
    by_processor = harness.ratios(bare_spent, spent)
    say(
        f"throughput: {speeds[-1]:.0f} negatives/s, ratios {some(ratios)}; of processor time"
        f" {some(by_processor)}"
    )
    return {
        "throughput_ratio": statistics.median(ratios),
        "throughput_ratio_of_processor_time": statistics.median(by_processor),
        "throughput": {
            "through_ray": ours,
            "bare": theirs,
            "unit": "negatives/s, processor seconds a round",
        },
    }
