"""Chains from noise, what they passed on the way, and their account of how they mixed."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.chains.sampler import ChainPlan, Sampler
from pipeline.common.types import Progress
from pipeline.energies.base import Energy
from pipeline.energies.target import Target
from pipeline.evaluation.diagnostics import split_r_hat
from pipeline.kernels.base import Info, Kernel


class Way(NamedTuple):
    """The places of M chains after so many `transitions`, I instants in order: `position` [I, M,
    *shape], and their `energy` [I, M] in nats.
    """

    transitions: Sequence[int]
    position: Tensor
    energy: Tensor


class Drawn(NamedTuple):
    """The ends of M chains, `position` [M, *shape] and `energy` [M] nats; their mean acceptance and
    the split R-hat of their energies, both over the second half of the way.

    `r_hat` is None where it tells nothing: chains under several contexts have several laws, and
    need not agree. `way` is there where instants were asked for.
    """

    position: Tensor
    energy: Tensor
    acceptance: float
    r_hat: float | None
    way: Way | None = None


def instants(count: int, transitions: int) -> list[int]:
    """Returns `count` numbers of transitions from 0 to `transitions`, those between evenly spaced
    in their logarithm, as far as whole numbers can be; fewer where there are fewer.
    """
    count = min(count, transitions + 1)
    chosen = [0]
    for number in np.geomspace(transitions, 1, count - 1)[::-1].round().astype(int):
        chosen.append(max(chosen[-1] + 1, int(number)))
    return chosen


class Trace:
    """A `kernel` that runs as the one given, draw by draw, and takes down where the chains are
    after so many transitions as `instants` says: of the last `count` rows, the model's rung.
    """

    def __init__(self, kernel: Kernel, instants: Sequence[int], count: int) -> None:
        self._instants, self._count, self._done = instants, count, 0
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._inner = kernel
        self.kernel = Kernel(kernel.init, self._step)

    def look(self, position: Tensor, energy: Tensor) -> None:
        """Takes down the chains' `position` and `energy`, both of all rungs."""
        own = slice(-self._count, None)
        self._seen.append((position[own].cpu().clone(), energy[own].cpu().clone()))

    def _step(
        self, generator: Any, state: Any, target: Target, **parameters: Any
    ) -> tuple[Any, Info]:
        state, info = self._inner.step(generator, state, target, **parameters)
        self._done += 1
        if self._done in self._instants:
            known = hasattr(state, "energy")
            self.look(state.position, state.energy if known else target.energy(state.position))
        return state, info

    @property
    def way(self) -> Way:
        """Returns the chains' places at all instants."""
        position, energy = zip(*self._seen, strict=True)
        return Way(self._instants, torch.stack(position), torch.stack(energy))


def draw_from_noise(
    energy: Energy,
    plan: ChainPlan,
    count: int,
    transitions: int,
    generator: torch.Generator,
    start: Tensor | None = None,
    seen_at: Sequence[int] = (),
) -> Generator[Progress, None, Drawn]:
    """Yields progress, and returns `count` chains that started at the base law, or at the positions
    `start` [count, *shape]. Their kernel is adapted to them as they go. After so many transitions
    each as `seen_at` says, 0 the first, it takes down where they are.
    """
    trace = Trace(plan.kernel, seen_at, count)
    if seen_at:
        plan = plan._replace(kernel=trace.kernel)
    sampler = Sampler(energy, plan, count, generator)
    if start is not None:
        sampler.position = start.repeat(plan.rungs, *(1,) * (start.ndim - 1))
    if seen_at:
        trace.look(sampler.position, sampler.energy(sampler.position))
    stage = f"sampling from {'noise' if start is None else 'rows'}"
    done, energies, acceptances = 0, [], []
    while done < transitions:
        before, done = done, min(done + plan.transitions, transitions)
        report = sampler.advance(generator, done - before)
        energies.append(report.energy[-count:])
        acceptances.append(float(report.acceptance[-count:].mean()))
        if before // 50 != done // 50 or done == transitions:
            yield Progress(stage, done, transitions)
    later = len(energies) // 2
    draws = torch.stack(energies[later:], 1).double().cpu().numpy()
    r_hat = float(split_r_hat(draws)) if draws.shape[1] >= 4 and energy.contexts == 1 else math.nan
    acceptance = sum(acceptances[later:]) / len(acceptances[later:])
    return Drawn(
        sampler.position[-count:],
        energies[-1],
        acceptance,
        r_hat if math.isfinite(r_hat) else None,
        trace.way if seen_at else None,
    )
