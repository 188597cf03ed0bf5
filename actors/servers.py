"""The driver's view of the parameter server: its ranks, as one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.parameter_server import Resting
from actors.waiting import LOST, Deadline, NotInTime, get
from pipeline.common.errors import CheckpointError, ClusterError, PipelineError
from pipeline.common.types import Figures, Progress, StepReport
from pipeline.config.run import RunConfig
from pipeline.storage.checkpoint import Checkpoint
from pipeline.training.reports import merged

log = logging.getLogger(__name__)
START_SECONDS = 60.0
"""A restarted process that takes longer to answer is asked again."""


class ServerRanks:
    """`trainer.replicas` actors of class `make`, rank by rank. Rank 0 publishes, saves and
    evaluates for all.
    """

    def __init__(self, config: RunConfig, make: type) -> None:
        cluster = config.cluster
        self._config = config
        options: dict[str, Any] = {"num_cpus": cluster.server_cpus, "num_gpus": cluster.server_gpus}
        if cluster.server_labels:
            options["label_selector"] = cluster.server_labels
        # a second thread puts weights into the object store while the next step begins; in
        # lock-step it would only ask for the interpreter's lock, hundreds of times a second
        self._beside = {} if config.trainer.lag == 0 else {"concurrency_group": "weights"}
        groups = {"weights": 1} if self._beside else None
        actor = ray.remote(max_restarts=-1, max_task_retries=0, concurrency_groups=groups)(make)
        self.actors = [
            actor.options(**options).remote(config) for _ in range(config.trainer.replicas)
        ]
        self.nodes: set[str] = set()

    @property
    def first(self) -> Any:
        return self.actors[0]

    def await_room(self) -> list[str]:
        """Waits until every rank has a place, or failed to take it, which `start` finds out.
        Returns their nodes' ids; none where one has no place.
        """
        places = [actor.node.remote() for actor in self.actors]
        taken, _ = ray.wait(
            places, num_returns=len(places), timeout=self._config.cluster.timeout, fetch_local=False
        )
        try:
            return list(ray.get(places)) if len(taken) == len(places) else []
        except ray.exceptions.RayActorError:
            return []

    def start(
        self,
        checkpoint: Checkpoint | None,
        warm_start: Checkpoint | None,
        rate_factor: float | None,
        timeout: float,
    ) -> int:
        """All ranks meet and take up a checkpoint; returns the version that they are then at.

        Raises those of `LOST`, and `NotInTime` where one takes more than `timeout` seconds.
        """
        address = (
            get(self.first.address.remote(), timeout, "the parameter server")
            if len(self.actors) > 1
            else ""
        )
        started = [
            actor.start.remote(checkpoint, warm_start, rate_factor, address, rank)
            for rank, actor in enumerate(self.actors)
        ]
        versions = {
            get(reference, timeout, f"parameter-server rank {rank}")
            for rank, reference in enumerate(started)
        }
        assert len(versions) == 1, f"ranks are at versions {versions}"
        self._find_nodes(timeout)
        return versions.pop()

    def restart(
        self,
        checkpoint: Checkpoint | None,
        warm_start: Checkpoint | None,
        rate_factor: float | None,
        deadline: Deadline,
    ) -> int:
        """Brings all of them back, whichever died: ranks that lost one of theirs cannot go on, and
        may hang. Raises `ClusterError` where they are not back by the `deadline`.
        """
        while True:
            try:
                if len(self.actors) > 1:
                    for actor in self.actors:
                        ray.kill(actor, no_restart=False)
                self._await(deadline)
                return self.start(checkpoint, warm_start, rate_factor, START_SECONDS)
            except (*LOST, NotInTime):
                deadline.pause()

    def rejoin(self, version: int, deadline: Deadline) -> list[StepReport] | None:
        """Brings back the ranks that died from the state of one that lives; the step that they were
        at is to be made again. Returns the reports of the steps that were made since the driver was
        at `version`, if any: they lack the rows of the ranks that died.

        None where that cannot be, and a checkpoint is needed: where no rank lives, and where one
        does not have the state of another, whose model is split or whose rows are streamed.
        """
        if len(self.actors) == 1 or self._config.trainer.sharding == "fsdp":
            return None
        living = self._living()
        newest = max((resting.version for resting in living.values()), default=-1)
        if newest < version:
            return None
        up = [rank for rank, resting in living.items() if resting.version == newest]
        try:
            self._await(deadline)
            state = self.actors[up[0]].living_state.remote(newest)
            address = get(self.first.address.remote(), START_SECONDS, "the parameter server")
            joined = [
                actor.rejoin.remote(address, rank, None if rank in up else state)
                for rank, actor in enumerate(self.actors)
            ]
            for reference in joined:
                get(reference, START_SECONDS, "a parameter-server rank")
            self._find_nodes(START_SECONDS)
        except (*LOST, NotInTime, RayTaskError, CheckpointError) as error:
            log.warning("a lost rank could not take up the state of another: %s", error)
            return None
        reports = zip(*(living[rank].reports for rank in up), strict=True)
        return [merged(ranks) for ranks in reports if ranks[0].version > version]

    def _living(self) -> dict[int, Resting]:
        """The ranks that live, which have left one another, and where each stands."""
        resting = [actor.rest.remote() for actor in self.actors]
        patience = min(START_SECONDS, self._config.cluster.timeout / 4)
        ray.wait(resting, num_returns=len(resting), timeout=patience, fetch_local=False)
        living: dict[int, Resting] = {}
        for rank, reference in enumerate(resting):
            try:
                at = get(reference, 1.0, f"parameter-server rank {rank}")
            except LOST:
                continue
            except (NotInTime, RayTaskError):  # it hangs, or cannot leave the others
                ray.kill(self.actors[rank], no_restart=False)
                continue
            if at is not None:
                living[rank] = Resting(*at)
        return living

    def _find_nodes(self, timeout: float) -> None:
        self.nodes = {
            get(actor.node.remote(), timeout, "the parameter server") for actor in self.actors
        }

    def _await(self, deadline: Deadline) -> None:
        """Waits until every rank's process answers."""
        for actor in self.actors:
            while True:
                try:
                    get(actor.node.remote(), START_SECONDS, "a parameter-server rank")
                    break
                except (*LOST, NotInTime):
                    deadline.pause()

    def publish(self, version: int) -> ray.ObjectRef:
        """The weights now, one object, of which rank 0 has the numbers."""
        references = [actor.publish.remote(version) for actor in self.actors]
        return references[0]

    def starts(self, version: int, step: int, pieces: int) -> list[ray.ObjectRef]:
        """The rows of step `step` in so many `pieces`, one a pool, rank by rank."""
        each = pieces // len(self.actors)
        references: list[ray.ObjectRef] = []
        for actor in self.actors:
            returned = actor.starts.options(num_returns=each).remote(version, step, each)
            references.extend(returned if each > 1 else [returned])
        return references

    def deal(self, round: int) -> ray.ObjectRef:
        """Rows for a round that whichever step may consume, of the ranks in turn."""
        return self.actors[round % len(self.actors)].deal.remote()

    def rows_for(self, pool: int, incarnation: int) -> ray.ObjectRef | None:
        """Training rows for the chains of a pool to begin at, where newcomers begin there."""
        if self._config.chains.newcomers != "data":
            return None
        return self.first.rows_for_pool.remote(pool, incarnation)

    def prepare(self, version: int) -> None:
        """Has every rank work out what it can of its next step before the batches are there."""
        for actor in self.actors:
            actor.prepare.remote(version)

    def ask_step(self, version: int, batches: Sequence[ray.ObjectRef]) -> list[ray.ObjectRef]:
        """One step of all ranks, each with its even share of the batches."""
        ranks = len(self.actors)
        shares = [
            batches[len(batches) * r // ranks : len(batches) * (r + 1) // ranks]
            for r in range(ranks)
        ]
        return [
            actor.step.remote(version, *share)
            for actor, share in zip(self.actors, shares, strict=True)
        ]

    def weights(self, version: int) -> ray.ObjectRef:
        """The weights that the last step made, one object, once it is there. Raises those of
        `LOST`.
        """
        weights, there = self.first.weights.options(**self._beside).remote(version)
        # rounds that wait for weights which never come would look like pools that died
        get(there, self._config.cluster.timeout, "the parameter server's weights")
        return weights

    def report(self, step: list[ray.ObjectRef]) -> StepReport:
        """The report of all ranks on their `step`, when it is done. Raises as `answers` does."""
        return merged(self.answers(step, self._config.cluster.timeout))

    def answers(self, asked: list[ray.ObjectRef], timeout: float) -> list[Any]:
        """Every rank's answer to what it was `asked`, when all are there.

        Raises those of `LOST` where a rank died, or a batch did; the first failure, but that of a
        rank for which another died before it; and `NotInTime` after `timeout` seconds.
        """
        answers: dict[ray.ObjectRef, Any] = {}
        failures: list[Exception] = []
        pending = asked
        while pending:
            # a rank that waits for a dead one is told by its connection, at the latest by its own
            # timeout
            done, pending = ray.wait(
                pending, num_returns=1, timeout=30.0 if failures else timeout, fetch_local=False
            )
            if not done:
                break
            for rank in done:
                try:
                    answers[rank] = get(rank, timeout, "the parameter server's step")
                except (*LOST, PipelineError) as error:
                    raise error from None
                except RayTaskError as error:
                    failures.append(error)
        if failures:
            raise failures[0]
        if pending:
            raise NotInTime(
                f"{len(pending)} of the parameter server's ranks did not answer within"
                f" {timeout:g} s"
            )
        return [answers[rank] for rank in asked]

    def snapshot(self, version: int, save: int) -> list[ray.ObjectRef]:
        """Asks every rank to copy its parts of a checkpoint, for the save of that number."""
        return [actor.snapshot.remote(version, save) for actor in self.actors]

    def copied(self, copies: Sequence[ray.ObjectRef]) -> list[Any]:
        """The ranks' actors, when all have made the `copies` that `snapshot` asked for."""
        for copy in copies:
            get(copy, self._config.cluster.timeout, "the parameter server")
        return self.actors

    def evaluate(self, version: int, output: str) -> Iterator[Progress | Figures]:
        """Begins the evaluation, and returns rank 0's answers as they come: how far it is, at last
        its figures. The next of them raises `ClusterError` where the parameter server has died.
        """
        streams = [actor.evaluate.remote(version, output) for actor in self.actors]
        return self._answers(streams[0])

    def _answers(self, stream: Any) -> Iterator[Progress | Figures]:
        try:
            for reference in stream:
                yield get(reference, self._config.cluster.timeout, "the evaluation")
        except RayActorError as error:
            raise ClusterError(
                "the parameter server died while evaluating; the same command evaluates again"
            ) from error

    def close(self) -> None:
        for actor in self.actors:
            ray.kill(actor)
