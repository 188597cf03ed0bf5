"""Processes that die in the middle of a run."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from actors.driver import RayRunner
from pipeline.assembly.energies import make_energy
from pipeline.chains.batch import decode
from pipeline.common.types import RoundReport
from pipeline.config.run import RunConfig
from pipeline.runs.inline import InlineRunner
from pipeline.storage.checkpoint import CheckpointStore

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
Small = Callable[..., RunConfig]
PATIENCE = 90.0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[RunConfig], RayRunner]]:
    runners: list[RayRunner] = []

    def make(config: RunConfig) -> RayRunner:
        runner = RayRunner(config, str(tmp_path), (8, 8))
        runners.append(runner)
        runner.start(None, None)
        return runner

    yield make
    for runner in runners:
        runner.close()


def kill(actor: Any) -> None:
    """SIGKILL to the actor's process, and its end seen."""
    pid = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
            assert time.monotonic() < deadline


def step_until(
    runner: RayRunner, condition: Callable[[list[RoundReport]], bool]
) -> list[tuple[Any, Any, Any]]:
    """Steps until one satisfies the condition; all of them."""
    deadline, steps = time.monotonic() + PATIENCE, []
    while time.monotonic() < deadline:
        steps.append(runner.step())
        if condition(steps[-1][1]):
            return steps
    raise AssertionError(f"not within {PATIENCE} s and {len(steps)} steps")


@pytest.mark.parametrize("lag", [0, 4])
def test_a_pool_that_dies_comes_back_while_the_others_go_on(
    small: Small, start: Callable[..., RayRunner], lag: int
) -> None:
    """In lock-step and with lag: the loss is counted once, steps go on, the pool returns with the
    chains it last sent.
    """
    runner = start(small("deep", f"trainer.lag={lag}", "chains.restart=0"))
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


def test_a_death_that_nobody_saw_is_found_out(
    small: Small, start: Callable[..., RayRunner], tmp_path: Path
) -> None:
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
    chains = store.folder(steps[-1][0].version) + "/pool-0.pt"
    assert torch.load(chains, weights_only=True)["incarnation"] == 2


def wait_until_back(actor: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(ray.exceptions.RayActorError):
            ray.get(actor.__ray_call__.remote(lambda _: None))
            return
    raise AssertionError("the actor did not come back")


def test_when_every_pool_dies_the_run_waits_for_them(
    small: Small, start: Callable[..., RayRunner]
) -> None:
    runner = start(small("deep"))
    for _ in range(3):
        runner.step()
    for pool in runner.pools.members:
        kill(pool.actor)
    steps = step_until(
        runner, lambda rounds: {r.incarnation for r in rounds} == {1} and len(rounds) == 2
    )
    assert steps[-1][0].version == 3 + len(steps)
    assert sum(flow.restarts["pool"] for _, _, flow in steps if flow.restarts) == 2


@pytest.mark.parametrize(
    "overrides",
    [("trainer.lag=0",), ("trainer.lag=4",), ("trainer.lag=2", "objective=cd")],
    ids=str,
)
def test_a_parameter_server_that_dies_comes_back_from_its_checkpoint(
    small: Small, start: Callable[..., RayRunner], tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    """A checkpoint is not lost: steps go on from version 4, not from 0. Pools, which may wait for
    its weights, or for rows of it, are not taken for dead.
    """
    config = small("deep", *overrides)
    runner = start(config)
    for _ in range(4):
        runner.step()
    store = CheckpointStore(str(tmp_path), 3)
    store.commit(4, runner.save(store.folder(4)), config, make_energy(config, (8, 8)))
    for _ in range(3):
        runner.step()
    kill(runner.servers.first)
    report, _, flow = runner.step()
    assert report.version == 5
    assert flow.restarts == {"parameter_server": 1}
    steps = [runner.step() for _ in range(10)]
    assert steps[0][0].version == 6
    assert {round.incarnation for _, rounds, _ in steps for round in rounds} == {0}
    assert not any(flow.restarts for _, _, flow in steps)


def test_versions_that_nobody_asks_for_do_not_pile_up(
    small: Small, start: Callable[..., RayRunner]
) -> None:
    runner = start(small("deep", "objective=denoising"))
    for _ in range(5):
        runner.step()
    assert (
        ray.get(runner.servers.first.__ray_call__.remote(lambda server: len(server._published)))
        <= 2
    )


def test_a_parameter_server_without_a_checkpoint_begins_again(
    small: Small, start: Callable[..., RayRunner]
) -> None:
    runner = start(small("rbm"))
    runner.step()
    runner.step()
    kill(runner.servers.first)
    assert runner.step()[0].version == 1


def test_a_checkpoint_is_whole_while_a_pool_is_away(
    small: Small, start: Callable[..., RayRunner], tmp_path: Path
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
    assert set(checkpoint.manifest["parts"]) == {
        "pool-0.pt",
        "pool-1.pt",
        "learner.pt",
        "energy.pt",
    }
    part = checkpoint.read("pool-0.pt")
    assert part["incarnation"] == 1
    assert torch.equal(part["position"].flatten(1), last)
    resumed = InlineRunner(config)
    resumed.start(store.latest(), None)
    assert resumed.step()[0].version == 3


def test_every_pool_has_its_turn(small: Small, start: Callable[..., RayRunner]) -> None:
    """First come, one batch a step, more pools than may be in flight: none is starved."""
    runner = start(
        small(
            "deep", "chains.pools=4", "trainer.lag=1", "trainer.negatives=8", "trainer.min_ess=0.0"
        )
    )
    served = {round.pool for _ in range(24) for round in runner.step()[1]}
    assert served == {0, 1, 2, 3}


def test_lags_stay_within_the_bound(small: Small, start: Callable[..., RayRunner]) -> None:
    """First come, first served, one pool's batch a step: nothing older than the bound is learned
    from.
    """
    runner = start(small("deep", "trainer.lag=2", "trainer.negatives=8", "trainer.min_ess=0.0"))
    lags = [lag for _ in range(60) for lag in runner.step()[0].lags]
    assert max(lags) <= 2
    assert max(lags) > 0, "nothing overlapped: the test shows nothing"
