"""The Arrow form of negatives: columns, compactness, and no copy."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch

from pipeline.chains import batch as negatives


def batch(rows: int = 6, shape: tuple[int, ...] = (2, 3)) -> pa.RecordBatch:
    generator = torch.Generator().manual_seed(0)
    position = torch.randn(rows, *shape, generator=generator)
    energy, acceptance = torch.arange(rows) / 2, torch.ones(rows)
    age = torch.arange(rows) * 10
    return negatives.encode(
        position, energy, acceptance, age, pool=3, incarnation=1, round=7, version=42
    )


def test_every_fact_is_a_column() -> None:
    made = batch()
    assert made.schema.names == [
        "position",
        "chain",
        "energy",
        "acceptance",
        "age",
        "pool",
        "incarnation",
        "round",
        "version",
    ]
    assert made.schema.equals(negatives.schema(6))
    assert made.column("chain").to_pylist() == list(range(6))
    for name, value in (("pool", 3), ("incarnation", 1), ("round", 7), ("version", 42)):
        assert made.column(name).to_pylist() == [value] * 6


def test_facts_survive_an_ipc_stream_of_several_batches() -> None:
    """What schema metadata would not."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, negatives.schema(6)) as writer:
        writer.write_batch(batch())
        writer.write_batch(batch(2))
    received = [negatives.decode(b) for b in pa.ipc.open_stream(sink.getvalue())]
    assert [len(r.position) for r in received] == [6, 2]
    assert received[1][3:7] == (3, 1, 7, 42)


def test_decoding_copies_nothing() -> None:
    """The tensor's memory is the record batch's own buffer."""
    made = batch()
    received = negatives.decode(made)
    assert received.position.data_ptr() == made.column("position").flatten().buffers()[1].address
    assert received.energy.data_ptr() == made.column("energy").buffers()[1].address
    assert received.position.shape == (6, 6)


def test_values_come_back_exactly() -> None:
    position = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(negatives.decode(batch()).position, position.view(6, 6))


def test_batches_are_compact() -> None:
    """Serialized, a batch is little more than its rows: no parent is dragged along."""
    made = batch(1000, (64,))
    assert made.serialize().size < 1.02 * (1000 * (64 * 4 + 52)) + 2000


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_received_positions_lie_in_shared_memory() -> None:
    """Through Ray's object store: two reads of one object are views of one buffer, inside the
    store's mapping.
    """
    import ray

    @ray.remote
    def emit() -> pa.RecordBatch:
        return batch(4096, (64,))

    reference = emit.remote()
    one, two = ray.get(reference), ray.get(reference)
    first, second = negatives.decode(one), negatives.decode(two)
    address = one.column("position").flatten().buffers()[1].address
    assert first.position.data_ptr() == address == second.position.data_ptr()
    assert address % 64 == 0
    assert any(low <= address < high for low, high in store_mappings())


def store_mappings() -> list[tuple[int, int]]:
    """Address ranges of this process that are Ray's shared memory."""
    ranges = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            if "plasma" in line or "/dev/shm" in line:
                low, _, high = line.split()[0].partition("-")
                ranges.append((int(low, 16), int(high, 16)))
    return ranges
