"""The actor that owns weights, optimizer, version and positives."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import ray
import torch

from pipeline.build import make_chains, make_learner, open_data
from pipeline.checkpoint import Checkpoint, write_part
from pipeline.config import RunConfig
from pipeline.errors import OutOfStepError
from pipeline.evaluation.report import evaluate
from pipeline.types import Figures, Part, Progress, Rows, StepReport, Weights


@ray.remote(max_restarts=-1, max_task_retries=0)
class ParameterServer:
    """Takes references to batches, answers with a report and, as an object of its own, the new weights."""

    def __init__(self, config: RunConfig) -> None:
        torch.set_num_threads(config.cluster.threads)
        self._config = config
        self._data = open_data(config)
        self._learner = make_learner(config, self._data)

    def start(self, checkpoint: Checkpoint | None, warm_start: Checkpoint | None) -> int:
        """Takes up a checkpoint, or another run's weights, or neither; the version it is then at."""
        self._learner.start(checkpoint, warm_start)
        return self._learner.version

    def publish(self, version: int) -> Weights:
        self._expect(version)
        return self._learner.publish()

    def starts(self, version: int, step: int, pieces: int) -> tuple[Rows, ...]:
        """The data rows of step `step`, as arrays, in as many pieces as pools will start chains at them, or run under them."""
        self._expect(version)
        pieces_of = self._learner.starts(step).chunk(pieces)
        return tuple(piece.map(lambda field: field.numpy()) for piece in pieces_of)

    def _expect(self, version: int) -> None:
        """Raises `OutOfStepError` where the version is not the one that the driver takes it for."""
        if self._learner.version != version:
            raise OutOfStepError(f"the parameter server is at version {self._learner.version}, not {version}")

    @ray.method(num_returns=2)
    def step(self, version: int, *batches: pa.RecordBatch) -> tuple[StepReport, Weights]:
        self._expect(version)
        return self._learner.step(batches)

    def save(self, version: int, folder: str) -> list[Part]:
        self._expect(version)
        return self._learner.write(folder)

    def save_absent(self, pool: int, incarnation: int, round: int, last: pa.RecordBatch | None, folder: str) -> Part:
        """The part of a pool that is away, as it will be when it has taken up the chains of the `last` batch it sent."""
        chains = make_chains(self._config, self._data.shape, pool, self._data.context_shape)
        chains.revive(incarnation, round, last)
        return write_part(folder, f"pool-{pool}.pt", chains.state_dict())

    @ray.method(num_returns="streaming")
    def evaluate(self, version: int, output: str) -> Iterator[Progress | Figures]:
        self._expect(version)
        yield from evaluate(self._config, self._learner.averaged(), self._data, output)
