"""Named random streams. Every draw of a run comes from `SeedSequence(seed, role, index)`, so that
runs can be repeated.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Streams(NamedTuple):
    """Random streams of one batch: each of the `generators` fills the next of as many equal blocks
    of rows, with the numbers that it would fill them with alone.
    """

    generators: tuple[torch.Generator, ...]


Source = torch.Generator | Streams
"""A stream of all rows of a batch, or one for each block of them."""


def blocks(rows: Tensor, source: Source) -> Iterable[tuple[Tensor, torch.Generator]]:
    """Returns the blocks of `rows` [N, ...], views, each with the generator that fills it."""
    if isinstance(source, torch.Generator):
        return [(rows, source)]
    return zip(rows.chunk(len(source.generators)), source.generators, strict=True)


def uniform_like(x: Tensor, source: Source, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Returns uniform draws in [low, high) of the shape [N, ...], dtype and device of `x`."""
    drawn = torch.empty_like(x)
    for block, generator in blocks(drawn, source):
        block.uniform_(low, high, generator=generator)
    return drawn


def seed_sequence(
    seed: int, role: str, index: int = 0, incarnation: int = 0
) -> np.random.SeedSequence:
    """Returns the stream called `role`, number `index`.

    The key is the CRC-32 of the name, which stays the same across versions. `incarnation` is 0 but
    for chains that had to be made anew after a failure.
    """
    key = (zlib.crc32(role.encode()), index) + ((incarnation,) if incarnation else ())
    return np.random.SeedSequence(seed, spawn_key=key)


def numpy_generator(
    seed: int, role: str, index: int = 0, incarnation: int = 0
) -> np.random.Generator:
    """Returns NumPy's generator of a named stream (see `seed_sequence`)."""
    return np.random.default_rng(seed_sequence(seed, role, index, incarnation))


def torch_generator(
    seed: int, role: str, index: int = 0, incarnation: int = 0, device: str | torch.device = "cpu"
) -> torch.Generator:
    """Returns torch's generator of a named stream (see `seed_sequence`) on `device`."""
    word = int(seed_sequence(seed, role, index, incarnation).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(word & 0x7FFF_FFFF_FFFF_FFFF)


def random_words(count: int, generator: torch.Generator) -> np.ndarray:
    """Returns `count` words of 64 random bits, uint64 [count]: NumPy's SFC64 (Doty-Humphrey's small
    fast chaotic generator), keyed by 126 bits drawn from `generator`, and so a function of its
    state alone.

    On a CPU torch makes numbers one at a time with a Mersenne twister. In bulk this is two to five
    times as fast a bit.
    """
    key = torch.empty(2, dtype=torch.int64, device=generator.device).random_(generator=generator)
    return np.random.SFC64(key.tolist()).random_raw(count)
