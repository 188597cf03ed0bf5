"""The actor that hosts one pool of chains."""

from __future__ import annotations

import pyarrow as pa
import ray
import torch

from pipeline.build import make_chains
from pipeline.checkpoint import Checkpoint, write_part
from pipeline.config import RunConfig
from pipeline.errors import OutOfStepError
from pipeline.types import Part, RoundReport, Rows, Weights


@ray.remote(max_restarts=-1, max_task_retries=0)
class ChainPool:
    """Pool number `pool`. Its process may die: Ray starts it again, and the driver then calls `revive`."""

    def __init__(self, config: RunConfig, shape: tuple[int, ...], pool: int, context_shape: tuple[int, ...] | None) -> None:
        torch.set_num_threads(config.cluster.threads)
        self._pool = pool
        self._chains = make_chains(config, shape, pool, context_shape)

    def _expect(self, round: int) -> None:
        """Raises `OutOfStepError` where the next round is not the one that the driver takes it for."""
        if self._chains.round != round:
            raise OutOfStepError(f"pool {self._pool} is at round {self._chains.round}, not {round}")

    @ray.method(num_returns=2)
    def advance(self, round: int, weights: Weights, start: Rows | None = None) -> tuple[pa.RecordBatch, RoundReport]:
        """Round number `round` under `weights`, of and under the rows `start`, as arrays, where chains are sent any."""
        self._expect(round)
        return self._chains.advance(weights, None if start is None else start.map(torch.tensor))

    def save(self, round: int, folder: str) -> Part:
        self._expect(round)
        return write_part(folder, f"pool-{self._pool}.pt", self._chains.state_dict())

    def restore(self, checkpoint: Checkpoint) -> tuple[int, int]:
        """The next round and the incarnation that the checkpoint has it at."""
        self._chains.load_state_dict(checkpoint.read(f"pool-{self._pool}.pt"))
        return self._chains.round, self._chains.incarnation

    def revive(self, incarnation: int, round: int, last: pa.RecordBatch | None) -> None:
        self._chains.revive(incarnation, round, last)
