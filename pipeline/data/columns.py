"""Data files at any fsspec URL: loaded when small, streamed when larger than `data.memory_limit`.

`pipeline.data.formats` says which formats there are, `pipeline.data.streaming` how they are
streamed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config.data import ColumnsData
from pipeline.data.base import Contexts, DataSet, held_out_of, in_memory, split
from pipeline.data.files import Source
from pipeline.data.row_weights import RowWeights, check_some
from pipeline.data.scaling import constant_columns, fitted, scale_of
from pipeline.data.streaming import StreamedPositives, first_rows


def columns(config: ColumnsData) -> DataSet:
    """Opens the rows of `data.path`: loaded and split exactly where they fit `memory_limit`, else
    streamed. Raises `ConfigError` where no training row is left, `DataError`.

    A streamed set holds each row out with probability held_out / rows, by a draw that depends on
    `split_seed` and the unit alone; the held-out rows in hand are those among the first rows that
    fit in memory, at most `held_out`.

    With `scale`, positions get the one that `config.recorded` has; else means and deviations are
    those of the training rows, minima and ranges those of all rows; of streamed data, of the rows
    in hand. With `weight`, rows of weight 0 are left out, and means and deviations are weighted.
    """
    source = Source(config)
    if source.rows * source.width * 4 <= config.memory_limit:
        rows = np.concatenate([source.read(unit) for unit in source.units])
        if config.weight is not None:
            check_some(rows[:, -1], "data.weight", config.weight)
            rows = rows[rows[:, -1] > 0]
        parts = split(rows, config.held_out, config.split_seed)
        _find_scale(source, config, *parts)
        (train, of_train), (held_out, of_held_out) = map(source.split, parts)
        context = None if of_train is None or of_held_out is None else (of_train, of_held_out)
        weights = source.weights_of(parts[0]), source.weights_of(parts[1])
        loaded = in_memory(train, held_out, config.noise, context=context, weights=weights)
        return loaded._replace(**_told(source, train))
    return _streamed(source, config)


def _streamed(source: Source, config: ColumnsData) -> DataSet:
    unit = None
    if config.weight is not None:
        unit = source.mean_weight()
        check_some(np.array([unit]), "data.weight", config.weight)
    parts = first_rows(source, config)
    _find_scale(source, config, parts[1], parts[0])
    (held_out, of_held_out), (sample, of_sample) = map(source.split, parts)
    streamed = DataSet(
        shape=source.shape,
        rows=source.rows - held_out_of(config.held_out, source.rows),
        held_out=held_out,
        sample=sample,
        noise=config.noise,
        positives=lambda seed, rank=0, ranks=1: StreamedPositives(
            source, config, seed, rank, ranks, unit
        ),
        context=(
            None
            if source.context_shape is None or of_held_out is None or of_sample is None
            else Contexts(source.context_shape, of_held_out, of_sample)
        ),
        streamed=True,
        row_weights=RowWeights(*map(source.weights_of, parts)),
    )
    return streamed._replace(**_told(source, sample))


def _find_scale(source: Source, config: ColumnsData, train: Tensor, held_out: Tensor) -> None:
    """Gives the source its scale, where one is asked for, of rows `[N, n]`."""
    if "scale" in config.recorded:
        source.scale = scale_of(config.recorded["scale"])
    elif config.scale != "none":
        rows = train if config.scale == "standard" else torch.cat([train, held_out])
        weights = source.weights_of(rows)
        source.scale = fitted(
            config.scale,
            rows[:, : source.dimension].numpy(),
            None if weights is None else weights.numpy(),
        )


def _told(source: Source, train: Tensor) -> dict[str, Any]:
    """Returns the fields of a data set that tell of its columns."""
    constant = [source.numbers[number] for number in constant_columns(train)]
    return {"scale": source.scale, "labels": source.labels, "constant": constant}
