"""The Arrow form of a round's negatives.

Every fact of a batch is a column, since a stream keeps only its first schema's metadata. A batch is built compact (never a
slice of a larger one, which would be serialized whole), and decoded without a copy: the position tensor is a view of the
record batch's own buffer, which behind Ray is shared memory.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from torch import Tensor

from pipeline.energies.base import read_only_tensor
from pipeline.types import Negatives

COLUMNS = ("position", "chain", "energy", "acceptance", "age", "pool", "incarnation", "round", "version")


def schema(dimension: int) -> pa.Schema:
    """The columns of a batch, one row a chain. `energy` in nats, `age` in transitions since the chain's start."""
    return pa.schema(
        [
            ("position", pa.list_(pa.float32(), dimension)),
            ("chain", pa.int64()),
            ("energy", pa.float32()),
            ("acceptance", pa.float32()),
            ("age", pa.int64()),
            ("pool", pa.int32()),
            ("incarnation", pa.int32()),
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
) -> pa.RecordBatch:
    """A round of one pool: `position` [M, *shape], the rest [M]; the numbers are the same for every row."""
    rows = len(position)
    flat = position.reshape(rows, -1).cpu().contiguous().numpy()
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1]),
        pa.array(np.arange(rows, dtype=np.int64)),
        pa.array(energy.cpu().numpy()),
        pa.array(acceptance.cpu().numpy()),
        pa.array(age.cpu().numpy()),
        *(
            pa.array(np.full(rows, value, kind))
            for value, kind in ((pool, np.int32), (incarnation, np.int32), (round, np.int64), (version, np.int64))
        ),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema(flat.shape[1]))


def decode(batch: pa.RecordBatch) -> Negatives:
    """Views of the batch's buffers as tensors, and its numbers; nothing of the size of the positions is copied."""
    position = batch.column("position")
    flat = read_only_tensor(position.flatten().to_numpy(zero_copy_only=True))
    return Negatives(
        position=flat.view(len(batch), position.type.list_size),
        energy=read_only_tensor(batch.column("energy").to_numpy(zero_copy_only=True)),
        age=read_only_tensor(batch.column("age").to_numpy(zero_copy_only=True)),
        **{name: batch.column(name)[0].as_py() for name in ("pool", "incarnation", "round", "version")},
    )
