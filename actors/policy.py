"""The choice of rounds and batches, and the life of a pool.

It decides which round is asked of whom, and which batches make a step. Everything here is a
function of its state and of the time that it is told: no Ray, no clock. The driver
(`actors.driver`, `actors.pools`), the simulator (`benchmarks.flow`) and the tests in simulated time
run on these lines.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Sequence
from enum import Enum, IntEnum
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

LATE = 4.0
"""A pool is late that takes this many times as long for a round as pools lately did."""
LEAST_LATE_SECONDS = 0.25
"""A pool is never late before that."""
SMOOTHING = 0.1
"""The share that a new round has in the smoothed seconds of a round."""


class Life(IntEnum):
    """The stages of a pool's life."""

    GONE = 0  # it has no process, or one that nobody has sent for its chains yet
    JOINING = 1  # its process starts, or takes up its chains
    THERE = 2  # it can be asked for rounds
    LATE = 3  # it is there, but nobody waits for it
    LEAVING = 4  # it hands over its chains, since its node is about to leave


class Event(Enum):
    """The things that happen to a pool."""

    SENT_FOR = "its process was told where its chains are"
    JOINED = "it told where it stands"
    OVERDUE = "its round takes too long for others to wait for"
    ANSWERED = "it brought that round"
    FORGOTTEN = "its rounds were given up, and it was asked where it stands"
    DRAINED = "its node is about to leave"
    HANDED_OVER = "its chains are in safe keeping, and its process was ended"
    LOST = "its process died, was ended because it hung, or is not up yet"


TRANSITIONS = {
    (Life.GONE, Event.SENT_FOR): Life.JOINING,
    (Life.JOINING, Event.SENT_FOR): Life.JOINING,  # with other chains
    (Life.THERE, Event.SENT_FOR): Life.JOINING,  # with the run, which begins at older chains
    (Life.JOINING, Event.JOINED): Life.THERE,
    (Life.JOINING, Event.LOST): Life.GONE,
    (Life.THERE, Event.OVERDUE): Life.LATE,
    (Life.THERE, Event.FORGOTTEN): Life.JOINING,
    (Life.THERE, Event.DRAINED): Life.LEAVING,
    (Life.THERE, Event.LOST): Life.GONE,
    (Life.LATE, Event.SENT_FOR): Life.JOINING,  # as one that is there
    (Life.LATE, Event.ANSWERED): Life.THERE,
    (Life.LATE, Event.FORGOTTEN): Life.JOINING,
    (Life.LATE, Event.DRAINED): Life.LEAVING,
    (Life.LATE, Event.LOST): Life.GONE,
    (Life.LEAVING, Event.SENT_FOR): Life.JOINING,  # as one that is there; it leaves later
    (Life.LEAVING, Event.HANDED_OVER): Life.GONE,
    (Life.LEAVING, Event.LOST): Life.GONE,
}
"""The whole life of a pool; what is not in it cannot happen."""


class Rules(NamedTuple):
    """The configuration's part: batches of a step, rounds that one pool may have been asked for at
    once (None: as many as the bound on lag allows), and pools without which no step is made.
    """

    batches: int
    inflight: int | None = None
    least: int = 1

    def each(self, steps: int) -> int:
        """Rounds that one pool may owe where there is room for those of so many `steps`."""
        return min(steps, self.inflight or steps)


class Made(Protocol):
    """A batch, by what the policy asks of it: of which pool, for which step (None: whichever takes
    it), under which version of the weights.
    """

    @property
    def pool(self) -> int: ...
    @property
    def step(self) -> int | None: ...
    @property
    def version(self) -> int: ...


B = TypeVar("B", bound=Made)


class Fleet(Generic[B]):
    """The state of `pools` pools, one array entry each, and the batches that wait for a step.

    `life` is a `Life` each. `rounds` counts those asked for so far, and is the number of the next
    one; `unfinished` are those under way. `since` is when the oldest of these could have begun: inf
    while it waits for the parameter server, whose time is not the pool's. `seconds` is what a
    pool's last round took, by its own clock. `finished` is in the order that batches came in.
    """

    def __init__(self, pools: int) -> None:
        self.life = np.full(pools, Life.GONE)
        self.rounds = np.zeros(pools, np.int64)
        self.unfinished = np.zeros(pools, np.int64)
        self.since = np.full(pools, math.inf)
        self.seconds = np.zeros(pools)
        self.finished: list[B] = []
        self.round_seconds = 0.0  # smoothed, of all pools

    def move(self, pool: int, event: Event) -> None:
        """The pool's life goes on as `TRANSITIONS` says."""
        here = Life(self.life[pool])
        assert (here, event) in TRANSITIONS, f"pool {pool} is {here.name}, and {event.value}"
        self.life[pool] = TRANSITIONS[here, event]

    # -- rounds of a pool --------------------------------------------------------------------------

    def ask(self, pool: int, now: float, waits: bool = False) -> None:
        """One more round of the pool; it `waits` for the parameter server before it can begin."""
        if not self.unfinished[pool]:
            self.since[pool] = math.inf if waits else now
        self.rounds[pool] += 1
        self.unfinished[pool] += 1

    def begin(self, pool: int, now: float) -> None:
        """The pool's oldest round has what it waited for, and can begin."""
        self.since[pool] = min(self.since[pool], now)

    def finish(self, batch: B, now: float, seconds: float, waits: bool = False) -> None:
        """The pool's oldest round came in; `waits` is of the one behind it."""
        pool = batch.pool
        self.unfinished[pool] -= 1
        self.since[pool] = math.inf if waits else now
        self._took(pool, seconds)
        self.finished.append(batch)

    def made(self, pool: int, seconds: Sequence[float]) -> None:
        """Rounds that the pool was not asked for one by one, by the seconds each took."""
        self.rounds[pool] += len(seconds)
        for one in seconds:
            self._took(pool, one)

    def _took(self, pool: int, seconds: float) -> None:
        self.seconds[pool] = seconds
        self.round_seconds += (seconds - self.round_seconds) * (
            SMOOTHING if self.round_seconds else 1.0
        )

    def give_up(self, pool: int) -> int:
        """Forgets the pool's rounds under way; how many there were."""
        lost = int(self.unfinished[pool])
        self.unfinished[pool], self.since[pool] = 0, math.inf
        return lost

    # -- who keeps others waiting ------------------------------------------------------------------

    def available(self) -> np.ndarray:
        """The pools that can be asked for rounds, late ones included, `[P]`."""
        return np.flatnonzero((self.life == Life.THERE) | (self.life == Life.LATE))

    def responsive(self, now: float) -> np.ndarray:
        """The pools that are there and not late, `[P]`: a step need not wait for the rest.

        Late is a pool that takes `LATE` times as long for a round as pools do on average, and over
        `LEAST_LATE_SECONDS`. Before any round has come in, nobody knows how long one takes.
        """
        limit = max(LEAST_LATE_SECONDS, LATE * self.round_seconds)
        slow = np.maximum(now - self.since, self.seconds) > limit
        overdue = slow & (self.unfinished > 0) & (self.round_seconds > 0)
        for pool in np.flatnonzero(overdue & (self.life == Life.THERE)).tolist():
            self.move(pool, Event.OVERDUE)
        for pool in np.flatnonzero(~overdue & (self.life == Life.LATE)).tolist():
            self.move(pool, Event.ANSWERED)
        return np.flatnonzero(self.life == Life.THERE)

    def hung(self, now: float, timeout: float) -> list[int]:
        """The pools that have been at one round for more than `timeout` seconds."""
        return np.flatnonzero((self.unfinished > 0) & (now - self.since > timeout)).tolist()

    def waiting_for_server(self) -> list[int]:
        """The pools whose oldest round waits for the parameter server."""
        return np.flatnonzero((self.unfinished > 0) & np.isinf(self.since)).tolist()

    # -- first come: steps take whichever batches are there ----------------------------------------

    def rounds_to_ask(self, rules: Rules, steps: int, now: float) -> list[int]:
        """The pools to ask for a round each, in this order, so that the batches of so many `steps`
        are in flight, of the pools with the fewest there, and so far.

        The batches of bound + 1 steps, the one to be made next among them, are what the bound on
        lag leaves room for. What a late pool owes is not waited for, and takes no other's place.
        """
        responsive = self.responsive(now)
        load = np.bincount(
            np.fromiter((batch.pool for batch in self.finished), np.int64, len(self.finished)),
            minlength=len(self.life),
        )
        load[responsive] += self.unfinished[responsive]
        room, each = rules.batches * steps - int(load.sum()), rules.each(steps)
        if room <= 0:
            return []
        free = [(int(load[p]), int(self.rounds[p]), int(p)) for p in responsive if load[p] < each]
        heapq.heapify(free)
        asked: list[int] = []
        while free and len(asked) < room:
            fewest, so_far, pool = free[0]
            asked.append(pool)
            if fewest + 1 < each:
                heapq.heapreplace(free, (fewest + 1, so_far + 1, pool))
            else:
                heapq.heappop(free)
        return asked

    def drop_stale(self, version: int, bound: int) -> int:
        """Forgets finished batches that are older than the `bound` on lag, at the learner's
        `version`; how many there were. Their pools' chains go on.
        """
        fresh = [batch for batch in self.finished if version - batch.version <= bound]
        dropped = len(self.finished) - len(fresh)
        self.finished = fresh
        return dropped

    def choose(self, rules: Rules, bound: int, now: float) -> list[B]:
        """The first finished batches, as many as a step takes; none while there are fewer.

        That is no more than the pools that keep nobody waiting may have in flight under the `bound`
        on lag.
        """
        most = max(1, len(self.responsive(now)) * rules.each(bound + 1))
        wanted = min(rules.batches, most)
        if len(self.available()) < rules.least or len(self.finished) < wanted:
            return []
        chosen, self.finished = self.finished[:wanted], self.finished[wanted:]
        return chosen

    # -- assigned: step t takes round t of the pools whose turn it is ------------------------------

    def choose_assigned(
        self, rules: Rules, step: int, turn: Sequence[int], under_way: Iterable[Made]
    ) -> list[B]:
        """The batches of the `step`, in their pools' `turn`; none while a round of it is under way.

        Of pools that died the step does without, as long as one is left.
        """
        too_few = len(self.available()) < rules.least
        if too_few or any(round.step == step for round in under_way):
            return []
        place = {pool: number for number, pool in enumerate(turn)}
        chosen = [batch for batch in self.finished if batch.step == step]
        self.finished = [batch for batch in self.finished if batch.step != step]
        return sorted(chosen, key=lambda batch: place[batch.pool])


def made_under(step: int, lag: int) -> int:
    """The version that the rounds assigned to a `step` run under."""
    return max(0, step - lag)


def rank_of(place: int, places: int, ranks: int) -> int:
    """The rank that the batch in this `place` of a step's turn goes to, of so many `places`: each
    has an even share of them, in order.
    """
    return next(rank for rank in range(ranks) if place < places * (rank + 1) // ranks)


def missing(
    step: int,
    turn: Sequence[int],
    asked: Collection[tuple[int | None, int]],
    there: Collection[int],
) -> list[tuple[int, int]]:
    """(place, pool) of those in the `turn` of a `step` that are `there` and were not `asked` yet;
    `asked` holds (step, pool).
    """
    return [
        (place, pool)
        for place, pool in enumerate(turn)
        if pool in there and (step, pool) not in asked
    ]
