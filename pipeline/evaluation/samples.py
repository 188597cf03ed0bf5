"""Chains from noise, and their account of how they mixed."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.chains.sampler import ChainPlan, Sampler
from pipeline.common.types import Progress
from pipeline.energies.base import Energy
from pipeline.evaluation.diagnostics import split_r_hat


class Drawn(NamedTuple):
    """The ends of M chains, `position` [M, *shape] and `energy` [M] nats; their mean acceptance and
    the split R-hat of their energies, both over the second half of the way.

    `r_hat` is None where it tells nothing: chains under several contexts have several laws, and
    need not agree.
    """

    position: Tensor
    energy: Tensor
    acceptance: float
    r_hat: float | None


def draw_from_noise(
    energy: Energy,
    plan: ChainPlan,
    count: int,
    transitions: int,
    generator: torch.Generator,
    start: Tensor | None = None,
) -> Generator[Progress, None, Drawn]:
    """Yields progress, and returns `count` chains that started at the base law, or at the positions
    `start` [count, *shape]. Their kernel is adapted to them as they go.
    """
    sampler = Sampler(energy, plan, count, generator)
    if start is not None:
        sampler.position = start.repeat(plan.rungs, *(1,) * (start.ndim - 1))
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
        sampler.position[-count:], energies[-1], acceptance, r_hat if math.isfinite(r_hat) else None
    )
