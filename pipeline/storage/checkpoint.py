"""Checkpoints on any fsspec file system: parts first, the manifest with their checksums last.

`<output>/checkpoints/<step>/` holds `learner.pt`, `energy.pt` (the averaged weights alone),
`pool-<n>.pt` and `manifest.json`. A folder is a checkpoint where it has a manifest and every part
in the size recorded there. Whoever needs a part reads it once, and compares its SHA-256 with the
manifest's then (`Checkpoint.read`). Parts hold tensors and plain values and are read without
unpickling code (`torch.load(weights_only=True)`).
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from pipeline.common.errors import CheckpointError, DamagedError
from pipeline.common.types import Part
from pipeline.common.version import VERSION
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.energies.weights import signature, unflatten_
from pipeline.storage.files import locate, write_file

log = logging.getLogger(__name__)
# 1: before chains kept what they had adapted; 2: before objectives had random streams; 3: before
# contexts
FORMAT = 4
MANIFEST = "manifest.json"
# what a resumed run must have in common with the one that wrote the checkpoint
BINDING = (
    "seed",
    "energy",
    "kernel.name",
    "kernel.rungs",
    "kernel.inner.name",
    "objective.name",
    "objective.weights",
    "data",
    "chains.pools",
    "chains.per_pool",
    "chains.per_context",
    "optimizer.name",
)


def write_part(folder: str, name: str, state: dict[str, Any]) -> Part:
    """Writes `state` as `folder/name`, and returns what the manifest is to say of it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    write_file(folder, name, content)
    return Part(name, len(content), hashlib.sha256(content).hexdigest())


class Checkpoint:
    """A complete checkpoint: its folder's URL and its manifest."""

    def __init__(self, folder: str, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.step: int = manifest["step"]
        self.shape = tuple(manifest["shape"])
        context_shape = manifest.get("context_shape")
        self.context_shape = None if context_shape is None else tuple(context_shape)

    def read(self, name: str) -> dict[str, Any]:
        """Returns the part called `name`. Raises `DamagedError` where its checksum is not the
        manifest's, or it is gone.
        """
        file_system, path = locate(self.folder)
        try:
            content = file_system.cat_file(f"{path}/{name}")
        except FileNotFoundError as error:
            raise DamagedError(f"{self.folder}/{name}: it is gone") from error
        if hashlib.sha256(content).hexdigest() != self.manifest["parts"][name]["sha256"]:
            raise DamagedError(f"{self.folder}/{name}: its checksum is not the manifest's")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    def check_fits(self, config: RunConfig) -> None:
        """Raises `CheckpointError` where `config` could not go on from here."""
        self.check_format()
        theirs, ours = self.manifest["config"], config.model_dump(mode="json")
        for key in BINDING:
            old, new = _lookup(theirs, key), _lookup(ours, key)
            if old != new:
                raise CheckpointError(
                    f"{self.folder} was made with {key}={old}, this run has {new}: "
                    "give another output=, or resume=never to start over there"
                )

    def check_format(self) -> None:
        """Raises `CheckpointError` where another version of this package wrote it."""
        if self.manifest["format"] != FORMAT:
            raise CheckpointError(
                f"{self.folder}: its format is {self.manifest['format']}, this version reads"
                f" {FORMAT}"
            )

    def check_signature(self, energy: Energy, key: str = "") -> None:
        """Raises `CheckpointError` where the parameters are not of the names, shapes and types
        stored here.

        `key` is what in the configuration named this checkpoint.
        """
        theirs, ours = self.manifest["signature"], signature(energy)
        if theirs != ours:
            odd = [entry for entry in (*theirs, *ours) if (entry in theirs) != (entry in ours)]
            named = f"{key}={self.folder}" if key else self.folder
            raise CheckpointError(
                f"{named}: its parameters do not fit this energy; they differ in {odd[:4]}"
            )

    def fill(self, energy: Energy, weights: np.ndarray) -> None:
        """Fills the tensors of `energy` with flat `weights` that were read here, `[P]`.

        Raises `CheckpointError` where they do not fit.
        """
        try:
            unflatten_(energy, weights)
        except ValueError as error:
            raise CheckpointError(f"{self.folder}: {error}") from error

    @classmethod
    def open(cls, folder: str) -> Checkpoint | None:
        """Returns the checkpoint in `folder`, or None where its manifest or a part is missing, or a
        part is of another size than was written. No part is read.
        """
        file_system, path = locate(folder)
        try:
            manifest = json.loads(file_system.cat_file(f"{path}/{MANIFEST}"))
            for name, part in manifest["parts"].items():
                # some file systems do not tell a size
                if file_system.size(f"{path}/{name}") not in (None, part["bytes"]):
                    return None
        except (FileNotFoundError, ValueError, KeyError):
            return None
        return cls(folder, manifest)


def _lookup(config: dict[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = (value or {}).get(part)
    return value


class CheckpointStore:
    """The checkpoints of one run under `output`.

    `check` is called before anything is written or removed, and raises where it may not be.
    """

    def __init__(self, output: str, keep: int, check: Callable[[], None] = lambda: None) -> None:
        self._root = f"{output.rstrip('/')}/checkpoints"
        self._keep, self._check = keep, check

    def folder(self, step: int) -> str:
        return f"{self._root}/{step:08d}"

    def commit(self, step: int, parts: list[Part], config: RunConfig, energy: Energy) -> Checkpoint:
        """Makes a folder of written parts a checkpoint, by its manifest; then removes all but the
        newest few.
        """
        self._check()
        manifest = {
            "format": FORMAT,
            "pipeline": VERSION,
            "torch": torch.__version__,
            "step": step,
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "config": config.model_dump(mode="json"),
            "shape": list(energy.data_shape),
            "context_shape": None if energy.context_shape is None else list(energy.context_shape),
            "signature": signature(energy),
            "parts": {part.name: {"bytes": part.bytes, "sha256": part.sha256} for part in parts},
        }
        write_file(self.folder(step), MANIFEST, json.dumps(manifest, indent=1).encode())
        self._prune(step)
        return Checkpoint(self.folder(step), manifest)

    def _prune(self, step: int) -> None:
        """Keeps the newest few that are complete, `step` the newest; half-written ones and later
        ones were given up.
        """
        self._check()
        complete = [n for n in self._steps() if n <= step and self._has_manifest(n)]
        for other in self._steps():
            if other not in complete[-self._keep :]:
                self._remove(other)

    def _has_manifest(self, step: int) -> bool:
        file_system, path = locate(self.folder(step))
        return bool(file_system.exists(f"{path}/{MANIFEST}"))

    def committed(self) -> bool:
        """Return whether there is a checkpoint that was complete once, whole or damaged now."""
        return any(self._has_manifest(step) for step in self._steps())

    def complete(self) -> Iterator[Checkpoint]:
        """Yields the complete checkpoints, newest first. Damage within a part shows when it is read
        (`Checkpoint.read`), and the next one may be whole.
        """
        for step in reversed(self._steps()):
            checkpoint = Checkpoint.open(self.folder(step))
            if checkpoint is not None:
                yield checkpoint

    def latest(self) -> Checkpoint | None:
        """Returns the newest complete checkpoint, or None."""
        return next(self.complete(), None)

    def clear(self) -> None:
        """Removes them all."""
        self._check()
        for step in self._steps():
            self._remove(step)

    def drop_after(self, step: int) -> None:
        """Removes those of later steps than `step`, which were given up."""
        for other in self._steps():
            if other > step:
                self._remove(other)

    def _steps(self) -> list[int]:
        """Steps that have a folder, rising; complete or not."""
        file_system, root = locate(self._root)
        file_system.invalidate_cache()
        if not file_system.exists(root):
            return []
        names = [path.rstrip("/").rpartition("/")[2] for path in file_system.ls(root, detail=False)]
        return sorted(int(name) for name in names if name.isdigit())

    def _remove(self, step: int) -> None:
        """The manifest first: what is left of an interrupted removal is then no checkpoint."""
        file_system, path = locate(self.folder(step))
        if file_system.exists(f"{path}/{MANIFEST}"):
            file_system.rm_file(f"{path}/{MANIFEST}")
        file_system.rm(path, recursive=True)


def candidates(url: str) -> Iterator[Checkpoint]:
    """Yields the checkpoint at `url`, or the complete ones of the run there, newest first.

    Raises `ConfigError` where no installed file system serves the URL.
    """
    locate(url, "url")
    checkpoint = Checkpoint.open(url.rstrip("/"))
    if checkpoint is not None:
        yield checkpoint
    else:
        yield from CheckpointStore(url, keep=1).complete()


def find(url: str) -> Checkpoint:
    """Returns the checkpoint at `url`, or the newest one of the run there; no part of it is read.

    Raises `CheckpointError` where there is none.
    """
    checkpoint = next(candidates(url), None)
    if checkpoint is None:
        raise CheckpointError(f"{url}: no complete checkpoint there")
    return checkpoint


def find_averaged(url: str) -> tuple[Checkpoint, np.ndarray]:
    """Returns the newest checkpoint at `url` whose averaged weights are whole, and these weights,
    flat (see `pipeline.energies.weights.flatten`). Nothing else of it is read.

    Raises `CheckpointError` where there is none, or where another version wrote it.
    """
    damage = ""
    for checkpoint in candidates(url):
        checkpoint.check_format()
        try:
            return checkpoint, checkpoint.read("energy.pt")["weights"].numpy()
        except DamagedError as error:
            log.warning("%s; an older checkpoint is looked for", error)
            damage = f" ({error})"
    raise CheckpointError(f"{url}: no complete checkpoint there{damage}")
