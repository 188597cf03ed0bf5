"""Columns that say of each row how much it counts, and whether it is held out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.common.errors import ConfigError, DataError
from pipeline.data.cells import Column, checked, numbers
from pipeline.data.labels import truths
from pipeline.data.row_weights import check_weights
from pipeline.storage.files import Place


class Told(NamedTuple):
    """The contents of columns that were read through: the mean of the weights, and for each unit
    the rows that are held out, 8 bits a byte; None where there is no such column.
    """

    mean_weight: float | None
    masks: list[np.ndarray] | None

    def held_out(self, unit: int, rows: int) -> np.ndarray | None:
        """Returns a mask `[rows]` bool of unit number `unit`."""
        return (
            None if self.masks is None else np.unpackbits(self.masks[unit], count=rows).astype(bool)
        )


def held_out_flags(batch: pa.RecordBatch, name: str, path: Place, first: int) -> np.ndarray:
    """Returns 1 for held-out rows and 0 for others of a batch that begins at row `first` of the
    file, `[rows, 1]` float32, as the column called `name` says. Raises `DataError` where it says
    neither.
    """
    place = Column("data.held_out_column", name, str(path), first)
    values = checked(numbers(truths(batch.column(name), place), place), place)
    odd = np.argwhere((values != 0) & (values != 1))
    if len(odd) or values.shape[1] != 1:
        row = int(odd[0, 0]) if len(odd) else 0
        remedy = f"{place.of(row)}: {values[row, 0]:g} is neither 0 nor 1"
        if values.shape[1] != 1:
            remedy = f"{place.of(row)} holds a list; 0 or 1 is wanted"
        raise DataError("data.path", path, remedy)
    return values


def row_weights(batch: pa.RecordBatch, name: str, path: Place, first: int) -> np.ndarray:
    """Returns the weights of a batch that begins at row `first` of the file, `[rows, 1]` float32,
    from the column called `name`. Raises `ConfigError` for lists, and `DataError` for a weight that
    is missing, below 0 or not finite.
    """
    place = Column("data.weight", name, str(path), first)
    values = checked(numbers(batch.column(name), place), place)
    if values.shape[1] != 1:
        remedy = f"holds lists in {place.path}; a weight is one number"
        raise ConfigError(place.key, place.name, remedy)
    check_weights(values[:, 0], "data.path", path, place.of)
    return values
