"""Parquet and Arrow files at any fsspec URL: loaded when small, streamed when larger than
`data.memory_limit`.

A *unit* is a row group of a Parquet file or a record batch of an Arrow file.
`pipeline.data.streaming` says how they are streamed.
"""

from __future__ import annotations

import numpy as np

from pipeline.config.data import ColumnsData
from pipeline.data.base import Contexts, DataSet, check_held_out, in_memory, split
from pipeline.data.files import Source
from pipeline.data.streaming import StreamedPositives, first_rows


def columns(config: ColumnsData) -> DataSet:
    """Opens the rows of `data.path`: loaded and split exactly where they fit `memory_limit`, else
    streamed. Raises `ConfigError` where no training row is left, `DataError`.

    A streamed set holds each row out with probability held_out / rows, by a draw that depends on
    `split_seed` and the unit alone; the held-out rows in hand are those among the first rows that
    fit in memory, at most `held_out`.
    """
    source = Source(config)
    check_held_out(config.held_out, source.rows)
    if source.rows * source.width * 4 <= config.memory_limit:
        rows = np.concatenate([source.read(unit) for unit in source.units])
        (train, of_train), (held_out, of_held_out) = map(
            source.split, split(rows, config.held_out, config.split_seed)
        )
        context = None if of_train is None or of_held_out is None else (of_train, of_held_out)
        return in_memory(train, held_out, config.noise, context=context)
    (held_out, of_held_out), (sample, of_sample) = map(source.split, first_rows(source, config))
    return DataSet(
        shape=source.shape,
        rows=source.rows - config.held_out,
        held_out=held_out,
        sample=sample,
        noise=config.noise,
        positives=lambda seed, rank=0, ranks=1: StreamedPositives(
            source, config, seed, rank, ranks
        ),
        context=(
            None
            if source.context_shape is None or of_held_out is None or of_sample is None
            else Contexts(source.context_shape, of_held_out, of_sample)
        ),
        streamed=True,
    )
