"""The driver's view of the pools: which are there, what they were asked for, what becomes of those
that die, hang or leave.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from actors.servers import ServerRanks
from actors.waiting import LOST, POLL_SECONDS, Deadline, NotInTime, draining_nodes, get, ready
from pipeline.common.errors import (
    ClusterError,
    DamagedError,
    OutOfStepError,
    ServerOutOfStepError,
)
from pipeline.common.types import Part, RoundReport
from pipeline.config.run import RunConfig
from pipeline.storage.checkpoint import Checkpoint

log = logging.getLogger(__name__)
RETRY_SECONDS = 1.0
LATE = 4.0
"""A pool is late that takes this many times as long for a round as pools lately did."""
LEAST_LATE_SECONDS = 0.25


class Round(NamedTuple):
    """A round asked of a pool: for which step (None: whichever takes it), under which version, and
    its references.
    """

    pool: int
    step: int | None
    version: int
    batch: ray.ObjectRef
    report: ray.ObjectRef


class PoolMember:
    """One of them. Its chains are with its actor, or on their way there (`joining`)."""

    def __init__(self, number: int, actor: Any) -> None:
        self.number, self.actor = number, actor
        self.incarnation = 0
        self.rounds = 0  # asked for so far: the number of the next one
        self.done = 0  # those that are known to be done
        self.last: ray.ObjectRef | None = None  # its newest batch: the chains it is revived with
        self.node = ""
        self.joining: ray.ObjectRef | None = None
        self.begins = (
            False  # with what the run began with: too old by the time that it joins a run under way
        )
        self.leaving: ray.ObjectRef | None = (
            None  # what it hands over; then, that this, `kept`, is in safe keeping
        )
        self.kept: ray.ObjectRef | None = None
        self.retry_at = 0.0  # when to try again to revive it
        self.unfinished = 0
        self.since = 0.0  # when the oldest of those could have begun
        self.seconds = 0.0  # that its last round took, by its own clock

    @property
    def available(self) -> bool:
        """Whether it can be asked for rounds."""
        return self.joining is None and self.leaving is None


class PoolRoster:
    """As many actors of class `make` as the run may use; Ray, or the cluster's autoscaler, finds
    room for them or not.

    A pool that is not there, for whatever reason, is one that is on its way: steps go on with the
    others. Finished rounds wait in `finished` for their step, in the order that they came in.
    """

    def __init__(
        self,
        config: RunConfig,
        servers: ServerRanks,
        make: Callable[..., Any],
        arguments: tuple[Any, ...],
    ) -> None:
        cluster = config.cluster
        self._config, self._servers = config, servers
        options: dict[str, Any] = {"num_cpus": cluster.pool_cpus, "num_gpus": cluster.pool_gpus}
        if cluster.pool_labels:
            options["label_selector"] = cluster.pool_labels
        actor = ray.remote(max_restarts=-1, max_task_retries=0)(make)
        shape, context_shape = arguments
        self.members = [
            PoolMember(
                number, actor.options(**options).remote(config, shape, number, context_shape)
            )
            for number in range(config.most_pools)
        ]
        self.rounds: dict[
            ray.ObjectRef, Round
        ] = {}  # by report: asked for and not finished, oldest first
        self.finished: list[tuple[Round, RoundReport]] = []
        self.dropped: Counter[str] = Counter()
        self.restarts: Counter[str] = Counter()
        self.handovers = 0
        self._round_seconds = 0.0  # smoothed, of all pools
        self._drains_seen_at = 0.0
        self._draining: set[str] = set()

    # -- who is there ------------------------------------------------------------------------------

    @property
    def available(self) -> list[PoolMember]:
        return [pool for pool in self.members if pool.available]

    def responsive(self) -> list[PoolMember]:
        """Those that are there and do not keep others waiting: a step need not wait for the rest."""
        now, limit = time.monotonic(), max(LEAST_LATE_SECONDS, LATE * self._round_seconds)
        # before any round has come in, nobody knows how long one takes
        known = self._round_seconds > 0
        return [
            p
            for p in self.members
            if p.available
            and not (known and p.unfinished and max(now - p.since, p.seconds) > limit)
        ]

    def start(self, checkpoint: Checkpoint | None) -> None:
        """Sends every pool its way to its chains, and waits for those without which the run does
        not begin.
        """
        parts = checkpoint.manifest["parts"] if checkpoint is not None else {}
        for pool in self.members:
            pool.done = 0  # it may have joined with a newer checkpoint, which turned out damaged
            own = f"pool-{pool.number}.pt" in parts
            if checkpoint is None:
                pool.joining = pool.actor.begin.remote()
            else:
                pool.joining = pool.actor.restore.remote(
                    checkpoint, pool.number if own else pool.number % self._config.pools
                )
            pool.begins = not own
        needed = self._config.chains.min_pools or self._config.pools
        deadline = Deadline(
            self._config.cluster.timeout, f"{needed} pools, without which the run does not begin,"
        )
        while len(self.available) < needed:
            joining = [pool.joining for pool in self.members if pool.joining is not None]
            ray.wait(joining, timeout=1.0, fetch_local=False)
            self._poll_joining(beginning=True)
            deadline.check()

    def forget_rounds(self) -> int:
        """Gives up every round under way; how many there were. PoolRoster say where they stand, when
        they have come to rest.
        """
        lost = len(self.rounds) + len(self.finished)
        self.rounds, self.finished = {}, []
        for pool in self.members:
            if pool.available and pool.unfinished:
                pool.joining = pool.actor.begin.remote()
            pool.unfinished = 0
        return lost

    # -- rounds ------------------------------------------------------------------------------------

    def ask(
        self, pool: PoolMember, step: int | None, version: int, weights: Any, start: Any
    ) -> None:
        """One more round of a pool that is there."""
        batch, report = pool.actor.advance.remote(pool.rounds, weights, start)
        pool.rounds += 1
        if not pool.unfinished:
            pool.since = time.monotonic()
        pool.unfinished += 1
        self.rounds[report] = Round(pool.number, step, version, batch, report)

    def collect(self, seconds: float, *others: Any) -> None:
        """Waits, at most so long, for a round to finish, or for one of the `others`, and takes all
        rounds that did.

        PoolRoster that died are sent for.
        """
        references = list(self.rounds)
        if not (references or others):
            return
        done, _ = ray.wait(
            [*others, *references], num_returns=1, timeout=seconds, fetch_local=False
        )
        if done and len(references) > 1:
            done, _ = ray.wait(
                references, num_returns=len(references), timeout=0, fetch_local=False
            )
        for reference in done:
            round = self.rounds.get(reference)
            if round is None:  # its pool was lost a moment ago, with this round
                continue
            pool = self.members[round.pool]
            try:
                report = get(reference, self._config.cluster.timeout, f"pool {round.pool}")
            except LOST as error:
                # what the round was to have of the parameter server never came: its loss, and not
                # the pool's
                if isinstance(error, ServerOutOfStepError) or (
                    isinstance(error, RayTaskError) and isinstance(error, RayActorError)
                ):
                    raise
                self.lose(pool)
                continue
            del self.rounds[reference]
            self.finished.append((round, report))
            pool.last = round.batch
            pool.done = report.round + 1
            pool.unfinished -= 1
            pool.since, pool.seconds = time.monotonic(), report.seconds
            self._round_seconds += (report.seconds - self._round_seconds) * (
                0.1 if self._round_seconds else 1.0
            )

    # -- what dies, hangs and leaves ---------------------------------------------------------------

    def look_after(self) -> None:
        """Takes back the pools that joined, restarts those that hang, moves those whose node is
        about to leave.
        """
        self._poll_joining()
        now = time.monotonic()
        for pool in self.members:
            if pool.unfinished and now - pool.since > self._config.cluster.pool_timeout:
                log.warning("pool %d has not answered for %.0f s", pool.number, now - pool.since)
                ray.kill(pool.actor, no_restart=False)
                self.lose(pool)
        self._move_from_draining_nodes(now)

    def lose(self, pool: PoolMember) -> None:
        """Its process is gone: so are its rounds; Ray restarts it, and it takes up the chains of
        its newest batch.
        """
        if pool.joining is not None:
            return
        pool.leaving = pool.kept = None
        pool.incarnation += 1
        self.restarts["pool"] += 1
        self.dropped["pool_died"] += pool.unfinished
        self.rounds = {
            report: round for report, round in self.rounds.items() if round.pool != pool.number
        }
        pool.unfinished = 0
        self._revive(pool)
        log.warning(
            "pool %d died; it is being restarted with its last chains, the others go on",
            pool.number,
        )

    def _revive(self, pool: PoolMember) -> None:
        """What it handed over, its own newest batch, or else what `chains.newcomers` says, are the
        chains it begins with.
        """
        if pool.kept is not None:
            pool.joining = pool.actor.take_over.remote(pool.kept)
            return
        last, rows = pool.last, None
        if last is None and self._config.chains.newcomers == "snapshot":
            last = next(
                (other.last for other in self._newest_first() if other.last is not None), None
            )
        elif last is None and self._config.chains.newcomers == "data":
            rows = self._servers.first.rows_for_pool.remote(pool.number, pool.incarnation)
        pool.joining = pool.actor.revive.remote(pool.incarnation, pool.rounds, last, rows)

    def _newest_first(self) -> list[PoolMember]:
        return sorted(self.members, key=lambda pool: -pool.rounds)

    def _poll_joining(self, beginning: bool = False) -> None:
        for pool in self.members:
            if pool.joining is None or time.monotonic() < pool.retry_at or not ready(pool.joining):
                continue
            try:
                stands = get(pool.joining, self._config.cluster.timeout, f"pool {pool.number}")
                if stands[0] < pool.done:  # a new process
                    pool.joining = None
                    self.lose(pool)
                    continue
                pool.rounds, pool.incarnation, pool.node = stands
                pool.done = pool.rounds
                pool.joining = pool.kept = None
                late, pool.begins = pool.begins and not beginning, False
                if late:
                    self._revive(pool)
                elif not beginning:
                    log.warning("pool %d is there (incarnation %d)", pool.number, pool.incarnation)
            except DamagedError:  # its part of the checkpoint: it begins as a newcomer does
                if beginning:
                    raise
                self._revive(pool)
            except ObjectLostError:
                pool.last = pool.kept = None  # they died with their node
                self._revive(pool)
            except (RayActorError, OutOfStepError) as error:
                if beginning:
                    raise ClusterError(f"pool {pool.number} could not start: {error}") from error
                self._revive(pool)  # not up yet
                pool.retry_at = time.monotonic() + RETRY_SECONDS

    def _move_from_draining_nodes(self, now: float) -> None:
        """A pool whose node is about to leave hands over its chains first, for the parameter server
        to keep, and then moves.
        """
        if now - self._drains_seen_at > RETRY_SECONDS:
            self._drains_seen_at, self._draining = now, draining_nodes()
        for pool in self.members:
            if pool.available and pool.node in self._draining:
                log.warning(
                    "pool %d hands over its chains: its node is about to leave", pool.number
                )
                pool.leaving = pool.actor.hand_over.remote(pool.rounds)
            elif pool.leaving is not None and not pool.unfinished and ready(pool.leaving):
                if (
                    pool.kept is None
                    # not before it is there: whatever else is asked of the server would wait behind it
                ):
                    pool.kept, pool.leaving = self._servers.first.keep.remote(pool.leaving)
                    continue
                try:
                    get(pool.leaving, self._config.cluster.timeout, "the parameter server")
                except (*LOST, RayTaskError):  # it died before its chains were in safe keeping
                    self.lose(pool)
                    continue
                ray.kill(pool.actor, no_restart=False)
                pool.leaving = None
                self._revive(pool)
                self.handovers += 1

    @property
    def server_leaves(self) -> bool:
        """Whether a node of the parameter server's is about to leave."""
        return bool(self._servers.nodes & self._draining)

    # -- checkpoints -------------------------------------------------------------------------------

    def save(self, folder: str) -> list[Part]:
        """Every pool's part, written by itself; that of a pool that is away, or late, is written
        from its newest batch.

        In lock-step no round is under way then; else pools write behind theirs.
        """
        responsive = {pool.number for pool in self.responsive()}
        asked = {
            pool.number: pool.actor.save.remote(pool.rounds, folder)
            for pool in self.members
            if pool.number in responsive
        }
        parts: list[Part] = []
        for pool in self.members:
            if pool.number in asked:
                try:
                    parts.append(self._saved(pool, asked[pool.number]))
                    continue
                except NotInTime:
                    ray.kill(
                        pool.actor, no_restart=False
                    )  # lest it write its part when it wakes up
                    self.lose(pool)
                except LOST:
                    self.lose(pool)
            if pool.number >= self._config.pools and not pool.rounds:
                continue  # one that never was there
            # one that is there but late goes on: whoever resumes from this part must draw other
            # numbers than it will
            incarnation = pool.incarnation + pool.available
            absent = self._servers.first.save_absent.remote(
                pool.number, incarnation, pool.rounds, pool.last, folder
            )
            parts.append(get(absent, self._config.cluster.timeout, "the parameter server"))
        return parts

    def _saved(self, pool: PoolMember, reference: ray.ObjectRef) -> Part:
        """The part that a pool writes behind its rounds. Raises `NotInTime` where those keep
        everybody waiting.
        """
        patience = max(20 * LEAST_LATE_SECONDS, 5 * LATE * self._round_seconds)
        while not ready(reference):
            (
                self.collect(POLL_SECONDS)
                if pool.unfinished
                else ray.wait([reference], timeout=POLL_SECONDS)
            )
            if pool.unfinished and time.monotonic() - pool.since > patience:
                raise NotInTime(f"pool {pool.number} is at one round for {patience:.0f} s")
        return get(reference, self._config.cluster.timeout, f"pool {pool.number}")

    def close(self) -> None:
        for pool in self.members:
            ray.kill(pool.actor)
