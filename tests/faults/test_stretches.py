"""Faults in the middle of a stretch, which the actors make among themselves."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from actors import stretches
from actors.chain_pool import ChainPool
from actors.driver import RayRunner
from actors.parameter_server import ParameterServer
from pipeline.assembly.energies import make_energy
from pipeline.common.types import RoundReport
from pipeline.storage.store import CheckpointStore
from tests.faults.processes import Small, Start
from tests.patience import PATIENCE
from tests.ray.reused import reused_processes

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
AT = 5
"""The step of the fault: the third of the third stretch."""
Steps = list[tuple[Any, list[RoundReport], Any]]


@pytest.fixture(autouse=True)
def _long_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1, 2, 4, ... steps, however slow the machine is."""
    monkeypatch.setattr(stretches, "SECONDS", 600.0)


@pytest.fixture(scope="module", autouse=True)
def _reused(local_ray: None) -> Iterator[None]:  # noqa: ARG001 - it comes first, and goes last
    """Each test ends with every process there, and the next one takes them."""
    with reused_processes():
        yield


def in_round(pool: ChainPool, fault: Callable[[], None]) -> None:
    """In the pool's process: has the fault in round `AT`."""
    advance = pool._pool.advance

    def faulty(*arguments: Any) -> Any:
        if pool._pool.round == AT:
            fault()
        return advance(*arguments)

    pool._pool.advance = faulty  # type: ignore[method-assign]


def in_step(server: ParameterServer, fault: Callable[[], None]) -> None:
    """In the parameter server's process: has the fault in step `AT`."""
    exchange = server._exchange

    def faulty(*arguments: Any) -> Any:
        if arguments[1] == AT:
            fault()
        return exchange(*arguments)

    server._exchange = faulty  # type: ignore[method-assign]


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stands_still() -> None:
    """With all its threads."""
    os.kill(os.getpid(), signal.SIGSTOP)


def besiege(server: ParameterServer) -> None:
    """In the parameter server's process: strangers come through its door first. One says nothing,
    another what it should not.
    """
    listen = server._lines.listen

    def listened(host: str) -> tuple[str, int]:
        address = listen(host)
        strangers = [socket.create_connection(address) for _ in range(2)]
        strangers[0].sendall(b"GET / HTTP/1.1\r\nHost: somebody else's\r\n\r\n")
        server.strangers = strangers  # type: ignore[attr-defined]
        return address

    server._lines.listen = listened  # type: ignore[method-assign]


def within(actor: Any, do: Callable[..., None], *arguments: Any) -> None:
    ray.get(actor.__ray_call__.remote(do, *arguments))


def stretch_until(runner: RayRunner, condition: Callable[[Steps], bool]) -> Steps:
    """Stretches of at most 8 steps until one satisfies the condition; all steps."""
    deadline, steps = time.monotonic() + PATIENCE, []
    while time.monotonic() < deadline:
        made = runner.stretch(8)
        steps += made
        if condition(made):
            return steps
    raise AssertionError(f"not within {PATIENCE} s and {len(steps)} steps")


def together(made: Steps) -> bool:
    """Whether it was a stretch of several steps, of both pools."""
    return len(made) > 1 and all({r.pool for r in rounds} == {0, 1} for _, rounds, _ in made)


def anew(made: Steps) -> bool:
    """And that, after pool 1 was started again."""
    return together(made) and all(r.incarnation == r.pool for r in made[0][1])


def restarts(steps: Steps, what: str) -> int:
    return sum(flow.restarts.get(what, 0) for _, _, flow in steps)


def dropped(steps: Steps) -> list[int]:
    return [count for _, _, flow in steps for count in flow.dropped.values() if count]


def test_a_pool_that_dies_in_a_stretch_comes_back(small: Small, start: Start) -> None:
    """The step goes on with the other's batch, and is the stretch's last. The pool returns with the
    chains of its last stretch; no batch is counted as dropped that was never made.
    """
    runner = start(small("deep", "chains.restart=0"))
    within(runner.pools.members[1].actor, in_round, dies)
    steps = stretch_until(runner, anew)
    assert [report.version for report, _, _ in steps] == list(range(1, 1 + len(steps)))
    assert [report.negatives for report, _, _ in steps][: AT + 1] == [16] * AT + [8]
    assert restarts(steps, "pool") == 1
    assert not dropped(steps)
    returned = next(r for _, rounds, _ in steps for r in rounds if r.incarnation == 1)
    assert returned.round == 3, "the chains were started over"


def test_when_all_pools_die_in_a_stretch_the_run_waits_for_them(small: Small, start: Start) -> None:
    runner = start(small("deep", "chains.restart=0", "chains.min_pools=2"))
    for pool in runner.pools.members:
        within(pool.actor, in_round, dies)
    steps = stretch_until(runner, lambda made: together(made) and made[0][1][0].incarnation == 1)
    assert [report.version for report, _, _ in steps] == list(range(1, 1 + len(steps)))
    assert {report.negatives for report, _, _ in steps} == {16}
    assert restarts(steps, "pool") == 2
    assert not dropped(steps)


def test_a_pool_that_hangs_in_a_stretch_is_replaced(
    small: Small, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever strangers come through the door."""
    monkeypatch.setattr(stretches, "GRACE_SECONDS", 1.0)
    runner = start(small("deep", "chains.restart=0", "cluster.pool_timeout=2"))
    within(runner.pools.members[1].actor, in_round, stands_still)
    within(runner.servers.first, besiege)
    steps = stretch_until(runner, anew)
    assert [report.version for report, _, _ in steps] == list(range(1, 1 + len(steps)))
    assert [report.negatives for report, _, _ in steps][: AT + 1] == [16] * AT + [8]
    assert restarts(steps, "pool") == 1
    assert restarts(steps, "parameter_server") == 0


def test_a_parameter_server_that_dies_in_a_stretch_comes_back(
    small: Small, start: Start, tmp_path: Path
) -> None:
    """From its newest checkpoint, while pools go on with their chains."""
    config = small("deep")
    runner = start(config)
    within(runner.servers.first, in_step, dies)
    steps = stretch_until(runner, lambda made: len(made) == 2)
    assert steps[-1][0].version == 3
    store = CheckpointStore(str(tmp_path), 3)
    store.commit(3, runner.save(store.folder(3)), config, make_energy(config, (8, 8)))
    assert runner.stretch(8) == []
    steps = stretch_until(runner, together)
    assert [report.version for report, _, _ in steps] == list(range(4, 4 + len(steps)))
    assert restarts(steps, "parameter_server") == 1
    assert restarts(steps, "pool") == 0
    assert {r.incarnation for _, rounds, _ in steps for r in rounds} == {0}
