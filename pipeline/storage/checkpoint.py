"""Checkpoints on any fsspec file system: parts first, the manifest with their checksums last.

`<output>/checkpoints/<step>/` holds `learner.safetensors`, `energy.safetensors` (the averaged
weights alone), `pool-<n>.safetensors` and `manifest.json`. A folder is a checkpoint where its
manifest holds and every part has the size recorded there. Whoever needs a part reads it once, and
compares its SHA-256 with the manifest's then (`Checkpoint.read`). No part can run code
(`pipeline.storage.parts`); those of format 4 were pickled, and are read without unpickling code
(`torch.load(weights_only=True)`).
"""

from __future__ import annotations

import hashlib
import io
import pickle
from typing import Any

import numpy as np
import torch

from pipeline.common.errors import CheckpointError, DamagedError
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.energies.weights import signature, unflatten_
from pipeline.storage import files
from pipeline.storage.binding import Content, differences
from pipeline.storage.manifest import FORMAT, MANIFEST, Manifest, read_manifest
from pipeline.storage.parts import OLD_SUFFIX, SUFFIX, decode


class Checkpoint:
    """A complete checkpoint: its folder's URL and its manifest."""

    def __init__(self, folder: str, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.step = manifest.step
        self.shape = tuple(manifest.shape)
        self.context_shape = (
            None if manifest.context_shape is None else tuple(manifest.context_shape)
        )

    def has(self, name: str) -> bool:
        """Returns whether there is a part called `name`, without a suffix."""
        return self._file(name) in self.manifest.parts

    @property
    def ranks(self) -> int:
        """The number of ranks that the parameter server had which wrote it."""
        return 1 + sum(file.startswith("rank-") for file in self.manifest.parts)

    @property
    def pools(self) -> list[int]:
        """The numbers of the pools whose chains are here, the lowest first."""
        names = (file.partition(".")[0] for file in self.manifest.parts)
        return sorted(int(name[5:]) for name in names if name.startswith("pool-"))

    @property
    def per_pool(self) -> int:
        """The number of chains that each of its pools has."""
        return int(self.manifest.config["chains"]["per_pool"])

    def read(self, name: str) -> dict[str, Any]:
        """Returns the state in the part called `name`, without a suffix.

        Raises `DamagedError` where it is gone, its size or checksum is not the manifest's, or it
        holds no state.
        """
        file = self._file(name)
        try:
            if file not in self.manifest.parts:
                raise ValueError("its manifest names no such part")
            self._check_size(file)
            content = files.read_file(f"{self.folder}/{file}")
            part = self.manifest.parts[file]
            if len(content) != part.bytes or hashlib.sha256(content).hexdigest() != part.sha256:
                raise ValueError("its checksum is not the manifest's")
            return decode(content) if self.manifest.format == FORMAT else _unpickled(content)
        except FileNotFoundError as error:
            raise DamagedError(f"{self.folder}: damaged: {file}: it is gone") from error
        except ValueError as error:
            raise DamagedError(f"{self.folder}: damaged: {file}: {error}") from error

    @property
    def bytes(self) -> int:
        """The bytes of all parts."""
        return sum(part.bytes for part in self.manifest.parts.values())

    def check_parts(self) -> None:
        """Reads every part. Raises `DamagedError` where one is not what was written."""
        for file, part in self.manifest.parts.items():
            try:
                found = files.checksum(f"{self.folder}/{file}")
            except FileNotFoundError as error:
                raise DamagedError(f"{self.folder}: damaged: {file}: it is gone") from error
            if found != (part.bytes, part.sha256):
                raise DamagedError(
                    f"{self.folder}: damaged: {file}: what is read back is not what was written"
                )

    def averaged(self) -> np.ndarray:
        """Returns the averaged weights, flat (see `pipeline.energies.weights.flatten`). Raises
        `DamagedError` as `read` does.
        """
        weights = self.read("energy").get("weights")
        if isinstance(weights, torch.Tensor) and weights.dim() == 1 and weights.is_floating_point():
            flat: np.ndarray = weights.numpy()
            return flat
        raise DamagedError(f"{self.folder}: damaged: its energy has no flat weights")

    def _file(self, name: str) -> str:
        return f"{name}{SUFFIX if self.manifest.format == FORMAT else OLD_SUFFIX}"

    def _check_size(self, file: str) -> None:
        """Raises `ValueError` where the part is gone, is a folder, or is not of the manifest's
        size.
        """
        try:
            found = files.size(f"{self.folder}/{file}")
        except FileNotFoundError as error:
            raise ValueError("it is gone") from error
        except IsADirectoryError as error:
            raise ValueError("it is a folder") from error
        recorded = self.manifest.parts[file].bytes
        if found not in (None, recorded):  # some file systems do not tell a size
            raise ValueError(f"its size is {found}, and the manifest says {recorded}")

    def check_fits(
        self,
        config: RunConfig,
        content: Content | None = None,
        remedy: str = "Give another output=, or resume=never to start over there",
    ) -> None:
        """Raises `CheckpointError` where `config`, or data of other `content`, could not go on from
        here; it says everything that differs, and the `remedy`.
        """
        ours = config.model_dump(mode="json")
        found = differences(self.manifest.config, ours, self.manifest.data, content)
        ranks = config.trainer.replicas
        if (content or {}).get("streamed") and self.ranks != ranks:
            found.append(f"trainer.replicas={self.ranks} there, {ranks} here (rows are streamed)")
        if found:
            raise CheckpointError(
                f"{self.folder} does not fit this run: {'; '.join(found)}. {remedy}"
            )

    def check_signature(self, energy: Energy, key: str = "") -> None:
        """Raises `CheckpointError` where the parameters are not of the names, shapes and types
        stored here.

        `key` is what in the configuration named this checkpoint.
        """
        theirs, ours = [list(entry) for entry in self.manifest.signature], signature(energy)
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
        """Returns the checkpoint in `folder`, or None where it has no manifest. No part is read.

        Raises `DamagedError` where its manifest is damaged, or a part is gone or of another size
        than was written; and `FormatError` where another version of this package wrote it.
        """
        if MANIFEST not in files.names(folder):
            return None
        checkpoint = cls(folder, read_manifest(folder))
        for file in checkpoint.manifest.parts:
            try:
                checkpoint._check_size(file)
            except ValueError as error:
                raise DamagedError(f"{folder}: damaged: {file}: {error}") from error
        return checkpoint


def _unpickled(content: bytes) -> dict[str, Any]:
    """Returns the state in a part of format 4. Raises `ValueError` where it holds none."""
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError) as error:
        raise ValueError(f"it is no part of a checkpoint ({error})") from error
    if not isinstance(state, dict):
        raise ValueError("it holds no state")
    return state
