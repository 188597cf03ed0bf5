"""The driver's view of the pools: who is there, what they were asked for, what becomes of those
that die, hang or leave. The choices that state and time alone decide are those of `actors.policy`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from actors.chain_pool import PoolStatus
from actors.members import Finished, PoolMember, Round
from actors.policy import LATE, LEAST_LATE_SECONDS, Event, Fleet, Life, Rules
from actors.servers import ServerRanks
from actors.waiting import LOST, POLL_SECONDS, NotInTime, draining_nodes, get, ready
from pipeline.assembly.chains import dealing_of
from pipeline.common.errors import (
    ClusterError,
    DamagedError,
    OutOfStepError,
    ServerOutOfStepError,
)
from pipeline.common.types import RoundReport
from pipeline.config.run import RunConfig
from pipeline.storage.checkpoint import Checkpoint

log = logging.getLogger(__name__)
RETRY_SECONDS = 1.0


class PoolRoster:
    """The pools of a run: as many actors of class `make` as it may use. Ray, or the cluster's
    autoscaler, finds room for them or not.

    A pool that is not there, for whatever reason, is one that is on its way: steps go on with the
    others. Finished rounds wait in `fleet.finished` for their step, in the order that they came in.
    `newest` gives the checkpoint that has the chains which are in no batch.
    """

    def __init__(
        self,
        config: RunConfig,
        servers: ServerRanks,
        make: Callable[..., Any],
        arguments: tuple[Any, ...],
        options: Sequence[dict[str, Any]],
        newest: Callable[[], Checkpoint | None],
    ) -> None:
        self._config, self._servers, self._newest = config, servers, newest
        actor = ray.remote(max_restarts=-1, max_task_retries=0)(make)
        shape, context_shape = arguments
        self.fleet: Fleet[Finished] = Fleet(config.most_pools)
        self.rules = Rules(
            config.batches_per_step, config.trainer.inflight, config.chains.min_pools or 1
        )
        self.members = [
            PoolMember(
                number,
                actor.options(**own).remote(config.without_rows(), shape, number, context_shape),
                self.fleet,
            )
            for number, own in enumerate(options)
        ]
        # by the reference of the report: asked for and not finished, oldest first
        self.rounds: dict[ray.ObjectRef, Round] = {}
        self.dropped: Counter[str] = Counter()
        self.restarts: Counter[str] = Counter()
        self.handovers = 0
        self._begun = False
        self._drains_seen_at = 0.0
        self._draining: set[str] = set()

    # -- who is there ------------------------------------------------------------------------------

    @property
    def available(self) -> list[PoolMember]:
        """The pools that can be asked for rounds."""
        return [pool for pool in self.members if pool.available]

    @property
    def in_flight(self) -> int:
        """Rounds asked for that no step has taken."""
        return len(self.rounds) + len(self.fleet.finished)

    def start(self, checkpoint: Checkpoint | None) -> None:
        """Sends every pool its way to its chains. Rounds are given up where the run goes back."""
        again, self._begun = self._begun, True
        if again:
            self.dropped["rolled_back"] += self.forget_rounds()
        dealing = None if checkpoint is None else dealing_of(self._config, checkpoint)
        for pool in self.members:
            pool.done, pool.last, pool.kept, pool.leaving = 0, None, None, None
            if dealing is None:
                joining = (pool.actor.begin_anew if again else pool.actor.begin).remote()
            else:
                new = bool(dealing.hand(pool.number).copies)
                rows = self._servers.rows_for(pool.number, dealing.incarnation) if new else None
                joining = pool.actor.restore.remote(checkpoint, rows)
            pool.begins = dealing is None or not dealing.hand(pool.number).has_old
            self._send_for(pool, joining)

    def await_first(self, seconds: float) -> None:
        """Waits, at most so long, for a pool to come to the chains that the run begins with.

        Raises `ClusterError` where one could not start, and `DamagedError` where its part of the
        checkpoint is damaged.
        """
        joining = [pool.joining for pool in self.members if pool.life is Life.JOINING]
        ray.wait(joining, timeout=seconds, fetch_local=False)
        self._poll_joining(beginning=True)

    def forget_rounds(self, finished: bool = True) -> int:
        """Gives up every round under way, and those that `finished`; how many there were. Pools say
        where they stand, when they have come to rest.
        """
        lost = self.in_flight if finished else len(self.rounds)
        self.rounds = {}
        self.fleet.finished = [] if finished else self.fleet.finished
        for pool in self.members:
            if self._give_up(pool) and pool.available:
                pool.joining = pool.actor.begin.remote()
                self.fleet.move(pool.number, Event.FORGOTTEN)
        return lost

    # -- rounds ------------------------------------------------------------------------------------

    def ask(
        self, pool: PoolMember, step: int | None, version: int, weights: Any, start: Any
    ) -> None:
        """One more round of a pool that is there."""
        batch, report = pool.actor.advance.remote(pool.rounds, weights, start)
        self.rounds[report] = Round(pool.number, step, version, batch)
        pool.rows.append(start)
        self.fleet.ask(pool.number, time.monotonic(), waits=start is not None)

    def collect(self, seconds: float, *others: Any) -> None:
        """Waits, at most so long, for a round to finish, or for one of the `others`, and takes in
        all rounds that did. Pools that died are sent for.

        Raises those of `LOST` where the parameter server is what a round failed for.
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
            if reference in self.rounds:  # else its pool was lost a moment ago, with this round
                self._take_in(reference)
        self._start_clocks()

    def _take_in(self, reference: ray.ObjectRef) -> None:
        """A round that is done: its batch waits for a step, or its pool is lost."""
        round = self.rounds[reference]
        pool = self.members[round.pool]
        try:
            report = get(reference, self._config.cluster.timeout, f"pool {round.pool}")
        except LOST as error:
            # what the round was to have of the parameter server never came: its loss, and not the
            # pool's
            if isinstance(error, ServerOutOfStepError) or (
                isinstance(error, RayTaskError) and isinstance(error, RayActorError)
            ):
                raise
            self.lose(pool)
            return
        del self.rounds[reference]
        pool.last, pool.report = round.batch, report
        pool.done = report.round + 1
        pool.rows.popleft()
        waits = bool(pool.rows) and pool.rows[0] is not None
        self.fleet.finish(Finished(*round, report), time.monotonic(), report.seconds, waits)

    def made(self, pool: PoolMember, last: ray.ObjectRef, reports: Sequence[RoundReport]) -> None:
        """Rounds that a pool made in a stretch, with its `last` batch."""
        pool.last, pool.report = last, reports[-1]
        pool.done = reports[-1].round + 1
        self.fleet.made(pool.number, [report.seconds for report in reports])

    def _start_clocks(self) -> None:
        """A pool's time runs from when the parameter server, which may be at a long step, has given
        the rows that its oldest round waits for.
        """
        waiting = {self.members[pool].rows[0]: pool for pool in self.fleet.waiting_for_server()}
        if waiting:
            there, _ = ray.wait(
                list(waiting), num_returns=len(waiting), timeout=0, fetch_local=False
            )
            for reference in there:
                self.fleet.begin(waiting[reference], time.monotonic())

    # -- what dies, hangs and leaves ---------------------------------------------------------------

    def look_after(self) -> None:
        """Takes back the pools that joined, restarts those that hang, moves those whose node is
        about to leave.
        """
        self._poll_joining()
        timeout = self._config.cluster.pool_timeout
        if self.fleet.hung(time.monotonic(), timeout):
            self.collect(0)  # what came in while the driver was waiting for something else
        for number in self.fleet.hung(time.monotonic(), timeout):
            log.warning("pool %d has not answered for %.0f s", number, timeout)
            ray.kill(self.members[number].actor, no_restart=False)
            self.lose(self.members[number])
        self._move_from_draining_nodes()

    def lose(self, pool: PoolMember) -> None:
        """Its process is gone, and so are its rounds; Ray restarts it, and it takes up the chains
        of its newest batch.
        """
        if pool.life in (Life.GONE, Life.JOINING):  # that is known already
            return
        self._lose(pool)

    def _lose(self, pool: PoolMember) -> None:
        self.fleet.move(pool.number, Event.LOST)
        pool.leaving = pool.kept = None
        pool.incarnation += 1
        self.restarts["pool"] += 1
        self.rounds = {
            report: round for report, round in self.rounds.items() if round.pool != pool.number
        }
        self.dropped["pool_died"] += self._give_up(pool)
        self._revive(pool)
        log.warning(
            "pool %d died; it is being restarted with its last chains, the others go on",
            pool.number,
        )

    def _give_up(self, pool: PoolMember) -> int:
        pool.rows.clear()
        return self.fleet.give_up(pool.number)

    def _send_for(self, pool: PoolMember, joining: ray.ObjectRef) -> None:
        pool.joining = joining
        self.fleet.move(pool.number, Event.SENT_FOR)

    def _revive(self, pool: PoolMember) -> None:
        """Sends a pool to the chains it handed over, else to those of its own newest batch, else to
        its own of the newest checkpoint, else to those that `chains.newcomers` says.
        """
        if pool.kept is not None:
            self._send_for(pool, pool.actor.take_over.remote(pool.kept))
            return
        of, rows, newest = pool, None, self._newest()
        if pool.last is None:
            rows = self._servers.rows_for(pool.number, pool.incarnation)
            stored = (
                newest is not None and dealing_of(self._config, newest).hand(pool.number).has_old
            )
            if self._config.chains.newcomers == "snapshot" and not stored:
                of = next((other for other in self._newest_first() if other.last), pool)
        arguments = (of.last, rows, of.tuning, newest)
        self._send_for(pool, pool.actor.revive.remote(pool.incarnation, pool.rounds, *arguments))

    def _newest_first(self) -> list[PoolMember]:
        return sorted(self.members, key=lambda pool: -pool.rounds)

    def _poll_joining(self, beginning: bool = False) -> None:
        for pool in self.members:
            if pool.life is Life.GONE and time.monotonic() >= pool.retry_at:
                self._revive(pool)
            elif pool.life is Life.JOINING and ready(pool.joining):
                self._join(pool, beginning)

    def _join(self, pool: PoolMember, beginning: bool) -> None:
        """Takes in what a pool on its way says: that it is there, or why it is not."""
        try:
            status = get(pool.joining, self._config.cluster.timeout, f"pool {pool.number}")
        except DamagedError:  # its part of the checkpoint: it begins as a newcomer does
            if beginning:
                raise
            self._revive(pool)
            return
        except ObjectLostError:
            pool.last = pool.kept = None  # they died with their node
            self._revive(pool)
            return
        except (RayActorError, OutOfStepError) as error:
            if beginning:
                raise ClusterError(f"pool {pool.number} could not start: {error}") from error
            self.fleet.move(pool.number, Event.LOST)  # not up yet
            pool.retry_at = time.monotonic() + RETRY_SECONDS
            return
        status = PoolStatus(*status)
        if status.round < pool.done:  # a new process, of whose birth nobody knew
            self._lose(pool)
            return
        pool.incarnation, pool.node, pool.done = status.incarnation, status.node, status.round
        self.fleet.rounds[pool.number] = status.round
        pool.kept = None
        too_old, pool.begins = pool.begins and not beginning, False
        if too_old:
            self._revive(pool)
            return
        self.fleet.move(pool.number, Event.JOINED)
        if not beginning:
            log.warning("pool %d is there (incarnation %d)", pool.number, pool.incarnation)

    def _move_from_draining_nodes(self) -> None:
        """A pool whose node is about to leave hands over its chains first, for the parameter server
        to keep, and then moves.
        """
        now = time.monotonic()
        if now - self._drains_seen_at > RETRY_SECONDS:
            self._drains_seen_at, self._draining = now, draining_nodes()
        for pool in self.members:
            if pool.available and pool.node in self._draining:
                log.warning(
                    "pool %d hands over its chains: its node is about to leave", pool.number
                )
                pool.leaving = pool.actor.hand_over.remote(pool.rounds)
                self.fleet.move(pool.number, Event.DRAINED)
            elif pool.life is Life.LEAVING and not pool.unfinished and ready(pool.leaving):
                self._see_off(pool)

    def _see_off(self, pool: PoolMember) -> None:
        """The next thing to do for a pool that leaves, when the last one is done."""
        if pool.kept is None:
            # only now that it is there: whatever else is asked of the server would wait behind it
            pool.kept, pool.leaving = self._servers.first.keep.remote(pool.leaving)
            return
        try:
            get(pool.leaving, self._config.cluster.timeout, "the parameter server")
        except (*LOST, RayTaskError):  # it died before its chains were in safe keeping
            self.lose(pool)
            return
        ray.kill(pool.actor, no_restart=False)
        pool.leaving = None
        self.fleet.move(pool.number, Event.HANDED_OVER)
        self._revive(pool)
        self.handovers += 1

    @property
    def server_leaves(self) -> bool:
        """Return whether a node of the parameter server's is about to leave."""
        return bool(self._servers.nodes & self._draining)

    # -- checkpoints -------------------------------------------------------------------------------

    def snapshot(self, save: int) -> list[Any]:
        """Has every pool copy its part of a checkpoint, and returns their actors. The part of a
        pool that is away, or late, the parameter server makes of its newest batch.

        In lock-step no round is under way then; else pools copy behind theirs.
        """
        there = [self.members[number] for number in self.fleet.responsive(time.monotonic())]
        asked = {pool.number: pool.actor.snapshot.remote(pool.rounds, save) for pool in there}
        copied: list[Any] = []
        for pool in self.members:
            if pool.number in asked:
                try:
                    self._await_copy(pool, asked[pool.number])
                    copied.append(pool.actor)
                    continue
                except NotInTime:
                    ray.kill(pool.actor, no_restart=False)
                    self.lose(pool)
                except LOST:
                    self.lose(pool)
            if pool.number >= self._config.pools and not pool.rounds:
                continue  # one that never was there
            # one that is there but late goes on: whoever resumes from this part must draw other
            # numbers than it will
            incarnation = pool.incarnation + pool.available
            absent = self._servers.first.snapshot_absent.remote(
                *(save, pool.number, incarnation, pool.rounds, pool.last),
                *(pool.tuning, self._newest()),
            )
            get(absent, self._config.cluster.timeout, "the parameter server")
        return copied

    def _await_copy(self, pool: PoolMember, reference: ray.ObjectRef) -> None:
        """Waits for the copy that a pool makes behind its rounds. Raises `NotInTime` where those
        keep everybody waiting.
        """
        patience = max(20 * LEAST_LATE_SECONDS, 5 * LATE * self.fleet.round_seconds)
        while not ready(reference):
            if pool.unfinished:
                self.collect(POLL_SECONDS)
            else:
                ray.wait([reference], timeout=POLL_SECONDS)
            if pool.number in self.fleet.hung(time.monotonic(), patience):
                raise NotInTime(f"pool {pool.number} is at one round for {patience:.0f} s")
        get(reference, self._config.cluster.timeout, f"pool {pool.number}")

    def close(self) -> None:
        """Ends every pool's process."""
        for pool in self.members:
            ray.kill(pool.actor)
