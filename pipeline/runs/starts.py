"""The states that a run may start from."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.common.errors import CheckpointError
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.storage.binding import Content
from pipeline.storage.checkpoint import Checkpoint
from pipeline.storage.store import CheckpointStore, candidates

Start = tuple[Checkpoint | None, Checkpoint | None]
"""A checkpoint to resume from, or the one of another run to take weights from, or neither."""


def starts(
    config: RunConfig,
    output: str,
    store: CheckpointStore,
    energy: Energy,
    content: Content | None = None,
) -> Iterator[Start]:
    """Yields what the run may start from, the best first: its newest checkpoint and then older
    ones, or else those of the run that `init_from` names, or neither. They are of the run's
    `energy`, and of data that hold `content`.

    Raises `CheckpointError` where the next one does not fit this run, and when all are tried: a run
    whose checkpoints are damaged does not start over unasked.
    """
    if config.resume == "auto":
        for checkpoint in store.complete():
            checkpoint.check_fits(config, content)
            checkpoint.check_signature(energy)
            yield checkpoint, None
        if store.committed():
            raise CheckpointError(
                f"{output}: its checkpoints are damaged, every one; resume=never starts over there"
            )
        if store.runs():
            raise CheckpointError(
                f"{output}/checkpoints/run.json names another run than the checkpoints there are"
                " of; remove it to go on from them, or resume=never starts over there"
            )
    if not config.init_from:
        yield None, None
        return
    for other in candidates(config.init_from):
        yield None, other
    raise CheckpointError(f"init_from={config.init_from}: no complete checkpoint there")
