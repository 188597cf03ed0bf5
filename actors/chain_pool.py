"""The actor that hosts one pool of chains."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import ray
import torch

from pipeline.build import make_chains
from pipeline.checkpoint import Checkpoint, write_part
from pipeline.config import RunConfig
from pipeline.types import Part, RoundReport, Weights


@ray.remote(max_restarts=-1, max_task_retries=0)
class ChainPool:
    """Pool number `pool`. Its process may die: Ray starts it again, and the driver then calls `revive`."""

    def __init__(self, config: RunConfig, shape: tuple[int, ...], pool: int) -> None:
        torch.set_num_threads(config.cluster.threads)
        self._pool = pool
        self._chains = make_chains(config, shape, pool)

    @ray.method(num_returns=2)
    def advance(self, weights: Weights, start: np.ndarray | None = None) -> tuple[pa.RecordBatch, RoundReport]:
        return self._chains.advance(weights, None if start is None else torch.tensor(start))

    def save(self, folder: str) -> Part:
        return write_part(folder, f"pool-{self._pool}.pt", self._chains.state_dict())

    def restore(self, checkpoint: Checkpoint) -> None:
        self._chains.load_state_dict(checkpoint.read(f"pool-{self._pool}.pt"))

    def revive(self, incarnation: int, round: int, last: pa.RecordBatch | None) -> None:
        self._chains.revive(incarnation, round, last)
