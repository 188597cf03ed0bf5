"""Successive halving: trials are judged at rungs, and the best part of them goes on to the next
(Jamieson & Talwalkar 2016, algorithm 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from pipeline.common.types import Figures


class Result(NamedTuple):
    """Trial `trial` at a rung: the `step` that it stands at, its `score` (the highest is best;
    -inf where it `failed`, and why), bounds of it where it has some, and the processor `seconds`
    that the rung took.
    """

    trial: int
    rung: int
    step: int
    score: float
    seconds: float
    low: float | None = None
    high: float | None = None
    failed: str | None = None

    def as_figures(self) -> Figures:
        """Returns it as JSON has it: no score where it failed."""
        found = self._asdict()
        return found | {"score": self.score if math.isfinite(self.score) else None}


def rungs_of(steps: int, rungs: int, factor: int) -> list[int]:
    """Returns the steps at which trials of so many `steps` are judged: steps / factor^(rungs - 1),
    ..., steps / factor, steps, each rounded up; those that coincide once.
    """
    return sorted({-(-steps // factor**behind) for behind in range(rungs)})


Advance = Callable[[Sequence[int], int, int], Iterable[Result]]
"""Of trials, a rung's number and its step: yields the result of each when it is there."""


def halve(
    trials: int, rungs: Sequence[int], factor: int, known: Iterable[Result], advance: Advance
) -> Iterator[Result]:
    """Yields the results of all trials at the first rung, of the best 1 / `factor` of these (one at
    least) at the second, and so on. What is `known` from an earlier time is taken as it is. Of
    equals the first goes on; trials that failed do not.
    """
    done = {(result.trial, result.rung): result for result in known}
    going = list(range(trials))
    for rung, step in enumerate(rungs):
        there = [done[trial, rung] for trial in going if (trial, rung) in done]
        for result in advance([t for t in going if (t, rung) not in done], rung, step):
            there.append(result)
            yield result
        ranked = sorted(there, key=lambda result: (-result.score, result.trial))
        kept = [result.trial for result in ranked if result.failed is None]
        going = kept[: max(1, len(there) // factor)]


def best_of(results: Iterable[Result]) -> Result | None:
    """Returns the best of those that came furthest; None where all failed."""
    well = [result for result in results if result.failed is None]
    return max(well, key=lambda result: (result.rung, result.score, -result.trial), default=None)
