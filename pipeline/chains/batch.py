"""The Arrow form of a round's negatives.

Every fact of a batch is a column, since a stream keeps only its first schema's metadata. A batch is
built compact (never a slice of a larger one, which would be serialized whole), and decoded without
a copy: the position tensor is a view of the record batch's own buffer, which behind Ray is shared
memory. Arrow's own ways from NumPy and to it import pandas, so that buffers are handed over here.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache

import numpy as np
import pyarrow as pa
from torch import Tensor

from pipeline.common.types import Negatives
from pipeline.energies.weights import read_only_tensor


@cache
def schema(
    dimension: int, replayed: int = 0, context: int = 0, numbered: bool = False, start: int = 0
) -> pa.Schema:
    """The columns of a batch, one row a chain. `energy` in nats, `age` in transitions since the
    chain's start.

    Where the last `replayed` transitions are to be replayed, `previous` is the position before
    them, and `noise` what they drew, one after the other. Where chains run under contexts, of
    `context` numbers each, those are there, and the numbers of the training rows they are of, where
    chains are kept by row. Where a batch brings along the rows that its chains were sent, `start`
    is that, of so many numbers.
    """
    past = [
        ("previous", pa.list_(pa.float32(), dimension)),
        ("noise", pa.list_(pa.float32(), dimension * replayed)),
    ]
    return pa.schema(
        [
            *(past if replayed else ()),
            *([("context", pa.list_(pa.float32(), context))] if context else ()),
            *([("number", pa.int64())] if numbered else ()),
            *([("start", pa.list_(pa.float32(), start))] if start else ()),
            ("position", pa.list_(pa.float32(), dimension)),
            ("chain", pa.int64()),
            ("energy", pa.float32()),
            ("acceptance", pa.float32()),
            ("age", pa.int64()),
            ("pool", pa.int32()),
            ("incarnation", pa.int64()),
            ("round", pa.int64()),
            ("version", pa.int64()),
        ]
    )


def encode(
    position: Tensor,
    energy: Tensor,
    acceptance: Tensor,
    age: Tensor,
    *,
    pool: int,
    incarnation: int,
    round: int,
    version: int,
    previous: Tensor | None = None,
    noise: Tensor | None = None,
    context: Tensor | None = None,
    number: Tensor | None = None,
    start: Tensor | None = None,
) -> pa.RecordBatch:
    """A round of one pool: `position` and `previous` [M, *shape], `noise` [L, M, *shape], `context`
    [M, *context_shape], `start` [M, *data shape], the rest [M]; the numbers are the same for every
    row.
    """
    rows, replayed = len(position), 0 if noise is None else len(noise)
    chain, *owner = _same_every_round(rows, pool, incarnation)
    past = (
        []
        if previous is None or noise is None
        else [fixed_size_lists(previous), fixed_size_lists(noise.transpose(0, 1))]
    )
    columns = [
        *past,
        *([] if context is None else [fixed_size_lists(context)]),
        *([] if number is None else [column(number.cpu().numpy())]),
        *([] if start is None else [fixed_size_lists(start)]),
        fixed_size_lists(position),
        chain,
        column(energy.cpu().numpy()),
        column(acceptance.cpu().numpy()),
        column(age.cpu().numpy()),
        *owner,
        column(np.full(rows, round)),
        column(np.full(rows, version)),
    ]
    widths = [0 if values is None else math.prod(values.shape[1:]) for values in (context, start)]
    dimension = math.prod(position.shape[1:])
    kind = schema(dimension, replayed, widths[0], number is not None, widths[1])
    return pa.RecordBatch.from_arrays(columns, schema=kind)


@lru_cache(maxsize=64)
def _same_every_round(rows: int, pool: int, incarnation: int) -> tuple[pa.Array, ...]:
    """The columns `chain`, `pool` and `incarnation`: made once, and shared by a pool's batches."""
    chain = np.arange(rows, dtype=np.int64)
    owner = (np.full(rows, pool, np.int32), np.full(rows, incarnation, np.int64))
    return column(chain), column(owner[0]), column(owner[1])


def column(values: np.ndarray) -> pa.Array:
    """Returns `values` [N] as an Arrow array on the same memory."""
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def fixed_size_lists(values: Tensor) -> pa.FixedSizeListArray:
    """Returns `values` [N, *shape] as an Arrow array of N lists of one length."""
    flat = values.cpu().contiguous().view(-1).numpy()
    return pa.FixedSizeListArray.from_arrays(column(flat), math.prod(values.shape[1:]))


def decode(batch: pa.RecordBatch) -> Negatives:
    """Views of the batch's buffers as tensors, and its numbers; nothing of the size of the
    positions is copied.
    """
    position, noise = _rows(batch, "position"), None
    there = batch.schema.names
    replayed = "noise" in there
    if replayed:
        noise = _rows(batch, "noise").view(len(batch), -1, position.shape[1]).transpose(0, 1)
    return Negatives(
        position=position,
        previous=_rows(batch, "previous") if replayed else None,
        noise=noise,
        context=_rows(batch, "context") if "context" in there else None,
        number=_tensor(batch.column("number")) if "number" in there else None,
        start=_rows(batch, "start") if "start" in there else None,
        energy=_tensor(batch.column("energy")),
        age=_tensor(batch.column("age")),
        **{
            name: batch.column(name)[0].as_py()
            for name in ("pool", "incarnation", "round", "version")
        },
    )


def _rows(batch: pa.RecordBatch, name: str) -> Tensor:
    lists = batch.column(name)
    width = lists.type.list_size
    flat = lists.values[lists.offset * width : (lists.offset + len(batch)) * width]
    return _tensor(flat).view(len(batch), width)


def _tensor(values: pa.Array) -> Tensor:
    kind = np.dtype(values.type.to_pandas_dtype())  # NumPy's, whatever the name
    start = values.offset * kind.itemsize
    return read_only_tensor(np.frombuffer(values.buffers()[1], kind, len(values), start))
