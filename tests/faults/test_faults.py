"""Pools that die in the middle of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
import torch

from pipeline.assembly.energies import make_energy
from pipeline.chains.batch import decode
from pipeline.common.types import Flow
from pipeline.runs.inline import InlineRunner
from pipeline.storage import parts
from pipeline.storage.store import CheckpointStore
from tests.faults.processes import Small, Start, kill, step_until, wait_until_back

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.mark.parametrize("lag", [0, 4])
def test_a_pool_that_dies_comes_back_while_the_others_go_on(
    small: Small, start: Start, lag: int
) -> None:
    """In lock-step and with lag: the loss is counted once, steps go on, the pool returns with the
    chains it last sent.
    """
    runner = start(small("deep", "kernel=random_walk", f"trainer.lag={lag}", "chains.restart=0"))
    for _ in range(5):
        runner.step()
    kill(runner.pools.members[1].actor)
    steps = step_until(
        runner, lambda rounds: any(r.pool == 1 and r.incarnation == 1 for r in rounds)
    )
    assert sum(flow.restarts.get("pool", 0) for _, _, flow in steps) == 1
    alone = [rounds for _, rounds, _ in steps if {r.pool for r in rounds} == {0}]
    assert alone, "no step was taken while the pool was away"
    assert [report.version for report, _, _ in steps] == list(range(6, 6 + len(steps)))
    returned = next(
        r for _, rounds, _ in steps for r in rounds if r.pool == 1 and r.incarnation == 1
    )
    assert returned.round >= 5, "the chains were started over"
    assert returned.tuning["steps"]["updates"] > 5, "their tuning was started over"


def test_a_death_that_nobody_saw_is_found_out(small: Small, start: Start, tmp_path: Path) -> None:
    """Killed while idle and back before the next call: fresh chains, or an untrained model, must
    not pass for the old ones.
    """
    config = small("deep", "chains.restart=0")
    runner = start(config)
    for _ in range(4):
        runner.step()
    store = CheckpointStore(str(tmp_path), 3)
    store.commit(4, runner.save(store.folder(4)), config, make_energy(config, (8, 8)))
    for actor in (runner.pools.members[0].actor, runner.servers.first):
        kill(actor)
        wait_until_back(actor)
    steps = step_until(
        runner, lambda rounds: any(r.pool == 0 and r.incarnation == 1 for r in rounds)
    )
    assert steps[0][0].version == 5
    assert sum(flow.restarts.get("parameter_server", 0) for _, _, flow in steps) == 1
    kill(runner.pools.members[0].actor)
    wait_until_back(runner.pools.members[0].actor)
    runner.save(store.folder(steps[-1][0].version))
    chains = store.folder(steps[-1][0].version) + "/pool-0.safetensors"
    assert parts.decode(Path(chains).read_bytes())["incarnation"] == 2


def test_when_every_pool_dies_the_run_waits_for_them(small: Small, start: Start) -> None:
    """And tells meanwhile that they are gone, and that they are being restarted: no step would."""
    told: list[Flow] = []
    runner = start(small("deep", "chains.min_pools=2"), watch=told.append)
    assert told[-1].pools == 2, "they came before the first step"
    for _ in range(3):
        assert runner.step()[2].pools == 2
    told.clear()
    for pool in runner.pools.members:
        kill(pool.actor)
    report, rounds, flow = runner.step()
    assert report.version == 4
    assert {round.incarnation for round in rounds} == {1}
    assert told[0].pools < 2
    assert min(flow.pools for flow in told) == 0
    assert (told[-1].pools, flow.pools) == (2, 2)
    assert sum(flow.restarts.get("pool", 0) for flow in told) == 2
    assert not flow.restarts, "told twice"


def test_a_checkpoint_is_whole_while_a_pool_is_away(
    small: Small, start: Start, tmp_path: Path
) -> None:
    """The absent pool's part holds the chains of the newest batch it sent, and the run can be
    resumed from it.
    """
    config = small("deep", "chains.restart=0")
    runner = start(config)
    runner.step()
    kill(runner.pools.members[0].actor)
    runner.step()
    last = decode(ray.get(runner.pools.members[0].last)).position
    store = CheckpointStore(str(tmp_path), 3)
    checkpoint = store.commit(2, runner.save(store.folder(2)), config, make_energy(config, (8, 8)))
    assert set(checkpoint.manifest.parts) == {
        "pool-0.safetensors",
        "pool-1.safetensors",
        "learner.safetensors",
        "energy.safetensors",
    }
    part = checkpoint.read("pool-0")
    assert part["incarnation"] == 1
    assert torch.equal(part["position"].flatten(1), last)
    resumed = InlineRunner(config)
    resumed.start(store.latest(), None)
    assert resumed.step()[0].version == 3


def test_every_pool_has_its_turn(small: Small, start: Start) -> None:
    """First come, one batch a step, more pools than may be in flight: none is starved."""
    runner = start(
        small(
            "deep", "chains.pools=4", "trainer.lag=1", "trainer.negatives=8", "trainer.min_ess=0.0"
        )
    )
    served = {round.pool for _ in range(24) for round in runner.step()[1]}
    assert served == {0, 1, 2, 3}


def test_lags_stay_within_the_bound(small: Small, start: Start) -> None:
    """First come, first served, one pool's batch a step: nothing older than the bound is learned
    from.
    """
    runner = start(small("deep", "trainer.lag=2", "trainer.negatives=8", "trainer.min_ess=0.0"))
    lags = [lag for _ in range(60) for lag in runner.step()[0].lags]
    assert max(lags) <= 2
    assert max(lags) > 0, "nothing overlapped: the test shows nothing"
