"""Data files at any fsspec URL: loaded when small, streamed when larger than `data.memory_limit`.

`pipeline.data.formats` says which formats there are, `pipeline.data.streaming` how they are
streamed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.common.errors import ConfigError, RefusedError
from pipeline.config.data import ColumnsData
from pipeline.data.base import Contexts, DataSet, held_out_of, in_memory, split
from pipeline.data.files import Source
from pipeline.data.row_weights import RowWeights, check_some
from pipeline.data.scaling import constant_columns, scale_for
from pipeline.data.streaming import StreamedPositives, first_rows


def columns(config: ColumnsData) -> DataSet:
    """Opens the rows of `data.path`: loaded and split exactly where they fit `memory_limit`, else
    streamed. Raises `ConfigError` where no training row is left, `DataError`.

    Where neither a column nor files say which rows are held out, a streamed set holds each out with
    probability held_out / rows, by a draw that depends on `split_seed` and the unit alone. The
    held-out rows in hand are those among the first rows that fit in memory, of a count at most as
    many; those of files are all in hand.

    With `scale`, positions get the one that `config.recorded` has; else means and deviations are
    those of the training rows, minima and ranges those of all rows; of streamed data, of the rows
    in hand. With `weight`, rows of weight 0 are left out, and means and deviations are weighted.
    """
    if config.held_out_column is not None and config.held_out_path is not None:
        remedy = "goes without data.held_out_column; take one of them"
        raise ConfigError("data.held_out_path", config.held_out_path, remedy)
    source = Source(config)
    if source.rows * source.width * 4 <= config.memory_limit:
        return _loaded(source, config)
    return _streamed(source, config)


def _loaded(source: Source, config: ColumnsData) -> DataSet:
    parts = _apart(source, config, _all_rows(source, config))
    _find_scale(source, config, *parts)
    (train, of_train), (held_out, of_held_out) = map(source.split, parts)
    context = None if of_train is None or of_held_out is None else (of_train, of_held_out)
    weights = source.weights_of(parts[0]), source.weights_of(parts[1])
    loaded = in_memory(train, held_out, config.noise, context=context, weights=weights)
    return loaded._replace(**_told(source, train))


def _all_rows(source: Source, config: ColumnsData) -> np.ndarray:
    """Returns the rows of all files that have no weight of 0, `[N, n]`."""
    rows = np.concatenate([source.read(unit) for unit in source.units])
    if config.weight is None:
        return rows
    check_some(rows[:, -1], "data.weight", config.weight)
    return rows[rows[:, -1] > 0]


def _apart(source: Source, config: ColumnsData, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Returns training and held-out rows, both in the order of `split`."""
    if config.held_out_column is None and config.held_out_path is None:
        return split(rows, config.held_out, config.split_seed)
    order = np.random.RandomState(config.split_seed).permutation(len(rows))
    shuffled = torch.from_numpy(rows[order])
    if config.held_out_path is not None:
        return shuffled, _other_rows(source, config)
    there = source.held_out_of(shuffled)
    if there.all() or not there.any():
        every = "every row is" if there.all() else "no row is"
        remedy = f"{every} held out there; rows of both kinds are needed"
        raise ConfigError("data.held_out_column", config.held_out_column, remedy)
    return shuffled[~there], shuffled[there]


def _other_rows(source: Source, config: ColumnsData) -> Tensor:
    """Returns the rows of `held_out_path`, `[N, n]`, read as those of `source` are. Raises
    `ConfigError` where they do not fit `memory_limit` or are of another length, `DataError`.
    """
    path = config.held_out_path
    assert path is not None
    there = {"path": path, "columns": tuple(source.names), "held_out_path": None}
    section = config.model_copy(update=there).telling(recorded={"labels": source.labels})
    try:
        other = Source(section)
        if other.width != source.width:
            remedy = f"a row has {other.width} numbers, one of data.path {source.width}"
            raise ConfigError("data.held_out_path", path, remedy)
        if other.rows * other.width * 4 > config.memory_limit:
            remedy = (
                f"its {other.rows} rows take {other.rows * other.width * 4:,} bytes, more than"
                f" data.memory_limit={config.memory_limit}; give fewer"
            )
            raise ConfigError("data.held_out_path", path, remedy)
        return torch.from_numpy(_all_rows(other, section))
    except RefusedError as error:
        key = "data.held_out_path" if error.key == "data.path" else error.key
        raise type(error)(key, error.value, error.remedy) from error


def _streamed(source: Source, config: ColumnsData) -> DataSet:
    if config.weight is not None or config.held_out_column is not None:
        source.read_through()
    if source.told.mean_weight is not None:
        check_some(np.array([source.told.mean_weight]), "data.weight", config.weight)
    held_out_rows, sample_rows = first_rows(source, config)
    if config.held_out_path is not None:
        held_out_rows, kept = _other_rows(source, config), 0
    elif source.told.masks is not None:
        kept = sum(int(np.bitwise_count(mask).sum()) for mask in source.told.masks)
    else:
        kept = held_out_of(config.held_out, source.rows)
    parts = held_out_rows, sample_rows
    _find_scale(source, config, sample_rows, held_out_rows)
    (held_out, of_held_out), (sample, of_sample) = map(source.split, parts)
    streamed = DataSet(
        shape=source.shape,
        rows=source.rows - kept,
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
        row_weights=RowWeights(*map(source.weights_of, parts)),
    )
    return streamed._replace(**_told(source, sample))


def _find_scale(source: Source, config: ColumnsData, train: Tensor, held_out: Tensor) -> None:
    """Gives the source its scale, where one is asked for, of rows `[N, n]`."""
    positions, others = (rows[:, : source.dimension] for rows in (train, held_out))
    weights = source.weights_of(train)
    source.scale = scale_for(config.scale, config.recorded, positions, others, weights)


def _told(source: Source, train: Tensor) -> dict[str, Any]:
    """Returns the fields of a data set that tell of its columns."""
    constant = [source.numbers[number] for number in constant_columns(train)]
    return {"scale": source.scale, "labels": source.labels, "constant": constant}
