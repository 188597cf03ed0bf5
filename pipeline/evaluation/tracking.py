"""log Z followed from one set of weights to the next, between estimates of it."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.common.types import Bridged
from pipeline.energies.base import Energy
from pipeline.energies.target import Target
from pipeline.evaluation.ais import Schedule, kernel_of
from pipeline.evaluation.log_partition import FEWEST, LogPartition
from pipeline.kernels.bridging import along_ladder

MOVES = 5
"""Transitions that particles make under new weights before they look back."""
QUANTILE = NormalDist().inv_cdf(0.95)
"""Standard errors to each side of an interval that holds 90 %."""
STUDENT = 1.11
"""The ratio of Student's quantile for ten batches to the normal one: 1.83 / 1.645."""
DRIFT, WEIGHT = 0.2, 2.0
"""The drift that is supposed before any is seen, in nats for each nat of length; and the square of
the length, nats squared, that this counts as."""
AT_ODDS = 3.0
"""Standard deviations by which a prediction and an anchor may differ and still be joined."""


class Increment(NamedTuple):
    """log (Z_new / Z_old), and the `length` of the way: the standard deviation of E_old - E_new
    over the particles, nats. `bridged` is None where the two laws cannot be bridged.
    """

    bridged: Bridged | None
    length: float


@torch.no_grad()
def follow(
    particles: Tensor, old: Energy, new: Energy, schedule: Schedule, generator: torch.Generator
) -> tuple[Tensor, Increment]:
    """Moves `particles` [N, *shape], draws of the `old` model, by `MOVES` transitions of the `new`
    one, and bridges the two laws with Bennett's estimate from where they were and where they are.
    """
    ahead = (old(particles) - new(particles)).double()
    moved = settled(particles, new, schedule, generator, MOVES)
    back = (new(moved) - old(moved)).double()
    bridged = along_ladder(torch.stack([ahead, back])[None, :, None], 0.0)
    if bridged is not None and not bridged.counting >= FEWEST:
        bridged = None
    return moved, Increment(bridged, float(ahead.std()))


@torch.no_grad()
def settled(
    particles: Tensor,
    model: Energy,
    schedule: Schedule,
    generator: torch.Generator,
    transitions: int,
) -> Tensor:
    """The `particles` [N, *shape] after so many transitions of the `model`."""
    target, kernel = Target(model), kernel_of(model)
    sizes = schedule.step_sizes
    parameters = {} if sizes is None else {"step_size": float(sizes[-1])}
    state = kernel.init(particles, target)
    for _ in range(transitions):
        state, _ = kernel.step(generator, state, target, **parameters)
    position: Tensor = state.position
    return position


class Track:
    """log Z of weights that move, as a Kalman filter of one number has it (Kalman 1960).

    *Increments* add to it, each with the variance that its particles tell. Particles that do not
    mix are wrong alike in one increment after the other, which they cannot tell. So an error that
    grows with the way is supposed beside: its standard deviation is kappa times the length of the
    way since the last anchor.

    *Anchors*, estimates of log Z with an error of their own, correct it. What the prediction was
    off by, more than the variances explain, teaches kappa: its square is the ratio of the sums of
    these excesses and of the squares of the lengths. An anchor that is at odds with the prediction
    takes its place. So does one without an error bar, whose bounds then are the interval, where
    that is the narrower of the two, or where they leave the prediction outside; it is not joined,
    for the errors of such estimates are not independent.
    """

    def __init__(self) -> None:
        self._at: tuple[float, float] | None = None  # log Z and its variance, where the way begins
        self._of_drift = 0.0  # the part of that variance that kappa accounts for
        self._before = 0.0  # the length of the way before this one
        self._excess, self._squares = DRIFT**2 * WEIGHT, WEIGHT
        self._moved, self._variance, self._length = 0.0, 0.0, 0.0
        self._lost = False

    @property
    def _drift(self) -> float:
        """The variance that is supposed for the way."""
        return self._excess / self._squares * self._length**2

    @property
    def now(self) -> tuple[float, float] | None:
        """log Z and half of its 90 % interval; None where it is not known."""
        if self._at is None or self._lost:
            return None
        value, variance = self._at
        half = QUANTILE * math.sqrt(variance + self._variance + self._drift)
        return value + self._moved, half

    def begin(self) -> None:
        """A new way begins at the weights of now, which an anchor is on its way for."""
        if self._at is not None and not self._lost:
            value, variance = self._at
            self._at = value + self._moved, variance + self._variance + self._drift
        else:
            self._at = None
        self._of_drift, self._before = self._drift, self._length
        self._moved, self._variance, self._length = 0.0, 0.0, 0.0
        self._lost = False

    def move(self, increment: Increment) -> None:
        """The weights have moved by an `increment`."""
        if increment.bridged is None:
            self._lost = True
            return
        self._moved += increment.bridged.log_partition
        self._variance += increment.bridged.variance
        self._length += increment.length

    def anchor(self, found: LogPartition) -> None:
        """log Z was `found` where the way began."""
        assert found.at_most is not None
        if found.standard_error is None:
            middle = (found.at_least + found.at_most) / 2
            half = (found.at_most - found.at_least) / 2
            own = (half / QUANTILE) ** 2
            if self._at is not None:
                apart = abs(self._at[0] - middle)
                if own >= self._at[1] and apart <= half + QUANTILE * math.sqrt(self._at[1]):
                    return
            self._at = middle, own
            return
        own = (STUDENT * found.standard_error) ** 2
        if self._at is None:
            self._at = found.value, own
            return
        value, variance = self._at
        surprise = found.value - value
        if self._before > 0:
            explained = variance - self._of_drift + own
            self._excess += max(0.0, surprise**2 - explained)
            self._squares += self._before**2
        if surprise**2 > AT_ODDS**2 * (variance + own):
            self._at = found.value, own
            return
        gain = variance / (variance + own)
        self._at = value + gain * surprise, (1 - gain) * variance
