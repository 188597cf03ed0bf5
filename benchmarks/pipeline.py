"""What it costs to carry the algorithm through Ray: pools, object store, driver, trainer.

    python -m benchmarks.pipeline [--json [FILE]] [--only PART ...]

It wants one machine with a core for each process that computes, and little else to do; it takes
about 5 minutes. Ratios are medians over pairs of runs, one after the other, in this one process.
With `--only`, the other figures stay as they are in FILE. The result is one JSON object:

    throughput_ratio          negatives/s of two pools through Ray, to a server that does nothing
                              with them, over those of two bare loops: `benchmarks.loops.mala` in
                              plain processes of the same niceness, with a fresh gradient at each
                              round's begin, where nothing is encoded or sent
    throughput_ratio_of_processor_time
                              the same of processor time for a round, which a busy machine disturbs
                              less
    overlap_speedup           steps/s of one pool and one trainer at a lag of 2 over those in
                              lock-step, where a round costs a step
    driver_ms_per_batch       processor time of the driver's process, all its threads, for each
                              batch, by the number of pools, which do nothing; a step takes a batch
                              of each
    trainer_copies_per_batch  places in memory, other than the batch's own in the object store,
                              where its rows are found after any operation of a step
    trainer_busy              what `Learner.step` says it took over the time that passed: steps of
                              about 100 ms, a faster pool
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch

from actors.driver import RayRunner
from benchmarks import harness
from benchmarks.copies import copies
from benchmarks.harness import say
from benchmarks.on_ray import DIGITS, WIDE, milliseconds, phase, rounded, some, started
from benchmarks.throughput import throughput
from benchmarks.trivial_actors import TrivialPool, TrivialServer, sharing


def overlap(pairs: int = 11, steps: int = 30) -> dict[str, Any]:
    """Measure `overlap_speedup`, from pairs of so many steps."""
    chains, transitions = 1024, 2
    sizes = (
        WIDE,
        "chains.pools=1",
        f"chains.per_pool={chains}",
        f"kernel.transitions={transitions}",
    )
    rows = 800
    for _ in range(2):  # towards as many positives as make a step as long as a round
        with started((*sizes, f"trainer.batch_size={rows}"), DIGITS) as (runner, config):
            cost = phase(runner, config, 12)
        rows = min(
            max(1, round((rows + chains) * cost.round_seconds / cost.step_seconds) - chains),
            1500,
        )
    same = (*sizes, f"trainer.batch_size={rows}")
    with (
        started(same, DIGITS) as (lock_step, its),
        started((*same, "trainer.lag=2"), DIGITS) as (overlapped, other),
    ):
        apart, together = harness.alternate(
            pairs,
            partial(phase, lock_step, its, steps),
            partial(phase, overlapped, other, steps),
        )
    speedups = harness.ratios(
        [one.steps_per_second for one in together], [one.steps_per_second for one in apart]
    )
    details = {
        "lock_step_ms": milliseconds(apart),
        "overlapped_ms": milliseconds(together),
        "speedups": speedups,
        "rows": rows,
    }
    ms = [rounded(milliseconds(phases)) for phases in (apart, together)]
    say(f"overlap: speedups {some(speedups)}; ms in lock-step {ms[0]}, overlapped {ms[1]}")
    return {"overlap_speedup": statistics.median(speedups), "overlap": details}


# positives, negatives and steps that are timed
BUSY = {"100 ms": (1400, 2600, 30), "30 ms": (350, 256, 100), "10 ms": (60, 64, 200)}


def busy(repeats: int = 3) -> dict[str, Any]:
    """Measure `trainer_busy`, and the same of shorter steps."""
    rows: dict[str, dict[str, Any]] = {}
    for name, (positives, negatives, steps) in BUSY.items():
        sizes = (
            f"trainer.batch_size={positives}",
            f"chains.per_pool={negatives}",
            "kernel.transitions=1",
            "chains.pools=1",
        )
        with started((WIDE, *sizes, "trainer.lag=3"), DIGITS) as (runner, config):
            phases = [phase(runner, config, steps) for _ in range(repeats)]
        shares = [p.busy for p in phases]
        rows[name] = {
            "busy": statistics.median(shares),
            "shares": shares,
            "ms": milliseconds(phases),
        }
        say(f"trainer busy, steps of about {name}: {some(shares)}; ms: {rounded(rows[name]['ms'])}")
    return {"trainer_busy": rows["100 ms"]["busy"], "busy": rows}


SHARED = (256, 1024)  # too many pools for a process each


def driver(
    pools: Sequence[int] = (1, 8, 64, *SHARED), repeats: int = 3, batches: int = 1000
) -> dict[str, Any]:
    """Measure `driver_ms_per_batch`, in three ways.

    "all" is of steps that take a batch of every pool, "one" of steps that take one batch, both as
    fast as they come. "paced" is of 128 batches a second, each of which wakes the driver.
    """
    rows: dict[str, dict[str, list[float]]] = {"all": {}, "one": {}, "paced": {}}
    for count in pools:
        sizes = (f"chains.pools={count}", "chains.per_pool=1", "trainer.lag=1")
        shared = sharing(4) if count in SHARED else nullcontext()
        with shared, started(sizes, (1,), TrivialPool, TrivialServer) as (runner, _):
            driver_time(runner, batches // 4)
            rows["all"][str(count)] = [
                driver_time(runner, max(batches, 4 * count)) for _ in range(repeats)
            ]
            if count not in SHARED:
                ray.get([member.actor.pace.remote(count / 128) for member in runner.pools.members])
                rows["paced"][str(count)] = [driver_time(runner, 384) for _ in range(repeats)]
        if 1 < count not in SHARED:
            with started((*sizes, "trainer.negatives=1"), (1,), TrivialPool, TrivialServer) as (
                runner,
                _,
            ):
                driver_time(runner, batches // 4)
                rows["one"][str(count)] = [driver_time(runner, batches) for _ in range(repeats)]
        known = {name: row[str(count)] for name, row in rows.items() if str(count) in row}
        say(
            f"driver, {count} pools, ms a batch: "
            + "; ".join(f"{name} {some(values)}" for name, values in known.items())
        )
    medians = {
        name: {count: statistics.median(values) for count, values in row.items()}
        for name, row in rows.items()
    }
    apart = {count: value for count, value in medians["all"].items() if int(count) not in SHARED}
    return {"driver_ms_per_batch": apart, "driver": {"ms_per_batch": medians, "repetitions": rows}}


def driver_time(runner: RayRunner, batches: int) -> float:
    """Return this process's processor time for each of so many batches, milliseconds."""
    seen, clock = 0, time.process_time()
    while seen < batches:
        seen += len(runner.step()[1])
    return 1e3 * (time.process_time() - clock) / seen


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    part.__name__: part for part in (throughput, overlap, driver, copies, busy)
}


def main() -> None:
    parser = harness.command_line(__doc__, "json")
    harness.add_only(parser, PARTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    path = Path(arguments.json or "-")
    known = path.exists() and len(arguments.only) < len(PARTS)
    figures: dict[str, Any] = json.loads(path.read_text()) if known else {"details": {}}
    figures["command"] = "python -m benchmarks.pipeline --json docs/pipeline_benchmark.json"
    details = figures["details"]
    details |= harness.conditions("ray", "torch")
    for name in arguments.only:
        clock = time.perf_counter()
        for key, value in PARTS[name]().items():
            (details if key in PARTS else figures)[key] = value
        say(f"  {name}: {time.perf_counter() - clock:.0f} s")
    ray.shutdown()
    harness.write(figures, arguments.json)


if __name__ == "__main__":
    main()
