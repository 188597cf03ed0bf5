"""Weights for other tools: tensors by their names in `model.safetensors`, and `config.json`."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load, save

from pipeline.common.errors import CheckpointError
from pipeline.common.json_text import to_json
from pipeline.common.version import VERSION
from pipeline.energies.base import Energy
from pipeline.storage.checkpoint import Checkpoint
from pipeline.storage.files import names, read_file, write_file

LEARNED = (
    "name",
    "seed",
    "energy",
    "kernel",
    "objective",
    "data",
    "trainer",
    "optimizer",
    "chains",
)
"""The sections that say what is learned, and not where and how it is run."""
MODEL, CONFIG = "model.safetensors", "config.json"
TYPE = "ebm-pipeline"


class Exported(NamedTuple):
    """Weights that `export_weights` wrote to `folder`: `facts` is `config.json`, and `content` the
    file of tensors.
    """

    folder: str
    facts: dict[str, Any]
    content: bytes

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.facts["shape"])

    @property
    def context_shape(self) -> tuple[int, ...] | None:
        shape = self.facts["context_shape"]
        return None if shape is None else tuple(shape)

    def fill(self, energy: Energy) -> None:
        """Fills the tensors of `energy`. Raises `CheckpointError` where they do not fit."""
        try:
            energy.load_state_dict(load(self.content))
        except (SafetensorError, RuntimeError) as error:
            raise CheckpointError(f"{self.folder}: {MODEL}: {error}") from error


def learned(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the configuration of a run without where and how it was run."""
    return {key: value for key, value in checkpoint.manifest.config.items() if key in LEARNED}


def export_weights(folder: str, checkpoint: Checkpoint, energy: Energy) -> None:
    """Writes the tensors of `energy`, the averaged one of `checkpoint`, to `folder`, and what they
    are of.
    """
    tensors = {name: value.detach().clone() for name, value in energy.state_dict().items()}
    manifest = checkpoint.manifest
    facts = {
        "model_type": TYPE,
        "version": VERSION,
        "step": checkpoint.step,
        "shape": manifest.shape,
        "context_shape": manifest.context_shape,
        "data": manifest.data,
        "config": learned(checkpoint),
    }
    content = save({name: value.contiguous() for name, value in tensors.items()})
    write_file(folder, MODEL, content)
    write_file(folder, CONFIG, to_json(facts, indent=1).encode())


def read_exported(folder: str) -> Exported | None:
    """Returns what was exported to `folder`, or None where nothing was.

    Raises `CheckpointError` where its `config.json` is none of this package's.
    """
    if not {MODEL, CONFIG} <= set(names(folder)):
        return None
    try:
        facts = json.loads(read_file(f"{folder}/{CONFIG}"))
        if facts["model_type"] != TYPE:
            raise ValueError(f"model_type is {facts['model_type']}, not {TYPE}")
        tuple(facts["shape"]), facts["context_shape"], facts["config"]["energy"]
    except (ValueError, TypeError, LookupError) as error:
        raise CheckpointError(f"{folder}: {CONFIG} is none of this package's ({error})") from error
    return Exported(folder, facts, read_file(f"{folder}/{MODEL}"))
