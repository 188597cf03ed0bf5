"""Counts the places where a batch's rows are found in the trainer's memory during a step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import ray
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from actors.parameter_server import ParameterServer
from benchmarks.harness import say
from benchmarks.on_ray import DIGITS, WIDE, started
from pipeline.chains.batch import decode
from pipeline.common.types import StepReport


class Copies(TorchDispatchMode):
    """Looks for the rows of `originals` [M, d] in the tensors of every operation under it.

    `found` has, for each original, the operations that copied it, by the address of the copy; the
    original's own address is not among them. Tensors that hold a copy are kept, so that no address
    is used twice.
    """

    def __init__(self, originals: Sequence[Tensor]) -> None:
        super().__init__()
        self._originals = originals
        self._kept: list[Tensor] = []
        self.found: list[dict[int, str]] = [{} for _ in originals]

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves((result, args)):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                for original, found in zip(self._originals, self.found, strict=True):
                    address = self._address(tensor, original)
                    if (
                        address is not None
                        and address != original.data_ptr()
                        and address not in found
                    ):
                        self._kept.append(tensor)
                        found[address] = str(function)
        return result

    def _address(self, tensor: Tensor, original: Tensor) -> int | None:
        """Return the address of the rows in the tensor, if they are there in one piece."""
        rows, width = original.shape
        if (
            tensor.numel() < original.numel()
            or tensor.numel() % width
            or not tensor.is_contiguous()
        ):
            return None
        table = tensor.detach().view(-1, width)
        for first in (table == original[0].to(table)).all(1).nonzero().flatten().tolist():
            piece = table[first : first + rows]
            if len(piece) == rows and torch.equal(piece, original.to(table)):
                return piece.data_ptr()
        return None


def in_shared_memory(address: int) -> bool:
    """Return whether the address is in the object store's mapping."""
    spans = [
        line.split(maxsplit=1)[0].split("-")
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "plasma" in line
    ]
    return any(int(first, 16) <= address < int(last, 16) for first, last in spans)


class Copied(NamedTuple):
    """What happened to a batch.

    `by` names the operations that copied it. `decoded_in_place` says that `decode` gave a view of
    its Arrow buffer, `shared` that this buffer is in shared memory.
    """

    by: list[str]
    decoded_in_place: bool
    shared: bool


class WatchedServer(ParameterServer):
    """A parameter server that makes its steps under `Copies`."""

    def copied(self) -> list[Copied]:
        return self._copied

    def step(self, version: int, *batches: pa.RecordBatch) -> StepReport:
        originals = [decode(batch).position for batch in batches]
        with Copies(originals) as copies:
            result = super().step(version, *batches)
        self._copied = getattr(self, "_copied", [])
        for batch, original, found in zip(batches, originals, copies.found, strict=True):
            *_, values = batch.column("position").buffers()
            inside = values.address <= original.data_ptr() < values.address + values.size
            self._copied.append(
                Copied(list(found.values()), inside, in_shared_memory(values.address))
            )
        return result


def copies(steps: int = 4) -> dict[str, Any]:
    """Measure `trainer_copies_per_batch`."""
    sizes = (
        "chains.pools=2",
        "chains.per_pool=1024",
        "trainer.batch_size=256",
        "trainer.lag=1",
        "kernel.transitions=1",
    )
    with started((WIDE, *sizes), DIGITS, server=WatchedServer) as (runner, _):
        for _ in range(steps):
            runner.step()
        rows: list[Copied] = ray.get(runner.servers.first.copied.remote())
    counts = [len(row.by) for row in rows]
    details: dict[str, Any] = {
        "batches": len(rows),
        "by": sorted({name for row in rows for name in row.by}),
    }
    details["decoded_in_place_in_shared_memory"] = all(
        row.decoded_in_place and row.shared for row in rows
    )
    say(f"copies: {counts}, {details}")
    return {"trainer_copies_per_batch": max(counts), "copies": details}
