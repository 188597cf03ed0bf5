"""Adaptation: chains tune their own kernel while they run, its step sizes and the places of a
ladder's rungs.

Both change between rounds only, so that within a round the kernel is what its proof says. A chain
whose kernel depends on its past is invariant only in the limit in which that dies out; both stop
for good when asked to, and from then on it is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

SLOWEST_GAIN = 0.2
RESPACE_EVERY = 10


class StepSizes:
    """One step size a rung, moved towards a target acceptance (Robbins & Monro 1951; Andrieu &
    Thoms 2008, algorithm 4):

        log epsilon <- log epsilon + gain (acceptance - target),

    with the gain 2 t^-0.6 of update t. With `rounds`, that many updates are made, and the mean of
    log epsilon over the second half of them (Polyak & Juditsky 1992) is what stays. Without, the
    gain does not fall under 0.2: weights change as training goes on, and the step sizes follow.
    None ever exceeds `largest`, for a law that is flat accepts any.
    """

    def __init__(
        self,
        initial: float,
        rungs: int,
        target: float,
        rounds: int | None,
        largest: float = math.inf,
    ) -> None:
        self._initial, self._largest = initial, math.log(largest)
        self._logs = [min(math.log(initial), self._largest)] * rungs
        self._sums = [0.0] * rungs
        self._target, self._rounds, self._updates = target, rounds, 0

    @property
    def values(self) -> list[float]:
        return [math.exp(log) for log in self._logs]

    def update(self, acceptance: Tensor) -> None:
        """`acceptance` [rungs]: a round's mean acceptance probability in each."""
        if self._rounds is not None and self._updates >= self._rounds:
            return
        self._updates += 1
        gain = 2 * self._updates**-0.6
        if self._rounds is None:
            gain = max(gain, SLOWEST_GAIN)
        for rung, rate in enumerate(acceptance.tolist()):
            if math.isfinite(rate):  # a round of broken chains teaches nothing
                self._logs[rung] = min(
                    self._logs[rung] + gain * (rate - self._target), self._largest
                )
        if self._rounds is not None:
            self._average(self._rounds)

    def _average(self, rounds: int) -> None:
        first = rounds // 2
        if self._updates > first:
            self._sums = [total + log for total, log in zip(self._sums, self._logs, strict=True)]
        if self._updates == rounds:
            self._logs = [total / (rounds - first) for total in self._sums]

    def state_dict(self) -> dict[str, Any]:
        return {
            "initial": self._initial,
            "logs": list(self._logs),
            "sums": list(self._sums),
            "updates": self._updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up `state`, unless it began at another step size: then one that was configured anew
        is what is wanted.
        """
        if state["initial"] == self._initial and len(state["logs"]) == len(self._logs):
            self._logs, self._sums, self._updates = (
                list(state["logs"]),
                list(state["sums"]),
                state["updates"],
            )


class Ladder:
    """The rungs 0 = beta_0 < ... < beta_{R-1} = 1, moved until neighbours swap equally often (Syed
    et al. 2022, algorithm 2).

    The mean rejection r_i between neighbours, summed along the ladder, estimates the communication
    barrier Lambda(beta); rungs are put where Lambda, interpolated, has equal increments. They move
    every 10 of the first `rounds` rounds and after the last of them, from rates averaged since the
    last move.
    """

    def __init__(self, rungs: int, rounds: int) -> None:
        self.betas = torch.linspace(0, 1, rungs, dtype=torch.float64).square()
        self._sum, self._count = torch.zeros(rungs - 1, dtype=torch.float64), 0
        self._rounds, self._updates = rounds, 0

    def update(self, swaps: Tensor) -> None:
        """`swaps` [R - 1]: a round's mean swap probabilities."""
        if self._updates >= self._rounds:
            return
        self._updates += 1
        self._sum += swaps.cpu().double()
        self._count += 1
        if self._count == RESPACE_EVERY or self._updates == self._rounds:
            self.betas = respaced(self.betas, self._sum / self._count)
            self._sum, self._count = torch.zeros_like(self._sum), 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "betas": self.betas,
            "sum": self._sum.clone(),
            "count": self._count,
            "updates": self._updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.betas, self._sum, self._count = state["betas"], state["sum"].clone(), state["count"]
        self._updates = state["updates"]


def joined_tuning(tunings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the tuning (`Sampler.tuning`) of chains that come from several samplers, one kernel's
    all: of each thing that they adapt, the mean state of those that adapted longest.
    """
    if len(tunings) == 1:
        return tunings[0]
    return {
        name: _mean_state([tuning[name] for tuning in tunings])
        for name in tunings[0]
        if all(name in tuning for tuning in tunings)
    }


def _mean_state(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    longest = max(state["updates"] for state in states)
    states = [state for state in states if state["updates"] == longest]
    return {name: _mean([state[name] for state in states]) for name in states[0]}


def _mean(values: Sequence[Any]) -> Any:
    """The mean of tensors, or of lists of numbers; of counts and settings, which are alike, one."""
    if isinstance(values[0], Tensor):
        return torch.stack(list(values)).mean(0)
    if isinstance(values[0], list):
        return [sum(column) / len(column) for column in zip(*values, strict=True)]
    return values[0]


def respaced(betas: Tensor, swaps: Tensor) -> Tensor:
    """`betas` [R] moved to where the barrier, from the mean swap probabilities [R - 1], has equal
    increments.
    """
    # a little of every interval is kept, lest neighbours that always swap fall on one another
    increments = (1 - swaps).clamp(min=1e-3)
    barrier = torch.cat([increments.new_zeros(1), increments.cumsum(0)])
    wanted = torch.linspace(0, 1, len(betas), dtype=betas.dtype)[1:-1] * barrier[-1]
    upper = torch.searchsorted(barrier, wanted)
    share = (wanted - barrier[upper - 1]) / (barrier[upper] - barrier[upper - 1])
    inner = betas[upper - 1] + share * (betas[upper] - betas[upper - 1])
    return torch.cat([betas[:1], inner, betas[-1:]])
