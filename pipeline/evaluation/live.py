"""The held-out log-likelihood while a run goes on, at a small share of its time."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.assembly.data import noisy_sample
from pipeline.assembly.energies import make_energy
from pipeline.common.rng import torch_generator
from pipeline.config.run import RunConfig
from pipeline.data.base import DataSet
from pipeline.energies.base import Energy
from pipeline.energies.dbm import DeepBoltzmannMachine
from pipeline.energies.quadrature import MidpointRule
from pipeline.energies.weights import unflatten_
from pipeline.evaluation.ais import Schedule, place, there_and_back
from pipeline.evaluation.conditional import reach
from pipeline.evaluation.log_partition import LogPartition
from pipeline.evaluation.paths import path_to

SHARE = 0.05
"""The share of a run's time that it takes, at most."""
TEMPERATURES, PARTICLES, SETTLING = 200, 64, 25
"""Of each estimate: less than at the end of a run, so that there are many. The particles that go
back begin at those that did so before, and so are settled already."""
PLACED = 10
"""Estimates between which temperatures are placed anew: the path changes with the weights."""
GRID = 400
"""Points to a side, for models in the plane."""
Figures = dict[str, float]


class Live:
    """Scores a run's averaged weights, over and over.

    log Z is exact where the model allows it, by quadrature in the plane, and else by AIS there and
    back (`pipeline.evaluation.ais`), a temperature at a time. It has random streams of its own, so
    that a run learns the same with it and without it; they are in no checkpoint.
    """

    def __init__(self, config: RunConfig, data: DataSet) -> None:
        self._data, self._spent_until = data, time.perf_counter()
        self._energy = make_energy(config, data.shape, data.context_shape)
        self._energy.requires_grad_(False).eval()
        noise = torch_generator(config.data.split_seed, "held-out-noise")
        test = data.held_out
        if self._energy.levels is None:
            test = test + data.noise * torch.randn(test.shape, generator=noise)
        self._test = self._energy.into_domain(test)
        rows = data.sample if self._energy.levels is not None else noisy_sample(config, data)
        self._rows = self._energy.into_domain(rows)
        self._generator = torch_generator(config.seed, "live")
        self._work: Generator[Any, None, Figures] | None = None
        self._credit = 0.0  # seconds that may be spent
        self._schedule: Schedule | None = None
        self._made = 0
        self._settled: Tensor | None = None

    @torch.no_grad()
    def spend(self, version: int, averaged: Callable[[], np.ndarray]) -> Figures:
        """Works for `SHARE` of the time since it was last called. Returns the figures of an
        estimate that ended, else none.

        `averaged` gives the flat weights of `version`, for the next estimate where one ended.
        """
        now = time.perf_counter()
        self._credit += SHARE * (now - self._spent_until)
        found: Figures = {}
        while self._credit > 0 and not found:
            clock = time.perf_counter()
            if self._work is None:
                unflatten_(self._energy, averaged())
                self._work = self._estimate(version)
            try:
                next(self._work)
            except StopIteration as end:
                found, self._work = end.value, None
            self._credit -= time.perf_counter() - clock
        self._spent_until = time.perf_counter()
        return found

    def _estimate(self, version: int) -> Generator[Any, None, Figures]:
        """The figures of the weights of a `version`."""
        energy, test = self._energy, self._test
        model: Energy = energy
        rows = self._rows
        if isinstance(energy, DeepBoltzmannMachine):
            level, model = float(energy.bound(test).double().mean()), energy.as_rbm()
            rows = energy.even_layers(energy.with_latents(rows))
        else:
            level = float(-energy(test).double().mean())
        log_z = energy.log_partition()
        if log_z is None and self._data.shape == (2,):
            low, high = reach(energy, self._data)
            log_z = float(MidpointRule(low, high, GRID).precise_log_integral(energy))
        if log_z is not None:
            bounds = (log_z, log_z, log_z)
        else:
            found = yield from self._anneal(model, rows)
            assert found.at_most is not None
            bounds = (found.value, found.at_most, found.at_least)
        names = ("log_likelihood", "log_likelihood_at_least", "log_likelihood_at_most")
        figures = {name: level - bound for name, bound in zip(names, bounds, strict=True)}
        return figures | {"log_likelihood_version": version}

    def _anneal(self, model: Energy, rows: Tensor) -> Generator[Any, None, LogPartition]:
        path = path_to(model, rows)
        if self._schedule is None or self._made % PLACED == 0:
            self._schedule = yield from place(path, TEMPERATURES, PARTICLES, self._generator)
        self._made += 1
        starts = rows if self._settled is None else self._settled
        settling = TEMPERATURES if self._settled is None else SETTLING
        found, self._settled = yield from there_and_back(
            path, self._schedule, PARTICLES, self._generator, starts, settling
        )
        return found
