"""No data: what a maximum-entropy model with given moments is trained on."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.common.errors import ConfigError
from pipeline.common.types import Rows
from pipeline.config.data import NoData
from pipeline.data.base import DataSet


class NoPositives:
    """An endless stream of no rows."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._rows = torch.empty(0, *shape)

    def next(self, count: int) -> Rows:  # noqa: ARG002 - as many as there are
        return Rows(self._rows)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is nothing to take up."""


def nothing(config: NoData) -> DataSet:
    """A data set of no rows of `shape`."""
    if not config.shape:
        raise ConfigError("data.shape", "[]", "the shape of a position, such as [1] for a number")
    shape = tuple(config.shape)
    empty = torch.empty(0, *shape)
    return DataSet(shape, 0, empty, empty, 0.0, lambda seed, rank=0, ranks=1: NoPositives(shape))  # noqa: ARG005
