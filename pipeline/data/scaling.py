"""The scale of a table's columns: rows as they are learned from, and in their own units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

DIGITS = 12  # that are kept: the last ones of a sum depend on the processor


class Scale(NamedTuple):
    """Each number of a row less its `shift`, over its `width`: `[d]` float64 each.

    `kind` is standard (mean and standard deviation) or unit (minimum and range). A constant column
    is shifted alone: its width is 1.
    """

    kind: str
    shift: np.ndarray
    width: np.ndarray

    def scaled(self, rows: Tensor) -> Tensor:
        """Returns rows `[N, *shape]` as they are learned from."""
        return self._of(rows, lambda flat: (flat - self.shift) / self.width)

    def in_own_units(self, rows: Tensor) -> Tensor:
        """Returns scaled rows, or samples `[N, *shape]`, in the units of the data."""
        return self._of(rows, lambda flat: flat * self.width + self.shift)

    @property
    def log_determinant(self) -> float:
        """The sum of -log(width), nats: what the log-density of a row in its own units has more
        than that of the scaled row.
        """
        return float(-np.log(self.width).sum())

    def _of(self, rows: Tensor, change: Any) -> Tensor:
        flat = rows.detach().cpu().double().flatten(1).numpy()
        return torch.from_numpy(change(flat)).to(rows).view(rows.shape)

    def plain(self) -> dict[str, Any]:
        """Returns the scale as plain values, which `scale_of` takes."""
        return {"kind": self.kind, "shift": self.shift.tolist(), "width": self.width.tolist()}


def scale_of(plain: dict[str, Any]) -> Scale:
    """Returns the scale that `plain` tells."""
    shift, width = (np.array(plain[key], np.float64) for key in ("shift", "width"))
    return Scale(str(plain["kind"]), shift, width)


def fitted(kind: str, rows: np.ndarray, weights: np.ndarray | None = None) -> Scale:
    """Returns the scale of rows `[N, d]`: of `standard` scaling their means and standard deviations
    (over N, or under `weights` [N]), of `unit` their minima and ranges.
    """
    wide = rows.astype(np.float64)
    if kind == "standard":
        shift, width = wide.mean(0), wide.std(0)
        if weights is not None:
            shift = np.average(wide, 0, weights)
            width = np.sqrt(np.average(np.square(wide - shift), 0, weights))
    else:
        shift = wide.min(0)
        width = wide.max(0) - shift
    constant = wide.max(0) == wide.min(0)
    shift, width = np.where(constant, wide[0], shift), np.where(constant, 1.0, width)
    return Scale(kind, *(np.array([float(f"{x:.{DIGITS}g}") for x in of]) for of in (shift, width)))


def scale_for(
    kind: str,
    recorded: Mapping[str, Any],
    train: Tensor,
    held_out: Tensor,
    weights: Tensor | None = None,
) -> Scale | None:
    """Returns the scale that a run has `recorded`; else the one of `kind`: standard of the `train`
    rows [N, d], which count by their `weights` [N], unit of both; None where kind is none.
    """
    if "scale" in recorded:
        return scale_of(recorded["scale"])
    if kind == "none":
        return None
    if kind == "unit":
        return fitted(kind, torch.cat([train, held_out]).numpy())
    return fitted(kind, train.numpy(), None if weights is None else weights.numpy())


def constant_columns(rows: Tensor) -> list[int]:
    """Returns the numbers of the columns of rows `[N, *shape]` that are constant."""
    flat = rows.flatten(1)
    return torch.nonzero(flat.amax(0) == flat.amin(0)).flatten().tolist()
