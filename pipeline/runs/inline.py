"""The whole algorithm in one process: the runner of `cluster=inline`, and the truth that the Ray
one is held against.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import cache, partial

import pyarrow as pa
import torch

from pipeline.assembly.chains import dealing_of, make_chains, stored_chains
from pipeline.assembly.data import open_data, rows_for_pool
from pipeline.assembly.learner import make_learner
from pipeline.chains.together import Together
from pipeline.common.types import Figures, Flow, Part, Progress, RoundReport, StepReport, Weights
from pipeline.config.run import RunConfig
from pipeline.runs.scoring import Scoring
from pipeline.storage.checkpoint import Checkpoint
from pipeline.storage.parts import Snapshot, write_snapshots


class InlineRunner:
    """Carries a run in this process: the pools, as one batch where they may be, then the learner.

    Under `lag_mode=exact` step t consumes what version max(0, t - lag) made, from a window of past
    weights (which a resumed run starts to fill anew); otherwise the lag is 0, which every bound
    allows.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        torch.set_num_threads(config.cluster.threads)
        self._data = open_data(config)
        self._scoring = Scoring(config, self._data)
        self._begin()

    def _begin(self) -> None:
        """Makes everything as it is at version 0."""
        config = self._config
        self._learner = make_learner(config, self._data)
        self._pools = [
            make_chains(config, self._data.shape, pool, self._data.context_shape)
            for pool in range(config.pools)
        ]
        self._together = (
            None if config.sends_starts else Together(self._pools, config.batches_per_step)
        )
        lag = config.lag if config.trainer.lag_mode == "exact" else 0
        self._window: deque[Weights] = deque(maxlen=lag + 1)

    def start(
        self,
        checkpoint: Checkpoint | None,
        warm_start: Checkpoint | None,
        rate_factor: float | None = None,
    ) -> None:
        """Takes up a checkpoint, or another run's weights, or neither, also where steps were made
        already. Raises `DamagedError` where a part is damaged; nothing was taken up then.
        """
        config, chains = self._config, []
        if checkpoint is not None:
            read = cache(checkpoint.read)  # of one part there may be chains in several pools
            chains = [stored_chains(config, checkpoint, n, read) for n in range(config.pools)]
        if self._window:
            self._begin()
        self._learner.start(checkpoint, warm_start, rate_factor)
        if checkpoint is not None:
            dealing = dealing_of(config, checkpoint)
            for number, (pool, state) in enumerate(zip(self._pools, chains, strict=True)):
                pool.load_state_dict(state)
                if dealing.hand(number).copies and config.chains.newcomers == "data":
                    pool.begin_at(rows_for_pool(config, self._data, number, dealing.incarnation))
        self._window.append(self._learner.publish())

    def stretch(
        self,
        most: int,  # noqa: ARG002
    ) -> list[tuple[StepReport, list[RoundReport], Flow]]:
        """Makes one step."""
        return [self.step()]

    def step(self) -> tuple[StepReport, list[RoundReport], Flow]:
        """Makes a round of each pool whose turn it is, and one step from their batches. Raises
        `StorageError` where the step's rows cannot be read; then nothing has changed.
        """
        config, step = self._config, self._learner.version
        if not config.batches_carry_rows:
            self._learner.starts(step)  # first, so that chains have not moved where it fails
        if self._together is not None:
            rounds = self._together.advance(config.pools_of_step(step), self._window[0])
        else:
            rounds = self._rounds_with_rows(step)
        done, weights = self._learner.step([batch for batch, _ in rounds])
        self._window.append(weights)
        self._scoring.go_on(self._learner)
        done = self._scoring.tell(done)
        reports = [report for _, report in rounds]
        return done, reports, Flow(0, 0, len(self._pools), {}, {}, 0, False, {})

    def _rounds_with_rows(self, step: int) -> list[tuple[pa.RecordBatch, RoundReport]]:
        """A round of each pool whose turn it is, sent the rows that its chains begin at or run
        under.
        """
        config, rounds = self._config, []
        for number, pool in enumerate(config.pools_of_step(step)):
            start = (
                self._learner.deal()
                if config.batches_carry_rows
                else self._learner.starts(step).chunk(config.batches_per_step)[number]
            )
            rounds.append(self._pools[pool].advance(self._window[0], start))
        return rounds

    def snapshot(self) -> Callable[[str], list[Part]]:
        """Copies every part of a checkpoint. Returns what writes the copies to a folder, in any
        thread.
        """
        chains = [Snapshot(f"pool-{i}", pool.state_dict()) for i, pool in enumerate(self._pools)]
        return partial(write_snapshots, [*chains, *self._learner.snapshots()])

    def save(self, folder: str) -> list[Part]:
        """Writes every part of a checkpoint to `folder`, and waits for it."""
        return self.snapshot()(folder)

    def evaluate(self, output: str) -> Iterator[Progress | Figures]:
        """Evaluates the averaged weights; the figures come last, pictures go to `output`."""
        # brings pictures and statistics, a second's import
        from pipeline.evaluation.report import evaluate

        return evaluate(self._config, self._learner.averaged(), self._data, output)

    def close(self) -> None:
        """Does nothing: it started nothing."""
