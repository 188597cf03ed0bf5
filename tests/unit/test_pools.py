"""Pools that join, hang, move and die, as the driver deals with them: actors are stand-ins whose
calls wait for the test to answer them, and the clock is the test's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
from ray.exceptions import RayActorError

from actors import pools
from actors.pools import RETRY_SECONDS, Life, PoolMember, PoolRoster
from pipeline.common.errors import ServerOutOfStepError
from pipeline.config.run import RunConfig

Small = Callable[..., RunConfig]
TIMEOUT = 120.0
FOUR = (
    "chains.pools=4",
    "chains.min_pools=3",
    "trainer.lag=2",
    "trainer.min_ess=0.0",
    f"cluster.pool_timeout={TIMEOUT}",
)


class Stored(NamedTuple):
    """The newest checkpoint, by what the driver reads in it: four pools' chains."""

    pools: Sequence[int] = range(4)
    per_pool: int = 8
    step: int = 5


class Call:
    """A call of an actor's method, or one of its two results."""

    def __init__(self, actor: str, method: str, arguments: tuple[Any, ...]) -> None:
        self.actor, self.method, self.arguments = actor, method, arguments
        self.answer: Any = None


class Actor:
    """Methods that remember that they were called."""

    def __init__(self, name: str, world: World) -> None:
        self.name, self._world = name, world

    def __getattr__(self, method: str) -> Any:
        return Method(self.name, method, self._world)


class Method:
    def __init__(self, actor: str, name: str, world: World) -> None:
        self._actor, self._name, self._world = actor, name, world

    def remote(self, *arguments: Any) -> Any:
        calls = [Call(self._actor, self._name, arguments) for _ in range(2)]
        self._world.calls.append(calls[0])
        return tuple(calls) if self._name in ("advance", "keep") else calls[0]


class World:
    """The functions of Ray that a roster calls, and the time; it is the parameter server too."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.killed: list[str] = []
        self.draining: set[str] = set()
        self.now, self.newcomers = 0.0, "snapshot"
        self.checkpoint: Stored | None = None
        self.first, self.nodes = Actor("server", self), {"head"}

    def monotonic(self) -> float:
        return self.now

    def rows_for(self, pool: int, incarnation: int) -> Any:
        at_rows = self.newcomers == "data"
        return self.first.rows_for_pool.remote(pool, incarnation) if at_rows else None

    def remote(self, **_: Any) -> Any:
        return lambda _: self

    def options(self, **_: Any) -> Any:
        class Class:
            @staticmethod
            def remote(_config: Any, _shape: Any, number: int, _context: Any) -> Actor:
                return Actor(f"pool {number}", self)

        return Class

    def kill(self, actor: Actor, **_: Any) -> None:
        self.killed.append(actor.name)

    @staticmethod
    def ready(call: Call) -> bool:
        return call.answer is not None

    def wait(self, calls: list[Call], **_: Any) -> tuple[list[Call], list[Call]]:
        return [call for call in calls if self.ready(call)], []

    @staticmethod
    def get(call: Call, _timeout: float, _what: str) -> Any:
        if isinstance(call.answer, Exception):
            raise call.answer
        return call.answer

    def newest(self, actor: str) -> Call:
        return next(call for call in reversed(self.calls) if call.actor == actor)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    for name in ("ray", "time"):
        monkeypatch.setattr(pools, name, world)
    for name in ("get", "ready"):
        monkeypatch.setattr(pools, name, getattr(world, name))
    monkeypatch.setattr(pools, "draining_nodes", lambda: world.draining)
    return world


def roster_of(config: RunConfig, world: World, there: int = 4) -> PoolRoster:
    """One whose first pools have joined: the run has begun."""
    options: list[dict[str, Any]] = [{} for _ in range(config.most_pools)]
    world.newcomers = config.chains.newcomers
    arguments: Any = (world, object, ((8, 8), None), options, lambda: world.checkpoint)
    roster = PoolRoster(config, *arguments)
    roster.start(None)
    for pool in roster.members[:there]:
        pool.joining.answer = (0, 0, f"node {pool.number}")  # type: ignore[union-attr]
    roster.await_first(1.0)
    assert [pool.life for pool in roster.members].count(Life.THERE) == there
    return roster


class Report:
    """A pool's report, by what the driver reads in it."""

    def __init__(self, round: int, seconds: float = 0.1) -> None:
        self.round, self.seconds, self.tuning = round, seconds, {"of round": round}


def ask(roster: PoolRoster, pool: PoolMember, start: Any = None) -> Call:
    """One round of the pool; the reference of its report."""
    roster.ask(pool, None, 0, "weights", start)
    return list(roster.rounds)[-1]


def answer(roster: PoolRoster, pool: PoolMember) -> Any:
    """One round that is asked for and comes in; the reference of its batch."""
    report = ask(roster, pool)
    report.answer = Report(pool.rounds - 1)
    roster.collect(0)
    return pool.last


@pytest.mark.parametrize("newcomers", ["snapshot", "data", "noise"])
def test_a_newcomer_begins_where_the_configuration_says(
    small: Small, world: World, newcomers: str
) -> None:
    """The fourth of four joins a run under way: with the newest batch of another pool, at data
    rows, or at noise.
    """
    roster = roster_of(small("deep", *FOUR, f"chains.newcomers={newcomers}"), world, there=3)
    for pool in (0, 1, 2, 1):
        answer(roster, roster.members[pool])
    newcomer = roster.members[3]
    newcomer.joining.answer = (0, 0, "node 3")  # with nothing, as the run began
    roster.look_after()
    told = world.newest("pool 3")
    assert (told.method, told.arguments[:2]) == ("revive", (0, 0))
    last, rows, tuning, _ = told.arguments[2:]
    # chains that are another's have the other's tuning
    assert tuning == ({"of round": 1} if newcomers == "snapshot" else None)
    assert last is (roster.members[1].last if newcomers == "snapshot" else None)
    assert (getattr(rows, "method", None) == "rows_for_pool") == (newcomers == "data")
    assert not newcomer.available
    told.answer = (0, 0, "node 3")
    roster.look_after()
    assert newcomer.available
    assert not roster.restarts


def test_a_pool_that_dies_takes_up_its_own_newest_batch(small: Small, world: World) -> None:
    roster = roster_of(small("deep", *FOUR), world)
    pool, other = roster.members[:2]
    last = answer(roster, pool)
    answer(roster, other)
    first, second = ask(roster, pool), ask(roster, pool)
    first.answer = second.answer = RayActorError()
    roster.collect(0)
    told = world.newest("pool 0")
    assert (told.method, told.arguments) == (
        "revive",
        (1, 3, last, None, {"of round": 0}, None),
    )
    assert roster.restarts == {"pool": 1}
    assert roster.dropped == {"pool_died": 2}
    assert not roster.rounds
    told.answer = RayActorError()  # its process is not up yet
    roster.look_after()
    assert pool.life is Life.GONE
    asked = len(world.calls)
    roster.look_after()
    assert len(world.calls) == asked, "asked again at once"
    world.now += RETRY_SECONDS
    roster.look_after()
    world.newest("pool 0").answer = (3, 1, "elsewhere")
    roster.look_after()
    assert (pool.available, pool.incarnation, pool.rounds, pool.node) == (True, 1, 3, "elsewhere")
    assert roster.restarts == {"pool": 1}, "one death is one restart"


@pytest.mark.parametrize("stored", [None, Stored()])
def test_a_pool_that_dies_before_its_first_batch_takes_up_its_stored_chains(
    small: Small, world: World, stored: Stored | None
) -> None:
    """Others have sent batches, at which it would begin as a newcomer."""
    world.checkpoint = stored
    roster = roster_of(small("deep", *FOUR, "chains.newcomers=snapshot"), world)
    newest = answer(roster, roster.members[1])
    ask(roster, roster.members[0]).answer = RayActorError()
    roster.collect(0)
    last, _, _, checkpoint = world.newest("pool 0").arguments[2:]
    assert (last, checkpoint) == ((newest, None) if stored is None else (None, stored))


def test_a_pool_that_hangs_is_restarted_when_its_time_is_over(small: Small, world: World) -> None:
    roster = roster_of(small("deep", *FOUR), world)
    ask(roster, roster.members[2])
    world.now += TIMEOUT
    roster.look_after()
    assert world.killed == []
    world.now += 1.0
    roster.look_after()
    assert world.killed == ["pool 2"]
    assert roster.members[2].life is Life.JOINING
    assert roster.restarts == {"pool": 1}


def test_pools_that_wait_for_rows_do_not_hang(small: Small, world: World) -> None:
    """Rows come from the parameter server, which may be at one step for longer than a pool may be
    at one round.
    """
    roster = roster_of(small("deep", *FOUR), world)
    pool, rows = roster.members[0], Call("server", "deal", ())
    answer(roster, pool)
    report = ask(roster, pool, start=rows)
    world.now += 10 * TIMEOUT
    roster.collect(0)
    roster.look_after()
    assert 0 in roster.fleet.responsive(world.now)
    assert world.killed == []
    rows.answer = "rows"
    roster.collect(0)
    world.now += TIMEOUT - 1.0
    roster.look_after()
    assert world.killed == []
    world.now += 2.0  # from now on it is the pool that takes so long
    roster.look_after()
    assert world.killed == ["pool 0"]
    assert report not in roster.rounds


def test_a_round_that_came_in_while_the_driver_was_busy_is_no_hang(
    small: Small, world: World
) -> None:
    roster = roster_of(small("deep", *FOUR), world)
    report = ask(roster, roster.members[0])
    report.answer = Report(0)
    world.now += 10 * TIMEOUT
    roster.look_after()
    assert world.killed == []
    assert [batch.pool for batch in roster.fleet.finished] == [0]


def test_rounds_that_fail_for_want_of_the_parameter_server_are_not_the_pools_loss(
    small: Small, world: World
) -> None:
    """All rounds are given up then, and a pool that was at one says where it stands."""
    roster = roster_of(small("deep", *FOUR), world)
    answer(roster, roster.members[1])
    ask(roster, roster.members[0]).answer = ServerOutOfStepError("at the beginning")
    with pytest.raises(ServerOutOfStepError):
        roster.collect(0)
    assert roster.forget_rounds() == 2
    assert not roster.restarts
    assert (roster.rounds, roster.fleet.finished) == ({}, [])
    assert [pool.life for pool in roster.members] == [Life.JOINING, *[Life.THERE] * 3]
    world.newest("pool 0").answer = (0, 0, "node 0")  # the round was never made
    roster.look_after()
    assert roster.members[0].available
    assert roster.members[0].rounds == 0


def test_a_pool_moves_with_its_chains_before_its_node_leaves(small: Small, world: World) -> None:
    roster = roster_of(small("deep", *FOUR), world)
    pool = roster.members[3]
    report = ask(roster, pool)
    world.draining, world.now = {"node 3"}, world.now + 2.0
    roster.look_after()
    handed = world.newest("pool 3")
    assert (handed.method, handed.arguments, pool.life) == ("hand_over", (1,), Life.LEAVING)
    report.answer, handed.answer = Report(0), "chains"
    roster.collect(0)
    roster.look_after()
    assert world.newest("server").method == "keep"
    assert world.killed == []
    pool.leaving.answer = True  # type: ignore[union-attr]
    roster.look_after()
    assert world.killed == ["pool 3"]
    told = world.newest("pool 3")
    assert told.method == "take_over"
    told.answer = (1, 0, "another node")
    roster.look_after()
    assert (pool.available, pool.incarnation, pool.rounds) == (True, 0, 1)
    assert (roster.handovers, dict(roster.restarts)) == (1, {})


def test_a_process_of_whose_birth_nobody_knew_is_a_death(small: Small, world: World) -> None:
    """It says that it stands at the beginning, though rounds of it are done."""
    roster = roster_of(small("deep", *FOUR), world)
    pool = roster.members[0]
    last = answer(roster, pool)
    ask(roster, pool)
    roster.forget_rounds()
    world.newest("pool 0").answer = (0, 0, "node 0")
    roster.look_after()
    assert roster.restarts == {"pool": 1}
    assert world.newest("pool 0").arguments == (1, 2, last, None, {"of round": 0}, None)
