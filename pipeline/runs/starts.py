"""The states that a run may start from."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.common.errors import CheckpointError, ConfigError
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
        yield begun_from(config, other, energy, content)
    raise CheckpointError(f"init_from={config.init_from}: no complete checkpoint there")


def begun_from(
    config: RunConfig, other: Checkpoint, energy: Energy, content: Content | None = None
) -> Start:
    """Returns how a run begins from another run's checkpoint: as `init_what` says.

    Raises `CheckpointError` where all of it is asked for and does not fit this run, and
    `ConfigError` where there is no step left to make.
    """
    if config.init_what == "weights":
        return None, other
    other.check_fits(config, content, "With init_what=weights the weights alone are taken over")
    other.check_signature(energy, "init_from")
    if other.step >= config.trainer.steps:
        remedy = f"{other.folder} has made {other.step} already; give more"
        raise ConfigError("trainer.steps", config.trainer.steps, remedy)
    return other, None
