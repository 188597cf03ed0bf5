"""The flow of batches and weights between pools, driver and parameter server, simulated with
injected latencies, and its arithmetic.

Discrete events (simpy): pools whose rounds take random times, some slow, some that hang or die; a
driver that spends processor time on each batch, and decides by the real one's `actors.policy`;
links that weights leave by, once for each node, and that batches come in by. `limits` gives the
steps a second that each part alone would allow.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Generator
from typing import Any, NamedTuple

import simpy

from actors.policy import Event, Fleet, Rules

Events = Generator[simpy.Event, Any, Any]


class Setting(NamedTuple):
    """Sizes and latencies of a pipeline; seconds and bytes. Rounds take `round_seconds` on average,
    log-normal with `sigma`.
    """

    pools: int
    batches_per_step: int
    lag: int
    round_seconds: float
    step_seconds: float
    inflight: int | None = None  # rounds that one pool may have been asked for; None: lag + 1
    sigma: float = 0.0
    slow_pools: int = 0
    slowness: float = 1.0  # times as long as the others
    hangs: float = 0.0  # chance that a round takes `away_seconds` longer
    deaths: float = 0.0  # chance that a round is lost, and its pool away for so long
    away_seconds: float = 10.0
    batch_seconds: float = (
        0.0005  # of the driver for each batch, half to ask for it and half to take it in
    )
    call_seconds: float = 0.001  # of the driver for each step
    hop_seconds: float = 0.0005  # a call, or an answer, on its way
    batch_bytes: float = 0.0
    weight_bytes: float = 0.0
    pools_per_node: int = 32
    bandwidth: float = 3.1e9  # bytes a second of a node's link, each way
    replicas: int = 1
    spread: bool = False  # nodes that have the weights pass them on

    @property
    def nodes(self) -> int:
        """Nodes of pools; the parameter server has its own."""
        return math.ceil(self.pools / self.pools_per_node)

    @property
    def incoming_seconds(self) -> float:
        """A step's batches on their way to the ranks, each by its own link, when the step is
        called.
        """
        return math.ceil(self.batches_per_step / self.replicas) * self.batch_bytes / self.bandwidth

    @property
    def rules(self) -> Rules:
        """The policy's part of the setting."""
        return Rules(self.batches_per_step, self.inflight)


def limits(s: Setting) -> dict[str, float]:
    """Steps a second that each part alone would allow; the smallest is the prediction.

    Without a lag, trainer and pools wait for each other. Every node fetches every version, the most
    that it can come to; unless the weights of all rounds, fetched for each anew, would fit the
    link.
    """
    batches = s.batches_per_step
    working = min(
        1.0, batches * (s.lag + 1) / s.pools
    )  # share of the pools that what is in flight keeps at work
    away = s.away_seconds * (s.hangs + s.deaths)
    rounds = (
        sum(
            1 / (s.round_seconds * (s.slowness if pool < s.slow_pools else 1) + away)
            for pool in range(s.pools)
        )
        * working
    )
    # batches are taken in, and asked for, while a step is made
    turn = 0.0 if s.lag else batches * s.batch_seconds
    step = s.step_seconds + 2 * s.hop_seconds + s.call_seconds + turn + s.incoming_seconds
    in_turn = 0.0 if s.lag else batches / rounds
    crowded = s.weight_bytes * rounds > s.bandwidth and not s.spread
    return {
        "trainer": 1 / (step + in_turn),
        "pools": 1 / (batches / rounds + (0.0 if s.lag else step)),
        "driver": 1 / max(batches * s.batch_seconds + s.call_seconds, 1e-9),
        "weights": s.bandwidth / (s.weight_bytes * s.nodes) if crowded else math.inf,
    }


class Asked(NamedTuple):
    """A round: of which pool, under which version, when it was asked for, and how long it took.
    Whichever step comes next takes it.
    """

    pool: int
    version: int
    at: float
    seconds: float = 0.0
    step: int | None = None


class News(NamedTuple):
    """An answer of a pool's that has come to the driver: a round that is done, or else an event."""

    pool: int
    event: Event | None = None
    round: Asked | None = None


class Outcome(NamedTuple):
    """`busy`: the share of its time that the trainer spends in steps; `working`: that of a pool in
    rounds; batches by lag.
    """

    steps_per_second: float
    busy: float
    working: float
    driver_busy: float
    lags: dict[int, int]
    dropped: int
    most_in_flight: int


class Simulation:
    """`actors.driver.RayRunner` at a lag above 0 (at 0: lock-step), and everything that it
    drives.
    """

    def __init__(self, setting: Setting, seed: int = 0) -> None:
        self._s, self._random = setting, random.Random(seed)
        self._env = simpy.Environment()
        self._version = 0
        self._queues = [simpy.Store(self._env) for _ in range(setting.pools)]
        self._fleet: Fleet[Asked] = Fleet(setting.pools)
        for pool in range(setting.pools):
            self._fleet.move(pool, Event.SENT_FOR)
            self._fleet.move(pool, Event.JOINED)
        self._inbox: list[News] = []
        self._arrival = self._env.event()
        server = setting.nodes
        self._links = [simpy.Resource(self._env) for _ in range(server + 1)]
        self._holders: dict[int, list[int]] = {0: [server]}
        self._fetched: dict[tuple[int, int], simpy.Event] = {}
        self._lags: Counter[int] = Counter()
        self._dropped = self._most = 0
        self._seconds = dict.fromkeys(("step", "round", "driver"), 0.0)

    def run(self, steps: int) -> Outcome:
        """So many steps, of which the first fifth is not counted."""
        for pool in range(self._s.pools):
            self._env.process(self._pool(pool))
        first = max(steps // 5, self._s.lag + 2)
        self._env.run(self._env.process(self._drive(first)))
        began, before = self._env.now, self._seconds.copy()
        self._lags.clear()
        self._dropped = 0
        self._env.run(self._env.process(self._drive(first + steps)))
        passed = self._env.now - began
        spent = {name: seconds - before[name] for name, seconds in self._seconds.items()}
        return Outcome(
            steps_per_second=steps / passed,
            busy=spent["step"] / passed,
            working=spent["round"] / passed / self._s.pools,
            driver_busy=spent["driver"] / passed,
            lags=dict(sorted(self._lags.items())),
            dropped=self._dropped,
            most_in_flight=self._most,
        )

    def _drive(self, until: int) -> Events:
        while self._version < until:
            batches = yield from self._gather()
            self._lags.update(self._version - batch.version for batch in batches)
            yield self._work(self._s.call_seconds)
            step = self._env.process(self._step())
            yield from self._ask(self._s.lag)
            while not step.triggered:
                yield step | self._news()
                yield from self._collect()
                yield from self._ask(self._s.lag)
            yield step
            self._version += 1

    def _gather(self) -> Events:
        yield from self._collect()
        while True:
            if batches := self._choose():
                return batches
            yield from self._ask(self._s.lag + 1)
            if batches := self._choose():
                return batches
            yield self._news() | self._env.timeout(1.0)
            yield from self._collect()

    def _choose(self) -> list[Asked]:
        """The batches of the next step, if they are there. Those that are too old are dropped."""
        self._dropped += self._fleet.drop_stale(self._version, self._s.lag)
        return self._fleet.choose(self._s.rules, self._s.lag, self._env.now)

    def _ask(self, steps: int) -> Events:
        for pool in self._fleet.rounds_to_ask(self._s.rules, steps, self._env.now):
            yield self._work(self._s.batch_seconds / 2)
            self._fleet.ask(pool, self._env.now)
            self._queues[pool].put(Asked(pool, self._version, self._env.now))
            self._fetch(pool // self._s.pools_per_node, self._version)
        in_flight = int(self._fleet.unfinished.sum()) + len(self._fleet.finished)
        self._most = max(self._most, in_flight)

    def _collect(self) -> Events:
        news, self._inbox = self._inbox, []
        for pool, event, round in news:
            if round is not None:
                yield self._work(self._s.batch_seconds / 2)
                self._fleet.finish(round, self._env.now, round.seconds)
            elif event is Event.LOST:
                yield self._work(self._s.batch_seconds / 2)
                self._dropped += self._fleet.give_up(pool)
                self._fleet.move(pool, Event.LOST)
                self._fleet.move(pool, Event.SENT_FOR)
            else:
                self._fleet.move(pool, Event.JOINED)

    def _work(self, seconds: float) -> simpy.Event:
        self._seconds["driver"] += seconds
        return self._env.timeout(seconds)

    def _news(self) -> simpy.Event:
        """The event that comes when the inbox holds something."""
        if self._arrival.triggered:
            self._arrival = self._env.event()
        if self._inbox:
            self._arrival.succeed()
        return self._arrival

    def _answer(self, news: News) -> None:
        def arrive(_: simpy.Event) -> None:
            self._inbox.append(news)
            if not self._arrival.triggered:
                self._arrival.succeed()

        self._env.timeout(self._s.hop_seconds).callbacks.append(arrive)

    def _pool(self, number: int) -> Events:
        s = self._s
        mean = s.round_seconds * (s.slowness if number < s.slow_pools else 1.0)
        while True:
            round = yield self._queues[number].get()
            yield self._env.timeout(max(0.0, round.at + s.hop_seconds - self._env.now))
            yield self._fetch(number // s.pools_per_node, round.version)
            if self._random.random() < s.deaths:
                self._answer(News(number, Event.LOST))
                yield self._env.timeout(s.away_seconds)
                self._queues[number].items.clear()  # whoever asked did not know yet
                self._answer(News(number, Event.JOINED))
                continue
            seconds = (
                mean * self._random.lognormvariate(-(s.sigma**2) / 2, s.sigma) if s.sigma else mean
            )
            seconds += s.away_seconds if self._random.random() < s.hangs else 0.0
            yield self._env.timeout(seconds)
            self._seconds["round"] += seconds
            self._answer(News(number, round=round._replace(seconds=seconds)))

    def _step(self) -> Events:
        yield self._env.timeout(self._s.hop_seconds + self._s.incoming_seconds)
        yield self._env.timeout(self._s.step_seconds)
        self._seconds["step"] += self._s.step_seconds
        self._holders = {
            self._version: self._holders[self._version],
            self._version + 1: [self._s.nodes],
        }
        yield self._env.timeout(self._s.hop_seconds)

    def _fetch(self, node: int, version: int) -> simpy.Event:
        """The event that comes when the node has the weights: it fetches them once, from one that
        has them, whose link serves in turn.
        """
        key = (node, version)
        if key not in self._fetched:
            self._fetched[key] = self._env.event()
            if self._s.weight_bytes:
                self._env.process(self._transfer(node, version, self._fetched[key]))
            else:
                self._fetched[key].succeed()
        return self._fetched[key]

    def _transfer(self, node: int, version: int, there: simpy.Event) -> Events:
        holders = self._holders.get(version, [self._s.nodes])
        source = self._random.choice(holders) if self._s.spread else self._s.nodes
        with self._links[source].request() as turn:
            yield turn
            yield self._env.timeout(self._s.weight_bytes / self._s.bandwidth)
        holders.append(node)
        there.succeed()
