"""The chains that a pool of a conditional model keeps by training row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.kernels.base import per_chain


class KeptChains:
    """The chains that a pool keeps for training rows, C each, in tables that grow to the largest
    row number seen.
    """

    def __init__(self, per_row: int) -> None:
        self._per_row = per_row
        self._position: Tensor | None = None  # [R, C, *shape]
        self._age: Tensor | None = None  # [R, C] int64, in transitions; -1: no chain yet

    def take(self, number: Tensor, fresh: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [N C, *shape] and ages [N C] of the chains of rows `number` [N C], each row's C
        one after the other; those that are not there yet are `fresh`, of age 0.
        """
        rows = number[:: self._per_row]
        self._grow(int(rows.max()) + 1, fresh)
        assert self._position is not None
        assert self._age is not None
        position, age = self._position[rows].flatten(0, 1), self._age[rows].flatten()
        missing = age < 0
        return torch.where(per_chain(missing, fresh), fresh, position), age.clamp(min=0)

    def put(self, number: Tensor, position: Tensor, age: Tensor) -> None:
        """The chains of rows `number` as they are now; arguments as `take` gives them."""
        rows = number[:: self._per_row]
        self._grow(int(rows.max()) + 1, position)
        assert self._position is not None
        assert self._age is not None
        self._position[rows] = position.unflatten(0, (-1, self._per_row))
        self._age[rows] = age.view(-1, self._per_row)

    def _grow(self, rows: int, like: Tensor) -> None:
        before = 0 if self._age is None else len(self._age)
        if rows <= before:
            return
        rows = max(rows, 2 * before)
        position = like.new_zeros((rows, self._per_row, *like.shape[1:]))
        age = torch.full((rows, self._per_row), -1, device=like.device)
        if self._position is not None and self._age is not None:
            position[:before], age[:before] = self._position, self._age
        self._position, self._age = position, age

    def state_dict(self) -> dict[str, Any] | None:
        return (
            None
            if self._position is None or self._age is None
            else {"position": self._position.cpu(), "age": self._age.cpu()}
        )

    def load_state_dict(self, state: dict[str, Any] | None, device: torch.device) -> None:
        if state is not None:
            self._position, self._age = (
                state["position"].to(device, copy=True),
                state["age"].to(device, copy=True),
            )
