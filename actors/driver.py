"""The driver: asks for rounds and steps, moves references, and brings back what dies. It never
touches a batch.

Two policies, one per kind of run. *Assigned*: step t consumes round t of the pools whose turn it is
(lock-step, exact lag), which makes a run repeatable. *First come*: pools go on under the newest
weights, a step consumes whichever batches are there; what is in flight is bounded, and so is the
lag.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

from ray import ObjectRef
from ray.exceptions import ObjectLostError, RayActorError

from actors.chain_pool import ChainPool
from actors.parameter_server import ParameterServer
from actors.pools import PoolRoster, Round
from actors.servers import ServerRanks
from actors.waiting import Deadline, get, ready
from pipeline.common.errors import ClusterError, DamagedError, OutOfStepError
from pipeline.common.types import Figures, Flow, Part, Progress, RoundReport, StepReport
from pipeline.config.run import RunConfig
from pipeline.storage.checkpoint import Checkpoint, CheckpointStore

log = logging.getLogger(__name__)
Batches = list[tuple[Round, RoundReport]]


class RayRunner:
    """The algorithm of `pipeline.runs.inline`, its parts in actors of the classes `pool` and
    `server`.
    """

    def __init__(
        self,
        config: RunConfig,
        output: str,
        shape: tuple[int, ...],
        context_shape: tuple[int, ...] | None = None,
        pool: type = ChainPool,
        server: type = ParameterServer,
    ) -> None:
        self._config = config
        self._store = CheckpointStore(output, config.checkpoint.keep)
        self.servers = ServerRanks(config, server)
        if (
            config.chains.max_pools
        ):  # more pools than there may be room for: ranks have theirs first
            self.servers.await_room()
        self.pools = PoolRoster(config, self.servers, pool, (shape, context_shape))
        self._version = 0
        self._lag_bound = config.trainer.lag
        self._asked = 0  # rounds that rows were dealt to
        self._warm_start: Checkpoint | None = None
        self._leaving_told = False

    # -- life of a run -----------------------------------------------------------------------------

    def start(self, checkpoint: Checkpoint | None, warm_start: Checkpoint | None) -> None:
        self._warm_start = warm_start
        try:
            version = self.servers.start(checkpoint, warm_start, self._config.cluster.timeout)
            self.pools.start(checkpoint)
        except RayActorError as error:
            raise ClusterError(f"an actor could not start: {error}") from error
        self._restart_from(version)

    def _restart_from(self, version: int) -> None:
        """Goes on from `version`, with no round under way."""
        self._version = version
        # weights by reference, oldest first: an assigned round may look `lag` versions back, others
        # take the newest
        back = self._config.trainer.lag if self._config.assigned_rounds else 0
        self._weights: deque[tuple[int, ObjectRef]] = deque(maxlen=back + 1)

    def step(self) -> tuple[StepReport, list[RoundReport], Flow]:
        """One step, however many attempts it takes. Raises `ClusterError` where nothing moves for
        `cluster.timeout`.
        """
        while True:
            clock = time.perf_counter()
            batches: Batches = []
            try:
                batches = self._gather() if self._config.pools else []
                waited = time.perf_counter()
                step = self.servers.ask_step(self._version, [round.batch for round, _ in batches])
                report = self._await(step)
                break
            except (
                RayActorError,
                OutOfStepError,
            ):  # of the parameter server: those of pools are dealt with elsewhere
                self.pools.dropped["parameter_server_died"] += len(batches)
                self._recover_server()
            except ObjectLostError:  # a batch died with its node before the step could read it
                self.pools.dropped["object_lost"] += len(batches)
                if (
                    self._config.trainer.replicas > 1
                ):  # the other ranks wait for the one that lacks it
                    self._recover_server()
        self._version, self._lag_bound = report.version, report.lag_bound
        return (
            report,
            [report for _, report in batches],
            self._flow(waited - clock, time.perf_counter() - waited),
        )

    def _take_weights(self) -> None:
        """Those of the newest version, which are asked for once the next step is."""
        if not self._weights or self._weights[-1][0] != self._version:
            self._weights.append((self._version, self.servers.weights(self._version)))

    def _await(self, step: list[ObjectRef]) -> StepReport:
        """Where rounds are not assigned, takes in those that finish while the step is made, and
        asks free pools for others.
        """
        if not self._config.assigned_rounds:
            deadline = Deadline(self._config.cluster.timeout, "the parameter server's step")
            while True:
                self.pools.look_after()
                self._ask_first_come(self._lag_bound)
                if any(ready(rank) for rank in step):
                    break
                deadline.check()
                self.pools.collect(1.0, *step)
        return self.servers.report(step)

    def _flow(self, waited_for_pools: float, waited_for_step: float) -> Flow:
        pools = self.pools
        leaves = pools.server_leaves and not self._leaving_told
        self._leaving_told = self._leaving_told or leaves
        flow = Flow(
            in_flight=len(pools.rounds) + len(pools.finished),
            waiting=len(pools.finished),
            pools=len(pools.available),
            dropped=dict(pools.dropped),
            restarts=dict(pools.restarts),
            handovers=pools.handovers,
            server_leaves=leaves,
            seconds={"wait_for_pools": waited_for_pools, "wait_for_step": waited_for_step},
        )
        pools.dropped.clear()
        pools.restarts.clear()
        pools.handovers = 0
        return flow

    def save(self, folder: str) -> list[Part]:
        """Every actor writes its own part."""
        saved = self.servers.save(self._version, folder)
        return [*self.pools.save(folder), *self.servers.parts(saved)]

    def evaluate(self, output: str) -> Iterator[Progress | Figures]:
        try:
            yield from self.servers.evaluate(self._version, output)
        except RayActorError as error:
            raise ClusterError(
                "the parameter server died while evaluating; the same command evaluates again"
            ) from error

    def close(self) -> None:
        self.servers.close()
        self.pools.close()

    # -- rounds and steps --------------------------------------------------------------------------

    def _gather(self) -> Batches:
        """The batches of the next step, asking for rounds as long as they are wanted."""
        deadline = Deadline(self._config.cluster.timeout, "a batch for a step")
        assigned = self._config.assigned_rounds
        self.pools.collect(0)
        # those that are there need not wait until others were asked for
        batches = [] if assigned else self._choose_first_come()
        while not batches:
            self.pools.look_after()
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
        for entry in batches:
            self.pools.finished.remove(entry)
        return batches

    def _enough_pools(self) -> bool:
        return len(self.pools.available) >= (self._config.chains.min_pools or 1)

    def _ask_assigned(self) -> None:
        """Every round whose weights exist: those of steps up to version + lag, that were not asked
        for yet.
        """
        self._take_weights()
        pools, lag = self.pools, self._config.trainer.lag
        asked = {
            (round.step, round.pool)
            for round in (*pools.rounds.values(), *(round for round, _ in pools.finished))
        }
        for step in range(self._version, self._version + lag + 1):
            turn = self._config.pools_of_step(step)
            wanted = [
                (i, p)
                for i, p in enumerate(turn)
                if (step, p) not in asked and pools.members[p].available
            ]
            if not wanted:
                continue
            starts: list[Any] = [None] * len(turn)
            if self._config.sends_starts:
                starts = list(self.servers.starts(self._version, step, len(turn)))
            version, weights = self._weights[max(0, step - lag - self._weights[0][0])]
            for index, number in wanted:
                pools.ask(pools.members[number], step, version, weights, starts[index])

    def _choose_assigned(self) -> Batches:
        """Those of this step, in their pools' turn; of pools that died it does without, as long as
        one is left.
        """
        if not self._enough_pools() or any(
            round.step == self._version for round in self.pools.rounds.values()
        ):
            return []
        turn = {pool: place for place, pool in enumerate(self._config.pools_of_step(self._version))}
        mine = [entry for entry in self.pools.finished if entry[0].step == self._version]
        return sorted(mine, key=lambda entry: turn[entry[0].pool])

    def _ask_first_come(self, steps: int) -> None:
        """Fills what may be in flight, the batches of so many `steps`, from the pools with the
        fewest there, and so far.

        The batches of bound + 1 steps, the one to be made next among them, are what the bound on
        lag leaves room for.

        What a late pool owes is not waited for, and takes no other pool's place.
        """
        self._take_weights()
        pools, config, responsive = self.pools, self._config, self.pools.responsive()
        version, weights = self._weights[-1]
        each = min(steps, config.trainer.inflight or steps)
        load = Counter(round.pool for round, _ in pools.finished)
        for pool in responsive:
            load[pool.number] += pool.unfinished
        room = config.batches_per_step * steps - sum(load.values())
        while room > 0 and responsive:
            pool = min(responsive, key=lambda pool: (load[pool.number], pool.rounds))
            if load[pool.number] >= each:
                break
            start = None
            if config.sends_starts:
                start = self.servers.deal(self._asked)
                self._asked += 1
            pools.ask(pool, None, version, weights, start)
            load[pool.number] += 1
            room -= 1

    def _choose_first_come(self) -> Batches:
        """The first batches there, enough for a step, none older than the bound: such are counted,
        their chains go on.
        """
        pools = self.pools
        fresh = [
            entry for entry in pools.finished if self._version - entry[0].version <= self._lag_bound
        ]
        pools.dropped["stale"] += len(pools.finished) - len(fresh)
        pools.finished = fresh
        # no more than the pools that do not keep others waiting may have in flight
        each = min(self._lag_bound + 1, self._config.trainer.inflight or self._lag_bound + 1)
        wanted = min(self._config.batches_per_step, max(1, len(pools.responsive()) * each))
        return fresh[:wanted] if self._enough_pools() and len(fresh) >= wanted else []

    # -- the parameter server ----------------------------------------------------------------------

    def _republish(self) -> None:
        """Asks for the weights anew: with every pool gone, the old ones may have died with a node.

        Raises what says that the parameter server is gone too.
        """
        reference = self.servers.publish(self._version)
        get(reference, self._config.cluster.timeout, "the parameter server")
        self._weights = deque([(self._version, reference)], maxlen=self._weights.maxlen)

    def _recover_server(self) -> None:
        """The parameter server died: it comes back from the newest checkpoint, and the run goes on
        from there.
        """
        self.pools.restarts["parameter_server"] += 1
        deadline = Deadline(self._config.cluster.timeout, "the parameter server, which died,")
        for checkpoint in (*self._store.complete(), None):
            log.warning(
                "the parameter server died; it is being restarted from %s",
                checkpoint.folder if checkpoint else "the beginning",
            )
            try:
                version = self.servers.restart(checkpoint, self._warm_start, deadline)
                break
            except DamagedError as error:
                if checkpoint is None:
                    raise
                log.warning("%s; an older checkpoint is taken", error)
        self.pools.dropped["parameter_server_died"] += self.pools.forget_rounds()
        self._restart_from(version)
