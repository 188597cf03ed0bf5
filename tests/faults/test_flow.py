"""What is in flight is bounded, and nobody waits for a pool that is slow, hangs or is away.

The rules are held to that in simulated time, by `tests/unit/test_policy.py` and
`tests/unit/test_pools.py`; here they deal with real processes.
"""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from ray._private.internal_api import memory_summary

from actors.chain_pool import ChainPool
from actors.parameter_server import ParameterServer
from pipeline.assembly.energies import make_energy
from pipeline.common.types import RoundReport, Rows, StepReport, Weights
from pipeline.runs.inline import InlineRunner
from pipeline.storage.store import CheckpointStore
from tests.faults.processes import Small, Start, step_until

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
FOUR = (
    "chains.pools=4",
    "cluster.pool_cpus=0.25",
    "trainer.lag=2",
    "trainer.min_ess=0.0",
    "chains.restart=0",
)
ROUND_SECONDS = 0.01
STEP_SECONDS = 3.0


class QuickPool(ChainPool):
    """Takes 10 ms for a round, whatever the machine does."""

    @ray.method(num_returns=2)
    def advance(
        self, round: int, weights: Weights, start: Rows | None = None
    ) -> tuple[pa.RecordBatch, RoundReport]:
        time.sleep(ROUND_SECONDS)
        return super().advance(round, weights, start)


class HundredfoldServer(ParameterServer):
    """A hundred times slower."""

    def step(self, version: int, *batches: pa.RecordBatch) -> StepReport:
        time.sleep(100 * ROUND_SECONDS)
        return super().step(version, *batches)


class SlowServer(ParameterServer):
    """Takes three seconds for a step."""

    def step(self, version: int, *batches: pa.RecordBatch) -> StepReport:
        time.sleep(STEP_SECONDS)
        return super().step(version, *batches)


class LastHangs(ChainPool):
    """Pool 3 hangs at its second round, as long as it is its first incarnation."""

    @ray.method(num_returns=2)
    def advance(
        self, round: int, weights: Weights, start: Rows | None = None
    ) -> tuple[pa.RecordBatch, RoundReport]:
        if self._number == 3 and round >= 1 and self._pool.incarnation == 0:
            time.sleep(3600)
        return super().advance(round, weights, start)


def store_bytes() -> float:
    """The size of everything in the object store, in bytes, by Ray's own account."""
    said = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
    line = next(line for line in said.splitlines() if line.startswith("Plasma memory usage"))
    return float(line.split()[3]) * 2**20


def test_a_trainer_a_hundred_times_slower_piles_nothing_up(small: Small, start: Start) -> None:
    """Batches that exist at once: at most those of lag + 1 steps; so the store stays small."""
    big = ("chains.per_pool=3000", "trainer.batch_size=16", "kernel.transitions=1")
    config = small("deep", *FOUR, *big)
    runner = start(config, pool=QuickPool, server=HundredfoldServer)
    batch = 3000 * (64 * 4 + 40)
    before, most = store_bytes(), config.batches_per_step * (config.trainer.lag + 1)
    for _ in range(5):
        report, rounds, _ = runner.step()
        assert len(rounds) == 4
        assert max(report.lags) <= 2
        # by then every pool has answered what it was asked, and would have answered more
        time.sleep(0.2)
        made = sum(pool.rounds for pool in runner.pools.members)
        assert made - 4 * report.version <= most
        # a step's own batches may still be there when the next ones are, and so may weights, which
        # are small here
        assert store_bytes() - before < (most + 4) * batch * 1.2
    assert made > 20, "the pools were idle: the test shows nothing"


def test_a_pool_that_hangs_slows_nobody_and_is_restarted(
    small: Small, start: Start, tmp_path: Path
) -> None:
    """One of four sleeps for an hour: steps go on with full batches of the others, a checkpoint is
    written without it, and when its time is over it comes back.
    """
    config = small("deep", *FOUR, "cluster.pool_timeout=3600", "cluster.timeout=60")
    runner = start(config, pool=LastHangs)
    # its first round, the only one
    step_until(runner, lambda rounds: any(round.pool == 3 for round in rounds))
    late = [runner.step() for _ in range(20)]
    assert {round.pool for _, rounds, _ in late for round in rounds} == {0, 1, 2}
    assert any(len(rounds) == 4 for _, rounds, _ in late), (
        "steps are smaller than those of four pools"
    )
    store, at = CheckpointStore(str(tmp_path), 3), late[-1][0].version
    checkpoint = store.commit(
        at, runner.save(store.folder(at)), config, make_energy(config, (8, 8))
    )
    assert checkpoint.read("pool-3")["incarnation"] == 1, (
        "a resumed run would draw the numbers that were drawn before"
    )
    resumed = InlineRunner(config)
    resumed.start(checkpoint, None)
    assert resumed.step()[0].version == at + 1
    cluster = config.cluster.model_copy(update={"pool_timeout": 2.0})
    runner.pools._config = config.model_copy(update={"cluster": cluster})
    steps = step_until(
        runner, lambda rounds: any(r.pool == 3 and r.incarnation == 1 for r in rounds)
    )
    assert sum(flow.restarts.get("pool", 0) for _, _, flow in steps) == 1


def test_pools_that_wait_for_a_long_step_are_not_taken_for_hung(small: Small, start: Start) -> None:
    """Under contexts, first come, rows ride with their rounds: pools get them from the parameter
    server, whose steps take twice as long as a pool may take to answer.
    """
    patience = f"cluster.pool_timeout={STEP_SECONDS / 2}"
    config = small("conditional", "trainer.lag=1", "chains.pools=2", patience)
    assert config.batches_carry_rows
    runner = start(config, server=SlowServer)
    steps = [runner.step() for _ in range(4)]
    assert not any(flow.restarts for _, _, flow in steps)
    for report, rounds, _ in steps:
        assert len(rounds) == config.batches_per_step
        assert {round.incarnation for round in rounds} == {0}
        assert max(report.lags) <= 1
