"""Parts of checkpoints: every state comes back as it was, and no content of a file runs code."""

from __future__ import annotations

import json
import math
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.runs.inline import InlineRunner
from pipeline.storage.parts import Snapshot, decode
from tests.unit.test_checkpoint import Small

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)


def content_of(state: Any) -> bytes:
    return Snapshot("part", state).content()


def check_same(one: Any, two: Any) -> None:
    """Asserts that both are the same to the bit, in types, order and memory layout."""
    assert type(one) is type(two) or (isinstance(one, dict) and isinstance(two, dict))
    if isinstance(one, Tensor):
        assert (one.dtype, one.shape, one.stride()) == (two.dtype, two.shape, two.stride())
        assert one.contiguous().numpy().tobytes() == two.contiguous().numpy().tobytes()
    elif isinstance(one, dict):
        assert [(key, type(key)) for key in one] == [(key, type(key)) for key in two]
        for key in one:
            check_same(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for ours, theirs in zip(one, two, strict=True):
            check_same(ours, theirs)
    else:
        assert repr(one) == repr(two)


def test_a_nested_state_comes_back_bit_for_bit() -> None:
    state = {
        "plain": [None, True, False, 0, -1, 2**80, "", "a\n\u00e9\u2028", 0.1, -0.0, 5e-324, 1e308],
        "odd floats": (math.nan, math.inf, -math.inf),
        "optimizer": {0: {"step": torch.tensor(3.0)}, 1: {}, "1": "text, no number"},
        "tuples": ((), (1, (2.5, [])), [(None,)]),
        "like a mark": {"tensor": "0", "tuple": [], "dict": 1},
        "empty": {
            "dict": {},
            "list": [],
            "tensor": torch.empty(0, 3),
        },
        "strides": [
            torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
            torch.rand(4, 1, 8, 8).to(memory_format=torch.channels_last),
            torch.rand(5, 3).T,
        ],
        "generator": torch.Generator().manual_seed(1).get_state(),
    }
    check_same(decode(content_of(state)), state)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_of_every_type_come_back(dtype: torch.dtype) -> None:
    raw = torch.arange(48, dtype=torch.uint8)
    tensor = raw.bool() if dtype is torch.bool else raw.view(dtype)
    found = decode(content_of({"a": tensor, "b": tensor[0]}))
    assert found["a"].dtype == dtype
    assert torch.equal(found["a"].view(torch.uint8), tensor.view(torch.uint8))
    assert found["b"].shape == ()


def test_tensors_that_shared_memory_do_so_no_more() -> None:
    whole = torch.zeros(4)
    found = decode(content_of({"whole": whole, "again": whole, "half": whole[:2]}))
    found["half"] += 1
    found["again"] += 2
    assert [found[name].tolist() for name in ("whole", "again", "half")] == [
        *([0, 0, 0, 0], [2, 2, 2, 2], [1, 1])
    ]


@pytest.mark.parametrize("kind", ["rbm", "deep", "ladder", "conditional"])
def test_the_states_of_a_run_come_back(small: Small, kind: str) -> None:
    runner = InlineRunner(small(kind, "cluster=inline"))
    runner.start(None, None)
    runner.step()
    for state in (runner._learner.state_dict(), *(pool.state_dict() for pool in runner._pools)):
        check_same(decode(content_of(state)), state)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({1.5: 0}, "state: a part cannot hold the key 1.5"),
        ({"a": {True: 0}}, "state['a']: a part cannot hold the key True"),
        ({"a": [0, {1, 2}]}, "state['a'][1]: a part cannot hold a set"),
    ],
)
def test_what_could_not_come_back_is_refused(value: dict[Any, Any], words: str) -> None:
    with pytest.raises(TypeError) as error:
        content_of(value)
    assert str(error.value) == words


class Trap:
    """A pickle of it writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


def framed(header: object, data: bytes = b"") -> bytes:
    content = json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + data


def structured(structure: object) -> bytes:
    return framed({"__metadata__": {"structure": json.dumps(structure)}})


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"PK\x03\x04", struct.pack("<Q", 2**60), framed([]), framed({})),
        *(framed({"__metadata__": {}}), framed({"__metadata__": {"structure": "{"}})),
        *(structured([]), structured({"dict": [["a", {"tensor": "7"}]]}), structured({"dict": 1})),
        *(structured({"code": "1"}), structured({"dict": [], "tuple": []}), structured({})),
        structured({"dict": [[["key"], 1]]}),
        framed({"0": {"dtype": "F32", "shape": [10**18], "data_offsets": [0, 4 * 10**18]}}),
        framed(
            {
                "0": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "__metadata__": {
                    "structure": '{"dict": [["a", {"strided": ["0", [1000000000000]]}]]}'
                },
            },
            bytes(4),
        )[:-1],
        structured({"dict": [["a", {"tuple": 5}]]}),
        framed({"__metadata__": {"structure": "[" * 100000}}),
    ],
)
def test_a_file_of_anything_else_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"it is no part|it holds"):
        decode(content)


def test_strides_that_reach_beyond_their_tensor_are_refused() -> None:
    header = {
        "0": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "__metadata__": {"structure": '{"dict": [["a", {"strided": ["0", [1000000000000]]}]]}'},
    }
    with pytest.raises(ValueError, match="do not fit"):
        decode(framed(header, bytes(8)))


def test_a_pickle_in_place_of_a_part_runs_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it is no part"):
        decode(pickle.dumps(Trap(tmp_path / "ran")))
    assert not (tmp_path / "ran").exists()
