"""Chains dealt out anew, where a run resumes with other numbers of pools or of chains in each.

A pool whose number and size are as before goes on as it was. The chains of the other old pools,
end to end, are dealt in order to the other new ones. Where there are fewer chains than seats, the
last seats are those of newcomers; where there are more, the last chains are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from pipeline.kernels.adaptation import joined_tuning
from pipeline.kernels.base import per_chain

LIVES = 1_000_000
"""More than the times that one pool dies between two deals."""


class Share(NamedTuple):
    """The chains `first` to `last`, that one excluded, of the old pool number `pool`."""

    pool: int
    first: int
    last: int


class Hand(NamedTuple):
    """The chains that one new pool gets. `whole`: it goes on as the old pool of its number.
    `shares` are chains that no other pool gets, and take its first seats. Its other seats are those
    of newcomers; `copies` are as many chains of old pools, which those may begin at.
    """

    whole: bool
    shares: tuple[Share, ...] = ()
    copies: tuple[Share, ...] = ()

    @property
    def has_old(self) -> bool:
        """Return whether it gets chains that no other pool gets."""
        return self.whole or bool(self.shares)


class Dealing:
    """The deal of a checkpoint at `step`, with pools of the numbers `old` that have `per_old`
    chains each, to `pools` new ones of `per_new` each. Pools that the run may come to use beside
    those, up to `most`, go on as they were or are newcomers.

    `newcomers` and `left_out` count the chains of the `pools` that are new, and those that no pool
    gets.
    """

    def __init__(
        self, old: Sequence[int], per_old: int, pools: int, per_new: int, most: int, step: int
    ) -> None:
        self._old, self._per_old, self._per_new = sorted(old), per_old, per_new
        self._pools, self._step = pools, step
        whole = {n for n in self._old if n < most and per_old == per_new}
        dealt = [n for n in self._old if n not in whole]
        taking = [n for n in range(most) if n not in whole]
        total, seats = per_old * len(dealt), per_new * sum(n < pools for n in taking)
        self.newcomers, self.left_out = max(0, seats - total), max(0, total - seats)
        self._hands = {n: Hand(True) for n in whole}
        new = 0
        for place, n in enumerate(taking):
            first, last = (min(total, seats, per_new * end) for end in (place, place + 1))
            shares = tuple(_cut(dealt, per_old, first, last))
            after = new + per_new - (last - first)
            self._hands[n] = Hand(False, shares, tuple(_cut(self._old, per_old, new, after)))
            new = after

    def hand(self, pool: int) -> Hand:
        """Returns what the new pool number `pool` gets."""
        return self._hands[pool]

    @property
    def incarnation(self) -> int:
        """The incarnation of the pools that do not go on as they were: no pool had it before."""
        return LIVES * (self._step + 1)

    def words(self, newcomers: str) -> str | None:
        """Returns what a user is told, where `newcomers` says how such begin; None where all pools
        go on as they were.
        """
        if not self.left_out and all(self._hands[n].whole for n in range(self._pools)):
            return None
        told = (
            f"chains are dealt out anew: {len(self._old)} pools of {self._per_old} there,"
            f" {self._pools} of {self._per_new} here"
        )
        if self.newcomers:
            told += f"; {self.newcomers} begin anew (chains.newcomers={newcomers})"
        return told + (f"; {self.left_out} are left out" if self.left_out else "")

    def state(
        self, pool: int, read: Callable[[int], dict[str, Any]], copying: bool
    ) -> dict[str, Any]:
        """Returns the state (`Pool.state_dict`) that the new pool number `pool` begins with, made
        of those of the old pools that it gets chains of, which alone are `read`, by number. Where
        newcomers are not `copying` others' chains, the state says which have no place yet; a pool
        of newcomers alone then has the tuning of those that it might have copied.
        """
        hand = self._hands[pool]
        if hand.whole:
            return read(pool)
        taken = (*hand.shares, *(hand.copies if copying else ()))
        states = {share.pool: None for share in taken or hand.copies}
        return self._joined(pool, taken, {n: read(n) for n in states})

    def _joined(
        self, pool: int, taken: Sequence[Share], states: dict[int, dict[str, Any]]
    ) -> dict[str, Any]:
        """The state of the chains `taken` from old `states`, and of newcomers without a place on
        the seats behind them.
        """
        like = next(iter(states.values()))
        rungs = len(like["position"]) // self._per_old
        missing = self._per_new - sum(share.last - share.first for share in taken)
        ladders = {n: old["position"].unflatten(0, (rungs, -1)) for n, old in states.items()}
        position = [ladders[share.pool][:, share.first : share.last] for share in taken]
        age = [states[share.pool]["age"][share.first : share.last] for share in taken]
        empty = like["position"].new_zeros((rungs, missing, *like["position"].shape[1:]))
        unplaced = [_unplaced(states[share.pool])[share.first : share.last] for share in taken]
        waiting = torch.cat([*unplaced, torch.ones(missing, dtype=torch.bool)])
        return {
            "position": torch.cat([*position, empty], 1).flatten(0, 1),
            "unplaced": waiting if waiting.any() else None,
            "tuning": joined_tuning([old["tuning"] for old in states.values()]),
            "age": torch.cat([*age, like["age"].new_zeros(missing)]),
            "kept": self._kept(pool, states),
            # of no device: a new stream begins, of the next incarnation
            "generator": None,
            "device": None,
            "round": 0,
            "incarnation": self.incarnation,
        }

    def _kept(self, pool: int, states: dict[int, dict[str, Any]]) -> dict[str, Tensor] | None:
        """The chains by training row: those of an old pool are dealt, row by row, to all that get
        chains of it. Of several old pools that have chains for a row, those of the first are kept.
        """
        kept: dict[str, Tensor] | None = None
        for old in dict.fromkeys(share.pool for share in self._hands[pool].shares):
            theirs = states[old]["kept"]
            if theirs is None:
                continue
            heirs = self._heirs(old)
            order = theirs["age"][:, 0].ge(0).cumsum(0) - 1  # among the rows that have chains
            others = order % len(heirs) != heirs.index(pool)
            age = theirs["age"].masked_fill(others[:, None], -1)
            own = {"position": theirs["position"], "age": age}
            kept = own if kept is None else _either(kept, own)
        return kept

    def _heirs(self, old: int) -> list[int]:
        """The new pools that get chains of an old one, the lowest first."""
        return [
            number
            for number in sorted(self._hands)
            if any(share.pool == old for share in self._hands[number].shares)
        ]


def _cut(pools: Sequence[int], each: int, first: int, last: int) -> Iterator[Share]:
    """Yields the chains `first` to `last` of all those of the `pools`, of `each` so many, end to
    end and over again.
    """
    while first < last:
        turn, at = divmod(first, each)
        count = min(last - first, each - at)
        yield Share(pools[turn % len(pools)], at, at + count)
        first += count


def _unplaced(state: dict[str, Any]) -> Tensor:
    """The chains [N] bool of a pool that have no place yet, since it has not made a round."""
    unplaced: Tensor | None = state.get("unplaced")
    return torch.zeros_like(state["age"], dtype=torch.bool) if unplaced is None else unplaced


def _either(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Tensor]:
    """The chains by row that `one` has, and for rows where it has none those of the `other`."""
    rows = max(len(one["age"]), len(other["age"]))
    one, other = _grown(one, rows), _grown(other, rows)
    missing = one["age"][:, 0] < 0
    return {
        name: torch.where(per_chain(missing, field), other[name], field)
        for name, field in one.items()
    }


def _grown(kept: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    """The same chains by row, in a table of so many `rows`."""
    more = rows - len(kept["age"])
    return {
        "position": pad(kept["position"], (*(0, 0) * (kept["position"].ndim - 1), 0, more)),
        "age": pad(kept["age"], (0, 0, 0, more), value=-1),
    }
