"""Stretches of steps in lock-step that the actors make among themselves, through direct lines.

The driver asks all of them for so many steps, and hears of these when they are done. So nothing
stands between two steps but the weights on their way out and the batches on their way in. What
dies or hangs ends a stretch; the driver then goes on with calls of its own, until every pool is
there again.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import ray

from actors.members import PoolMember
from actors.parameter_server import Stretch
from actors.policy import Life
from actors.pools import PoolRoster
from actors.servers import ServerRanks
from actors.waiting import LOST, NotInTime, get, ready
from pipeline.common.types import RoundReport, StepReport
from pipeline.config.run import RunConfig
from pipeline.training.reports import merged

log = logging.getLogger(__name__)
SECONDS = 0.25
"""A stretch takes about as long at most: for so long nobody can interrupt the run."""
LARGEST = 8 << 20
"""Bytes of weights above which the object store, which a node's pools share, is the better way."""
GRACE_SECONDS = 5.0
"""For pools to end their part when the ranks have."""


class Made(NamedTuple):
    """The steps of a stretch, the rounds of each, the seconds that the ranks waited for them, and
    the reference of the weights after the last.
    """

    reports: list[StepReport]
    rounds: list[list[RoundReport]]
    waited: list[float]
    weights: ray.ObjectRef


class Stretches:
    """The driver's side of them."""

    def __init__(self, config: RunConfig, servers: ServerRanks, pools: PoolRoster) -> None:
        self._config, self._servers, self._pools = config, servers, pools
        self._lines_to: list[tuple[int, str]] | None = None  # those of `_processes` with lines
        # a run that chooses its lag is in lock-step while the bound is 0; rows that chains are sent
        # then belong to no step
        self._barred = config.lag > 0 and (not config.chooses_lag or config.sends_starts)
        self._step_seconds = SECONDS  # until one was made
        self._steps = 1  # of the last stretch

    def possible(self, lag_bound: int) -> bool:
        """Return whether the run is in lock-step and every actor there, with nothing under way."""
        if self._barred or self._pools.in_flight:
            return False
        if self._config.chooses_lag and lag_bound > 0:
            return False
        return all(pool.life is Life.THERE for pool in self._members)

    def forget(self) -> None:
        """Has lines opened anew for the next stretch: a failed one may have broken them."""
        self._lines_to = None

    @property
    def _members(self) -> list[PoolMember]:
        return self._pools.members[: self._config.pools]

    @property
    def _processes(self) -> list[tuple[int, str]]:
        """The marks of each pool's process, which those that it had before do not bear."""
        return [(pool.incarnation, pool.node) for pool in self._members]

    def make(self, version: int, most: int) -> Made | None:
        """A stretch of at most so many steps from `version`; None where there are no lines.

        Pools that are lost are sent for. Raises those of `LOST` where a rank of the parameter
        server was, and `NotInTime` where one hangs.
        """
        if self._lines_to != self._processes and not self._connect():
            return None
        steps = max(1, min(most, 2 * self._steps, int(SECONDS / self._step_seconds)))
        clock, cluster = time.perf_counter(), self._config.cluster
        asked = [rank.stretch.remote(version, steps) for rank in self._servers.actors]
        members = self._members
        made = [pool.actor.stretch.remote(pool.rounds, version, steps) for pool in members]
        try:
            ranks = [account for _, account in asked]
            said = self._servers.answers(ranks, cluster.timeout + cluster.pool_timeout)
        except LOST:
            self._lines_to = None
            # they may be at a long round, which is no fault of theirs
            self._take_in(members, made, cluster.pool_timeout)
            raise
        accounts = [Stretch(*account) for account in said]
        reports = [
            merged(ranks) for ranks in zip(*(rank.reports for rank in accounts), strict=True)
        ]
        rounds = self._take_in(members, made, GRACE_SECONDS)
        if len(reports) < steps or any(rank.lost for rank in accounts):
            self._lines_to = None
        self._steps = len(reports) or 1
        self._step_seconds = (time.perf_counter() - clock) / self._steps
        of_step: dict[int, list[RoundReport]] = {}
        for round in rounds:
            of_step.setdefault(round.version, []).append(round)
        waited = [max(times) for times in zip(*(rank.waited for rank in accounts), strict=True)]
        by_step = [of_step.pop(report.version - 1, []) for report in reports]
        # a pool that died took its word on rounds with it that steps have learned from
        unused = [len(of) - len(at.lags) for of, at in zip(by_step, reports, strict=True)]
        self._pools.dropped["object_lost"] += sum(max(0, count) for count in unused)
        self._pools.dropped["object_lost"] += sum(map(len, of_step.values()))
        return Made(reports, by_step, waited, asked[0][0])

    def _connect(self) -> bool:
        """Opens the lines; where that fails, no stretches are made in this run."""
        self._lines_to = None
        if not self._config.pools:
            self._lines_to = []
            return True
        timeout = self._config.cluster.timeout
        size = get(self._servers.first.weights_bytes.remote(), timeout, "the parameter server")
        if size > LARGEST:
            self._barred = True
            return False
        processes, opened = self._processes, self._open()
        if opened:
            self._lines_to = processes
            return True
        for rank in self._servers.actors:  # one that died says so here
            get(rank.hang_up.remote(), timeout, "the parameter server")
        if opened is False:
            self._barred = True
            log.warning(
                "the actors could not open lines to one another: every step is asked for by calls,"
                " which is slower"
            )
        return False

    def _open(self) -> bool | None:
        """Opens them, and returns whether it could; None where a pool was lost meanwhile."""
        cluster, secret = self._config.cluster, secrets.token_bytes(32)
        ranks, who = self._servers.actors, "the parameter server"
        doors = [rank.listen.remote() for rank in ranks]
        addresses = [get(door, cluster.timeout, who) for door in doors]
        if None in addresses:
            return False
        # a pool waits for weights as long as a rank is at a step, and waits for pools
        patience = cluster.timeout + cluster.pool_timeout
        members = self._members
        opened = [pool.actor.connect.remote(secret, addresses, patience) for pool in members]
        there = [
            self._answer(pool, reference, cluster.pool_timeout)
            for pool, reference in zip(members, opened, strict=True)
        ]
        if not all(there):
            # of those that died, the next look at the pools says so
            return False if False in there else None
        numbers = [pool.number for pool in members]
        accepted = [rank.accept.remote(secret, numbers) for rank in ranks]
        return all(get(rank, cluster.timeout, who) for rank in accepted)

    def _answer(self, pool: PoolMember, reference: ray.ObjectRef, seconds: float) -> Any:
        """The pool's answer, None where it died, or gives none within so many `seconds` and is
        ended; then it is sent for.
        """
        try:
            return get(reference, seconds, f"pool {pool.number}")
        except LOST:
            pass
        except NotInTime:
            log.warning("pool %d does not answer", pool.number)
            ray.kill(pool.actor, no_restart=False)
        self._pools.lose(pool)
        return None

    def _take_in(
        self, members: Sequence[PoolMember], made: Sequence[Any], seconds: float
    ) -> list[RoundReport]:
        """The rounds that pools made, of those that say so within so many `seconds`."""
        accounts = [account for _, account in made]
        if accounts:
            ray.wait(accounts, num_returns=len(accounts), timeout=seconds, fetch_local=False)
        rounds: list[RoundReport] = []
        for pool, (last, account) in zip(members, made, strict=True):
            reports = self._answer(pool, account, GRACE_SECONDS if ready(account) else 0.0)
            if reports:
                self._pools.made(pool, last, reports)
                rounds += reports
        return rounds
