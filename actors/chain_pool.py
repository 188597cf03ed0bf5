"""The actor that hosts one pool of chains."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyarrow as pa
import ray
import torch

from pipeline.assembly.chains import make_chains
from pipeline.common.errors import OutOfStepError
from pipeline.common.types import Part, RoundReport, Rows, Weights
from pipeline.config.run import RunConfig
from pipeline.storage.checkpoint import Checkpoint, write_part


class PoolStatus(NamedTuple):
    """Where a pool is: its next round, its incarnation, and the id of the node it runs on."""

    round: int
    incarnation: int
    node: str


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
        self._pool = pool
        self._chains = make_chains(config, shape, pool, context_shape)
        self._handed_over = False

    def _expect(self, round: int) -> None:
        """Raises `OutOfStepError` where the next round is not the one that the driver takes it for."""
        if self._chains.round != round:
            raise OutOfStepError(f"pool {self._pool} is at round {self._chains.round}, not {round}")

    @ray.method(num_returns=2)
    def advance(
        self, round: int, weights: Weights, start: Rows | None = None
    ) -> tuple[pa.RecordBatch, RoundReport]:
        """Round number `round` under `weights`, of and under the rows `start`, as arrays, where
        chains are sent any.
        """
        self._expect(round)
        return self._chains.advance(weights, None if start is None else start.map(torch.tensor))

    def save(self, round: int, folder: str) -> Part:
        self._expect(round)
        return write_part(folder, f"pool-{self._pool}.pt", self._chains.state_dict())

    # -- how a pool comes to its chains: each says where it then stands ----------------------------

    def begin(self) -> PoolStatus:
        """New ones, from noise when the first weights come."""
        return PoolStatus(
            self._chains.round, self._chains.incarnation, ray.get_runtime_context().get_node_id()
        )

    def restore(self, checkpoint: Checkpoint, of: int) -> PoolStatus:
        """Those of a checkpoint's pool number `of`: this one, or another, whose positions it takes
        up with its own draws.
        """
        self._chains.load_state_dict(checkpoint.read(f"pool-{of}.pt"))
        if of != self._pool:
            self._chains.diverge()
        return self.begin()

    def revive(
        self, incarnation: int, round: int, last: pa.RecordBatch | None, rows: Rows | None = None
    ) -> PoolStatus:
        """Those of a batch that this pool, or another one, sent; or at training rows, as arrays; or
        from noise.
        """
        self._chains.revive(
            incarnation, round, last, None if rows is None else rows.map(torch.tensor)
        )
        return self.begin()

    def hand_over(self, round: int) -> dict[str, Any]:
        """Everything its chains are, for `take_over` on another node."""
        self._expect(round)
        self._handed_over = True
        return self._chains.state_dict()

    def take_over(self, state: dict[str, Any]) -> PoolStatus:
        """Goes on as the process that handed over would have. Raises `OutOfStepError` where this is
        that process, still.
        """
        if self._handed_over:
            raise OutOfStepError(f"pool {self._pool} is on the node that it leaves")
        self._chains.load_state_dict(state)
        return self.begin()
