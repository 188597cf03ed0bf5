"""What it costs to carry the algorithm through Ray: pools, object store, driver, trainer.

    python -m benchmarks.pipeline [--json [FILE]] [--only PART ...]

On one machine with a core for each process that computes and little else to do; about 5 minutes.
Ratios are medians over pairs of runs, one after the other, in this one process. With `--json` one
JSON object, into FILE or on the last line:

    throughput_ratio          negatives/s of two pools through Ray, to a server that does nothing with them, over those of two
                              bare loops: `benchmarks.loops.mala` in plain processes of the same
                              niceness, with a fresh gradient at each round's begin, nothing encoded
                              or sent
    throughput_ratio_of_processor_time  the same of processor time for a round: what a busy machine leaves of it
    overlap_speedup           steps/s of one pool and one trainer at a lag of 2 over those in lock-step, a round costing a step
    driver_ms_per_batch       processor time of the driver's process, all its threads, for each batch, by the number of pools,
                              which do nothing; a step takes a batch of each
    trainer_copies_per_batch  places in memory, other than the batch's own in the object store,
    where its rows are found after
                              any operation of a step
    trainer_busy              what `Learner.step` says it took over the time that passed: steps of about 100 ms, a faster pool
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import ray
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from actors.chain_pool import ChainPool
from actors.driver import RayRunner
from actors.parameter_server import ParameterServer
from benchmarks import loops
from benchmarks.kernels import functions
from benchmarks.trivial_actors import TrivialPool, TrivialServer, sharing
from pipeline.assembly.energies import make_energy
from pipeline.chains.batch import decode
from pipeline.common.process import keep_freed_memory
from pipeline.common.types import RoundReport, StepReport, Weights
from pipeline.config.compose import compose
from pipeline.config.run import RunConfig
from pipeline.energies.weights import flatten

say = partial(print, flush=True)
COMMON = (
    *(
        "trainer.min_ess=0",
        "chains.restart=0",
        "metrics.port=0",
        "optimizer.learning_rate=1e-6",
        "optimizer.warmup=0",
    ),
    *("optimizer.schedule=constant", "cluster.pool_cpus=0", "cluster.server_cpus=0"),
)
WIDE = "energy.hidden=[512,512]"
IMAGE, DIGITS, MOST_ROWS = (784,), (8, 8), 1500


class Phase(NamedTuple):
    """Steps that were timed: how many seconds passed, and the reports of them and their rounds."""

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
    """Medians."""
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
    """A runner of the default configuration with `overrides`, at its first step."""
    config = compose([*COMMON, *overrides])
    with tempfile.TemporaryDirectory() as output:
        runner = RayRunner(config, output, shape, pool=pool, server=server)
        try:
            runner.start(None, None)
            yield runner, config
        finally:
            runner.close()


def phase(runner: RayRunner, config: RunConfig, steps: int) -> Phase:
    """So many steps under way as in the middle of a run; at its end nothing is, and the cores are
    free.
    """
    for _ in range(config.trainer.lag + 2):  # what was there from before
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


POOLS, CHAINS, TRANSITIONS, STEP_SIZE = 2, 256, 40, 0.01
SAMPLING = (
    *(
        WIDE,
        f"chains.pools={POOLS}",
        f"chains.per_pool={CHAINS}",
        f"kernel.transitions={TRANSITIONS}",
    ),
    *(f"kernel.step_size={STEP_SIZE}", "trainer.lag=1"),
)


class IdleServer(TrivialServer):
    """Takes batches, does nothing with them, and publishes the same weights again as a new version."""

    def made(self, version: int) -> Weights:
        if not hasattr(self, "_flat"):
            self._flat = flatten(make_energy(self._config, IMAGE))
        return Weights(version, self._flat)

    def versions(self, batches: tuple[Any, ...]) -> tuple[int, ...]:
        return tuple(batch.column("version")[0].as_py() for batch in batches)


@cache
def bare_chains(niceness: int, seed: int) -> tuple[loops.Functions, torch.Generator, list[Tensor]]:
    """Energy, stream and chains of this process, which is made ready first."""
    os.setpriority(os.PRIO_PROCESS, 0, niceness)
    torch.set_num_threads(1)
    keep_freed_memory()
    energy, generator = make_energy(compose(SAMPLING), IMAGE), torch.Generator().manual_seed(seed)
    return functions(energy, None), generator, [energy.sample_base(CHAINS, generator)]


def bare(rounds: int, niceness: int, seed: int) -> tuple[float, float]:
    """Negatives a second of so many rounds, and the processor seconds of each."""
    of, generator, chains = bare_chains(niceness, seed)
    clock, spent = time.perf_counter(), time.process_time()
    for _ in range(rounds):
        (chains[0], _, _), _ = loops.mala(
            generator, (chains[0], *of.both(chains[0])), TRANSITIONS, of, STEP_SIZE
        )
    return rounds * CHAINS / (time.perf_counter() - clock), (time.process_time() - spent) / rounds


class TimedPool(ChainPool):
    """Tells what its process has used of the processor, in seconds."""

    def spent(self) -> float:
        return time.process_time()


def through_ray(runner: RayRunner, config: RunConfig, rounds: int) -> tuple[float, float]:
    """As `bare`, of pools and all that their processes do."""
    members = runner.pools.members
    before = (
        sum(ray.get([member.actor.spent.remote() for member in members])),
        sum(member.rounds for member in members),
    )
    speed = phase(runner, config, rounds).steps_per_second * config.negatives
    after = (
        sum(ray.get([member.actor.spent.remote() for member in members])),
        sum(member.rounds for member in members),
    )
    return speed, (after[0] - before[0]) / (after[1] - before[1])


def throughput(pairs: int = 7, seconds: float = 3.0) -> dict[str, Any]:
    spawn = multiprocessing.get_context("spawn")
    niceness = ray.get(ray.remote(num_cpus=0)(lambda: os.getpriority(os.PRIO_PROCESS, 0)).remote())
    ours, theirs, rounds = [], [], 2
    with ExitStack() as stack:
        processes = [stack.enter_context(ProcessPoolExecutor(1, spawn)) for _ in range(POOLS)]
        runner, config = stack.enter_context(started(SAMPLING, IMAGE, TimedPool, IdleServer))
        for number in range(pairs + 1):
            for mine in (True, False) if number % 2 else (False, True):
                if mine:
                    ours.append(through_ray(runner, config, rounds))
                else:
                    futures = [
                        each.submit(bare, rounds, niceness, seed)
                        for seed, each in enumerate(processes)
                    ]
                    speeds, spent = zip(*(future.result() for future in futures), strict=True)
                    theirs.append((sum(speeds), statistics.mean(spent)))
            # the first pair warms up
            rounds = (
                rounds
                if number
                else max(2, min(20, round(seconds * theirs[0][0] / CHAINS / POOLS)))
            )
    ratios = [a / b for (a, _), (b, _) in zip(ours[1:], theirs[1:], strict=True)]
    by_processor = [b / a for (_, a), (_, b) in zip(ours[1:], theirs[1:], strict=True)]
    say(
        f"throughput: {ours[-1][0]:.0f} negatives/s, ratios {_some(ratios)}; of processor time"
        f" {_some(by_processor)}"
    )
    return {
        "throughput_ratio": statistics.median(ratios),
        "throughput_ratio_of_processor_time": statistics.median(by_processor),
        "throughput": {
            "through_ray": ours[1:],
            "bare": theirs[1:],
            "unit": "negatives/s, processor seconds a round",
        },
    }


def overlap(pairs: int = 11, steps: int = 30) -> dict[str, Any]:
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
            MOST_ROWS,
        )
    same = (*sizes, f"trainer.batch_size={rows}")
    with (
        started(same, DIGITS) as (lock_step, its),
        started((*same, "trainer.lag=2"), DIGITS) as (overlapped, other),
    ):
        apart, together = [], []
        for _ in range(pairs):
            apart.append(phase(lock_step, its, steps))
            together.append(phase(overlapped, other, steps))
    speedups = [
        b.steps_per_second / a.steps_per_second for a, b in zip(apart, together, strict=True)
    ]
    details = {
        "lock_step_ms": milliseconds(apart),
        "overlapped_ms": milliseconds(together),
        "speedups": speedups,
        "rows": rows,
    }
    ms = [_rounded(milliseconds(phases)) for phases in (apart, together)]
    say(f"overlap: speedups {_some(speedups)}; ms in lock-step {ms[0]}, overlapped {ms[1]}")
    return {"overlap_speedup": statistics.median(speedups), "overlap": details}


# positives, negatives and steps that are timed
BUSY = {"100 ms": (1400, 2600, 30), "30 ms": (350, 256, 100), "10 ms": (60, 64, 200)}


def busy(repeats: int = 3) -> dict[str, Any]:
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
        say(
            f"trainer busy, steps of about {name}: {_some(shares)}; ms:"
            f" {_rounded(rows[name]['ms'])}"
        )
    return {"trainer_busy": rows["100 ms"]["busy"], "busy": rows}


SHARED = (256, 1024)  # too many pools for a process each


def driver(
    pools: Sequence[int] = (1, 8, 64, *SHARED), repeats: int = 3, batches: int = 1000
) -> dict[str, Any]:
    """Steps of a batch of every pool, and of `one`, as fast as they come; and 128 batches a second,
    each of which wakes it.
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
            + "; ".join(f"{name} {_some(values)}" for name, values in known.items())
        )
    medians = {
        name: {count: statistics.median(values) for count, values in row.items()}
        for name, row in rows.items()
    }
    apart = {count: value for count, value in medians["all"].items() if int(count) not in SHARED}
    return {"driver_ms_per_batch": apart, "driver": {"ms_per_batch": medians, "repetitions": rows}}


def driver_time(runner: RayRunner, batches: int) -> float:
    """Milliseconds of this process's processor time for each of so many batches."""
    seen, clock = 0, time.process_time()
    while seen < batches:
        seen += len(runner.step()[1])
    return 1e3 * (time.process_time() - clock) / seen


class Copies(TorchDispatchMode):
    """Where in memory, other than in their own, the `originals` [M, d] are found after any
    operation: what copied them, by the address of the copy. Tensors that are looked through are
    kept, so that no address is used twice.
    """

    def __init__(self, originals: Sequence[Tensor]) -> None:
        super().__init__()
        self._originals = originals
        self._kept: list[Tensor] = []
        self.found: list[dict[int, str]] = [{} for _ in originals]

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves((result, args)):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                for original, found in zip(self._originals, self.found, strict=True):
                    address = self._address(tensor, original)
                    if (
                        address is not None
                        and address != original.data_ptr()
                        and address not in found
                    ):
                        self._kept.append(tensor)
                        found[address] = str(function)
        return result

    def _address(self, tensor: Tensor, original: Tensor) -> int | None:
        """Where the rows begin within the tensor, if they are there, all in a piece."""
        rows, width = original.shape
        if (
            tensor.numel() < original.numel()
            or tensor.numel() % width
            or not tensor.is_contiguous()
        ):
            return None
        table = tensor.detach().view(-1, width)
        for first in (table == original[0].to(table)).all(1).nonzero().flatten().tolist():
            piece = table[first : first + rows]
            if len(piece) == rows and torch.equal(piece, original.to(table)):
                return piece.data_ptr()
        return None


def in_shared_memory(address: int) -> bool:
    """Whether the address is in the object store's mapping."""
    spans = [
        line.split(maxsplit=1)[0].split("-")
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "plasma" in line
    ]
    return any(int(first, 16) <= address < int(last, 16) for first, last in spans)


class Copied(NamedTuple):
    """What copied a batch, whether `decode` gave a view of its Arrow buffer, and whether that is in
    shared memory.
    """

    by: list[str]
    decoded_in_place: bool
    shared: bool


class WatchedServer(ParameterServer):
    """Steps under `Copies`."""

    def copied(self) -> list[Copied]:
        return self._copied

    def step(self, version: int, *batches: pa.RecordBatch) -> StepReport:
        originals = [decode(batch).position for batch in batches]
        with Copies(originals) as copies:
            result = super().step(version, *batches)
        self._copied = getattr(self, "_copied", [])
        for batch, original, found in zip(batches, originals, copies.found, strict=True):
            *_, values = batch.column("position").buffers()
            inside = values.address <= original.data_ptr() < values.address + values.size
            self._copied.append(
                Copied(list(found.values()), inside, in_shared_memory(values.address))
            )
        return result


def copies(steps: int = 4) -> dict[str, Any]:
    sizes = (
        "chains.pools=2",
        "chains.per_pool=1024",
        "trainer.batch_size=256",
        "trainer.lag=1",
        "kernel.transitions=1",
    )
    with started((WIDE, *sizes), DIGITS, server=WatchedServer) as (runner, _):
        for _ in range(steps):
            runner.step()
        rows: list[Copied] = ray.get(runner.servers.first.copied.remote())
    counts = [len(row.by) for row in rows]
    details: dict[str, Any] = {
        "batches": len(rows),
        "by": sorted({name for row in rows for name in row.by}),
    }
    details["decoded_in_place_in_shared_memory"] = all(
        row.decoded_in_place and row.shared for row in rows
    )
    say(f"copies: {counts}, {details}")
    return {"trainer_copies_per_batch": max(counts), "copies": details}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    part.__name__: part for part in (throughput, overlap, driver, copies, busy)
}


def _some(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 1) for name, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="the figures, in FILE or on the last line",
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, help="the other figures stay as they are in FILE"
    )
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
    figures: dict[str, Any] = (
        json.loads(path.read_text()) if arguments.only and path.exists() else {"details": {}}
    )
    figures["command"], details = (
        "python -m benchmarks.pipeline --json docs/pipeline_benchmark.json",
        figures["details"],
    )
    details |= {"machine": platform.machine(), "cores": os.cpu_count(), "ray": ray.__version__}
    for name in arguments.only or PARTS:
        clock = time.perf_counter()
        for key, value in PARTS[name]().items():
            (details if key in PARTS else figures)[key] = value
        say(f"  {name}: {time.perf_counter() - clock:.0f} s")
    ray.shutdown()
    if arguments.json == "-":
        print(json.dumps(figures))
    elif arguments.json:
        path.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
