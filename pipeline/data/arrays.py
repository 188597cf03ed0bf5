"""Arrays of rows, by name, as columns: what NumPy's and HDF5 files have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from pipeline.common.errors import DataError
from pipeline.storage.files import Place


def column(values: np.ndarray) -> pa.Array:
    """Returns rows `[n, *shape]` as numbers or text, or as tensors of one shape."""
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    if values.ndim == 1:
        return pa.array(values.tolist() if values.dtype.kind in "UO" else values)
    return pa.FixedShapeTensorArray.from_numpy_ndarray(values)


def rows_of(
    names: Sequence[str],
    columns: Sequence[str],
    context: Sequence[str],
    count: Callable[[str], int],
    at: Place,
) -> int | None:
    """Returns the number of rows of the arrays that are asked for, of which `count` tells each;
    None of none, whose names are checked when they are read. Raises `DataError` where they have not
    equally many, or several are there and none is asked for.
    """
    learned = list(columns) or [name for name in names if name not in context]
    if not columns and len(learned) > 1:
        raise DataError(
            "data.path",
            at,
            f"holds the arrays {', '.join(learned)}; name the one to learn from, as in"
            f" data.columns=[{learned[0]}]",
        )
    rows = {name: count(name) for name in (*learned, *context) if name in names}
    if len(set(rows.values())) > 1:
        told = ", ".join(f"{name} {many}" for name, many in rows.items())
        raise DataError(
            "data.path", at, f"its arrays have not equally many rows ({told}); mend them"
        )
    return next(iter(rows.values()), None)
