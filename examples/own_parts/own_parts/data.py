"""Six clusters in the plane."""

from typing import ClassVar

import numpy as np

from pipeline.config.data import DataSection
from pipeline.config.fields import NonNegativeFloat, NonNegativeInt, PositiveInt
from pipeline.data.base import DataSet, in_memory, split


class Hexagon(DataSection):
    """Every field has a default: a package has no file in `conf/`."""

    images: ClassVar[bool] = False
    held_out: PositiveInt = 500
    split_seed: NonNegativeInt = 0
    noise: NonNegativeFloat = 0.1
    rows: PositiveInt = 4000


def hexagon(config: Hexagon) -> DataSet:
    """`rows` corners of a hexagon of radius 2, which the noise makes clusters of."""
    angle = np.random.RandomState(config.split_seed).randint(6, size=config.rows) * np.pi / 3
    rows = 2 * np.stack([np.cos(angle), np.sin(angle)], 1)
    train, held_out = split(rows, config.held_out, config.split_seed)
    return in_memory(train, held_out, config.noise)
