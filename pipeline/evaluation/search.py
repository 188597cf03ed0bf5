"""Inference by search: the position of least energy, under many contexts at once."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.energies.base import Energy
from pipeline.energies.discrete import ENUMERABLE_STATES, all_states
from pipeline.energies.frozen import frozen
from pipeline.energies.target import Target
from pipeline.kernels import gibbs_with_gradients
from pipeline.kernels.base import per_chain


class Schedule(NamedTuple):
    """A schedule of annealing: `restarts` chains for each context, `sweeps` of d transitions each,
    at inverse temperatures that rise geometrically from `first` to `last`; 1 is the model itself.
    """

    restarts: int = 8
    sweeps: int = 30
    first: float = 0.1
    last: float = 100.0


SCHEDULE = Schedule()


class Found(NamedTuple):
    """The answer of a search: `position` [contexts, *shape] and its `energy` [contexts], nats.
    Where it is `exact`, no other has less; else it is the least that the search met.
    """

    position: Tensor
    energy: Tensor
    exact: bool


@torch.no_grad()
def argmax(
    energy: Energy, generator: torch.Generator | None = None, schedule: Schedule = SCHEDULE
) -> Found:
    """Returns argmax_x p(x); of an energy bound to contexts, `energy.given(context)`, argmax_x p(x
    | c) for each of them.

    Over levels exact where the energy brings a way (Viterbi's, along a chain) or has at most 2^20
    states, which are enumerated; else by `anneal`. Of real-valued positions by `descend`. A
    `generator` that is not given is seeded with 0.
    """
    generator = generator or torch.Generator(_like(energy).device).manual_seed(0)
    energy = frozen(energy)
    if energy.levels is None:
        return descend(energy, generator)
    position = energy.argmax()
    if position is None and energy.levels**energy.dimension <= ENUMERABLE_STATES:
        position = _enumerate(energy, energy.levels)
    return (
        anneal(energy, generator, schedule)
        if position is None
        else Found(position, energy(position), exact=True)
    )


def _enumerate(energy: Energy, levels: int) -> Tensor:
    """Returns the state of least energy, `[1, *shape]`, of an energy bound to no contexts."""
    best = []
    for states in all_states(levels, energy.dimension, _like(energy).device):
        x = states.to(_like(energy).dtype).view(-1, *energy.shape)
        best.append(x[energy(x).argmin()])
    candidates = torch.stack(best)
    return candidates[energy(candidates).argmin()][None]


class _Sharpened(Target):
    """The law exp(-beta E). It is not a ladder's E_beta, which beyond beta = 1 may have other
    minima than E (that of an RBM has).
    """

    sharpness = 1.0

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy, gradient = super().energy_and_gradient(x)
        return energy.mul_(self.sharpness), gradient.mul_(self.sharpness)


@torch.no_grad()
def anneal(energy: Energy, generator: torch.Generator, schedule: Schedule = SCHEDULE) -> Found:
    """Searches by simulated annealing (Kirkpatrick, Gelatt & Vecchi 1983) over levels:
    Gibbs-with-gradients on exp(-beta E), from draws of the base law, as beta rises by `schedule`;
    of all that a context's chains met, the position of least energy.
    """
    energy = frozen(energy)
    target = _Sharpened(energy)
    position = energy.sample_base(schedule.restarts * energy.contexts, generator).to(_like(energy))
    best, least = position, target.energy(position)
    for beta in torch.logspace(
        math.log10(schedule.first), math.log10(schedule.last), schedule.sweeps
    ).tolist():
        target.sharpness = beta
        state = gibbs_with_gradients.kernel.init(position, target)
        for _ in range(energy.dimension):
            state, _ = gibbs_with_gradients.kernel.step(generator, state, target)
            lower = state.energy < beta * least
            least = torch.where(lower, state.energy / beta, least)
            best = torch.where(per_chain(lower, best), state.position, best)
        position = state.position
    return _least(energy, best)


@torch.no_grad()
def descend(
    energy: Energy, generator: torch.Generator, restarts: int = 32, steps: int = 300
) -> Found:
    """Searches by gradient descent on real-valued positions from `restarts` draws of the base law
    for each context, in a box projected back into it; of where a context's descents ended, the
    position of least energy: a mode, often the highest.

    Each has a step size of its own, in squared data units per nat: it grows by 1.2 where the energy
    fell, and halves, the step not taken, where it did not.
    """
    energy = frozen(energy)
    target = Target(energy)
    position = energy.sample_base(restarts * energy.contexts, generator).to(_like(energy))
    value, gradient = target.energy_and_gradient(position)
    step_size = torch.ones_like(value)
    for _ in range(steps):
        moved = position - per_chain(step_size, position) * gradient
        if energy.box is not None:
            moved.clamp_(*energy.box)
        value_there, gradient_there = target.energy_and_gradient(moved)
        lower = value_there < value
        value = torch.where(lower, value_there, value)
        position = torch.where(per_chain(lower, moved), moved, position)
        gradient = torch.where(per_chain(lower, moved), gradient_there, gradient)
        step_size = torch.where(lower, 1.2 * step_size, 0.5 * step_size)
    return _least(energy, position)


def _least(energy: Energy, position: Tensor) -> Found:
    """Returns the best of several positions for each context, `[k contexts, *shape]`."""
    values, number = energy(position).view(-1, energy.contexts).min(0)
    chosen = position.view(-1, energy.contexts, *energy.shape)[
        number, torch.arange(energy.contexts, device=number.device)
    ]
    return Found(chosen, values, exact=False)


def _like(energy: Energy) -> Tensor:
    """Returns a tensor of the model's precision, on its device."""
    return next(iter(energy.state_dict().values()))
