"""The driver: asks for rounds and steps, moves references, and brings back what dies. It never touches a batch.

Two policies, one per kind of run. *Assigned*: step t consumes round t of the pools whose turn it is (lock-step, exact lag,
chains that start at data), which makes a run repeatable. *First come*: pools go on under the newest weights, a step
consumes whichever batches are there; what is in flight is bounded, and so is the lag.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayTaskError

from actors.chain_pool import ChainPool
from actors.parameter_server import ParameterServer
from pipeline.checkpoint import Checkpoint, CheckpointStore
from pipeline.config import RunConfig
from pipeline.errors import ClusterError, OutOfStepError, PipelineError
from pipeline.loop import pools_of_step
from pipeline.types import Figures, Flow, Part, Progress, RoundReport, StepReport

log = logging.getLogger(__name__)
LOST = (RayActorError, ObjectLostError, OutOfStepError)
POLL_SECONDS = 0.2


class Round(NamedTuple):
    """A round asked of a pool: for which step (None: whichever takes it), under which version, and its references."""

    pool: int
    step: int | None
    version: int
    batch: ray.ObjectRef
    report: ray.ObjectRef


class Pool:
    """The driver's view of one pool."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.incarnation = 0
        self.rounds = 0  # asked for so far: the number of the next one
        self.last: ray.ObjectRef | None = None  # its newest batch: the chains it is revived with
        self.reviving: ray.ObjectRef | None = None


class RayRunner:
    """The algorithm of `pipeline.loop`, its parts in actors."""

    def __init__(
        self, config: RunConfig, output: str, shape: tuple[int, ...], context_shape: tuple[int, ...] | None = None
    ) -> None:
        self._config = config
        self._store = CheckpointStore(output, config.checkpoint.keep)
        cluster = config.cluster
        self._server = ParameterServer.options(  # type: ignore[attr-defined]
            num_cpus=cluster.server_cpus, num_gpus=cluster.server_gpus
        ).remote(config)
        options = {"num_cpus": cluster.pool_cpus, "num_gpus": cluster.pool_gpus}
        make_pool = ChainPool.options(**options)  # type: ignore[attr-defined]
        self._pools = [Pool(make_pool.remote(config, shape, i, context_shape)) for i in range(config.pools)]
        self._rounds: list[Round] = []  # asked for and not consumed, oldest first
        self._ready: list[tuple[Round, RoundReport]] = []  # finished, waiting for a step (first come)
        self._version = 0
        self._lag_bound = config.trainer.lag
        self._restarts: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._warm_start: Checkpoint | None = None

    # -- life of a run ------------------------------------------------------------------------------------------------

    def start(self, checkpoint: Checkpoint | None, warm_start: Checkpoint | None) -> None:
        self._warm_start = warm_start
        started = self._server.start.remote(checkpoint, warm_start)
        restored = [] if checkpoint is None else [pool.actor.restore.remote(checkpoint) for pool in self._pools]
        try:
            for number, reference in enumerate(restored):
                self._pools[number].rounds, self._pools[number].incarnation = self._get(reference, f"pool {number}")
            self._restart_from(self._get(started, "the parameter server"))
        except RayActorError as error:
            raise ClusterError(f"an actor could not start: {error}") from error

    def _restart_from(self, version: int) -> None:
        """Forgets every round under way and asks for the first ones under `version`."""
        self._version = version
        self._rounds, self._ready = [], []
        # weights by reference, oldest first: `lag` versions back is as far as an assigned round can look
        self._weights = deque([(version, self._server.publish.remote(version))], maxlen=self._config.trainer.lag + 1)

    def step(self) -> tuple[StepReport, list[RoundReport], Flow]:
        """One step, however many attempts it takes. Raises `ClusterError` where nothing moves for `cluster.timeout`."""
        while True:
            clock = time.perf_counter()
            try:
                batches = self._gather_assigned() if self._config.assigned_rounds else self._gather_first_come()
                waited = time.perf_counter()
                report_ref, weights = self._server.step.remote(self._version, *(round.batch for round, _ in batches))
                report = self._get(report_ref, "the parameter server's step")
                break
            except (RayActorError, OutOfStepError):  # of the parameter server: those of pools are dealt with below
                self._recover_server()
            except ObjectLostError:  # a batch died with its node before the step could read it
                self._dropped["object_lost"] += len(batches)
        self._version, self._lag_bound = report.version, report.lag_bound
        self._weights.append((report.version, weights))
        stepped = time.perf_counter()
        flow = Flow(
            in_flight=len(self._rounds) + len(self._ready),
            waiting=len(self._ready),
            dropped=dict(self._dropped),
            restarts=dict(self._restarts),
            seconds={"wait_for_pools": waited - clock, "wait_for_step": stepped - waited},
        )
        self._dropped.clear()
        self._restarts.clear()
        return report, [report for _, report in batches], flow

    def save(self, folder: str) -> list[Part]:
        """Every actor writes its own part; that of a pool that is away is written from its newest batch.

        In lock-step no round is under way then; else pools write behind theirs.
        """
        learner = self._server.save.remote(self._version, folder)
        asked = [None if pool.reviving is not None else pool.actor.save.remote(pool.rounds, folder) for pool in self._pools]
        parts: list[Part] = []
        for number, (pool, reference) in enumerate(zip(self._pools, asked, strict=True)):
            try:
                if reference is not None:
                    parts.append(self._get(reference, f"pool {number}"))
                    continue
            except LOST:
                self._lose(number)
            absent = self._server.save_absent.remote(number, pool.incarnation, pool.rounds, pool.last, folder)
            parts.append(self._get(absent, "the parameter server"))
        return [*parts, *self._get(learner, "the parameter server")]

    def evaluate(self, output: str) -> Iterator[Progress | Figures]:
        try:
            for reference in self._server.evaluate.remote(self._version, output):
                yield self._get(reference, "the evaluation")
        except RayActorError as error:
            raise ClusterError("the parameter server died while evaluating; the same command evaluates again") from error

    def close(self) -> None:
        for actor in (self._server, *(pool.actor for pool in self._pools)):
            ray.kill(actor)

    # -- asking for rounds --------------------------------------------------------------------------------------------

    def _ask_assigned(self) -> None:
        """Every round whose weights exist: those of steps up to version + lag, that were not asked for yet."""
        asked = {(round.step, round.pool) for round in self._rounds}
        for step in range(self._version, self._version + self._config.trainer.lag + 1):
            turn = pools_of_step(self._config, step)
            wanted = [(i, p) for i, p in enumerate(turn) if (step, p) not in asked and self._pools[p].reviving is None]
            if not wanted:
                continue
            starts: list[Any] = [None] * len(turn)
            if self._config.sends_starts:
                returned = self._server.starts.options(num_returns=len(turn)).remote(self._version, step, len(turn))
                starts = returned if len(turn) > 1 else [returned]
            oldest = self._weights[0][0]
            version, weights = self._weights[max(0, step - self._config.trainer.lag - oldest)]
            for index, pool in wanted:
                self._submit(pool, step, version, weights, starts[index])

    def _ask_first_come(self) -> None:
        """Fills what may be in flight: (bound + 1) steps' worth of batches, of the pools with the fewest there, and so far."""
        version, weights = self._weights[-1]
        room = self._config.batches_per_step * (self._lag_bound + 1) - len(self._rounds) - len(self._ready)
        load = Counter(round.pool for round in self._rounds)
        load.update(round.pool for round, _ in self._ready)
        alive = [number for number, pool in enumerate(self._pools) if pool.reviving is None]
        while room > 0 and alive:
            pool = min(alive, key=lambda number: (load[number], self._pools[number].rounds))
            if load[pool] > self._lag_bound:
                break
            self._submit(pool, None, version, weights, None)
            load[pool] += 1
            room -= 1

    def _submit(self, pool: int, step: int | None, version: int, weights: Any, start: Any) -> None:
        batch, report = self._pools[pool].actor.advance.remote(self._pools[pool].rounds, weights, start)
        self._pools[pool].rounds += 1
        self._rounds.append(Round(pool, step, version, batch, report))

    # -- collecting them ----------------------------------------------------------------------------------------------

    def _gather_assigned(self) -> list[tuple[Round, RoundReport]]:
        """The rounds of this step; those of pools that died are done without, as long as one is left."""
        deadline = self._deadline()
        while self._pools:
            self._poll_revivals()
            self._ask_assigned()
            gathered = []
            for round in [round for round in self._rounds if round.step == self._version]:
                try:
                    gathered.append((round, self._get(round.report, f"pool {round.pool}")))
                except LOST:
                    self._lose(round.pool)
            if gathered:
                for round, _ in gathered:
                    self._take(round)
                return gathered
            self._republish()
            self._pause(deadline)
        return []

    def _gather_first_come(self) -> list[tuple[Round, RoundReport]]:
        """The first batches there, enough for a step, none older than the bound."""
        deadline = self._deadline()
        while True:
            self._poll_revivals()
            self._drop_stale()
            self._ask_first_come()
            # no more than the pools that are there may have in flight
            alive = sum(pool.reviving is None for pool in self._pools)
            wanted = min(self._config.batches_per_step, max(1, alive * (self._lag_bound + 1)))
            if len(self._ready) >= wanted:
                chosen, self._ready = self._ready[:wanted], self._ready[wanted:]
                return chosen
            if not self._rounds:
                self._republish()
                self._pause(deadline)
                continue
            # block for the first, then take all that are there
            reports = [round.report for round in self._rounds]
            done, _ = ray.wait(reports, num_returns=1, timeout=1.0, fetch_local=False)
            if not done and time.monotonic() > deadline:
                raise ClusterError(f"no pool finished a round within cluster.timeout={self._config.cluster.timeout} s")
            done, _ = ray.wait(reports, num_returns=len(reports), timeout=0, fetch_local=False)
            finished = set(done)
            for round in [round for round in self._rounds if round.report in finished]:
                if round not in self._rounds:  # its pool was lost a moment ago, with this round
                    continue
                try:
                    self._ready.append((round, self._get(round.report, f"pool {round.pool}")))
                    self._take(round)
                except LOST:
                    self._lose(round.pool)

    def _drop_stale(self) -> None:
        """Batches older than the bound are counted and give their slot back; the chains go on."""
        fresh = [entry for entry in self._ready if self._version - entry[0].version <= self._lag_bound]
        self._dropped["stale"] += len(self._ready) - len(fresh)
        self._ready = fresh

    def _take(self, round: Round) -> None:
        self._rounds.remove(round)
        self._pools[round.pool].last = round.batch

    # -- what dies ----------------------------------------------------------------------------------------------------

    def _lose(self, number: int) -> None:
        """A pool's process died: its rounds are gone; Ray restarts it, and it takes up the chains of its newest batch."""
        pool = self._pools[number]
        if pool.reviving is not None:
            return
        pool.incarnation += 1
        self._restarts["pool"] += 1
        lost = [round for round in self._rounds if round.pool == number]
        self._dropped["pool_died"] += len(lost)
        self._rounds = [round for round in self._rounds if round.pool != number]
        self._revive(pool)
        log.warning("pool %d died; it is being restarted with its last chains, the others go on", number)

    def _revive(self, pool: Pool) -> None:
        pool.reviving = pool.actor.revive.remote(pool.incarnation, pool.rounds, pool.last)

    def _poll_revivals(self) -> None:
        """Looks after the pools that are coming back."""
        for number, pool in enumerate(self._pools):
            if pool.reviving is None or not ray.wait([pool.reviving], timeout=0)[0]:
                continue
            try:
                ray.get(pool.reviving)
                pool.reviving = None
                log.warning("pool %d is back (incarnation %d)", number, pool.incarnation)
            except ObjectLostError:
                pool.last = None  # its batch died with its node: start from noise
                self._revive(pool)
            except RayActorError:
                self._revive(pool)  # not up yet

    def _republish(self) -> None:
        """Asks for the weights anew: with every pool gone, the old ones may have died with a node.

        Raises what says that the parameter server is gone too.
        """
        reference = self._server.publish.remote(self._version)
        self._get(reference, "the parameter server")
        self._weights = deque([(self._version, reference)], maxlen=self._weights.maxlen)

    def _recover_server(self) -> None:
        """The parameter server died: it comes back from the newest checkpoint, and the run goes on from there."""
        self._restarts["parameter_server"] += 1
        checkpoint, deadline = self._store.latest(), self._deadline()
        log.warning(
            "the parameter server died; it is being restarted from %s",
            checkpoint.folder if checkpoint else "the beginning",
        )
        while True:
            try:
                version = ray.get(self._server.start.remote(checkpoint, self._warm_start), timeout=60)
                break
            except (*LOST, GetTimeoutError):
                self._pause(deadline)
        self._dropped["parameter_server_died"] += len(self._rounds) + len(self._ready)
        self._restart_from(version)

    # -- waiting ------------------------------------------------------------------------------------------------------

    def _deadline(self) -> float:
        return time.monotonic() + self._config.cluster.timeout

    def _pause(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise ClusterError(f"actors that died did not come back within cluster.timeout={self._config.cluster.timeout} s")
        time.sleep(POLL_SECONDS)

    def _get(self, reference: ray.ObjectRef, what: str) -> Any:
        """An actor's answer in time; an error of ours that it raised comes out as itself."""
        try:
            return ray.get(reference, timeout=self._config.cluster.timeout)
        except RayTaskError as error:
            if isinstance(error.cause, PipelineError):
                raise error.cause from None
            raise
        except GetTimeoutError as error:
            raise ClusterError(f"{what} did not answer within cluster.timeout={self._config.cluster.timeout} s") from error
