"""Annealed importance sampling, there and back: log Z between two bounds."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.common.types import Progress
from pipeline.energies.base import Energy
from pipeline.energies.potts import PottsModel
from pipeline.energies.target import Target
from pipeline.evaluation.log_partition import LogPartition, estimate
from pipeline.evaluation.paths import Bridge
from pipeline.kernels import gibbs, mala, single_site
from pipeline.kernels.base import EnergyState, GradientState, Info, Kernel, init_energy

TARGET_ACCEPTANCE = 0.65
FIRST_STEP = 0.01
"""MALA's step size, in squared units of x, that a trial begins with, and adapts."""
SETTLING = 50
"""Transitions of a trial at the path's beginning, in which the step size finds its size."""
TRIALS, TRIAL = 2, 100
"""Trials before the particles set out, and the particles of one, at most."""
MOVES = 3
"""Transitions of a trial at each of its temperatures."""
MOST_SITES = 4
LEAST = 0.01
"""The beta up to which energies at the next one are worked out anew."""
ENOUGH, FEWEST = 100, 200
"""Temperatures for each squared unit of a path's length, and at least, that are enough."""
BRIEF = 20
"""Temperatures of the trial that tells whether a model is near its base law."""
EVEN = 0.1
"""The share of the temperatures that are placed as the trial's are, whatever it saw."""
FORWARD, BACKWARD = "annealed importance sampling", "reverse annealed importance sampling"


class Schedule(NamedTuple):
    """The inverse temperatures `betas` [T + 1], from 0 to 1, and MALA's step size at each, None
    where another kernel moves the particles.
    """

    betas: Tensor
    step_sizes: Tensor | None

    @property
    def temperatures(self) -> int:
        """T, which may be fewer than were asked for (`place`)."""
        return len(self.betas) - 1

    def backward(self) -> Schedule:
        """The same, from 1 to 0."""
        sizes = self.step_sizes
        return Schedule(self.betas.flip(0), None if sizes is None else sizes.flip(0))

    def staying(self, transitions: int) -> Schedule:
        """So many `transitions`, all of the model."""
        sizes = self.step_sizes
        return Schedule(
            torch.ones(transitions + 1),
            None if sizes is None else sizes[-1:].expand(transitions + 1),
        )


class Annealed(NamedTuple):
    """The `particles` [N, *shape] at the end of a way, and their log weights [N], float64, nats."""

    particles: Tensor
    log_weights: Tensor


def log_partition(
    path: Energy,
    temperatures: int,
    particles: int,
    generator: torch.Generator,
    starts: Tensor | None = None,
) -> Generator[Progress, None, LogPartition]:
    """Estimates log Z by AIS along the energy's `path`, from its base law, whose Z_0 is known, to
    the model (Neal 2001), and back (Grosse, Ghahramani & Adams 2015). Yields progress.

    `particles` are annealed forward. As many go back from draws of the model: of the first half
    each begins at a particle that came forward, drawn by weight, and of the second half at one of
    the `starts` [S, *shape], data rows; all then make as many transitions of the model as there are
    temperatures. Where these two halves, which begin as differently as can be, give log Z that
    differ, chains do not mix, and the result says so. Without `starts`, all begin at particles.

    `pipeline.evaluation.log_partition.estimate` joins both ways. A trial places the temperatures
    (`place`); it is no part of the estimate, so that the weights are unbiased.
    """
    schedule = yield from place(path, temperatures, particles, generator)
    found, _ = yield from there_and_back(
        path, schedule, particles, generator, starts, schedule.temperatures
    )
    return found


def there_and_back(
    path: Energy,
    schedule: Schedule,
    particles: int,
    generator: torch.Generator,
    starts: Tensor | None,
    settling: int,
) -> Generator[Progress, None, tuple[LogPartition, Tensor]]:
    """Does the same along a `schedule` that is there; particles make `settling` transitions of the
    model before they go back. Returns the positions [N, *shape] too that they then were at.
    """
    start = path.sample_base(particles, generator)
    ahead = yield from anneal(path, schedule, start, generator, FORWARD)
    drawn = _draw(ahead, starts, generator)
    settled = yield from anneal(
        path, schedule.staying(settling), torch.cat(drawn), generator, "draws of the model"
    )
    back = yield from anneal(path, schedule.backward(), settled.particles, generator, BACKWARD)
    weights = back.log_weights.split([len(positions) for positions in drawn])
    found = estimate(path.base_log_partition(), ahead.log_weights, weights)
    return found, settled.particles


def forward_log_partition(
    path: Energy, temperatures: int, particles: int, generator: torch.Generator
) -> Generator[Progress, None, LogPartition]:
    """Estimates log Z from below alone, by particles that are annealed from the path's base law."""
    schedule = yield from place(path, temperatures, particles, generator)
    start = path.sample_base(particles, generator)
    ahead = yield from anneal(path, schedule, start, generator, FORWARD)
    return estimate(path.base_log_partition(), ahead.log_weights)


def kernel_of(path: Energy) -> Kernel:
    """Returns the kernel that moves particles along a path: a Gibbs sweep where it has blocks, a
    few single sites over levels, else MALA. Each is reversible, so that the way back is the way
    there in reverse.
    """
    if path.blocks:
        return GIBBS
    return mala.kernel if path.levels is None else SITES


def _gibbs_step(
    generator: torch.Generator, state: EnergyState, target: Target
) -> tuple[EnergyState, Info]:
    moved, info = gibbs.step(generator, gibbs.State(state.position), target)
    return init_energy(moved.position, target), info


def _sites_step(
    generator: torch.Generator, state: EnergyState, target: Target
) -> tuple[EnergyState, Info]:
    for _ in range(min(state.position[0].numel(), MOST_SITES)):
        state, info = single_site.step(generator, state, target)
    return state, info


GIBBS = Kernel(init_energy, _gibbs_step)
"""A Gibbs sweep that knows the energy where it ends, which the next weight begins with."""
SITES = Kernel(init_energy, _sites_step)
"""Sites drawn at random, one after the other: as many as there are, at most `MOST_SITES`."""


def place(
    path: Energy, temperatures: int, particles: int, generator: torch.Generator
) -> Generator[Progress, None, Schedule]:
    """Places at most so many temperatures by `TRIALS` trials, each at a twentieth of them, with at
    most `TRIAL` particles; the second is at temperatures that the first has placed.

    The standard deviation of the log weights' increments between two betas of a trial is the length
    of the path between them (Crooks 2007). Of all schedules those that cut the path into pieces of
    equal length make weights vary least (Gelman & Meng 1998, section 4.3; Grosse, Maddison &
    Salakhutdinov 2013). A tenth of the temperatures lie where the trial's did, for what it did not
    see. MALA's step sizes are those that the trial came to on its way, towards an acceptance of
    0.65.

    Log weights along T such pieces of a path of length L vary by L^2 / T where particles are at
    equilibrium all the way, and by several times that where they lag behind. So a short path has no
    more than `ENOUGH` L^2 temperatures, but `FEWEST`, whatever was asked for.
    """
    steered = kernel_of(path) is mala.kernel
    count, steps = min(particles, TRIAL), max(20, temperatures // 20)
    betas, sizes = np.linspace(0, 1, steps + 1) ** (2 if steered else 1), None
    for trial in range(TRIALS):
        lengths, found = yield from _try(path, betas, steered, count, generator, trial * steps)
        share = lengths / lengths.sum() if lengths.sum() > 0 else np.full(steps, 1 / steps)
        ends = np.concatenate([[0.0], np.cumsum((1 - EVEN) * share + EVEN / steps)])
        pieces = _enough(lengths, temperatures) if trial == TRIALS - 1 else steps
        placed = np.interp(np.linspace(0, ends[-1], pieces + 1), ends, betas)
        sizes = np.exp(np.interp(placed, betas, np.log(found)))
        betas = placed
    return Schedule(
        torch.tensor(betas, dtype=torch.float32), torch.tensor(sizes) if steered else None
    )


def _enough(lengths: np.ndarray, asked: int) -> int:
    return min(asked, max(FEWEST, math.ceil(ENOUGH * lengths.sum() ** 2)))


def is_near(path: Energy, generator: torch.Generator) -> Generator[Progress, None, bool]:
    """Returns whether the model is so near the base law of its `path`, which MALA goes along, that
    the fewest temperatures are enough, as a brief trial sees it.
    """
    betas = np.linspace(0, 1, BRIEF + 1) ** 2
    lengths, _ = yield from _try(path, betas, True, TRIAL, generator, 0)
    return bool(ENOUGH * lengths.sum() ** 2 <= FEWEST)


def _try(
    path: Energy,
    betas: np.ndarray,
    steered: bool,
    count: int,
    generator: torch.Generator,
    before: int,
) -> Generator[Progress, None, tuple[np.ndarray, np.ndarray]]:
    """A trial along `betas` [T + 1] with `count` particles: the lengths [T] of the path's pieces,
    and the step size [T + 1] at each beta. `before`: how many temperatures were tried before.
    """
    kernel, steps, size = kernel_of(path), len(betas) - 1, FIRST_STEP
    target = Target(path, torch.full((count,), betas[0], dtype=torch.float32))
    state = kernel.init(path.sample_base(count, generator), target)

    def move(gain: float) -> None:
        nonlocal state, size
        parameters = {"step_size": size} if steered else {}
        state, info = kernel.step(generator, state, target, **parameters)
        size *= math.exp(gain * (float(info.acceptance.mean()) - TARGET_ACCEPTANCE))

    for _ in range(SETTLING if steered else 0):
        move(0.5)
    lengths, sizes = np.zeros(steps), np.full(steps + 1, size)
    for index in range(steps):
        target.beta = torch.full((count,), betas[index + 1], dtype=torch.float32)
        moved = kernel.init(state.position, target)
        spread = float((state.energy - moved.energy).double().std(correction=0))
        lengths[index] = spread if math.isfinite(spread) else 0.0
        state = moved
        for _ in range(MOVES):
            move(0.2)
        sizes[index + 1] = size
        yield Progress("placing temperatures", before + index + 1, TRIALS * steps)
    return lengths, sizes


def anneal(
    path: Energy, schedule: Schedule, start: Tensor, generator: torch.Generator, doing: str
) -> Generator[Progress, None, Annealed]:
    """Anneals particles from `start` [N, *shape], draws at the first beta, along the schedule:

        log w = sum_t E_{beta_{t-1}}(x_{t-1}) - E_{beta_t}(x_{t-1}),
        x_t ~ a transition of E_{beta_t} from x_{t-1}.

    E[w] is the ratio of the last Z to the first, exactly (Neal 2001): on average log w is below its
    log. Yields progress, which says what it is `doing`.
    """
    betas, sizes = schedule
    kernel, count, last = kernel_of(path), len(start), len(betas) - 1
    log_weights = torch.zeros(count, dtype=torch.float64)
    target = Target(path, betas[0].expand(count))
    state = kernel.init(start, target)
    for index in range(1, last + 1):
        if betas[index] != betas[index - 1]:
            moved = _at(path, kernel, target, state, betas[index - 1], betas[index])
            log_weights += (state.energy - moved.energy).double()
            state = moved
        parameters = {} if sizes is None else {"step_size": float(sizes[index])}
        state, _ = kernel.step(generator, state, target, **parameters)
        yield Progress(doing, index, last)
    return Annealed(state.position, log_weights)


def _at(path: Energy, kernel: Kernel, target: Target, state: Any, beta: Tensor, new: Tensor) -> Any:
    """The `state` of a kernel's particles, which were at `beta`, at a `new` one; the `target` is
    there then too. On a path that is linear in beta that costs no evaluation of the model:

        E_new = E_0 + (new / beta) (E_beta - E_0).
    """
    before, target.beta = target.beta, new.expand(len(state.position))
    # near the law at its beginning a rounding error of E_beta - E_0 would be blown up
    if beta > LEAST:
        assert before is not None
        if isinstance(path, Bridge) and isinstance(state, GradientState):
            return GradientState(state.position, *path.moved(*state, before, target.beta))
        if isinstance(path, PottsModel):
            start = path.base(state.position)
            moved = start + new / beta * (state.energy - start)
            return EnergyState(state.position, moved)
    return kernel.init(state.position, target)


def _draw(ahead: Annealed, starts: Tensor | None, generator: torch.Generator) -> list[Tensor]:
    """Positions from which particles go back, of each of the ways to begin that `log_partition`
    tells of.
    """
    count = len(ahead.particles)
    of_data = 0 if starts is None else count // 2
    weights = torch.softmax(ahead.log_weights, 0)
    if not bool(weights.isfinite().all()):  # of a model that is not finite, none is a draw
        weights = torch.ones_like(weights)
    chosen = torch.multinomial(weights, count - of_data, replacement=True, generator=generator)
    drawn = [ahead.particles[chosen]]
    if starts is not None and of_data:
        rows = torch.randint(len(starts), (of_data,), generator=generator)
        drawn.append(starts[rows])
    return drawn
