"""Folders of PNG and JPEG images, grey or in colour; sub-folders are labels."""

from __future__ import annotations

import io
from types import ModuleType
from typing import Any

import numpy as np

from pipeline.common.errors import ConfigError, DataError
from pipeline.common.rng import numpy_generator
from pipeline.config.data import ImagesData
from pipeline.data.base import DataSet, encode_grey, in_memory, split
from pipeline.data.labels import in_words
from pipeline.storage.files import Place, exists, files_below, is_folder, locate, read_file

SUFFIXES = (".png", ".jpg", ".jpeg")
GREY, COLOUR = ("1", "L", "LA", "La"), 3


def images(config: ImagesData) -> DataSet:
    """Opens the images below the folder data.path as rows `[height, width]` of grey levels, or
    `[3, height, width]` of red, green and blue, 0 to 255, encoded.

    Where each lies in a sub-folder, the name of the first one is its label, which is the context:
    its place among the sorted names. Raises `ConfigError` where Pillow is not there or no training
    row is left, `DataError` where an image cannot be read or has a size of its own.
    """
    pillow = _pillow()
    folder = locate(config.path, "data.path")
    if not exists(folder):
        raise DataError("data.path", config.path, "there is nothing there")
    if not is_folder(folder):
        raise DataError("data.path", config.path, "is a file; give a folder of images")
    found = [place for place in files_below(folder) if _is_image(place, folder)]
    if not found:
        raise DataError(
            "data.path",
            config.path,
            f"no images there: {', '.join(SUFFIXES)} files, in the folder and those below",
        )
    channels: int | None = config.channels
    if channels is None:
        channels = 1 if _opened(found[0], pillow).mode in GREY else COLOUR
    rows: np.ndarray | None = None
    for number, place in enumerate(found):
        pixels = _pixels(place, channels, config, pillow)
        if rows is None:
            rows = np.empty((len(found), *pixels.shape), np.uint8)
        if pixels.shape != rows.shape[1:]:
            (height, width), (first_height, first_width) = pixels.shape[-2:], rows.shape[-2:]
            raise DataError(
                "data.path",
                place,
                f"is {height} by {width} pixels, but {found[0]} {first_height} by {first_width};"
                f" set data.size=[{first_height},{first_width}] to resize all, or leave it out",
            )
        rows[number] = pixels
    assert rows is not None
    generator = numpy_generator(config.split_seed, "pixels")
    encoded = encode_grey(rows, 255, config.encoding, config.levels, generator)
    train, held_out = split(encoded, config.held_out, config.split_seed)
    names = [place.path.removeprefix(folder.path).strip("/").split("/") for place in found]
    if any(len(parts) == 1 for parts in names):
        return in_memory(train, held_out, config.noise)
    of_rows = [parts[0] for parts in names]
    labels = config.recorded.get("labels", {}).get("folder") or sorted(set(of_rows))
    for name, place in zip(of_rows, found, strict=True):
        if name not in labels:
            remedy = f"its folder {name} is none of the labels {in_words(labels)}"
            raise DataError("data.path", place, remedy)
    context = split(
        np.array([labels.index(name) for name in of_rows]), config.held_out, config.split_seed
    )
    return in_memory(train, held_out, config.noise, context=context)._replace(
        labels={"folder": labels}
    )


def _pillow() -> ModuleType:
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise ConfigError(
            "data", "images", "needs Pillow: pip install 'ebm-pipeline[images]'"
        ) from error
    return PIL


def _is_image(place: Place, folder: Place) -> bool:
    """Returns whether a file has an image's name; those that begin with a dot are tools' own."""
    parts = place.path.removeprefix(folder.path).split("/")
    return parts[-1].lower().endswith(SUFFIXES) and not any(part.startswith(".") for part in parts)


def _opened(place: Place, pillow: ModuleType) -> Any:
    """Returns a decoded image, turned upright. Raises `DataError`."""
    try:
        image = pillow.Image.open(io.BytesIO(read_file(place)))
        image.load()
        return pillow.ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, pillow.Image.DecompressionBombError) as error:
        reason = str(error).split(" <")[0]
        raise DataError(
            "data.path", place, f"cannot be read as an image ({reason}); mend it, or leave it out"
        ) from error


def _pixels(place: Place, channels: int, config: ImagesData, pillow: ModuleType) -> np.ndarray:
    """Returns an image as uint8, `[height, width]` or `[3, height, width]`."""
    image = _opened(place, pillow)
    if image.mode.startswith(("I", "F")):
        remedy = f"has more than 8 bits a pixel (mode {image.mode}); write it with 8"
        raise DataError("data.path", place, remedy)
    image = image.convert("L" if channels == 1 else "RGB")
    if config.size:
        height, width = config.size if len(config.size) == 2 else config.size * 2
        image = image.resize((width, height), pillow.Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels if channels == 1 else pixels.transpose(2, 0, 1)
