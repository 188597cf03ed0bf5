"""Image sets: scikit-learn's digits, and IDX files, the format of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import importlib.util
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from pipeline.common.errors import ConfigError, DataError
from pipeline.common.rng import numpy_generator
from pipeline.config.data import DigitsData, IDXData
from pipeline.data.base import DataSet, encode_grey, in_memory, split
from pipeline.storage.files import Place, exists, is_folder, locate, read_file


def digits(config: DigitsData) -> DataSet:
    """Opens the 1,797 handwritten digits of 8x8 pixels, 17 grey levels (Alpaydin & Kaynak 1998,
    bundled with scikit-learn).

    Of an image and its label, `data.position` says which is the position, and the other is the
    context. Raises `ConfigError` where no training row is left.
    """
    table = _table_of_digits()
    pixels, target = table[:, :-1].reshape(-1, 8, 8), table[:, -1]
    images = split(_encode(pixels, 16, config), config.held_out, config.split_seed)
    labels = split(target, config.held_out, config.split_seed)
    if config.position == "image":
        return in_memory(*images, config.noise, context=labels)
    return in_memory(labels[0][:, None], labels[1][:, None], config.noise, context=images)


def _table_of_digits() -> np.ndarray:
    """The rows of scikit-learn's file, `[1797, 65]`: pixels, and the label last.

    The file is read where it lies, for to import scikit-learn takes a second in each process.
    """
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.submodule_search_locations
    file = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if file.exists():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # a release that keeps it elsewhere

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])


def idx(config: IDXData) -> DataSet:
    """Opens a file of images, or a folder with `train-images-idx3-ubyte[.gz]` and, if there,
    `t10k-...`.

    A file is split by seed. With a test file, `held_out` rows of it, drawn by `split_seed`, are the
    held-out ones. Raises `DataError` where the files are not there or not images of one shape,
    `ConfigError` where more rows are to be kept out than there are.
    """
    there = locate(config.path, "data.path")
    if not exists(there):
        raise DataError("data.path", config.path, "there is nothing there")
    if not is_folder(there):
        rows = _encode(read_idx(there), 255, config)
        return in_memory(*split(rows, config.held_out, config.split_seed), config.noise)
    train = _find(there, "train-images-idx3-ubyte")
    if train is None:
        raise DataError(
            "data.path",
            config.path,
            "no train-images-idx3-ubyte or train-images-idx3-ubyte.gz there",
        )
    rows = _encode(read_idx(train), 255, config)
    test = _find(there, "t10k-images-idx3-ubyte")
    if test is None:
        return in_memory(*split(rows, config.held_out, config.split_seed), config.noise)
    others = _encode(read_idx(test), 255, config, "test-pixels")
    if others.shape[1:] != rows.shape[1:]:
        raise DataError(
            "data.path",
            test,
            f"images of shape {list(others.shape[1:])}, but {list(rows.shape[1:])} in {train}; give"
            " files of one shape",
        )
    kept_out = (
        int(config.held_out)
        if config.held_out >= 1
        else max(1, round(config.held_out * (len(rows) + len(others))))
    )
    if kept_out > len(others):
        raise ConfigError(
            "data.held_out",
            config.held_out,
            f"there are {len(others)} rows in {test}; keep out at most that",
        )
    chosen = np.random.RandomState(config.split_seed).permutation(len(others))[:kept_out]
    return in_memory(torch.from_numpy(rows), torch.from_numpy(others[chosen]), config.noise)


def _encode(
    values: np.ndarray, maximum: int, config: DigitsData | IDXData, stream: str = "pixels"
) -> np.ndarray:
    """Encodes grey levels (`encode_grey`). Pixels are drawn from `SeedSequence(split_seed,
    stream)`, the same for every run on these data.
    """
    return encode_grey(
        values, maximum, config.encoding, config.levels, numpy_generator(config.split_seed, stream)
    )


def _find(folder: Place, stem: str) -> Place | None:
    for suffix in ("", ".gz"):
        if exists(folder / f"{stem}{suffix}"):
            return folder / f"{stem}{suffix}"
    return None


def read_idx(path: Place) -> np.ndarray:
    """Returns an IDX file of unsigned bytes, gzipped or not, as uint8 `[N, ...]` (LeCun et al., the
    MNIST page). Raises `DataError` where it is none.
    """
    content = read_file(path)
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError("data.path", path, f"cannot be decompressed ({error})") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise DataError(
            "data.path",
            path,
            f"not an IDX file of unsigned bytes (its magic number is {content[:4].hex()})",
        )
    axes = content[3]
    if len(content) < 4 + 4 * axes:
        raise DataError("data.path", path, "cut short within its header")
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    body = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    if axes < 2 or body.size != math.prod(shape):
        raise DataError(
            "data.path", path, f"{body.size} bytes do not fill images of shape {list(shape)}"
        )
    return body.reshape(shape)
