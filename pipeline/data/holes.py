"""Rows with missing values: which of them are held out, and what stands in a hole at first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.common.errors import ConfigError, DataError
from pipeline.common.rng import torch_generator
from pipeline.data.base import held_out_of
from pipeline.data.row_weights import shuffled


def split_whole(rows: np.ndarray, held_out: float, split_seed: int) -> tuple[Tensor, Tensor]:
    """Returns training and held-out rows as `pipeline.data.base.split` does, but that none of the
    held-out ones has a hole: of `rows` [N, ...], NaN where a value is missing, the last ones
    without are kept out.

    Raises `ConfigError` where there are not so many.
    """
    count = held_out_of(held_out, len(rows))
    order = np.random.RandomState(split_seed).permutation(len(rows))
    dealt = torch.from_numpy(np.ascontiguousarray(rows[order], dtype=np.float32))
    whole = (~dealt.flatten(1).isnan().any(1)).nonzero()[:, 0]
    if count > len(whole):
        remedy = (
            f"{len(whole)} of the {len(rows)} rows lack nothing, and no others are held out; keep"
            " out at most that"
        )
        raise ConfigError("data.held_out", held_out, remedy)
    kept = torch.zeros(len(rows), dtype=torch.bool)
    kept[whole[len(whole) - count :]] = True
    return dealt[~kept], dealt[kept]


def filled(
    rows: Tensor,
    names: Sequence[str],
    path: str,
    split_seed: int,
    weights: Tensor | None = None,
) -> Tensor:
    """Returns rows `[N, ...]` with a draw of what is there in the same column of other rows in the
    place of each NaN, in proportion to their `weights` [N]: each column's own law stays as it is.
    From a stream of its own, of `split_seed`.

    Raises `DataError` where a column of these `names` holds nothing.
    """
    flat, generator = rows.flatten(1).clone(), torch_generator(split_seed, "holes")
    for number, column in enumerate(flat.T):
        missing = column.isnan()
        there = column[~missing]
        if not len(there):
            remedy = f"column {names[number]} has no value in any training row; leave it out"
            raise DataError("data.path", path, remedy)
        count = int(missing.sum())
        if weights is None:
            drawn = torch.randint(len(there), (count,), generator=generator)
        else:
            drawn = shuffled(weights[~missing], count, generator)
        column[missing] = there[drawn]
    return flat.view(rows.shape)
