"""The driver's choices, in simulated time: nothing here starts a process or waits for one."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from actors.policy import (
    LEAST_LATE_SECONDS,
    TRANSITIONS,
    Event,
    Fleet,
    Life,
    Rules,
    made_under,
    missing,
)
from benchmarks.flow import Setting, Simulation

ROUND_SECONDS = 0.01
FOUR = Rules(batches=4)
NOBODY_IS_LATE = 100 * LEAST_LATE_SECONDS


class Batch(NamedTuple):
    """As the driver's own, without its references."""

    pool: int
    version: int = 0
    step: int | None = None


def fleet_of(pools: int, there: int | None = None) -> Fleet[Batch]:
    """All of them sent for, and the first `there` of them joined."""
    fleet: Fleet[Batch] = Fleet(pools)
    for pool in range(pools):
        fleet.move(pool, Event.SENT_FOR)
    for pool in range(pools if there is None else there):
        fleet.move(pool, Event.JOINED)
    return fleet


def make(fleet: Fleet[Batch], pool: int, now: float, version: int = 0) -> None:
    """One whole round of a pool, that ends `now`."""
    fleet.ask(pool, now - ROUND_SECONDS)
    fleet.finish(Batch(pool, version), now, ROUND_SECONDS)


# -- the life of a pool ----------------------------------------------------------------------------


def test_policy_needs_no_ray() -> None:
    check = "import actors.policy, sys; print([m for m in ('ray', 'torch') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", check],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parent.parent.parent,
    )
    assert done.stdout.strip() == "[]"


def test_from_every_stage_of_its_life_a_pool_can_come_back() -> None:
    """The table has no dead end, and every stage and every event is in it."""
    following = {life: {to for (at, _), to in TRANSITIONS.items() if at is life} for life in Life}
    for life in Life:
        reached, new = {life}, {life}
        while new:
            new = set().union(*(following[at] for at in new)) - reached
            reached |= new
        assert reached == set(Life)
    assert {event for _, event in TRANSITIONS} == set(Event)


def test_a_process_may_be_lost_at_every_stage_but_when_it_is_gone() -> None:
    assert {at for at, event in TRANSITIONS if event is Event.LOST} == set(Life) - {Life.GONE}
    assert {
        to for (_, event), to in TRANSITIONS.items() if event in (Event.LOST, Event.HANDED_OVER)
    } == {Life.GONE}


def test_what_is_not_in_the_table_cannot_happen() -> None:
    for life, event in set(itertools.product(Life, Event)) - set(TRANSITIONS):
        fleet = fleet_of(1)
        fleet.life[0] = life
        with pytest.raises(AssertionError, match=life.name):
            fleet.move(0, event)
        assert fleet.life[0] == life


def test_only_a_pool_that_is_there_is_asked() -> None:
    for life in Life:
        fleet = fleet_of(1)
        fleet.life[0] = life
        asked = fleet.rounds_to_ask(FOUR, 2, 0.0)
        assert bool(asked) == (life in (Life.THERE, Life.LATE)), life
        assert len(fleet.available()) == (life in (Life.THERE, Life.LATE))


# -- who is late, and who hangs --------------------------------------------------------------------


def test_a_pool_is_late_until_its_round_comes() -> None:
    fleet = fleet_of(2)
    make(fleet, 0, 1.0)
    make(fleet, 1, 1.0)
    fleet.ask(1, 1.0)
    assert fleet.responsive(1.0 + LEAST_LATE_SECONDS).tolist() == [0, 1]
    assert fleet.responsive(1.01 + LEAST_LATE_SECONDS).tolist() == [0]
    assert fleet.life.tolist() == [Life.THERE, Life.LATE]
    fleet.finish(Batch(1), 2.0, ROUND_SECONDS)
    assert fleet.responsive(2.0).tolist() == [0, 1]
    fleet.ask(1, 2.0)
    fleet.finish(Batch(1), 3.0, 1.0)  # one that says itself that it was slow ...
    assert fleet.responsive(3.0).tolist() == [0, 1]
    fleet.ask(1, 3.0)  # ... keeps nobody waiting but with its next round
    assert fleet.responsive(3.0).tolist() == [0]


def test_lateness_goes_by_what_a_round_takes_on_average() -> None:
    fleet = fleet_of(2)
    fleet.ask(0, 0.0)
    fleet.ask(1, 0.0)
    assert fleet.responsive(1e6).tolist() == [0, 1], "nobody knows yet how long a round takes"
    fleet.finish(Batch(0), 1e6, 10.0)
    fleet.finish(Batch(1), 1e6, 10.0)
    fleet.ask(0, 1e6)
    assert fleet.responsive(1e6 + 39.9).tolist() == [0, 1]
    assert fleet.responsive(1e6 + 40.1).tolist() == [1]


def test_the_clock_of_a_round_begins_when_the_one_before_it_ends() -> None:
    fleet = fleet_of(1)
    fleet.ask(0, 0.0)
    fleet.ask(0, 0.0)
    fleet.finish(Batch(0), 100.0, 100.0)
    assert fleet.hung(219.0, 120.0) == []
    assert fleet.hung(221.0, 120.0) == [0]
    assert fleet.give_up(0) == 1
    assert fleet.hung(1e9, 120.0) == []


def test_time_that_a_pool_waits_for_the_parameter_server_does_not_count() -> None:
    """A step may take longer than `cluster.pool_timeout`: rounds whose rows come after it have not
    begun.
    """
    fleet = fleet_of(2)
    make(fleet, 0, 0.0)
    for pool in (0, 1, 1):
        fleet.ask(pool, 0.0, waits=True)
    assert fleet.hung(1000.0, 120.0) == []
    assert fleet.responsive(1000.0).tolist() == [0, 1]
    assert fleet.waiting_for_server() == [0, 1]
    fleet.begin(1, 1000.0)
    assert fleet.waiting_for_server() == [0]
    assert fleet.responsive(1001.0).tolist() == [0]
    assert fleet.hung(1119.0, 120.0) == []
    assert fleet.hung(1121.0, 120.0) == [1]
    fleet.finish(Batch(1), 1121.0, ROUND_SECONDS, waits=True)  # and so for the one behind it
    assert fleet.hung(5000.0, 120.0) == []
    assert fleet.waiting_for_server() == [0, 1]


# -- first come ------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_what_is_asked_fills_the_room_evenly(steps: int) -> None:
    fleet = fleet_of(4)
    asked = fleet.rounds_to_ask(FOUR, steps, 0.0)
    assert asked == [0, 1, 2, 3] * steps
    for pool in asked:
        fleet.ask(pool, 0.0)
    assert fleet.rounds_to_ask(FOUR, steps, 0.0) == []
    assert len(fleet.rounds_to_ask(FOUR, steps + 1, 0.0)) == 4
    assert fleet.rounds_to_ask(FOUR._replace(inflight=steps), steps + 1, 0.0) == []


def test_no_more_is_asked_than_the_steps_take() -> None:
    """Of more pools than batches a step: as many rounds as there is room for, of one pool each."""
    fleet = fleet_of(4)
    assert fleet.rounds_to_ask(Rules(2), 1, 0.0) == [0, 1]
    for pool in (0, 1):
        fleet.ask(pool, 0.0)
    assert fleet.rounds_to_ask(Rules(2), 1, 0.0) == []
    assert fleet.rounds_to_ask(Rules(2), 2, 0.0) == [2, 3]


def test_finished_batches_take_room_until_a_step_takes_them() -> None:
    fleet = fleet_of(4)
    for pool in range(4):
        make(fleet, pool, 1.0)
    assert fleet.rounds_to_ask(FOUR, 1, 1.0) == []
    assert fleet.rounds_to_ask(FOUR, 2, 1.0) == [0, 1, 2, 3]
    assert fleet.choose(FOUR, 0, 1.0) == [Batch(pool) for pool in range(4)]
    assert fleet.finished == []
    assert fleet.rounds_to_ask(FOUR, 1, 1.0) == [0, 1, 2, 3]


def test_every_pool_has_its_turn() -> None:
    """One batch a step, four pools, room for two rounds: none is starved, though ties go to the
    first.
    """
    fleet, rules, served = fleet_of(4), Rules(1), []
    for now in range(40):
        for pool in fleet.rounds_to_ask(rules, 2, now):
            fleet.ask(pool, now)
            fleet.finish(Batch(pool, now), now, ROUND_SECONDS)
        served += [batch.pool for batch in fleet.choose(rules, 1, now)]
    assert [served.count(pool) for pool in range(4)] == [10] * 4


@pytest.mark.parametrize("bound", [0, 2])
def test_nobody_waits_for_a_pool_that_hangs(bound: int) -> None:
    """Steered to lock-step every pool has one round: a step does with three batches. Under a bound
    above that steps are full, of the others' batches; what the hung one owes takes nobody's room.
    """
    fleet, now, taken = fleet_of(4), 10.0, []
    make(fleet, 3, now)
    fleet.finished.clear()
    for _ in range(bound + 1):
        fleet.ask(3, now)
    now += NOBODY_IS_LATE
    for version in range(20):
        now += ROUND_SECONDS
        for pool in fleet.rounds_to_ask(FOUR, bound + 1, now):
            fleet.ask(pool, now)
            fleet.finish(Batch(pool, version), now, ROUND_SECONDS)
        assert fleet.drop_stale(version, bound) == 0
        taken.append([batch.pool for batch in fleet.choose(FOUR, bound, now)])
    assert {len(step) for step in taken} == {4 if bound else 3}
    assert {pool for step in taken for pool in step} == {0, 1, 2}


def test_a_step_waits_for_the_least_number_of_pools_and_no_more() -> None:
    """Three of four are enough, late ones among them; with two there is no step, whatever waits."""
    rules = FOUR._replace(least=3)
    fleet = fleet_of(4, there=2)
    for pool in (0, 0, 1, 1):
        make(fleet, pool, 1.0)
    assert fleet.choose(rules, 2, 1.0) == []
    fleet.move(2, Event.JOINED)
    make(fleet, 2, 1.0)
    fleet.ask(2, 1.0)
    assert Life.LATE not in fleet.life
    assert [batch.pool for batch in fleet.choose(rules, 2, 9.0)] == [0, 0, 1, 1]
    assert fleet.life[2] == Life.LATE


def test_stale_batches_are_counted_and_never_chosen() -> None:
    fleet = fleet_of(2)
    for version in range(6):
        make(fleet, version % 2, 1.0, version)
    assert fleet.drop_stale(version=5, bound=2) == 3
    assert [batch.version for batch in fleet.choose(Rules(2), 2, 1.0)] == [3, 4]
    assert fleet.drop_stale(version=5, bound=0) == 0


@pytest.mark.parametrize("inflight", [None, 1])
def test_a_trainer_a_hundred_times_slower_piles_nothing_up(inflight: int | None) -> None:
    """Batches that exist at once: at most those of lag + 1 steps, and `inflight` for each pool."""
    slow = Setting(4, 4, 2, ROUND_SECONDS, 100 * ROUND_SECONDS, inflight, sigma=0.3)
    outcome = Simulation(slow).run(50)
    assert outcome.most_in_flight == (4 * 3 if inflight is None else 4)
    assert set(outcome.lags) <= {0, 1, 2}
    assert sum(outcome.lags.values()) == 50 * 4, "steps were not full"
    assert outcome.busy > 0.9
    assert outcome.dropped == 0


def test_a_pool_that_hangs_slows_nobody() -> None:
    """Steps are as many as three pools make, and full."""
    s = Setting(4, 4, 2, ROUND_SECONDS, ROUND_SECONDS, sigma=0.2)
    three = Simulation(s._replace(pools=3)).run(200)
    hung = Simulation(s._replace(slow_pools=1, slowness=1e9)).run(200)
    assert hung.steps_per_second > 0.95 * three.steps_per_second
    assert sum(hung.lags.values()) == 200 * 4


def test_what_a_slow_pool_brings_too_late_is_dropped() -> None:
    """Nothing older than the bound is learned from; the pool is asked again all the same."""
    s = Setting(4, 4, 2, ROUND_SECONDS, ROUND_SECONDS, 1, slow_pools=1, slowness=50.0)
    outcome = Simulation(s).run(500)
    assert max(outcome.lags) <= 2
    assert outcome.dropped >= 5


def test_pools_that_die_are_done_without_and_come_back() -> None:
    """Each is away for as long as ten rounds once in fifty: steps go on, nothing is consumed that
    is too old, and what is lost is counted.
    """
    s = Setting(8, 8, 2, 0.1, 0.05, sigma=0.3, deaths=0.02, away_seconds=1.0)
    outcome = Simulation(s).run(300)
    well = Simulation(s._replace(deaths=0.0)).run(300)
    assert max(outcome.lags) <= 2
    assert outcome.dropped > 0
    # a pool works 50 rounds of 0.1 s in 6 s
    assert outcome.steps_per_second > 0.9 * 5 / 6 * well.steps_per_second


# -- assigned --------------------------------------------------------------------------------------


def test_a_step_takes_its_own_rounds_in_their_pools_turn() -> None:
    fleet, turn = fleet_of(4), [2, 3, 0]
    for pool in (0, 3):
        fleet.ask(pool, 0.0)
        fleet.finish(Batch(pool, step=7), 1.0, 1.0)
    fleet.ask(1, 0.0)
    fleet.finish(Batch(1, step=8), 1.0, 1.0)
    rules = Rules(3)
    assert fleet.choose_assigned(rules, 7, turn, [Batch(2, step=7)]) == [], "one is under way"
    assert fleet.choose_assigned(rules._replace(least=5), 7, turn, []) == []
    assert [b.pool for b in fleet.choose_assigned(rules, 7, turn, [Batch(2, step=8)])] == [3, 0]
    assert [b.step for b in fleet.finished] == [8]
    assert fleet.choose_assigned(rules, 7, turn, []) == []


def test_a_round_is_asked_once_of_those_that_are_there() -> None:
    asked = {(7, 2), (8, 3)}
    assert missing(7, [2, 3, 0], asked, {0, 2, 3}) == [(1, 3), (2, 0)]
    assert missing(8, [2, 3, 0], asked, {0, 3}) == [(2, 0)]
    assert [made_under(step, 2) for step in range(5)] == [0, 0, 0, 1, 2]
