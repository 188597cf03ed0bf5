"""The actor that hosts one pool of chains."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import ray
import torch

from actors.lines import LineBroken, Lines
from actors.policy import rank_of
from actors.writing import Writing
from pipeline.assembly.chains import dealing_of, make_chains, stored_chains
from pipeline.common.errors import DamagedError, OutOfStepError
from pipeline.common.process import keep_to_core
from pipeline.common.types import Part, RoundReport, Rows, Weights
from pipeline.config.run import RunConfig
from pipeline.storage.checkpoint import Checkpoint
from pipeline.storage.parts import Snapshot

log = logging.getLogger(__name__)


class PoolStatus(NamedTuple):
    """A pool's word on itself: its next round, its incarnation, the id of the node it runs on."""

    round: int
    incarnation: int
    node: str


def own_chains(
    config: RunConfig, checkpoint: Checkpoint | None, pool: int
) -> dict[str, Any] | None:
    """The state of a pool of this run, where the `checkpoint` has chains that are its alone."""
    if checkpoint is None or not dealing_of(config, checkpoint).hand(pool).has_old:
        return None
    try:
        return stored_chains(config, checkpoint, pool)
    except DamagedError as error:
        log.warning("pool %d begins chains anew that are in no batch: %s", pool, error)
        return None


class ChainPool:
    """Pool number `pool`. Its process may die: Ray starts it again, and the driver then calls
    `revive`.
    """

    def __init__(
        self,
        config: RunConfig,
        shape: tuple[int, ...],
        pool: int,
        context_shape: tuple[int, ...] | None,
    ) -> None:
        torch.set_num_threads(config.cluster.threads)
        if config.cluster.pin:
            keep_to_core(pool)
        self._config, self._number = config, pool
        self._lines = Lines()
        self._writing = Writing()
        self._make = partial(make_chains, config, shape, pool, context_shape)
        self._pool = self._make()
        self._handed_over = False

    def _expect(self, round: int) -> None:
        """Checks the driver's count: raises `OutOfStepError` where the next round is another."""
        if self._pool.round != round:
            raise OutOfStepError(f"pool {self._number} is at round {self._pool.round}, not {round}")

    @ray.method(num_returns=2)
    def advance(
        self, round: int, weights: Weights, start: Rows | None = None
    ) -> tuple[pa.RecordBatch, RoundReport]:
        """One round, number `round`, under `weights`, of and under the rows `start`, as arrays,
        where chains are sent any. Raises `OutOfStepError`.
        """
        self._expect(round)
        return self._pool.advance(weights, None if start is None else start.map(torch.tensor))

    def connect(self, secret: bytes, addresses: Sequence[tuple[str, int]], patience: float) -> bool:
        """Opens lines to the ranks at the `addresses`, in their order; returns whether it could."""
        try:
            self._lines.connect(secret, self._number, addresses, patience)
        except LineBroken as error:
            log.warning("pool %d reaches no rank of the parameter server: %s", self._number, error)
            return False
        return True

    @ray.method(num_returns=2)
    def stretch(
        self, round: int, first: int, steps: int
    ) -> tuple[pa.RecordBatch | None, list[RoundReport]]:
        """The rounds of steps `first` and on, so many `steps`, in lock-step with the ranks at the
        other ends of its lines; its last batch, and what it says of each round. It ends before
        them where a line breaks. Raises `OutOfStepError`.
        """
        self._expect(round)
        last, reports, whole = None, [], False
        try:
            for step in range(first, first + steps):
                turn = self._config.pools_of_step(step)
                if self._number not in turn:
                    continue
                ranks = self._config.trainer.replicas
                own = self._lines[rank_of(turn.index(self._number), len(turn), ranks)]
                rows = own.receive()
                weights = self._lines[0].receive_weights()
                start = None if rows is None else Rows(*rows).map(torch.tensor)
                last, report = self._pool.advance(weights, start)
                reports.append(report)
                own.send_batch(last)
            whole = True
        except LineBroken:
            pass
        finally:
            if not whole:  # whatever it failed for, nobody shall wait for it
                self._lines.close()
        return last, reports

    def snapshot(self, round: int, save: int) -> None:
        """Copies the pool's part of a checkpoint, for the save of that number. Raises
        `OutOfStepError`.
        """
        self._expect(round)
        self._writing.take(save, [Snapshot(f"pool-{self._number}", self._pool.state_dict())])

    def written(self, save: int, folder: str) -> list[Part] | None:
        """Has the copy written to `folder` by a thread; None until that is done, then the part.
        Raises `OutOfStepError` where this process has no such copy.
        """
        return self._writing.written(save, folder)

    # -- the ways to chains: each returns where the pool then stands -------------------------------

    def begin(self) -> PoolStatus:
        """Begins with new chains, from noise when the first weights come."""
        return PoolStatus(
            self._pool.round, self._pool.incarnation, ray.get_runtime_context().get_node_id()
        )

    def begin_anew(self) -> PoolStatus:
        """Begins with new chains, whatever it had: the run goes back to its beginning."""
        self._pool = self._make()
        return self.begin()

    def restore(self, checkpoint: Checkpoint, rows: Rows | None = None) -> PoolStatus:
        """Takes up its chains of a checkpoint; where there are too few, others begin at training
        `rows`, as arrays, if any are given.
        """
        self._pool.load_state_dict(stored_chains(self._config, checkpoint, self._number))
        if rows is not None:
            self._pool.begin_at(rows.map(torch.tensor))
        return self.begin()

    def revive(
        self,
        incarnation: int,
        round: int,
        last: pa.RecordBatch | None,
        rows: Rows | None = None,
        tuning: dict[str, Any] | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> PoolStatus:
        """Takes up the chains of the batch `last` that this pool, or another one, sent, with their
        `tuning`; else those of its part of the `checkpoint`; else begins at training `rows`, as
        arrays; else from noise. Chains that it kept by training row are those of that part.
        """
        start = None if rows is None else rows.map(torch.tensor)
        needed = last is None or self._config.keeps_chains
        stored = own_chains(self._config, checkpoint, self._number) if needed else None
        self._pool.revive(incarnation, round, last, start, tuning, stored)
        return self.begin()

    def hand_over(self, round: int) -> dict[str, Any]:
        """Everything that its chains are, for `take_over` on another node.

        Raises `OutOfStepError`.
        """
        self._expect(round)
        self._handed_over = True
        return self._pool.state_dict()

    def take_over(self, state: dict[str, Any]) -> PoolStatus:
        """Goes on as the process that handed over would have. Raises `OutOfStepError` where this is
        that process, still.
        """
        if self._handed_over:
            raise OutOfStepError(f"pool {self._number} is on the node that it leaves")
        self._pool.load_state_dict(state)
        return self.begin()
