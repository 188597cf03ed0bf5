"""The Arrow form of a round's negatives.

Every fact of a batch is a column, since a stream keeps only its first schema's metadata. A batch is
built compact (never a slice of a larger one, which would be serialized whole), and decoded without
a copy: the position tensor is a view of the record batch's own buffer, which behind Ray is shared
memory.
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
        *([] if number is None else [pa.array(number.cpu().numpy())]),
        *([] if start is None else [fixed_size_lists(start)]),
        fixed_size_lists(position),
        chain,
        pa.array(energy.cpu().numpy()),
        pa.array(acceptance.cpu().numpy()),
        pa.array(age.cpu().numpy()),
        *owner,
        pa.array(np.full(rows, round)),
        pa.array(np.full(rows, version)),
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
    return pa.array(chain), *map(pa.array, owner)


def fixed_size_lists(values: Tensor) -> pa.FixedSizeListArray:
    """Returns `values` [N, *shape] as an Arrow array of N lists of one length."""
    flat = values.cpu().contiguous().view(-1).numpy()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), math.prod(values.shape[1:]))


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
        number=(
            read_only_tensor(batch.column("number").to_numpy(zero_copy_only=True))
            if "number" in there
            else None
        ),
        start=_rows(batch, "start") if "start" in there else None,
        energy=read_only_tensor(batch.column("energy").to_numpy(zero_copy_only=True)),
        age=read_only_tensor(batch.column("age").to_numpy(zero_copy_only=True)),
        **{
            name: batch.column(name)[0].as_py()
            for name in ("pool", "incarnation", "round", "version")
        },
    )


def _rows(batch: pa.RecordBatch, name: str) -> Tensor:
    column = batch.column(name)
    width = column.type.list_size
    flat = column.values[column.offset * width : (column.offset + len(batch)) * width]
    return read_only_tensor(flat.to_numpy(zero_copy_only=True)).view(len(batch), width)
