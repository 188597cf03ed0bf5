"""No data, for a maximum-entropy model with given moments."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.common.errors import ConfigError
from pipeline.common.types import Rows
from pipeline.config.data import NoData
from pipeline.data.base import Contexts, DataSet


class NoPositives:
    """An endless stream of no rows."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._rows = torch.empty(0, *shape)

    def next(self, count: int) -> Rows:  # noqa: ARG002 - as many as there are
        """Returns no rows."""
        return Rows(self._rows)

    def state_dict(self) -> dict[str, Any]:
        """Returns nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Does nothing: there is no place to go on from."""


def nothing(config: NoData) -> DataSet:
    """Makes a data set of no rows of `shape`. Raises `ConfigError` where none is given."""
    if not config.shape:
        raise ConfigError("data.shape", "[]", "the shape of a position, such as [1] for a number")
    return without_rows(tuple(config.shape))


def without_rows(shape: tuple[int, ...], context_shape: tuple[int, ...] | None = None) -> DataSet:
    """Makes a data set of no rows of `shape`, with contexts where their shape is given."""
    empty = torch.empty(0, *shape)
    contexts = None
    if context_shape is not None:
        none = torch.empty(0, *context_shape)
        contexts = Contexts(context_shape, none, none)

    def positives(seed: int, rank: int = 0, ranks: int = 1) -> NoPositives:  # noqa: ARG001
        return NoPositives(shape)

    return DataSet(shape, 0, empty, empty, 0.0, positives, context=contexts)
