"""What is in flight is bounded, and nobody waits for a pool that is slow, hangs or is away."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray._private.internal_api import memory_summary

from actors.chain_pool import ChainPool, PoolStatus
from actors.driver import RayRunner
from actors.parameter_server import ParameterServer
from pipeline.assembly.data import open_data
from pipeline.assembly.energies import make_energy
from pipeline.chains.batch import decode
from pipeline.common.types import RoundReport, Rows, StepReport, Weights
from pipeline.config.run import RunConfig
from pipeline.runs.inline import InlineRunner
from pipeline.storage.checkpoint import CheckpointStore
from tests.faults.test_faults import kill, step_until

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
Small = Callable[..., RunConfig]
Start = Callable[..., RayRunner]
FOUR = (
    "chains.pools=4",
    "cluster.pool_cpus=0.25",
    "trainer.lag=2",
    "trainer.min_ess=0.0",
    "chains.restart=0",
)
ROUND_SECONDS = 0.01


class QuickPool(ChainPool):
    """Takes 10 ms for a round, whatever the machine does."""

    @ray.method(num_returns=2)
    def advance(
        self, round: int, weights: Weights, start: Rows | None = None
    ) -> tuple[pa.RecordBatch, RoundReport]:
        time.sleep(ROUND_SECONDS)
        return super().advance(round, weights, start)


class SlowServer(ParameterServer):
    """A hundred times slower."""

    def step(self, version: int, *batches: pa.RecordBatch) -> StepReport:
        time.sleep(100 * ROUND_SECONDS)
        return super().step(version, *batches)


class LastHangs(ChainPool):
    """PoolMember 3 hangs at its second round, as long as it is its first incarnation."""

    @ray.method(num_returns=2)
    def advance(
        self, round: int, weights: Weights, start: Rows | None = None
    ) -> tuple[pa.RecordBatch, RoundReport]:
        if self._pool == 3 and round >= 1 and self._chains.incarnation == 0:
            time.sleep(3600)
        return super().advance(round, weights, start)


class LastIsSlow(QuickPool):
    """PoolMember 3 takes fifty times as long as the others."""

    @ray.method(num_returns=2)
    def advance(
        self, round: int, weights: Weights, start: Rows | None = None
    ) -> tuple[pa.RecordBatch, RoundReport]:
        slow = 50 * ROUND_SECONDS if self._pool == 3 else 0.0
        time.sleep(slow)
        batch, report = super().advance(round, weights, start)
        return batch, report._replace(seconds=report.seconds + ROUND_SECONDS + slow)


class LastComesLate(ChainPool):
    """PoolMember 3 is not there for a while, as when a node for it must be found."""

    def begin(self) -> PoolStatus:
        if self._pool == 3 and self._chains.round == 0 and self._chains.incarnation == 0:
            time.sleep(6)
        return super().begin()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    runners: list[RayRunner] = []

    def make(config: RunConfig, **classes: Any) -> RayRunner:
        data = open_data(config)
        runners.append(RayRunner(config, str(tmp_path), data.shape, data.context_shape, **classes))
        runners[-1].start(None, None)
        return runners[-1]

    yield make
    for runner in runners:
        runner.close()


def store_bytes() -> float:
    """What lies in the object store, in bytes, by Ray's own account."""
    said = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
    line = next(line for line in said.splitlines() if line.startswith("Plasma memory usage"))
    return float(line.split()[3]) * 2**20


@pytest.mark.parametrize("inflight", [None, 1])
def test_a_trainer_a_hundred_times_slower_piles_nothing_up(
    small: Small, start: Start, inflight: int | None
) -> None:
    """Batches that exist at once: at most those of lag + 1 steps, and of `inflight` for each pool;
    so the store stays small.
    """
    big = (
        "chains.per_pool=3000",
        "trainer.batch_size=16",
        f"trainer.inflight={'null' if inflight is None else inflight}",
    )
    config = small("deep", *FOUR, *big, "kernel.transitions=1")
    runner = start(config, pool=QuickPool, server=SlowServer)
    batch = 3000 * (64 * 4 + 40)
    before, most = (
        store_bytes(),
        config.batches_per_step * (config.trainer.lag + 1) if inflight is None else 4 * inflight,
    )
    for _ in range(5):
        report, rounds, _ = runner.step()
        assert len(rounds) == 4
        assert max(report.lags) <= 2
        time.sleep(
            0.2
        )  # by then every pool has answered what it was asked, and would have answered more
        made = sum(pool.rounds for pool in runner.pools.members)
        assert made - 4 * report.version <= most
        # a step's own batches may still be there when the next ones are, and so may weights, which
        # are small here
        assert store_bytes() - before < (most + 4) * batch * 1.2
    assert made > 20, "the pools were idle: the test shows nothing"


def test_a_pool_that_hangs_slows_nobody(small: Small, start: Start) -> None:
    """One of four sleeps for an hour: steps go on with full batches of the others, a checkpoint is
    written without it.
    """
    config = small("deep", *FOUR, "cluster.pool_timeout=3600", "cluster.timeout=60")
    runner = start(config, pool=LastHangs)
    step_until(
        runner, lambda rounds: any(round.pool == 3 for round in rounds)
    )  # its first round, the only one
    late = [runner.step() for _ in range(20)]
    assert {round.pool for _, rounds, _ in late for round in rounds} == {0, 1, 2}
    assert any(len(rounds) == 4 for _, rounds, _ in late), (
        "steps are smaller than those of four pools"
    )
    store = CheckpointStore(runner._store._root.removesuffix("/checkpoints"), 3)
    at = late[-1][0].version
    checkpoint = store.commit(
        at, runner.save(store.folder(at)), config, make_energy(config, (8, 8))
    )
    assert checkpoint.read("pool-3.pt")["incarnation"] == 1, (
        "a resumed run would draw the numbers that were drawn before"
    )
    resumed = InlineRunner(config)
    resumed.start(checkpoint, None)
    assert resumed.step()[0].version == at + 1


def test_steered_to_lock_step_a_pool_that_hangs_is_done_without(small: Small, start: Start) -> None:
    """With a bound of 0 every pool has one round: the step does not wait for the one that never
    comes.
    """
    config = small("deep", *FOUR, "cluster.pool_timeout=3600", "cluster.timeout=60")
    runner = start(config, pool=LastHangs)
    for _ in range(12):
        runner._lag_bound = 0
        report, rounds, _ = runner.step()
    assert {round.pool for round in rounds} <= {0, 1, 2}
    assert set(report.lags) == {0}


def test_what_a_slow_pool_brings_too_late_is_counted_and_its_chains_go_on(
    small: Small, start: Start
) -> None:
    """Nothing older than the bound is learned from; the pool is asked again, and goes on with its
    next round.
    """
    runner = start(small("deep", *FOUR, "trainer.inflight=1"), pool=LastIsSlow)
    steps, stale = [], 0
    while stale < 2:
        steps.append(runner.step())
        stale += steps[-1][2].dropped.get("stale", 0)
        assert len(steps) < 2000
    assert max(lag for report, _, _ in steps for lag in report.lags) <= 2
    slow = runner.pools.members[3]
    assert slow.rounds >= 2
    assert slow.incarnation == 0
    assert sum(sum(flow.restarts.values()) for _, _, flow in steps) == 0


@pytest.mark.parametrize("lag", [0, 2])
def test_a_pool_that_hangs_is_restarted(small: Small, start: Start, lag: int) -> None:
    """In lock-step too, where the others must wait for it until then."""
    config = small("deep", *FOUR, f"trainer.lag={lag}", "cluster.pool_timeout=4")
    runner = start(config, pool=LastHangs)
    steps = step_until(
        runner, lambda rounds: any(r.pool == 3 and r.incarnation == 1 for r in rounds)
    )
    assert sum(flow.restarts.get("pool", 0) for _, _, flow in steps) == 1


def test_steps_do_not_wait_for_pools_beyond_the_least(small: Small, start: Start) -> None:
    """Three of four are enough to begin with; the fourth joins a run under way with the newest
    chains of another pool.
    """
    config = small("deep", *FOUR, "chains.min_pools=3")
    runner = start(config, pool=LastComesLate)
    report, rounds, flow = runner.step()
    assert (report.version, flow.pools) == (1, 3)
    assert {round.pool for round in rounds} <= {0, 1, 2}
    step_until(runner, lambda rounds: any(r.pool == 3 for r in rounds))
    assert runner.step()[2].pools == 4


@pytest.mark.parametrize("newcomers", ["snapshot", "data", "noise"])
def test_where_a_newcomers_chains_begin(small: Small, start: Start, newcomers: str) -> None:
    """No transition but a step so small that chains stay where they began."""
    still = (
        "kernel.step_size=1e-12",
        "kernel.target_acceptance=null",
        f"chains.newcomers={newcomers}",
        "data.noise=0",
    )
    config = small("deep", *FOUR, "chains.min_pools=3", *still)
    runner = start(config, pool=LastComesLate)
    step_until(runner, lambda rounds: any(r.pool == 3 for r in rounds))
    begun = positions(runner, 3)
    others = [positions(runner, number) for number in range(3)]
    rows = open_data(config).sample.numpy().reshape(-1, 64)
    at_data = all((abs(rows - row).max(1) < 1e-3).any() for row in begun)
    at_others = any((abs(begun - other) < 1e-3).all() for other in others)
    assert (at_data, at_others) == (newcomers == "data", newcomers == "snapshot")


def positions(runner: RayRunner, pool: int) -> Any:
    return decode(ray.get(runner.pools.members[pool].last)).position.numpy().copy()


@pytest.mark.parametrize(
    "overrides", [["conditional"], ["conditional", "objective=cd", "trainer.lag=1"]]
)
def test_rows_ride_with_their_rounds(small: Small, start: Start, overrides: list[str]) -> None:
    """First come under contexts: a step learns from the very rows that its chains ran under,
    whichever came.
    """
    config = small(*overrides, "trainer.lag=1", "chains.pools=2", "cluster.pool_timeout=3600")
    assert config.batches_carry_rows
    runner = start(config)
    for _ in range(8):
        report, rounds, _ = runner.step()
        assert len(rounds) == config.batches_per_step
        assert max(report.lags) <= 1


RANKS = (
    "trainer.replicas=2",
    "cluster.server_cpus=0.25",
    "cluster.pool_cpus=0.25",
    "optimizer.name=sgd",
)


def test_two_ranks_learn_what_one_learns(small: Small, start: Start, tmp_path: Path) -> None:
    """Through Ray, in lock-step: same rows, same chains, the same weights to rounding, and one
    checkpoint for both.
    """
    config = small("deep", *RANKS)
    runner = start(config)
    alone = InlineRunner(small("deep", "optimizer.name=sgd"))
    alone.start(None, None)
    for _ in range(3):
        report, rounds, _ = runner.step()
        expected = alone.step()[0]
        assert report.negatives == expected.negatives == 16
        assert len(rounds) == len(report.lags) == 2
        assert report.loss == pytest.approx(expected.loss, rel=1e-4)
    found = ray.get(runner.servers.publish(3)).flat
    assert abs(found - alone._learner.publish().flat).max() < 1e-5
    store = CheckpointStore(str(tmp_path), 3)
    store.commit(3, runner.save(store.folder(3)), config, make_energy(config, (8, 8)))
    runner.step()
    kill(runner.servers.actors[1])
    report, _, flow = runner.step()
    assert report.version == 4, "what was checkpointed was lost"
    assert flow.restarts == {"parameter_server": 1}


class OneStepIsLost(ParameterServer):
    """At version 3, the first time, the second rank dies, and the first hears nothing of it."""

    def step(self, version: int, *batches: pa.RecordBatch) -> StepReport:
        seen = Path(str(self._config.output))
        if version == 3 and not (seen / f"{self._ranks.rank}").exists():
            (seen / f"{self._ranks.rank}").touch()
            if self._ranks.rank:
                os._exit(1)
            time.sleep(3600)
        return super().step(version, *batches)


def test_a_rank_that_dies_is_seen_though_the_first_one_hangs(
    small: Small, start: Start, tmp_path: Path
) -> None:
    runner = start(
        small("deep", *RANKS, "trainer.lag=2", f"output={tmp_path}", "cluster.timeout=60"),
        server=OneStepIsLost,
    )
    reports = [runner.step() for _ in range(4)]
    assert [report.version for report, _, _ in reports] == [1, 2, 3, 1]
    assert reports[-1][2].restarts == {"parameter_server": 1}


def test_two_ranks_go_on_when_fewer_pools_than_ranks_are_left(small: Small, start: Start) -> None:
    """One batch for two ranks: the one without learns from its positives, and weights are of all
    rows.
    """
    runner = start(small("deep", *RANKS))
    runner.step()
    kill(runner.pools.members[0].actor)
    report, rounds, _ = runner.step()
    assert [round.pool for round in rounds] == [1]
    assert report.negatives == 8
    step_until(runner, lambda rounds: len(rounds) == 2)
