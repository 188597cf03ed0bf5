"""IDX files, the format of MNIST: plain and gzipped, on disk and at URLs, and what is said of
broken ones.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.assembly.data import open_data
from pipeline.common.errors import ConfigError, DataError, PipelineError
from pipeline.config.compose import compose
from pipeline.config.run import RunConfig
from pipeline.data.base import DataSet

TRAIN, TEST = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"
Images = NDArray[np.uint8]


def images(count: int, seed: int = 0, shape: tuple[int, ...] = (4, 3)) -> Images:
    return np.random.RandomState(seed).randint(0, 256, (count, *shape)).astype(np.uint8)


def encoded(pixels: Images, kind: int = 0x08) -> bytes:
    """An IDX file: two zeros, the type (0x08: unsigned bytes), the number of axes, their lengths,
    the values.
    """
    return (
        struct.pack(f">4B{pixels.ndim}I", 0, 0, kind, pixels.ndim, *pixels.shape) + pixels.tobytes()
    )


def scaled(pixels: Images) -> torch.Tensor:
    return torch.from_numpy((pixels.astype(np.float64) / 127.5 - 1).astype(np.float32))


def write(url: str, content: bytes) -> None:
    with fsspec.open(url, "wb") as file:
        file.write(content)


@cache  # Hydra takes some 50 ms
def composed(*overrides: str) -> RunConfig:
    return compose(["data=idx", "data.path=there", "trainer.batch_size=4", *overrides])


def read(url: str, *overrides: str, **data: object) -> DataSet:
    """The data set at `url` with five rows held out and other keys of `data.*` as given."""
    config = composed(*overrides)
    section = {**config.data.model_dump(), "path": url, "held_out": 5, **data}
    return open_data(RunConfig.model_validate({**config.model_dump(), "data": section}))


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty folder on disk, and one in fsspec's memory."""
    if request.param == "disk":
        yield str(tmp_path)
    else:
        name = f"memory://{uuid.uuid4().hex}"
        fsspec.filesystem("memory").mkdir(name)
        yield name
        fsspec.filesystem("memory").rm(name, recursive=True)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
def test_one_file_is_split_by_seed(folder: str, pack: Callable[[bytes], bytes]) -> None:
    """A file by itself: its images scaled to [-1, 1], permuted by RandomState(split_seed), the last
    five held out.
    """
    pixels = images(40)
    write(f"{folder}/pictures", pack(encoded(pixels)))
    data = read(f"{folder}/pictures", split_seed=2)
    order = np.random.RandomState(2).permutation(40)
    assert (data.shape, data.rows, data.noise) == ((4, 3), 35, 0.1)
    torch.testing.assert_close(data.sample, scaled(pixels[order[:35]]), rtol=0, atol=2e-7)
    torch.testing.assert_close(data.held_out, scaled(pixels[order[35:]]), rtol=0, atol=2e-7)


def test_scale_reaches_both_ends(tmp_path: Path) -> None:
    """Level 0 is -1 and level 255 is 1; as binary, 127 is 0 and 128 is 1."""
    pixels = np.tile(np.array([0, 127, 128, 255], np.uint8), (10, 1)).reshape(10, 2, 2)
    write(str(tmp_path / "pictures"), encoded(pixels))
    real = read(str(tmp_path / "pictures"))
    assert real.sample[0].flatten().tolist() == pytest.approx([-1, -1 / 255, 1 / 255, 1], abs=1e-6)
    binary = read(
        str(tmp_path / "pictures"),
        "energy=rbm",
        "kernel=gibbs",
        "data.encoding=binary",
        "data.noise=0",
    )
    assert binary.sample[0].flatten().tolist() == [0, 0, 1, 1]


SAMPLED = ("energy=rbm", "kernel=gibbs", "data.encoding=sampled", "data.noise=0")


def test_sampled_pixels_are_one_with_probability_grey_over_maximum(tmp_path: Path) -> None:
    """16 levels, 40,000 pixels of each: counts within 5 binomial standard errors (6e-7 each); the
    extremes without error.
    """
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    write(str(tmp_path / "pictures"), encoded(np.tile(levels, (40_000, 1)).reshape(-1, 4, 4)))
    rows = read(str(tmp_path / "pictures"), *SAMPLED).sample.flatten(1)
    assert torch.isin(rows, torch.tensor([0.0, 1.0])).all()
    rates = torch.from_numpy(levels / 255)
    assert (
        (rows.double().mean(0) - rates).abs() <= 5 * (rates * (1 - rates) / len(rows)).sqrt()
    ).all()
    neighbours = torch.corrcoef(rows.T[1:-1])  # pixels are drawn each by itself
    assert (neighbours - torch.eye(14)).abs().max() < 5 / math.sqrt(len(rows))


def test_sampled_pixels_are_drawn_once_by_split_seed(folder: str) -> None:
    """Another `seed` leaves them as they are, another `split_seed` does not; equal train and test
    images are drawn apart.
    """
    pixels = np.full((30, 4, 3), 128, np.uint8)
    write(f"{folder}/{TRAIN}", encoded(pixels))
    write(f"{folder}/{TEST}", encoded(pixels))
    once, again = (read(folder, *SAMPLED, f"seed={seed}", held_out=30) for seed in (0, 9))
    assert torch.equal(once.sample, again.sample)
    assert torch.equal(once.held_out, again.held_out)
    drawn = once.positives(0).next(60).position
    assert (drawn[:, None] == once.sample).flatten(2).all(2).any(1).all(), (
        "an epoch later the rows are the stored ones"
    )
    other = read(folder, *SAMPLED, held_out=30, split_seed=1)
    for different in (other.sample, once.held_out):
        assert 0.3 < (once.sample == different).float().mean() < 0.7
    order = np.random.RandomState(0).permutation(30)
    assert not torch.equal(once.held_out, once.sample[order])


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_folder_without_test_file_is_split_by_seed(folder: str, suffix: str) -> None:
    """A folder of a train file alone is split as the file would be."""
    pixels = images(40)
    write(
        f"{folder}/{TRAIN}{suffix}", gzip.compress(encoded(pixels)) if suffix else encoded(pixels)
    )
    write(f"{folder}/file", encoded(pixels))
    from_folder, from_file = read(folder), read(f"{folder}/file")
    assert (from_folder.rows, len(from_folder.held_out)) == (35, 5)
    assert torch.equal(from_folder.sample, from_file.sample)
    assert torch.equal(from_folder.held_out, from_file.held_out)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_test_file_gives_the_held_out_rows(folder: str, suffix: str) -> None:
    """All of the train file is trained on; the held-out rows are different rows of t10k, chosen by
    split_seed alone.
    """
    train, test = images(30), images(20, seed=1)
    write(f"{folder}/{TRAIN}", encoded(train))
    write(f"{folder}/{TEST}{suffix}", gzip.compress(encoded(test)) if suffix else encoded(test))
    data = read(folder)
    assert data.rows == 30
    torch.testing.assert_close(data.sample, scaled(train), rtol=0, atol=2e-7)
    chosen = [int((row - scaled(test)).abs().flatten(1).amax(1).argmin()) for row in data.held_out]
    assert len(set(chosen)) == 5
    torch.testing.assert_close(data.held_out, scaled(test[chosen]), rtol=0, atol=2e-7)
    assert torch.equal(read(folder, "seed=9").held_out, data.held_out)
    assert not torch.equal(read(folder, split_seed=1).held_out, data.held_out)


def test_drawn_rows_have_noise_and_stored_ones_none(tmp_path: Path) -> None:
    """Without noise the rows drawn are the stored ones; with it they are not, and the stored ones
    are as before.
    """
    write(str(tmp_path / "pictures"), encoded(images(40)))
    clean, noisy = (read(str(tmp_path / "pictures"), noise=noise) for noise in (0.0, 0.1))
    assert torch.equal(clean.sample, noisy.sample)
    difference = noisy.positives(0).next(35).position - clean.positives(0).next(35).position
    assert 0.05 < difference.std() < 0.15


WHOLE = encoded(images(10))
BROKEN = {
    "empty": b"",
    "magic cut": WHOLE[:3],
    "sizes missing": WHOLE[:4],
    "sizes cut": WHOLE[:11],
    "no pixels": WHOLE[:16],
    "last pixel missing": WHOLE[:-1],
    "a byte too many": WHOLE + b"\0",
    "float type": encoded(images(10), kind=0x0D),
    "not IDX": b"\x89PNG\r\n\x1a\n" + WHOLE,
    "labels": encoded(images(10, shape=())),
    "gzip cut": gzip.compress(WHOLE)[:40],
    "gzip cut in its header": gzip.compress(WHOLE)[:5],
    "gzip damaged": gzip.compress(WHOLE)[:20] + b"\xff" * 30 + gzip.compress(WHOLE)[50:],
    "gzip of a cut file": gzip.compress(WHOLE[:-1]),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("form", ["file", "folder"])
def test_broken_file(kind: str, form: str, tmp_path: Path) -> None:
    """A truncated, damaged or altogether different file is a `DataError` that names data.path and
    the file.
    """
    path = tmp_path / TRAIN
    path.write_bytes(BROKEN[kind])
    with pytest.raises(DataError, match=rf"data\.path=.*{TRAIN}"):
        read(str(path if form == "file" else tmp_path))


def test_missing_path(folder: str) -> None:
    """A path where nothing is."""
    with pytest.raises(DataError, match=r"data\.path=.*nowhere"):
        read(f"{folder}/nowhere")


def test_folder_without_train_file(folder: str) -> None:
    """A folder that has only a test file: the names looked for are given."""
    write(f"{folder}/{TEST}", encoded(images(10)))
    with pytest.raises(DataError, match=rf"data\.path={re.escape(folder)}: .*{TRAIN}"):
        read(folder)


def test_unknown_protocol() -> None:
    """A URL of a file system that does not exist is an error in words, naming data.path."""
    with pytest.raises(PipelineError, match=r"data\.path=nosuch://"):
        read("nosuch://bucket/pictures")


def test_held_out_too_large(folder: str) -> None:
    """As many held out as there are rows is refused, in either form."""
    write(f"{folder}/{TRAIN}", encoded(images(10)))
    for url in (f"{folder}/{TRAIN}", folder):
        with pytest.raises(ConfigError, match=r"data\.held_out=10: .*10 rows"):
            read(url, held_out=10)


def test_held_out_larger_than_the_test_file(folder: str) -> None:
    """All rows of t10k may be held out, but not more than there are."""
    write(f"{folder}/{TRAIN}", encoded(images(30)))
    write(f"{folder}/{TEST}", encoded(images(10, seed=1)))
    assert len(read(folder, held_out=10).held_out) == 10
    with pytest.raises(ConfigError, match=r"data\.held_out=11"):
        read(folder, held_out=11)


def test_test_file_of_another_shape(tmp_path: Path) -> None:
    """Held-out images of another shape than the training ones cannot be what is meant."""
    write(str(tmp_path / TRAIN), encoded(images(30)))
    write(str(tmp_path / TEST), encoded(images(10, shape=(3, 4))))
    with pytest.raises(DataError, match=r"data\.path="):
        read(str(tmp_path))
