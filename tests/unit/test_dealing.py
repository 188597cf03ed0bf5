"""The deal of chains to other pools: which chain goes where, exactly, for many shapes; and what
goes with them. Chains are told apart by their positions.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain, product
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.chains.dealing import LIVES, Dealing

SHAPES = [(1, 24), (2, 12), (3, 8), (4, 6), (6, 4), (8, 3), (12, 2), (24, 1)]
STEP = 7


def state(pool: int, count: int, rungs: int = 1) -> dict[str, Any]:
    """An old pool: on rung r, chain i of all chains is at (i, r), and i transitions old."""
    number = torch.arange(pool * count, (pool + 1) * count)
    ladder = [torch.stack([number, torch.full_like(number, r)], 1) for r in range(rungs)]
    return {
        "position": torch.cat(ladder).float(),
        "age": number,
        "tuning": {},
        "kept": None,
        "round": 5,
        "incarnation": 2,
        "generator": torch.Generator().get_state(),
        "device": "cpu",
    }


class Old(dict[int, dict[str, Any]]):
    """Old pools by number, and the numbers of those that were read."""

    def __init__(self, pools: int, count: int, rungs: int = 1) -> None:
        super().__init__({n: state(n, count, rungs) for n in range(pools)})
        self.read: list[int] = []

    def __call__(self, pool: int) -> dict[str, Any]:
        self.read.append(pool)
        return self[pool]


def dealing(old: tuple[int, int], new: tuple[int, int], most: int = 0) -> Dealing:
    return Dealing(range(old[0]), old[1], *new, max(most, new[0]), STEP)


def chains(dealt: dict[str, Any], rungs: int) -> Tensor:
    """The chains of a pool by number, [N], which are the same on every rung and as old as that."""
    numbers, rung = dealt["position"].unflatten(0, (rungs, -1)).unbind(2)
    assert numbers.eq(numbers[0]).all()
    assert rung.eq(torch.arange(rungs)[:, None]).all()
    assert dealt["age"].equal(numbers[0].long())
    return dealt["age"]


@pytest.mark.parametrize("rungs", [1, 3])
@pytest.mark.parametrize("old", SHAPES)
def test_as_many_chains_are_the_same_chains_in_order(old: tuple[int, int], rungs: int) -> None:
    for new, newcomers in product(SHAPES, (True, False)):
        deal, states = dealing(old, new), Old(*old, rungs)
        dealt = [chains(deal.state(n, states, newcomers), rungs) for n in range(new[0])]
        assert torch.cat(dealt).tolist() == list(range(24)), (old, new)
        assert (deal.newcomers, deal.left_out) == (0, 0)


@pytest.mark.parametrize("new", [1, 7, 29, 30, 31, 60, 61])
def test_each_pool_reads_those_that_its_chains_come_from(new: int) -> None:
    deal, states = dealing((100, 30), (100, new)), Old(100, 30)
    for pool in range(100):
        states.read.clear()
        assert len(deal.state(pool, states, True)["age"]) == new
        first, last = pool * new, (pool + 1) * new - 1
        if new == 30:
            assert states.read == [pool]
        elif last < 3000:
            assert states.read == list(range(first // 30, last // 30 + 1))
        assert len(states.read) <= new // 30 + 2


@pytest.mark.parametrize("new", [(5, 8), (2, 20), (1, 100), (7, 6), (40, 1), (3, 16)])
def test_of_more_chains_the_last_are_newcomers(new: tuple[int, int]) -> None:
    """They copy each old chain in turn, or have no place and no age."""
    deal, total = dealing((3, 8), new), new[0] * new[1]
    assert (deal.newcomers, deal.left_out) == (total - 24, 0)
    copied = torch.cat([chains(deal.state(n, Old(3, 8), True), 1) for n in range(new[0])])
    assert copied[:24].tolist() == list(range(24))
    assert max(Counter(copied.tolist()).values()) == -(-total // 24)
    apart = [deal.state(n, Old(3, 8), False) for n in range(new[0])]
    unplaced = [
        torch.zeros(new[1], dtype=torch.bool) if one.get("unplaced") is None else one["unplaced"]
        for one in apart
    ]
    assert torch.cat(unplaced).tolist() == [False] * 24 + [True] * (total - 24)
    assert torch.cat([one["age"] for one in apart]).tolist() == [*range(24)] + [0] * (total - 24)


@pytest.mark.parametrize("new", [(2, 8), (5, 4), (1, 1), (3, 7), (23, 1)])
def test_of_fewer_chains_the_last_are_left_out(new: tuple[int, int]) -> None:
    deal, total = dealing((3, 8), new), new[0] * new[1]
    assert (deal.newcomers, deal.left_out) == (0, 24 - total)
    dealt = torch.cat([deal.state(n, Old(3, 8), True)["age"] for n in range(new[0])])
    assert dealt.tolist() == list(range(total))


def test_a_pool_of_the_same_number_and_size_goes_on_as_it_was() -> None:
    """The very state; pools that others copied share no memory with them."""
    states, deal = Old(2, 8), dealing((2, 8), (4, 8))
    dealt = [deal.state(n, states, True) for n in range(4)]
    assert dealt[0] is states[0]
    assert dealt[1] is states[1]
    assert [chains(one, 1).tolist() for one in dealt[2:]] == [[*range(8)], [*range(8, 16)]]
    dealt[2]["age"] += 100
    assert states[0]["age"].tolist() == list(range(8))
    for one in dealt[2:]:
        assert (one["device"], one["generator"], one["round"]) == (None, None, 0)
        assert one["incarnation"] == LIVES * (STEP + 1)


def test_pools_that_came_and_left_keep_their_numbers() -> None:
    """Of pools 0, 1 and 3 each goes on; the second newcomer copies the second old pool; what no
    pool has a number for is dealt to one that lacks its own.
    """
    deal = Dealing([0, 1, 3], 8, 2, 8, 5, STEP)
    assert [deal.hand(n).whole for n in range(5)] == [True, True, False, True, False]
    assert [deal.hand(n).copies[0].pool for n in (2, 4)] == [0, 1]
    assert deal.words("snapshot") is None
    deal = Dealing([0, 2, 5], 8, 3, 8, 3, STEP)
    assert deal.hand(1).shares == ((5, 0, 8),)
    assert (deal.newcomers, deal.left_out) == (0, 0)


def test_chains_that_had_no_place_yet_have_none() -> None:
    """Those of a pool whose first round had not come."""
    states, deal = Old(2, 8), dealing((2, 8), (4, 5))
    states[1]["unplaced"] = torch.ones(8, dtype=torch.bool)
    found = [deal.state(n, states, False)["unplaced"] for n in range(4)]
    assert found[0] is None
    assert [mask.tolist() for mask in found[1:]] == [[False] * 3 + [True] * 2, *[[True] * 5] * 2]


def test_it_is_said_what_becomes_of_the_chains() -> None:
    assert dealing((2, 8), (2, 8)).words("data") is None
    told = "chains are dealt out anew: 2 pools of 8 there, 4 of {} here{}"
    more = "; 8 begin anew (chains.newcomers=data)"
    assert dealing((2, 8), (4, 4)).words("data") == told.format(4, "")
    assert dealing((2, 8), (4, 6)).words("data") == told.format(6, more)
    assert dealing((2, 8), (4, 3)).words("data") == told.format(3, "; 4 are left out")


# -- chains kept by training row -------------------------------------------------------------------


def kept(rows: int, pool: int, there: range) -> dict[str, Tensor]:
    """Two chains for each row that is `there`, at (row, pool, chain), 10 row + pool old."""
    age = torch.full((rows, 2), -1)
    age[list(there)] = torch.tensor([10 * row + pool for row in there])[:, None]
    position = torch.zeros(rows, 2, 3)
    for row, copy in product(there, range(2)):
        position[row, copy] = torch.tensor([row, pool, copy])
    return {"position": position, "age": age}


def rows_of(table: dict[str, Tensor]) -> list[tuple[int, int]]:
    """(row, old pool) of the chains in a table, by the ages; positions are those of the same."""
    found = [
        (int(row), int(table["age"][row, 0] % 10)) for row in table["age"][:, 0].ge(0).nonzero()
    ]
    for row, pool in found:
        expected = torch.tensor([[row, pool, 0], [row, pool, 1]])
        assert table["position"][row].equal(expected.float())
        assert table["age"][row].tolist() == [10 * row + pool] * 2
    return found


def dealt_rows(
    old: tuple[int, int], new: tuple[int, int], tables: dict[int, dict[str, Tensor] | None]
) -> list[list[tuple[int, int]]]:
    states, deal = Old(*old), dealing(old, new)
    for pool, table in tables.items():
        states[pool]["kept"] = table
    tables_of = [deal.state(n, states, True)["kept"] for n in range(new[0])]
    return [[] if table is None else rows_of(table) for table in tables_of]


@pytest.mark.parametrize("new", [(4, 4), (8, 2), (3, 6), (16, 1)])
def test_of_chains_kept_by_row_none_is_lost_and_none_doubled(new: tuple[int, int]) -> None:
    """Where a pool's chains are dealt to several, and where one has chains of several pools."""
    tables = {0: kept(9, 0, range(0, 9, 2)), 1: kept(16, 1, range(1, 12, 2))}
    dealt = dealt_rows((2, 8), new, tables)
    expected = [(row, 0) for row in range(0, 9, 2)] + [(row, 1) for row in range(1, 12, 2)]
    assert sorted(chain.from_iterable(dealt)) == sorted(expected)
    assert all(dealt) or new[0] > 11


@pytest.mark.parametrize("larger", [0, 1])
def test_of_two_chains_for_a_row_the_first_pool_has_its_own(larger: int) -> None:
    sizes = [(16, 4), (4, 16)][larger]
    tables = {0: kept(sizes[0], 0, range(0, 3)), 1: kept(sizes[1], 1, range(2, 4))}
    assert dealt_rows((2, 8), (1, 16), tables) == [[(0, 0), (1, 0), (2, 0), (3, 1)]]
    assert dealt_rows((2, 8), (1, 16), {1: tables[1]}) == [[(2, 1), (3, 1)]]
    assert dealt_rows((2, 8), (1, 16), {}) == [[]]


# -- tuning ----------------------------------------------------------------------------------------


def tuning(updates: int, logs: list[float], betas: list[float]) -> dict[str, Any]:
    steps = {"initial": 0.1, "logs": logs, "sums": [2 * log for log in logs], "updates": updates}
    ladder = {"betas": torch.tensor(betas), "sum": torch.ones(2) * updates, "count": 3}
    return {"steps": steps, "ladder": {**ladder, "updates": updates}}


def test_tuning_is_the_mean_of_the_pools_that_adapted_longest() -> None:
    states, deal = Old(4, 8), dealing((4, 8), (2, 12))
    states[0]["tuning"] = tuning(20, [1.0, 2.0], [0.0, 0.2, 1.0])
    states[1]["tuning"] = tuning(20, [3.0, 6.0], [0.0, 0.6, 1.0])
    states[2]["tuning"] = tuning(19, [9.0, 9.0], [0.0, 0.9, 1.0])
    first, second = (deal.state(n, states, True)["tuning"] for n in range(2))
    assert first["steps"] == {"initial": 0.1, "logs": [2.0, 4.0], "sums": [4.0, 8.0], "updates": 20}
    torch.testing.assert_close(first["ladder"]["betas"], torch.tensor([0.0, 0.4, 1.0]))
    assert first["ladder"]["sum"].tolist() == [20, 20]
    assert (first["ladder"]["count"], first["ladder"]["updates"]) == (3, 20)
    assert second["steps"] == states[1]["tuning"]["steps"], "19 updates are fewer"
    alone = dealing((4, 8), (8, 4)).state(5, states, True)["tuning"]
    assert alone is states[2]["tuning"]


def test_a_pool_of_newcomers_alone_has_the_tuning_of_an_old_one() -> None:
    states = Old(2, 8)
    for pool in range(2):
        states[pool]["tuning"] = tuning(20, [float(pool)] * 2, [0.0, 0.2, 1.0])
    for copying in (True, False):
        dealt = dealing((2, 8), (4, 8)).state(3, states, copying)
        assert dealt["tuning"] is states[1]["tuning"]
