"""A run for an estimator: its settings as a command line, its folder, and what is kept of it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.assembly.load import load_energy
from pipeline.common.errors import ArgumentError, RefusedError
from pipeline.common.types import Figures
from pipeline.config.compose import compose
from pipeline.config.run import RunConfig
from pipeline.data.given import GivenRows
from pipeline.energies.base import Energy
from pipeline.runs.display import Display
from pipeline.runs.interruption import Interrupted

Settings = Mapping[str, Any]
"""Values by key of the configuration, such as {"energy.hidden": (64, 64)}."""


class Learned(NamedTuple):
    """The energy that a run ended with, its figures, and the files of its last checkpoint."""

    energy: Energy
    figures: Figures
    checkpoint: dict[str, bytes]


class Silent(Display):
    """A display that shows nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._terminal = self._notebook = False

    def say(self, text: str) -> None:
        """Says nothing."""


def configured(own: Settings, given: Settings) -> RunConfig:
    """The configuration of the `own` settings under those `given`. Where these choose another part,
    such as kernel=hmc, the settings of one's own choice go. Raises `ArgumentError`.
    """
    kept = {
        key: value
        for key, value in own.items()
        if key.partition(".")[0] not in given or key in given
    }
    try:
        return _composed(*(f"{key}={_text(value)}" for key, value in {**kept, **given}.items()))
    except RefusedError as error:
        raise ArgumentError(error.key, error.value, error.remedy) from error


@lru_cache(maxsize=16)
def _composed(*overrides: str) -> RunConfig:
    """The configuration, which is frozen: to compose it takes as long as a short run."""
    return compose(overrides)


def learn(
    config: RunConfig,
    rows: GivenRows,
    verbose: bool,
    before: dict[str, bytes] | None = None,
) -> Learned:
    """Trains on `rows`, from the weights of the checkpoint `before` where it is given. Without
    `output` the run's files are in a folder that is removed at the end.

    Raises `ArgumentError` where the settings or rows are refused, `KeyboardInterrupt` where the
    run is interrupted, and `PipelineError` where it fails.
    """
    from actors.launch import launch

    with tempfile.TemporaryDirectory(prefix="ebm-") as folder:
        update: dict[str, Any] = {"output": config.output or f"{folder}/run"}
        if before is not None:
            update["init_from"] = f"{folder}/before"
            Path(update["init_from"]).mkdir()
            for name, content in before.items():
                (Path(update["init_from"]) / name).write_bytes(content)
        try:
            carrying = config.model_copy(update=update).carrying(rows=rows)
            figures = launch(carrying, Display() if verbose else Silent())
        except RefusedError as error:
            raise ArgumentError(error.key, error.value, error.remedy) from error
        except Interrupted as error:
            raise KeyboardInterrupt(str(error)) from error
        energy = load_energy(figures["checkpoint"], None)
        kept = {}
        if config.output is None:
            parts = Path(figures["checkpoint"]).iterdir()
            kept = {part.name: part.read_bytes() for part in parts}
        return Learned(energy, figures, kept)


def _text(value: Any) -> str:
    """A value as the command line has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_text(one)}" for key, one in value.items()) + "}"
    return str(value)
