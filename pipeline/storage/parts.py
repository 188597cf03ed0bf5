"""Parts of a checkpoint: a nested state as one safetensors file.

The file holds the tensors of the state, by number. Its metadata hold under `structure` everything
else, as JSON: None, booleans, integers, text and finite floats as they are, and lists. Any other
value is an object with one key that says what it is:

    {"tensor": "0"}                  the tensor of that number
    {"strided": ["0", [1, 8]]}       the same, in memory in another order than by rows
    {"dict": [[key, value], ...]}    a dictionary, whose keys are text or integers
    {"tuple": [value, ...]}          a tuple
    {"float": "nan"}                 a float that is not finite

Reading builds these types and no others, so that no part can run code.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline.common.types import Part
from pipeline.storage.files import write_file

SUFFIX = ".safetensors"
OLD_SUFFIX = ".pt"  # of what `torch.save` wrote, up to format 4
FILE = re.compile(r"[a-z]+(-[0-9]+)?\.(safetensors|pt)")
"""The names of parts' files, now and before."""


class Snapshot:
    """A copy of a `state` in this machine's memory, to be the part `name` of a checkpoint: what
    happens to the state after that does not show in it.

    Raises `TypeError` where a value or key is of a type that a part cannot hold.
    """

    def __init__(self, name: str, state: dict[str, Any]) -> None:
        self._name = name
        self._tensors: dict[str, Tensor] = {}
        self._structure = _plain(state, self._tensors, "state")

    def write(self, folder: str) -> Part:
        """Writes it to the checkpoint in `folder`. Returns what the manifest is to say of it."""
        file, content = f"{self._name}{SUFFIX}", self.content()
        write_file(folder, file, content)
        return Part(file, len(content), hashlib.sha256(content).hexdigest())

    def content(self) -> bytes:
        """Returns the content of the file that holds the state."""
        structure = json.dumps(self._structure, allow_nan=False)
        return save(self._tensors, {"structure": structure})


def write_snapshots(snapshots: Sequence[Snapshot], folder: str) -> list[Part]:
    """Writes parts to the checkpoint in `folder`. Returns what the manifest is to say of them."""
    return [snapshot.write(folder) for snapshot in snapshots]


def decode(content: bytes) -> dict[str, Any]:
    """Returns the state that a file's `content` holds; its tensors are on the CPU and share no
    memory. Raises `ValueError` where it is not what a `Snapshot` makes.
    """
    try:
        tensors = load(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        state = _nested(json.loads(header["__metadata__"]["structure"]), tensors)
    except (
        *(SafetensorError, AssertionError, LookupError),
        *(RuntimeError, TypeError, ValueError),
    ) as error:
        raise ValueError(f"it is no part of a checkpoint ({error})") from error
    if not isinstance(state, dict):
        raise ValueError("it holds no state")
    return state


def _plain(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """Returns `value` as JSON has it, and moves its tensors to `tensors`; `where` names it in an
    error.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, Tensor):
        # a copy: safetensors takes no tensors that share memory
        copied, name = value.detach().to("cpu", copy=True), str(len(tensors))
        tensors[name] = copied.contiguous()
        by_rows = torch.empty(copied.shape, device="meta").stride()
        if copied.stride() == by_rows or not copied.numel():
            return {"tensor": name}
        return {"strided": [name, list(copied.stride())]}
    if isinstance(value, list | tuple):
        items = [_plain(item, tensors, f"{where}[{n}]") for n, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, dict):
        for key in value:
            if isinstance(key, bool) or not isinstance(key, str | int):
                raise TypeError(f"{where}: a part cannot hold the key {key!r}")
        pairs = [[key, _plain(item, tensors, f"{where}[{key!r}]")] for key, item in value.items()]
        return {"dict": pairs}
    raise TypeError(f"{where}: a part cannot hold a {type(value).__name__}")


def _nested(plain: Any, tensors: dict[str, Tensor]) -> Any:
    """Returns the value that `_plain` made this of. Raises `LookupError`, `TypeError` or
    `ValueError` for anything else.
    """
    if isinstance(plain, list):
        return [_nested(item, tensors) for item in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    if kind == "tensor":
        # a copy is aligned as PyTorch's own tensors are, on which the last digits of sums hang
        return tensors[content].clone()
    if kind == "strided":
        return _strided(tensors[content[0]], content[1])
    if kind == "dict":
        return {key: _nested(item, tensors) for key, item in content}
    if kind == "tuple":
        return tuple(_nested(item, tensors) for item in content)
    if kind == "float":
        return float(content)
    raise ValueError(f"it holds a {kind}")


def _strided(rows: Tensor, strides: list[int]) -> Tensor:
    """Returns a copy of `rows` that lies in memory by `strides`, on which the last digits of sums
    hang too. Raises `ValueError` where it would need more memory than `rows`.
    """
    room = 1 + sum((size - 1) * step for size, step in zip(rows.shape, strides, strict=True))
    if room != rows.numel():
        raise ValueError(f"its strides {strides} do not fit the shape {list(rows.shape)}")
    return torch.empty_strided(rows.shape, strides, dtype=rows.dtype).copy_(rows)
