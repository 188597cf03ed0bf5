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
from pipeline.training.ranks import merged

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
        self._connected = False
        self._barred = config.trainer.lag != 0
        self._step_seconds = SECONDS  # until one was made
        self._steps = 1  # of the last stretch

    def possible(self) -> bool:
        """Return whether every actor is there, with nothing under way."""
        if self._barred or self._pools.in_flight:
            return False
        return all(pool.life is Life.THERE for pool in self._members)

    @property
    def _members(self) -> list[PoolMember]:
        return self._pools.members[: self._config.pools]

    def make(self, version: int, most: int) -> Made | None:
        """A stretch of at most so many steps from `version`; None where there are no lines.

        Pools that are lost are sent for. Raises those of `LOST` where a rank of the parameter
        server was, and `NotInTime` where one hangs.
        """
        if not self._connected and not self._connect():
            return None
        steps = max(1, min(most, 2 * self._steps, int(SECONDS / self._step_seconds)))
        clock = time.perf_counter()
        asked = [rank.stretch.remote(version, steps) for rank in self._servers.actors]
        members = self._members
        made = [pool.actor.stretch.remote(pool.rounds, version, steps) for pool in members]
        try:
            accounts = self._accounts([account for _, account in asked])
        except LOST:
            self._connected = False
            self._take_in(members, made)
            raise
        reports = [
            merged(ranks) for ranks in zip(*(rank.reports for rank in accounts), strict=True)
        ]
        rounds = self._take_in(members, made)
        self._connected = len(reports) == steps and not any(rank.lost for rank in accounts)
        self._pools.dropped["object_lost"] += len(rounds) - sum(len(step.lags) for step in reports)
        self._steps = len(reports) or 1
        self._step_seconds = (time.perf_counter() - clock) / self._steps
        of_step: dict[int, list[RoundReport]] = {}
        for round in rounds:
            of_step.setdefault(round.version, []).append(round)
        waited = [max(times) for times in zip(*(rank.waited for rank in accounts), strict=True)]
        by_step = [of_step.get(report.version - 1, []) for report in reports]
        return Made(reports, by_step, waited, asked[0][0])

    def _connect(self) -> bool:
        """Opens the lines; where that fails, no stretches are made in this run."""
        cluster, secret = self._config.cluster, secrets.token_bytes(32)
        timeout = cluster.timeout
        if self._config.pools:
            doors = [rank.listen.remote() for rank in self._servers.actors]
            addresses = [get(door, timeout, "the parameter server") for door in doors]
            size = get(self._servers.first.weights_bytes.remote(), timeout, "the parameter server")
            if size > LARGEST:
                self._barred = True
                return False
            numbers = [pool.number for pool in self._members]
            accepted = [
                rank.accept.remote(secret, numbers, cluster.pool_timeout)
                for rank in self._servers.actors
            ]
            # a pool waits for weights as long as a rank is at a step, and waits for pools
            patience = cluster.timeout + cluster.pool_timeout
            opened = [
                pool.actor.connect.remote(secret, addresses, patience) for pool in self._members
            ]
            there = self._answers(opened)
            if not all(there):
                # of those that died, the next look at the pools says so
                self._barred = any(answer is False for answer in there)
                return False
            if not all(get(rank, timeout, "the parameter server") for rank in accepted):
                self._barred = True
                return False
        self._connected = True
        return True

    def _answers(self, opened: Sequence[ray.ObjectRef]) -> list[bool | None]:
        """Each pool's word on whether it could open its lines; None of one that was lost."""
        answers: list[bool | None] = []
        for pool, reference in zip(self._members, opened, strict=True):
            try:
                answers.append(get(reference, self._config.cluster.timeout, "a pool"))
            except LOST:
                self._pools.lose(pool)
                answers.append(None)
        return answers

    def _accounts(self, asked: Sequence[ray.ObjectRef]) -> list[Stretch]:
        """Every rank's account, when all are done."""
        cluster = self._config.cluster
        limit = cluster.timeout + cluster.pool_timeout
        done, _ = ray.wait(asked, num_returns=len(asked), timeout=limit, fetch_local=False)
        failures: list[Exception] = []
        accounts = []
        for rank in asked:
            if rank not in done:
                raise NotInTime(f"the parameter server did not answer within {limit:g} s")
            try:
                accounts.append(Stretch(*get(rank, limit, "the parameter server's steps")))
            except Exception as error:
                failures.append(error)
        if failures:
            # a rank that lost another says so in torch's words: the death is the cause
            raise next((error for error in failures if isinstance(error, LOST)), failures[0])
        return accounts

    def _take_in(self, members: Sequence[PoolMember], made: Sequence[Any]) -> list[RoundReport]:
        """The rounds that pools made; those that died are sent for, those that hang are ended."""
        accounts = [account for _, account in made]
        if accounts:
            ray.wait(accounts, num_returns=len(accounts), timeout=GRACE_SECONDS, fetch_local=False)
        rounds: list[RoundReport] = []
        for pool, (last, account) in zip(members, made, strict=True):
            if not ready(account):
                log.warning("pool %d does not answer", pool.number)
                ray.kill(pool.actor, no_restart=False)
                self._pools.lose(pool)
                continue
            try:
                reports = get(account, GRACE_SECONDS, f"pool {pool.number}")
            except LOST:
                self._pools.lose(pool)
                continue
            if reports:
                self._pools.made(pool, last, reports)
                rounds += reports
        return rounds
