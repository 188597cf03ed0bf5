"""What a data set offers, and the in-memory form of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import fsspec
import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.rng import numpy_generator, torch_generator

LogDensity = Callable[[Tensor], Tensor]


class Positives(Protocol):
    """An endless stream of training rows."""

    def next(self, count: int) -> Tensor:
        """The next `count` rows, `[count, *shape]` float32."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class DataSet(NamedTuple):
    """`held_out` [H, *shape] and `sample` [S, *shape] (training rows, all of them where they fit in memory), as stored.

    `noise` is the standard deviation of what is added to a row when it is drawn: the law learned is the smoothed one.
    `log_density` [N, *shape] -> [N] nats is given where the law is known.
    """

    shape: tuple[int, ...]
    rows: int
    held_out: Tensor
    sample: Tensor
    noise: float
    positives: Callable[[int], Positives]
    log_density: LogDensity | None = None


class NoisyRows:
    """Adds Gaussian noise afresh to every row drawn; its stream is `SeedSequence(seed, "data-noise")`."""

    def __init__(self, seed: int, noise: float) -> None:
        self._noise = noise
        self._generator = torch_generator(seed, "data-noise")

    def __call__(self, rows: Tensor) -> Tensor:
        if not self._noise:
            return rows
        return rows + self._noise * torch.randn(rows.shape, generator=self._generator)

    def get_state(self) -> Tensor:
        return self._generator.get_state()

    def set_state(self, state: Tensor) -> None:
        self._generator.set_state(state)


class TensorPositives:
    """Rows of a tensor, each once an epoch, in an order drawn from `SeedSequence(seed, "data", epoch)`."""

    def __init__(self, rows: Tensor, seed: int, noise: float) -> None:
        self._rows, self._seed = rows, seed
        self._noisy = NoisyRows(seed, noise)
        self._start_epoch(0)

    def _start_epoch(self, epoch: int) -> None:
        self._epoch, self._cursor = epoch, 0
        self._order = torch.from_numpy(numpy_generator(self._seed, "data", epoch).permutation(len(self._rows)))

    def next(self, count: int) -> Tensor:
        chosen = []
        while count:
            if self._cursor == len(self._order):
                self._start_epoch(self._epoch + 1)
            piece = self._order[self._cursor : self._cursor + count]
            chosen.append(piece)
            self._cursor += len(piece)
            count -= len(piece)
        return self._noisy(self._rows[torch.cat(chosen)])

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "cursor": self._cursor, "noise": self._noisy.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._start_epoch(state["epoch"])
        self._cursor = state["cursor"]
        self._noisy.set_state(state["noise"])


def open_url(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of `data.path`, and the path there. `ConfigError` where there is no such file system."""
    try:
        return fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ConfigError("data.path", url, str(error)) from error


def split(rows: np.ndarray, held_out: int, split_seed: int) -> tuple[Tensor, Tensor]:
    """(training, held-out) rows: permuted by `numpy.random.RandomState(split_seed)`, the last `held_out` kept out."""
    if held_out >= len(rows):
        raise ConfigError("data.held_out", held_out, f"there are {len(rows)} rows in all; keep out fewer")
    order = np.random.RandomState(split_seed).permutation(len(rows))
    shuffled = torch.from_numpy(np.ascontiguousarray(rows[order], dtype=np.float32))
    return shuffled[:-held_out], shuffled[-held_out:]


def in_memory(train: Tensor, held_out: Tensor, noise: float, log_density: LogDensity | None = None) -> DataSet:
    """A data set of two tensors of rows, `[N, *shape]` and `[H, *shape]`."""
    return DataSet(
        shape=tuple(train.shape[1:]),
        rows=len(train),
        held_out=held_out,
        sample=train,
        noise=noise,
        positives=lambda seed: TensorPositives(train, seed, noise),
        log_density=log_density,
    )


def encode_grey(values: np.ndarray, maximum: int, encoding: str, levels: int, generator: np.random.Generator) -> np.ndarray:
    """Grey levels 0..maximum as float32: `real` scales to [-1, 1], `binary` is 1 from the middle level up, `sampled` is 1 with
    probability grey / maximum, `categorical` cuts them into `levels` equal parts, 0, ..., levels-1.
    """
    if encoding == "sampled":
        return (generator.random(values.shape, dtype=np.float32) * maximum < values).astype(np.float32)
    if encoding == "binary":
        return (values >= (maximum + 1) // 2).astype(np.float32)
    if encoding == "categorical":
        return (values.astype(np.int64) * levels // (maximum + 1)).astype(np.float32)
    return values.astype(np.float32) * (2 / maximum) - 1
