"""The exchange of arrays among ranks, here threads of one process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from pipeline.training.exchange import Exchange

RANKS = 3
ADDRESS = "tcp://127.0.0.1:9"  # of rank 0; nothing is sent there
LARGE = 4 << 20  # numbers; 16 MiB, which no socket holds


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[int], Any]], list]]:
    """Calls a function of the rank on all ranks at once, and returns what each gave."""
    said: dict[str, Any] = {}
    all_said = threading.Barrier(RANKS)

    def gather(things: list[Any], thing: Any) -> None:
        said[threading.current_thread().name] = thing
        all_said.wait(10)
        things[:] = [said[f"rank-{rank}"] for rank in range(RANKS)]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    with ThreadPoolExecutor(RANKS) as pool:

        def call(work: Callable[[int], Any]) -> list[Any]:
            def named(rank: int) -> Any:
                threading.current_thread().name = f"rank-{rank}"
                return work(rank)

            return [one.result(30) for one in [pool.submit(named, r) for r in range(RANKS)]]

        yield call


def test_every_rank_gets_all_arrays_in_the_order_of_ranks(together: Callable[..., list]) -> None:
    """More than once, and when none fits into a socket."""
    made = together(lambda rank: Exchange(rank, RANKS, ADDRESS, 10))
    for size in (1, LARGE):
        mine = [np.full(size, rank + 0.5, np.float32) for rank in range(RANKS)]
        for got in together(lambda rank, mine=mine: made[rank].all(mine[rank])):
            assert [array[0] for array in got] == [0.5, 1.5, 2.5]
            assert all(np.array_equal(a, b) for a, b in zip(got, mine, strict=True))
    for exchange in made:
        exchange.close()


def test_a_rank_that_is_gone_is_an_error_of_the_others(together: Callable[..., list]) -> None:
    made = together(lambda rank: Exchange(rank, RANKS, ADDRESS, 10))
    made[1].close()
    for rank in (0, 2):
        with pytest.raises(RuntimeError, match="a rank of the parameter server is gone"):
            made[rank].all(np.zeros(LARGE, np.float32))
        made[rank].close()
