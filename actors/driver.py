"""The driver: asks for rounds and steps, moves references, and brings back what dies. It never
touches a batch.

There are two policies, one per kind of run (`actors.policy` has their rules). *Assigned*: step t
consumes round t of the pools whose turn it is (lock-step, exact lag), which makes a run repeatable.
*First come*: pools go on under the newest weights, a step consumes whichever batches are there;
what is in flight is bounded, and so is the lag.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from ray import ObjectRef
from ray.exceptions import ObjectLostError, RayActorError

from actors.accounts import Accounts
from actors.chain_pool import ChainPool
from actors.cluster import nodes_alive, on_cores_of_its_own, pool_options
from actors.members import Finished
from actors.parameter_server import ParameterServer
from actors.policy import made_under, missing
from actors.pools import PoolRoster
from actors.servers import ServerRanks
from actors.stretches import Stretches
from actors.waiting import Deadline, get, ready
from actors.writing import written
from pipeline.common.errors import ClusterError, DamagedError, OutOfStepError
from pipeline.common.restarts import RestartBudget
from pipeline.common.types import Figures, Flow, Part, Progress, RoundReport, StepReport
from pipeline.config.run import RunConfig
from pipeline.storage.checkpoint import Checkpoint
from pipeline.storage.store import CheckpointStore

log = logging.getLogger(__name__)


class RayRunner:
    """The algorithm of `pipeline.runs.inline`, its parts in actors of the classes `pool` and
    `server`.

    `watch` is told what changes while no step is made: pools that came or went, and what was
    restarted. The `Flow` of a step has what was not told before.
    """

    def __init__(
        self,
        config: RunConfig,
        output: str,
        shape: tuple[int, ...],
        context_shape: tuple[int, ...] | None = None,
        pool: type = ChainPool,
        server: type = ParameterServer,
        watch: Callable[[Flow], None] | None = None,
    ) -> None:
        self._config = config = on_cores_of_its_own(config)
        self.servers = ServerRanks(config, server)
        # more pools than there may be room for: ranks have theirs first; and pools stand beside
        # the ranks that learn from them
        apart = config.trainer.replicas > 1 and nodes_alive() > 1
        homes = self.servers.await_room() if config.chains.max_pools or apart else []
        options = pool_options(config, homes if apart else ())
        self.pools = PoolRoster(
            config, self.servers, pool, (shape, context_shape), options, self._newest
        )
        self._accounts = Accounts(self.pools, watch)
        count = self._accounts.count_damaged
        self._store = CheckpointStore(output, config.checkpoint.keep, count=count)
        self._other_runs: set[str] = set()  # whose checkpoints are in `output` yet, and go soon
        self._stretches = Stretches(config, self.servers, self.pools)
        self._version = 0
        self._asked = self._saves = 0  # rounds that rows were dealt to, and saves that were begun
        self._warm_start: Checkpoint | None = None
        self._begun_from: Checkpoint | None = None  # of another run, with init_what=all
        self._rate_factor: float | None = None
        self._server_restarts = RestartBudget(config.cluster.server_restarts)
        self._leaving_told = False

    # -- life of a run -----------------------------------------------------------------------------

    def start(
        self,
        checkpoint: Checkpoint | None,
        warm_start: Checkpoint | None,
        rate_factor: float | None = None,
    ) -> None:
        """Takes up a checkpoint, or another run's weights, or neither, and waits for the pools
        without which the run does not begin. Rounds under way are given up.

        Raises `DamagedError` where a part of the checkpoint is damaged: it may be called again with
        an older one. Raises `ClusterError` where an actor could not start, or they do not come in
        time.
        """
        config, self._warm_start, self._rate_factor = self._config, warm_start, rate_factor
        self._lag_bound = 0 if config.chooses_lag else config.lag
        self._stretches.forget()
        if rate_factor is None:
            own = checkpoint is None or checkpoint.folder == self._store.folder(checkpoint.step)
            self._begun_from = None if own else checkpoint
            if checkpoint is None or not own:
                self._other_runs = self._store.runs()
        needed = config.chains.min_pools or config.pools
        try:
            version = self.servers.start(
                checkpoint, warm_start, rate_factor, config.cluster.timeout
            )
            self.pools.start(checkpoint)
            deadline = Deadline(
                config.cluster.timeout, f"{needed} pools, without which the run does not begin,"
            )
            while len(self.pools.available) < needed:
                self.pools.await_first(1.0)
                self._accounts.tell()
                deadline.check()
        except RayActorError as error:
            raise ClusterError(f"an actor could not start: {error}") from error
        self._restart_from(version)

    def _whole(self) -> Iterator[Checkpoint]:
        """The run's whole checkpoints, newest first, and at last another run's that it began at."""
        yield from self._store.complete(besides=self._other_runs)
        yield from [self._begun_from] if self._begun_from else []

    def _newest(self) -> Checkpoint | None:
        return next(self._whole(), None)

    def _restart_from(self, version: int) -> None:
        """Goes on from `version`, with no round under way."""
        self._version = version
        # weights by reference, oldest first: an assigned round may look `lag` versions back, others
        # take the newest
        back = self._config.lag if self._config.assigned_rounds else 0
        self._weights: deque[tuple[int, ObjectRef]] = deque(maxlen=back + 1)

    def stretch(self, most: int) -> list[tuple[StepReport, list[RoundReport], Flow]]:
        """At most so many steps, none where the attempt failed: as a stretch in lock-step
        (`actors.stretches`), or else one step. Raises as `step` does.
        """
        self.pools.look_after()
        if not self._stretches.possible(self._lag_bound):
            return [self.step()]
        clock = time.perf_counter()
        try:
            made = self._stretches.make(self._version, most)
        except (RayActorError, OutOfStepError) as error:  # of the parameter server
            return self._recover_server(error)
        if made is None or not made.reports:
            return [self.step()]
        self._version = made.reports[-1].version
        self._lag_bound = made.reports[-1].lag_bound
        self._weights = deque([(self._version, made.weights)], maxlen=self._weights.maxlen)
        each = (time.perf_counter() - clock) / len(made.reports)
        steps = []
        for report, rounds, waited in zip(made.reports, made.rounds, made.waited, strict=True):
            flow = self._accounts.flow(
                {"wait_for_pools": waited, "wait_for_step": max(0, each - waited)}
            )
            ago = each * (self._version - report.version)
            steps.append((report, rounds, flow._replace(ago=ago)))
        return [*steps[:-1], (*steps[-1][:2], steps[-1][2]._replace(server_leaves=self._leaves()))]

    def _leaves(self) -> bool:
        """Return whether the parameter server's node is about to leave, the first time it is."""
        leaves = self.pools.server_leaves and not self._leaving_told
        self._leaving_told = self._leaving_told or leaves
        return leaves

    def step(self) -> tuple[StepReport, list[RoundReport], Flow]:
        """One step, however many attempts it takes.

        Raises `ClusterError` where nothing moves for `cluster.timeout`, or where the parameter
        server dies more often than `cluster.server_restarts` allows.
        """
        while True:
            clock = time.perf_counter()
            batches: list[Finished] = []
            try:
                batches = self._gather() if self._config.pools else []
                waited = time.perf_counter()
                step = self.servers.ask_step(self._version, [round.batch for round in batches])
                report = self._await(step)
                break
            # of the parameter server: those of pools are dealt with elsewhere
            except (RayActorError, OutOfStepError) as error:
                if made := self._recover_server(error, batches):
                    return made[-1]
            # a batch died with its node before the step could read it
            except ObjectLostError as error:
                self.pools.dropped["object_lost"] += len(batches)
                # the other ranks wait for the one that lacks it
                if self._config.trainer.replicas > 1:
                    self._recover_server(error, [])
        self._version, self._lag_bound = report.version, report.lag_bound
        seconds = {
            "wait_for_pools": waited - clock,
            "wait_for_step": time.perf_counter() - waited,
        }
        flow = self._accounts.flow(seconds)._replace(server_leaves=self._leaves())
        return report, [round.report for round in batches], flow

    def _take_weights(self) -> None:
        """Asks for the weights of the newest version, unless that was done."""
        if not self._weights or self._weights[-1][0] != self._version:
            self._weights.append((self._version, self.servers.weights(self._version)))

    def _await(self, step: list[ObjectRef]) -> StepReport:
        """The report on a step that was asked for. Where rounds are not assigned, takes in those
        that finish while it is made, and asks free pools for others.
        """
        if not self._config.assigned_rounds:
            deadline = Deadline(self._config.cluster.timeout, "the parameter server's step")
            while True:
                self.pools.look_after()
                self._accounts.tell()
                self._ask_first_come(self._lag_bound)
                if any(ready(rank) for rank in step):
                    break
                deadline.check()
                self.pools.collect(1.0, *step)
        return self.servers.report(step)

    def snapshot(self) -> Callable[[str], list[Part]]:
        """Has every actor copy its own part of a checkpoint. Returns what has them write the copies
        to a folder, in any thread; it raises where one of them has died.
        """
        self._saves += 1
        copies = self.servers.snapshot(self._version, self._saves)
        actors = [*self.pools.snapshot(self._saves), *self.servers.copied(copies)]
        return partial(written, actors, self._saves, self._config.cluster.timeout)

    def save(self, folder: str) -> list[Part]:
        """Writes a checkpoint's parts to `folder`, each actor its own, and waits for them."""
        return self.snapshot()(folder)

    def evaluate(self, output: str) -> Iterator[Progress | Figures]:
        """Begins the evaluation (`ServerRanks.evaluate`)."""
        return self.servers.evaluate(self._version, output)

    def close(self) -> None:
        """Ends every actor's process."""
        self.servers.close()
        self.pools.close()

    # -- rounds and steps --------------------------------------------------------------------------

    def _gather(self) -> list[Finished]:
        """The batches of the next step, asking for rounds as long as they are wanted."""
        deadline = Deadline(self._config.cluster.timeout, "a batch for a step")
        assigned = self._config.assigned_rounds
        self.pools.collect(0)
        # those that are there need not wait until others were asked for
        batches = [] if assigned else self._choose_first_come()
        while not batches:
            self.pools.look_after()
            self._accounts.tell()
            if assigned:
                self._ask_assigned()
            else:
                self._ask_first_come(self._lag_bound + 1)
            if batches := self._choose_assigned() if assigned else self._choose_first_come():
                break
            if not self.pools.rounds:
                self._republish()
                deadline.pause()
                continue
            deadline.check()
            self.pools.collect(1.0)
        return batches

    def _ask_assigned(self) -> None:
        """Asks for every round whose weights exist, and that was not asked for yet: those of steps
        up to version + lag.
        """
        self._take_weights()
        pools, lag = self.pools, self._config.lag
        asked = {(round.step, round.pool) for round in pools.rounds.values()}
        asked |= {(round.step, round.pool) for round in pools.fleet.finished}
        there = set(pools.fleet.available().tolist())
        for step in range(self._version, self._version + lag + 1):
            turn = self._config.pools_of_step(step)
            wanted = missing(step, turn, asked, there)
            if not wanted:
                continue
            starts: list[Any] = [None] * len(turn)
            if self._config.sends_starts:
                starts = list(self.servers.starts(self._version, step, len(turn)))
            oldest = self._weights[0][0]
            version, weights = self._weights[max(0, made_under(step, lag) - oldest)]
            for place, number in wanted:
                pools.ask(pools.members[number], step, version, weights, starts[place])
            self.servers.prepare(self._version)

    def _choose_assigned(self) -> list[Finished]:
        """The batches of this step, in their pools' turn."""
        pools, step = self.pools, self._version
        turn = self._config.pools_of_step(step)
        return pools.fleet.choose_assigned(pools.rules, step, turn, pools.rounds.values())

    def _ask_first_come(self, steps: int) -> None:
        """Fills what may be in flight, the batches of so many `steps`, under the newest weights."""
        self._take_weights()
        version, weights = self._weights[-1]
        pools = self.pools
        for number in pools.fleet.rounds_to_ask(pools.rules, steps, time.monotonic()):
            start = None
            if self._config.sends_starts:
                start = self.servers.deal(self._asked)
                self._asked += 1
            pools.ask(pools.members[number], None, version, weights, start)

    def _choose_first_come(self) -> list[Finished]:
        """The first batches there, enough for a step, none older than the bound: such are
        counted.
        """
        pools, bound = self.pools, self._lag_bound
        pools.dropped["stale"] += pools.fleet.drop_stale(self._version, bound)
        return pools.fleet.choose(pools.rules, bound, time.monotonic())

    # -- the parameter server ----------------------------------------------------------------------

    def _republish(self) -> None:
        """Asks for the weights anew: with every pool gone, the old ones may have died with a node.

        Raises what says that the parameter server is gone too.
        """
        reference = self.servers.publish(self._version)
        get(reference, self._config.cluster.timeout, "the parameter server")
        self._weights = deque([(self._version, reference)], maxlen=self._weights.maxlen)

    def _recover_server(
        self, error: Exception, batches: Sequence[Finished] | None = None
    ) -> list[tuple[StepReport, list[RoundReport], Flow]]:
        """The parameter server died, as `error` says, while it was at a step of the `batches`; None
        where they are not known. It comes back, and the run goes on: from where it was, as long as
        one of several ranks lives, else from the newest checkpoint.

        Returns the steps that nobody had heard of. Raises `ClusterError` where it died too often,
        or is not back in time.
        """
        cluster, cause = self._config.cluster, " ".join(str(error).split())
        if not self._server_restarts.spend(time.monotonic()):
            raise ClusterError(
                "the parameter server died again, after as many restarts within an hour as"
                f" cluster.server_restarts={cluster.server_restarts} allows: {cause}"
            ) from error
        self.pools.restarts["parameter_server"] += 1
        log.warning("the parameter server died: %s", cause)
        self._accounts.tell()
        whose = "the parameter server, which died,"
        reports = self.servers.rejoin(self._version, Deadline(cluster.timeout, whose))
        if reports is not None:
            return self._go_on(reports, batches)
        version = self._restart_server(Deadline(cluster.timeout, whose))
        # nothing of the dead one's is used again: its versions had other weights than those of the
        # same numbers will have
        dropped = len(batches or ()) + self.pools.forget_rounds()
        self.pools.dropped["parameter_server_died"] += dropped
        self._restart_from(version)
        return []

    def _go_on(
        self, reports: list[StepReport], batches: Sequence[Finished] | None
    ) -> list[tuple[StepReport, list[RoundReport], Flow]]:
        """Goes on behind the steps that `reports` tell of, with a parameter server that knows its
        state. The step that it was at is made again, of the same `batches`.
        """
        self._version += len(reports)
        log.warning("lost ranks have the state of others; no step is lost: %d", self._version)
        if reports:
            self._lag_bound = reports[-1].lag_bound
        if self._config.sends_starts:  # they may wait for rows that died with a rank
            lost = self.pools.forget_rounds(finished=False)
            self.pools.dropped["parameter_server_died"] += lost
        again: list[Finished | None]
        if batches is None:
            again = [pool.made_for(self._version) for pool in self.pools.members]
        else:
            again = [] if reports else [*batches]
        self.pools.fleet.finished[:0] = filter(None, again)
        rounds = [round.report for round in batches or ()]
        return [(report, rounds, self._accounts.flow({})) for report in reports]

    def _restart_server(self, deadline: Deadline) -> int:
        """Brings it back from the newest whole checkpoint; returns the version that it is at."""
        others = self._warm_start, self._rate_factor, deadline
        for checkpoint in self._whole():
            log.warning("the parameter server is being restarted from %s", checkpoint.folder)
            try:
                return self.servers.restart(checkpoint, *others)
            except DamagedError as error:
                self._store.tell_damage(checkpoint.folder, error)
        log.warning("the parameter server is being restarted from the beginning")
        return self.servers.restart(None, *others)
