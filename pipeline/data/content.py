"""The content of a data set in a few values: a run that resumes is held to these, and not to where
the rows are stored.
"""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor

from pipeline.config.data import DataSection
from pipeline.data.base import DataSet

ROWS = 1000  # of the held-out and of the training rows each, that are looked at


def content_of(section: DataSection, data: DataSet) -> dict[str, Any]:
    """Returns the number of training and of held-out rows, the shapes of a row and of its context,
    whether rows are streamed, and, of rows that are read from `data.path`, a digest of the first of
    them.

    Rows that are computed have no digest: their settings bind, and processors round differently.
    """
    contexts = [] if data.context is None else [data.context.held_out, data.context.sample]
    content: dict[str, Any] = {
        "training rows": data.rows,
        "held-out rows": len(data.held_out),
        "shape": list(data.shape),
        "context shape": None if data.context_shape is None else list(data.context_shape),
        "streamed": data.streamed,
    }
    if hasattr(section, "path"):
        content["digest of rows"] = _digest([data.held_out, data.sample, *contexts])
    return content


def _digest(tensors: list[Tensor]) -> str:
    """Returns 16 hexadecimal digits that name the first rows of the tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor[:ROWS].contiguous().numpy().astype("<f4").tobytes())
    return found.hexdigest()[:16]
