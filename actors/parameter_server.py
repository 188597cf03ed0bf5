"""The actor that hosts a learner: one rank of the parameter server."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import ray
import torch

from actors.chain_pool import own_chains
from actors.lines import Line, LineBroken, Lines, sent_rows
from actors.policy import rank_of
from actors.writing import Writing
from pipeline.assembly.chains import make_chains
from pipeline.assembly.data import open_data, rows_for_pool
from pipeline.assembly.learner import make_learner
from pipeline.common.errors import DataError, PipelineError, ServerOutOfStepError, StorageError
from pipeline.common.process import keep_to_core
from pipeline.common.types import Figures, Part, Progress, Rows, StepReport, Weights
from pipeline.config.run import RunConfig
from pipeline.runs.scoring import Scoring
from pipeline.storage.checkpoint import Checkpoint
from pipeline.storage.parts import Snapshot
from pipeline.training.learner import Learner
from pipeline.training.ranks import Ranks, free_address

log = logging.getLogger(__name__)
Thing = TypeVar("Thing")


class Stretch(NamedTuple):
    """A rank's account of the steps of a stretch: its reports, the seconds that it waited for pools
    in each, and the pools of its own that it lost.
    """

    reports: list[StepReport]
    waited: list[float]
    lost: list[int]


class Resting(NamedTuple):
    """The version that a rank is at, and its reports of the steps since it was last asked for
    any, which the driver may not have got.
    """

    version: int
    reports: list[StepReport]


class ParameterServer:
    """Hosts the learner: takes batches, answers with a report and, as an object of its own, the new
    weights.

    With several ranks, each has its share of positives and batches; what is said of a step, all of
    them say alike.
    """

    def __init__(self, config: RunConfig) -> None:
        torch.set_num_threads(config.cluster.threads)
        self._config = config
        self._data = open_data(config)
        self._ranks = Ranks.alone()
        self._started: Learner | None = None
        self._published: dict[int, Weights] = {}
        self._made: list[StepReport] = []  # since the driver last asked for steps
        self._lines = Lines()
        self._writing = Writing()
        self._scoring = Scoring(config, self._data)

    def address(self) -> str:
        """The address, host:port, at which the other ranks may meet this process."""
        return free_address(ray.util.get_node_ip_address())

    def node(self) -> str:
        """The id of the node that this process runs on."""
        return ray.get_runtime_context().get_node_id()

    def start(
        self,
        checkpoint: Checkpoint | None,
        warm_start: Checkpoint | None,
        rate_factor: float | None,
        address: str,
        rank: int,
    ) -> int:
        """Takes up a checkpoint, or another run's weights, or neither, and multiplies the learning
        rate as `Learner.start` does; returns the version that it is then at. Several ranks meet at
        `address` first.
        """
        size = self._config.trainer.replicas
        if self._config.cluster.pin and size > 1:
            keep_to_core(rank)  # where a pool is, which rests when ranks learn
        self._meet(address, rank, size)
        learner = make_learner(self._config, self._data, self._ranks)
        learner.start(checkpoint, warm_start, rate_factor)
        return self._begin(learner)

    def _meet(self, address: str, rank: int, size: int) -> None:
        if size > 1:
            self._ranks.leave()  # where it was started before: a damaged checkpoint, a rollback
            self._ranks = Ranks.join(
                address, rank, size, self._config.device, self._config.cluster.timeout
            )

    def _begin(self, learner: Learner) -> int:
        """Goes on with the `learner`; the version that it is at."""
        self._started, self._made = learner, []
        weights = learner.publish()
        self._published = {weights.version: weights}
        return weights.version

    # -- after another rank died -------------------------------------------------------------------

    def rest(self) -> Resting | None:
        """Leaves the other ranks, which wait for it no longer, and its lines; says where it stands.
        None where this process hosts no learner: it was started anew.
        """
        self._lines.close()
        if self._started is None:
            return None
        self._ranks.leave()
        self._ranks = Ranks.alone()
        return Resting(self._started.version, self._made)

    def living_state(self, version: int) -> dict[str, Any]:
        """The state that a rank which died needs to go on. Raises `ServerOutOfStepError`."""
        return self._learner(version).living_state()

    def rejoin(self, address: str, rank: int, state: dict[str, Any] | None) -> int:
        """Meets the other ranks at `address`, and goes on from the `state` of another one, or from
        its own; returns the version that it is at.

        Raises `CheckpointError` where another rank's state does not serve this one.
        """
        own = state is None
        if own:
            assert self._started is not None
            state = self._started.living_state()
        elif self._config.cluster.pin:
            keep_to_core(rank)
        assert state is not None
        self._meet(address, rank, self._config.trainer.replicas)
        learner = make_learner(self._config, self._data, self._ranks)
        learner.go_on(state, own)
        return self._begin(learner)

    def _learner(self, version: int) -> Learner:
        """The learner. Raises `ServerOutOfStepError` where it is not at `version`, or was not
        started.
        """
        at = self._started.version if self._started is not None else "the beginning"
        if self._started is None or at != version:
            raise ServerOutOfStepError(f"the parameter server is at version {at}, not {version}")
        return self._started

    def publish(self, version: int) -> Weights:
        """The weights now. Raises `ServerOutOfStepError`."""
        return self._learner(version).publish()

    def starts(self, version: int, step: int, pieces: int) -> tuple[Rows, ...]:
        """The data rows of step `step`, as arrays, in as many `pieces` as pools will start chains
        at them, or run under them. Raises `ServerOutOfStepError`.
        """
        pieces_of = self._learner(version).starts(step).chunk(pieces)
        return tuple(piece.map(lambda field: field.numpy()) for piece in pieces_of)

    def deal(self) -> Rows:
        """The next data rows, as arrays, for one round that whichever step may consume.

        Raises `ServerOutOfStepError` where it was not started.
        """
        if self._started is None:
            raise ServerOutOfStepError("the parameter server is at the beginning")
        return self._started.deal().map(lambda field: field.numpy())

    def rows_for_pool(self, pool: int, incarnation: int) -> Rows:
        """Training rows, as arrays, one for each chain of a pool to begin at."""
        return rows_for_pool(self._config, self._data, pool, incarnation).map(
            lambda field: field.numpy()
        )

    def step(self, version: int, *batches: pa.RecordBatch) -> StepReport:
        """One optimizer update from the `batches`, this rank's share. Raises
        `ServerOutOfStepError`.
        """
        learner, self._made = self._learner(version), []
        self._draw(learner, version)
        report, weights = learner.step(batches)
        if self._ranks.rank == 0:
            self._scoring.go_on(learner)
        report = self._scoring.tell(report)
        self._made.append(report)
        if self._ranks.rank == 0:
            # the driver asks for a version before it waits for the next one's report
            self._published.pop(version - 1, None)
            self._published[report.version] = weights
        return report

    def _draw(self, learner: Learner, step: int) -> None:
        """Draws the rows of a `step`, where they are streamed, before anything is done for it.
        Raises `StorageError` or `DataError` on every rank, and changes nothing, where those of one
        cannot be read.
        """
        if not self._data.streamed or self._config.batches_carry_rows:
            return
        failure: PipelineError | None = None
        try:
            learner.starts(step)
        except (StorageError, DataError) as error:
            failure = error
        if any(self._ranks.sums(failure is not None)):
            raise next(filter(None, self._ranks.gather(failure)))

    def prepare(self, version: int) -> None:
        """Works out the gradient of the next step's positives while pools sample. Raises
        `ServerOutOfStepError`.
        """
        self._learner(version).prepare()

    # -- a stretch of steps with the pools, through lines ------------------------------------------

    def weights_bytes(self) -> int:
        """The size of what is published."""
        return self._started.publish().flat.nbytes if self._started is not None else 0

    def listen(self) -> tuple[str, int] | None:
        """Opens a door for lines, and returns its address; None where it cannot."""
        try:
            return self._lines.listen(ray.util.get_node_ip_address())
        except LineBroken as error:
            log.warning("no door for lines: %s", error)
            return None

    def accept(self, secret: bytes, pools: Sequence[int]) -> bool:
        """Takes in the lines that the `pools` opened; returns whether all are there."""
        try:
            self._lines.accept(secret, pools, self._config.cluster.pool_timeout)
        except LineBroken as error:
            log.warning("not all lines could be opened: %s", error)
            self._lines.close()
            return False
        return True

    def hang_up(self) -> None:
        """Ends its lines, and shuts the door."""
        self._lines.close()

    @ray.method(num_returns=2)
    def stretch(self, version: int, steps: int) -> tuple[Weights, Stretch]:
        """So many `steps` in lock-step with the pools at the other ends of its lines; the weights
        after them (of rank 0), and what it says of each.

        It ends before them where a pool is lost: a step goes on with the batches of the others, as
        long as there are any, and is the last. So it does where a run that chooses its lag leaves
        lock-step, or where the rows of a step cannot be read. Raises `ServerOutOfStepError`, and
        `StorageError` or `DataError` where those of the first cannot.
        """
        learner = self._learner(version)
        waited: list[float] = []
        reports: list[StepReport] = []
        self._made = reports
        lost: list[int] = []
        weights = learner.publish()
        try:
            for step in range(version, version + steps):
                try:
                    self._draw(learner, step)
                except (StorageError, DataError):
                    if not reports:
                        raise
                    break
                lost, batches, seconds = self._exchange(learner, step, weights)
                everywhere, there = self._ranks.sums(len(lost), len(batches))
                if self._config.pools and not there:
                    break
                report, weights = learner.step(batches)
                reports.append(self._scoring.tell(report))
                waited.append(seconds)
                if everywhere or (self._config.chooses_lag and report.lag_bound):
                    break
        finally:
            if lost or len(reports) < steps:
                self._lines.close()
        self._published = {weights.version: weights}
        return weights, Stretch(reports, waited, lost)

    def _exchange(
        self, learner: Learner, step: int, weights: Weights
    ) -> tuple[list[int], list[pa.RecordBatch], float]:
        """Sends pools what they need for a `step`, works out the gradient of its positives while
        they sample, and takes in their batches: the pools that were lost, the batches, and the
        seconds waited for them.
        """
        turn = self._config.pools_of_step(step) if self._config.pools else []
        own = [
            pool
            for place, pool in enumerate(turn)
            if rank_of(place, len(turn), self._ranks.size) == self._ranks.rank
        ]
        rows: list[Rows | None] = [None] * len(own)
        if self._config.sends_starts:
            rows = [*learner.starts(step).chunk(len(own))]
        lost: list[int] = []
        # one span of patience for all: pools of a node that is gone hang all at once
        patience = self._config.cluster.pool_timeout
        until = time.monotonic() + patience
        for pool, its in zip(own, rows, strict=True):
            self._try(pool, lost, until, Line.send, sent_rows(its))
        if self._ranks.rank == 0:
            for pool in turn:
                self._try(pool, lost, until, Line.send_weights, weights)
        learner.prepare()
        if self._ranks.rank == 0:
            self._scoring.go_on(learner)
        clock = time.monotonic()
        batches = [self._try(pool, lost, clock + patience, Line.receive_batch) for pool in own]
        waited = time.monotonic() - clock
        lost = [pool for pool in own if pool in lost]
        return lost, [batch for batch in batches if batch is not None], waited

    def _try(
        self,
        pool: int,
        lost: list[int],
        until: float,
        do: Callable[..., Any],
        *arguments: Any,
    ) -> Any:
        """Uses the line to a pool, which is `lost` where it breaks, or does not answer `until`."""
        if pool in lost:
            return None
        try:
            line = self._lines[pool]
            line.wait_at_most(until - time.monotonic())
            return do(line, *arguments)
        except LineBroken:
            lost.append(pool)
            return None

    @ray.method(num_returns=2)
    def weights(self, version: int) -> tuple[Weights, bool]:
        """The weights that a step made, once, and that they are there; they are put into the object
        store while the next step begins. Raises `ServerOutOfStepError` where there are none.
        """
        if version not in self._published:
            raise ServerOutOfStepError(f"the parameter server has no weights of version {version}")
        return self._published.pop(version), True

    def snapshot(self, version: int, save: int) -> None:
        """Copies this rank's parts of a checkpoint, for the save of that number. Raises
        `ServerOutOfStepError`.
        """
        self._writing.take(save, self._learner(version).snapshots())

    def snapshot_absent(
        self,
        save: int,
        pool: int,
        incarnation: int,
        round: int,
        last: pa.RecordBatch | None,
        tuning: dict[str, Any] | None,
        checkpoint: Checkpoint | None,
    ) -> None:
        """Makes the part of a pool that is away, as it will be when it has taken up the chains of
        the `last` batch it sent, their `tuning`, and those that it kept in an older `checkpoint`.
        One that has sent none has those of the checkpoint.
        """
        needed = last is None or self._config.keeps_chains
        stored = own_chains(self._config, checkpoint, pool) if needed else None
        if last is None and stored is not None:
            self._writing.take(save, [Snapshot(f"pool-{pool}", stored)])
            return
        chains = make_chains(self._config, self._data.shape, pool, self._data.context_shape)
        chains.revive(incarnation, round, last, tuning=tuning, stored=stored)
        self._writing.take(save, [Snapshot(f"pool-{pool}", chains.state_dict())])

    def written(self, save: int, folder: str) -> list[Part] | None:
        """Has its copies written to `folder` by a thread; None until that is done, then the parts.
        Raises `OutOfStepError` where this process has no copies for the save of that number.
        """
        return self._writing.written(save, folder)

    @ray.method(num_returns=2)
    def keep(self, thing: Thing) -> tuple[Thing, bool]:
        """A copy on this node of an object whose node is about to leave, and that it is there."""
        return thing, True

    @ray.method(num_returns="streaming")
    def evaluate(self, version: int, output: str) -> Iterator[Progress | Figures]:
        """The evaluation of the averaged weights, of rank 0 alone: how far it is, at last its
        figures. Raises `ServerOutOfStepError`.
        """
        # brings pictures and statistics, a second's import
        from pipeline.evaluation.report import evaluate

        averaged = self._learner(version).averaged()
        if self._ranks.rank == 0:
            yield from evaluate(self._config, averaged, self._data, output)
