"""The content of a data set in a few values: a run that resumes is held to these, and not to where
the rows are stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipeline.config.data import DataSection
from pipeline.data.base import DataSet
from pipeline.data.scaling import scale_of

ROWS = 1000  # of the held-out and of the training rows each, that are looked at


def content_of(section: DataSection, data: DataSet) -> dict[str, Any]:
    """Returns the number of training and of held-out rows, the shapes of a row and of its context,
    whether rows are streamed, and, of rows that are read from `data.path`, a digest of the first of
    them; their scale and the labels of their contexts, where they have some.

    Rows that are computed have no digest: their settings bind, and processors round differently.
    """
    contexts = [] if data.context is None else [data.context.held_out, data.context.sample]
    weights = [each for each in data.row_weights if each is not None]
    content: dict[str, Any] = {
        "training rows": data.rows,
        "held-out rows": len(data.held_out),
        "shape": list(data.shape),
        "context shape": None if data.context_shape is None else list(data.context_shape),
        "streamed": data.streamed,
    }
    if hasattr(section, "path"):
        content["digest of rows"] = _digest([data.held_out, data.sample, *contexts, *weights])
    if data.scale is not None:
        content["scale"] = data.scale.plain()
    if data.labels:
        content["labels"] = dict(data.labels)
    return content


def recorded_of(content: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what of the `content` a data set tells itself: its scale and labels."""
    told = content or {}
    scale = scale_of(told["scale"]) if "scale" in told else None
    return {"scale": scale, "labels": dict(told.get("labels", {}))}


def _digest(tensors: list[Tensor]) -> str:
    """Returns 16 hexadecimal digits that name the first rows of the tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor[:ROWS].contiguous().numpy().astype("<f4").tobytes())
    return found.hexdigest()[:16]
