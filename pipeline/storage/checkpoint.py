"""Checkpoints on any fsspec file system: parts first, the manifest with their checksums last.

`<output>/checkpoints/<step>/` holds `learner.pt`, `energy.pt` (the averaged weights alone),
`pool-<n>.pt` and `manifest.json`. Without a manifest whose every part has its recorded SHA-256, a
folder is not a checkpoint. Parts hold tensors and plain values and are read without unpickling code
(`torch.load(weights_only=True)`).
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from typing import Any

import fsspec
import torch

from pipeline.common.errors import CheckpointError
from pipeline.common.types import Part
from pipeline.common.version import VERSION
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.energies.weights import signature

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
    """Writes `state` as `folder/name`; what the manifest is to say of it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    file_system, path = fsspec.core.url_to_fs(folder)
    file_system.makedirs(path, exist_ok=True)
    file_system.pipe_file(f"{path}/{name}", content)
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
        """A part, its checksum verified. Raises `CheckpointError`."""
        file_system, path = fsspec.core.url_to_fs(self.folder)
        content = file_system.cat_file(f"{path}/{name}")
        if hashlib.sha256(content).hexdigest() != self.manifest["parts"][name]["sha256"]:
            raise CheckpointError(f"{self.folder}/{name}: its checksum is not the manifest's")
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

    @classmethod
    def open(cls, folder: str) -> Checkpoint | None:
        """The checkpoint in `folder`, or None where it is not complete and whole."""
        file_system, path = fsspec.core.url_to_fs(folder)
        try:
            manifest = json.loads(file_system.cat_file(f"{path}/{MANIFEST}"))
            for name, part in manifest["parts"].items():
                if _sha256(file_system, f"{path}/{name}") != part["sha256"]:
                    return None
        except (FileNotFoundError, ValueError, KeyError):
            return None
        return cls(folder, manifest)


def _lookup(config: dict[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = (value or {}).get(part)
    return value


def _sha256(file_system: fsspec.AbstractFileSystem, path: str) -> str:
    digest = hashlib.sha256()
    with file_system.open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class CheckpointStore:
    """The checkpoints of one run under `output`."""

    def __init__(self, output: str, keep: int) -> None:
        self._root = f"{output.rstrip('/')}/checkpoints"
        self._keep = keep

    def folder(self, step: int) -> str:
        return f"{self._root}/{step:08d}"

    def commit(self, step: int, parts: list[Part], config: RunConfig, energy: Energy) -> Checkpoint:
        """Makes a folder of written parts a checkpoint, by its manifest; then removes all but the
        newest few.
        """
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
        file_system, path = fsspec.core.url_to_fs(self.folder(step))
        file_system.pipe_file(f"{path}/{MANIFEST}", json.dumps(manifest, indent=1).encode())
        self._prune(step)
        return Checkpoint(self.folder(step), manifest)

    def _prune(self, step: int) -> None:
        """Keeps the newest few that are complete, `step` the newest; half-written ones and later
        ones were given up.
        """
        complete = [n for n in self._steps() if n <= step and self._has_manifest(n)]
        for other in self._steps():
            if other not in complete[-self._keep :]:
                self._remove(other)

    def _has_manifest(self, step: int) -> bool:
        file_system, path = fsspec.core.url_to_fs(self.folder(step))
        return bool(file_system.exists(f"{path}/{MANIFEST}"))

    @property
    def damaged(self) -> bool:
        """Whether there are checkpoints that were complete once, and none of them is whole any
        more.
        """
        return any(self._has_manifest(step) for step in self._steps()) and self.latest() is None

    def latest(self) -> Checkpoint | None:
        """The newest complete checkpoint; half-written and damaged ones are passed over."""
        for step in reversed(self._steps()):
            checkpoint = Checkpoint.open(self.folder(step))
            if checkpoint is not None:
                return checkpoint
        return None

    def clear(self) -> None:
        """Removes them all."""
        for step in self._steps():
            self._remove(step)

    def _steps(self) -> list[int]:
        """Steps that have a folder, rising; complete or not."""
        file_system, root = fsspec.core.url_to_fs(self._root)
        file_system.invalidate_cache()
        if not file_system.exists(root):
            return []
        names = [path.rstrip("/").rpartition("/")[2] for path in file_system.ls(root, detail=False)]
        return sorted(int(name) for name in names if name.isdigit())

    def _remove(self, step: int) -> None:
        """The manifest first: what is left of an interrupted removal is then no checkpoint."""
        file_system, path = fsspec.core.url_to_fs(self.folder(step))
        if file_system.exists(f"{path}/{MANIFEST}"):
            file_system.rm_file(f"{path}/{MANIFEST}")
        file_system.rm(path, recursive=True)


def find(url: str) -> Checkpoint:
    """The checkpoint at `url`, or the newest one of the run there. Raises `CheckpointError`."""
    checkpoint = Checkpoint.open(url.rstrip("/")) or CheckpointStore(url, keep=1).latest()
    if checkpoint is None:
        raise CheckpointError(f"{url}: no complete checkpoint there")
    return checkpoint
