"""Rows of files as a run's positions: points to rank, where chains begin, and what they are given.

Taken are the files that `data=columns` takes, and arrays of .npy files whatever their rows' shape.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.common.errors import ConfigError, DataError, RefusedError
from pipeline.data.cells import CODED, IMPUTED, Column, checked, numbers, with_holes
from pipeline.data.files import opened
from pipeline.data.folders import data_files
from pipeline.data.formats import format_of
from pipeline.data.labels import encoded
from pipeline.runs.trained import Trained
from pipeline.storage.files import Place, locate, read_file
from pipeline.storage.probe import check_input

PIECE = 10_000
"""Rows that are decoded at once."""


def read_rows(
    key: str, url: str, columns: Sequence[str], run: Trained, holes: bool = False
) -> Tensor:
    """Returns the rows of a file as rows of the run's data, `[N, *shape]` float32, scaled as those
    are. With `holes` values may be missing: NaN, nulls and empty cells are NaN.

    `columns` names those of a table that are taken, in order. Without, they are those that the run
    learned from (`column_names`), or those of samples, `position` or x0, x1, ..., where the table
    has them, else all.

    Raises `ConfigError` about `key` where the rows are not of the run's shape and domain,
    `DataError` where they cannot be read.
    """
    shape = run.data.shape
    dimension = math.prod(shape)
    flat = read_flat(key, url, columns, run, holes)
    if flat[0].size != dimension:
        remedy = (
            f"a row there has {flat[0].size} numbers, one of {run.url} has shape {list(shape)};"
            " columns=[..] chooses"
        )
        raise ConfigError(key, url, remedy)
    rows = torch.from_numpy(flat).view(-1, *shape)
    if run.data.scale is not None:
        rows = run.data.scale.scaled(rows)
    _check_domain(key, url, rows.flatten(1).numpy(), run)
    return rows


def read_flat(
    key: str, url: str, columns: Sequence[str], run: Trained, holes: bool = False
) -> np.ndarray:
    """Returns the rows of a file as `read_rows` does, whatever their length and values: `[N, n]`
    float32. Raises `ConfigError` and `DataError` where they cannot be read.
    """
    check_input(url, key)
    if url.endswith(".npy"):
        return _read_npy(key, url, holes)
    with _about(key):
        files = data_files(locate(url, key), url)
        rows = [_of_file(file, columns, run, holes) for file in files]
    if len({part.shape[1] for part in rows}) > 1:
        raise DataError(key, url, "its files have rows of several lengths")
    return np.concatenate(rows)


def column_names(run: Trained) -> list[str]:
    """Returns the names of a row's numbers, where the run learned from columns of one number each
    that data.columns names, or some of them of categories; else none.
    """
    if run.data.columns:
        return [name for name, _ in run.data.columns]
    names = list(getattr(run.config.data, "columns", ()))
    return names if len(names) == math.prod(run.data.shape) else []


def _check_domain(key: str, url: str, flat: np.ndarray, run: Trained) -> None:
    """Raises `ConfigError` for the first number of the rows `[N, d]` that is outside of the domain
    of the run's energy; what is missing is in any.
    """
    levels, box, kinds = run.energy.levels, run.energy.box, run.energy.kinds
    if kinds is not None:
        most = np.array([kind or np.inf for kind in kinds])
        whole = (flat >= 0) & (flat < most) & (flat == np.floor(flat))
        inside, domain = whole | np.isinf(most), "one of the places 0, ..., q-1 of q categories"
    elif levels is not None:
        inside, domain = np.isin(flat, np.arange(levels)), f"one of 0, ..., {levels - 1}"
    elif box is not None:
        inside, domain = (flat >= box[0]) & (flat <= box[1]), f"within {list(box)}"
    else:
        return
    outside = np.argwhere(~inside & ~np.isnan(flat))
    if len(outside):
        row, number = outside[0]
        remedy = (
            f"row {row} holds {flat[row, number]:g} as its number {number}; those of {run.url} are"
            f" {domain}"
        )
        raise ConfigError(key, url, remedy)


def _read_npy(key: str, url: str, holes: bool) -> np.ndarray:
    try:
        array = np.load(io.BytesIO(read_file(url)), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(key, url, f"cannot be read ({error})") from error
    if array.dtype.kind not in "biuf":
        raise DataError(key, url, f"holds values of type {array.dtype}; numbers are wanted")
    if array.ndim < 1 or not array.size:
        raise DataError(key, url, f"has shape {list(array.shape)}; an array of rows is wanted")
    with np.errstate(over="ignore"):
        rows: np.ndarray = array.astype(np.float32).reshape(len(array), -1)
    odd = np.argwhere(~np.isfinite(rows) & ~(np.isnan(rows) & holes))
    if len(odd):
        row, number = odd[0]
        value = array.reshape(len(array), -1)[row, number]
        remedy = f"row {row} holds {value} as its number {number}, which is not finite in 32 bits"
        raise DataError(key, url, remedy)
    return rows


@contextmanager
def _about(key: str) -> Iterator[None]:
    """Files are read as those of data.path are; what is refused is so about `key`."""
    try:
        yield
    except RefusedError as error:
        about = key if error.key == "data.path" else error.key.removeprefix("data.")
        remedy = error.remedy.replace("data.columns", "columns")  # as it is called here
        remedy = remedy.replace("the columns to learn from", "those to take")
        remedy = remedy.removesuffix(IMPUTED).removesuffix(CODED)  # of training rows alone
        raise type(error)(about, error.value, remedy) from error


def _of_file(file: Place, columns: Sequence[str], run: Trained, holes: bool) -> np.ndarray:
    """The columns asked for, or those that hold positions, side by side, `[N, d]` float32. Raises
    `DataError` where they cannot be read.
    """
    with opened(file) as stream:
        form = format_of(stream, file)(stream, file)
        names = _chosen(form.names, file, columns, run)
        own = [values for _, values in run.data.columns]
        words = dict(zip(names, own, strict=True)) if len(names) == len(own) else {}
        text = [name for name in names if words.get(name)]
        rest = [name for name in names if name not in text]
        units = range(len(form.rows(rest, text)))
        batches = [batch for unit in units for batch in form.batches(unit, rest, text, PIECE)]
    if not sum(map(len, batches)):
        raise DataError("data.path", file, "holds no rows")
    table = pa.Table.from_batches(batches)
    found = []
    for name in names:
        place = Column("data.columns", name, str(file), 0)
        column = table.column(name).combine_chunks()
        if name in text:
            column = encoded(column, words[name], place)
        found.append(with_holes(column, place) if holes else checked(numbers(column, place), place))
    return np.concatenate(found, 1)


def _chosen(
    present: Sequence[str], file: Place, columns: Sequence[str], run: Trained
) -> Sequence[str]:
    """The names of the columns that are read, of those `present`. Raises `ConfigError`."""
    names = list(columns) or _positions(present, run)
    missing = [name for name in names if name not in present]
    if missing:
        raise ConfigError("data.columns", missing, f"{file} has only {', '.join(present)}")
    if len(set(names)) < len(names) or any(list(present).count(name) > 1 for name in names):
        raise ConfigError("data.columns", names, f"each is to be one column of {file}, taken once")
    return names


def _positions(present: Sequence[str], run: Trained) -> list[str]:
    """The columns that hold positions, where none are named."""
    numbered = [f"x{number}" for number in range(math.prod(run.data.shape))]
    for names in (column_names(run), ["position"], numbered):
        if names and set(names) <= set(present):
            return names
    return list(present)
