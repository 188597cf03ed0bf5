"""The held-out log-likelihood while a run goes on, at a small share of its time."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.assembly.data import typical_sample
from pipeline.assembly.energies import make_energy
from pipeline.common.rng import torch_generator
from pipeline.common.work import result
from pipeline.config.run import RunConfig
from pipeline.data.base import DataSet
from pipeline.data.row_weights import mean
from pipeline.energies.base import Energy
from pipeline.energies.dbm import DeepBoltzmannMachine
from pipeline.energies.quadrature import MidpointRule
from pipeline.energies.weights import unflatten_
from pipeline.evaluation.ais import Schedule, place, there_and_back
from pipeline.evaluation.conditional import reach
from pipeline.evaluation.log_partition import LogPartition
from pipeline.evaluation.paths import path_to
from pipeline.evaluation.tracking import Track, follow, settled

SHARE = 0.05
"""The share of a run's time that it takes, at most."""
TEMPERATURES, PARTICLES, SETTLING = 200, 64, 25
"""Of each estimate: less than at the end of a run, so that there are many. The particles that go
back begin at those that did so before, and so are settled already."""
FIRST = 40
"""Temperatures of the first estimate of a machine: of weights that are near a simple law mostly,
and that the following is to begin from soon."""
FOLLOWING = 1 / 3
"""The share of that time in which log Z is followed."""
PLACED = 10
"""Estimates between which temperatures are placed anew: the path changes with the weights."""
GRID = 400
"""Points to a side, for models in the plane."""
Figures = dict[str, float]


class Live:
    """Scores a run's averaged weights, over and over.

    log Z is exact where the model allows it, and by quadrature in the plane. Else it is by AIS
    there and back (`pipeline.evaluation.ais`), a temperature at a time, of the weights that there
    are when that begins. On a ladder, whose rungs tell log Z, no AIS is made.

    Of machines, whose blocks are drawn by Gibbs sweeps, a third of the time goes to following log Z
    with the weights (`pipeline.evaluation.tracking`), so that there is a figure of newer ones, and
    more often. Particles of a deep energy would need as many transitions as the run's own chains
    make. With fewer all of them stay behind, which none can tell.

    It has random streams of its own, so that a run learns the same with it and without it; they are
    in no checkpoint.
    """

    def __init__(self, config: RunConfig, data: DataSet) -> None:
        self._energy = make_energy(config, data.shape, data.context_shape)
        if self._energy.levels is not None:
            data = data.complete()
        self._data, self._spent_until = data, time.perf_counter()
        self._energy.requires_grad_(False).eval()
        noise = torch_generator(config.data.split_seed, "held-out-noise")
        test = data.held_out
        if self._energy.levels is None:
            test = test + data.noise * torch.randn(test.shape, generator=noise)
        self._test = self._energy.into_domain(test)
        self._weights = data.row_weights.held_out
        every = self._energy.levels is not None and data.row_weights.sample is None
        rows = data.sample if every else typical_sample(config, data)
        self._rows = self._energy.into_domain(rows)
        self._generator = torch_generator(config.seed, "live")
        self._credit = 0.0  # seconds that may be spent
        self._exact = True  # as far as is known
        self._anneals = not (config.bridged and config.metrics.held_out_every)
        self._anchoring: Generator[Any, None, Figures] | None = None
        self._spent = {"anchoring": 0.0, "following": 0.0}  # seconds
        self._schedule: Schedule | None = None
        self._made = 0
        self._settled: Tensor | None = None
        self._track = Track()
        self._followed: tuple[int, Energy] | None = None  # the version and model of the track

    @torch.no_grad()
    def spend(self, version: int, averaged: Callable[[], np.ndarray]) -> Figures:
        """Works for `SHARE` of the time since it was last called. Returns the figures of an
        estimate that ended, else none.

        `averaged` gives the flat weights of `version`.
        """
        now = time.perf_counter()
        self._credit += SHARE * (now - self._spent_until)
        found: Figures = {}
        while self._credit > 0 and not found and (self._exact or self._anneals):
            clock = time.perf_counter()
            turn = self._turn(version)
            found = self._work(turn, version, averaged)
            seconds = time.perf_counter() - clock
            self._spent[turn] += seconds
            self._credit -= seconds
        self._spent_until = time.perf_counter()
        return found

    @torch.no_grad()
    def now(self, version: int, weights: np.ndarray) -> Figures:
        """Returns the figures of the flat `weights` of `version` at once, whatever time it takes:
        an estimate by AIS is made anew.
        """
        unflatten_(self._energy, weights)
        height, model = level(self._energy, self._test), as_sampled(self._energy)
        if (log_z := exact(self._energy, self._data)) is not None:
            return _figures(version, height, log_z, log_z, log_z)
        rows = sampled_rows(self._energy, self._rows)
        path = path_to(model, rows)
        schedule = result(place(path, TEMPERATURES, PARTICLES, self._generator))
        annealed = there_and_back(path, schedule, PARTICLES, self._generator, rows, TEMPERATURES)
        found, _ = result(annealed)
        assert found.at_most is not None
        return _figures(version, height, found.value, found.at_least, found.at_most)

    def _turn(self, version: int) -> str:
        """The next work: to follow, where weights have moved and it is behind with its share."""
        if not self._energy.blocks:
            return "anchoring"
        moved = self._followed is not None and self._followed[0] != version
        behind = self._spent["following"] < FOLLOWING * sum(self._spent.values())
        return "following" if moved and behind else "anchoring"

    def _work(self, turn: str, version: int, averaged: Callable[[], np.ndarray]) -> Figures:
        """Goes on a little, and returns figures where they are there."""
        if turn == "following":
            unflatten_(self._energy, averaged())
            return self._follow(version)
        if self._anchoring is None:
            unflatten_(self._energy, averaged())
            self._anchoring = self._estimate(version)
        try:
            next(self._anchoring)
        except StopIteration as end:
            self._anchoring = None
            figures: Figures = end.value
            return figures
        return {}

    def _estimate(self, version: int) -> Generator[Any, None, Figures]:
        """The figures of the weights of a `version`; those of newer weights where the track has
        gone on to them meanwhile.
        """
        if self._exact and (log_z := exact(self._energy, self._data)) is not None:
            return _figures(version, self._height(), log_z, log_z, log_z)
        self._exact = False
        if not self._anneals:
            return {}
        height, model = self._height(), as_sampled(self._energy)
        if self._followed is not None:
            self._move_on(version, model)
        self._track.begin()
        found = yield from self._anneal(model)
        assert found.at_most is not None
        if not model.blocks:
            return _figures(version, height, found.value, found.at_least, found.at_most)
        self._track.anchor(found)
        if self._followed is None:
            self._followed = version, model
        elif self._followed[0] != version:
            assert self._settled is not None
            assert self._schedule is not None
            newer = self._followed[1]
            self._settled = settled(self._settled, newer, self._schedule, self._generator, SETTLING)
        if self._track.now is None or self._followed[0] == version:
            return _figures(version, height, found.value, found.at_least, found.at_most)
        return {}

    def _follow(self, version: int) -> Figures:
        """The figures of a `version` by the track, if it knows."""
        self._move_on(version, as_sampled(self._energy))
        if self._track.now is None:
            return {}
        log_z, half = self._track.now
        return _figures(version, self._height(), log_z, log_z - half, log_z + half)

    def _height(self) -> float:
        """The level of the held-out rows."""
        return level(self._energy, self._test, self._weights)

    def _move_on(self, version: int, model: Energy) -> None:
        assert self._followed is not None
        assert self._settled is not None
        assert self._schedule is not None
        self._settled, increment = follow(
            self._settled, self._followed[1], model, self._schedule, self._generator
        )
        self._track.move(increment)
        self._followed = version, model

    def _anneal(self, model: Energy) -> Generator[Any, None, LogPartition]:
        rows = sampled_rows(self._energy, self._rows)
        path = path_to(model, rows)
        first = self._settled is None
        # the second is the first with all temperatures
        if self._made == 1 or self._made % PLACED == 0:
            temperatures = FIRST if first and path.blocks else TEMPERATURES
            self._schedule = yield from place(path, temperatures, PARTICLES, self._generator)
        self._made += 1
        starts = rows if self._settled is None else self._settled
        settling = TEMPERATURES if first else SETTLING
        assert self._schedule is not None
        found, self._settled = yield from there_and_back(
            path, self._schedule, PARTICLES, self._generator, starts, settling
        )
        return found


def exact(energy: Energy, data: DataSet) -> float | None:
    """log Z, exactly or by quadrature in the plane; None where it cannot be had."""
    log_z = energy.log_partition()
    if log_z is None and data.shape == (2,):
        log_z = float(MidpointRule(*reach(energy, data), GRID).precise_log_integral(energy))
    return log_z


def level(energy: Energy, rows: Tensor, weights: Tensor | None = None) -> float:
    """The mean of log p + log Z over `rows` [N, *data_shape], which count by their `weights` [N],
    or of its lower bound, nats.
    """
    if isinstance(energy, DeepBoltzmannMachine):
        return float(mean(energy.bound(rows).double(), weights))
    return float(-mean(energy(rows).double(), weights))


def as_sampled(energy: Energy) -> Energy:
    """A copy of the model, as particles move in it: of a deep Boltzmann machine, the RBM."""
    if isinstance(energy, DeepBoltzmannMachine):
        return energy.as_rbm()
    return copy.deepcopy(energy)


def sampled_rows(energy: Energy, rows: Tensor) -> Tensor:
    """Data `rows` [N, *data_shape] as positions of `as_sampled`."""
    if isinstance(energy, DeepBoltzmannMachine):
        return energy.even_layers(energy.with_latents(rows))
    return rows


def _figures(version: int, level: float, *log_z: float) -> Figures:
    """Of log Z, what is at least it, and what is at most it, nats."""
    names = ("log_likelihood", "log_likelihood_at_most", "log_likelihood_at_least")
    figures = {name: level - bound for name, bound in zip(names, log_z, strict=True)}
    return figures | {"log_likelihood_version": version}
