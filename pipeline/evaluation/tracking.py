"""log Z followed from one set of weights to the next, between estimates of it."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

from pipeline.energies.base import Energy
from pipeline.energies.target import Target
from pipeline.evaluation.ais import Schedule, kernel_of
from pipeline.evaluation.log_partition import FEWEST, LogPartition
from pipeline.kernels.bridging import BridgeEstimate, bridge, variance_of

MOVES = 5
"""Transitions that particles make under new weights before they look back."""
QUANTILE = NormalDist().inv_cdf(0.95)
"""Standard errors to each side of an interval that holds 90 %."""
STUDENT = 1.11
"""The ratio of Student's quantile for ten batches to the normal one: 1.83 / 1.645."""
FACTOR, WEIGHT = 8.0, 2.0
"""What the variance of a way is multiplied by before anything is seen; and the number of anchors
that this counts as."""
AT_ODDS = 3.0
"""Standard deviations by which a prediction and an anchor may differ and still be joined."""


@torch.no_grad()
def follow(
    particles: Tensor, old: Energy, new: Energy, schedule: Schedule, generator: torch.Generator
) -> tuple[Tensor, BridgeEstimate | None]:
    """Moves `particles` [N, *shape], draws of the `old` model, by `MOVES` transitions of the `new`
    one, and bridges the two laws with Bennett's estimate from where they were and where they are.
    """
    ahead = (old(particles) - new(particles)).double()
    moved = settled(particles, new, schedule, generator, MOVES)
    back = (new(moved) - old(moved)).double()
    found = bridge(torch.stack([ahead, back])[None, :, None])
    return moved, found if found is not None and found.counting >= FEWEST else None


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

    *Increments* add to it. The particles are the systems of all of them, so that the variance of
    the way since the last anchor is that of the sums of their influences (`bridge`): what a
    particle that hardly moves errs by in one increment after the other adds up. What all err by
    alike, since they do not reach the whole model, they cannot tell. So that variance is multiplied
    by a factor.

    *Anchors*, estimates of log Z with an error of their own, correct it. They teach the factor too:
    the square of what the prediction was off by, less the other variances, is the factor times the
    way's variance on average. Each anchor counts by the share that the way's variance has of its
    own and the way's. The factor is 1 at least.

    An anchor that is at odds with the prediction takes its place. So does one without an error bar,
    whose bounds then are the interval, where that is the narrower of the two, or where they leave
    the prediction outside; it is not joined, for the errors of such estimates are not independent.
    """

    def __init__(self) -> None:
        self._at: tuple[float, float] | None = None  # log Z and its variance, where the way begins
        self._before = 0.0  # the variance of the way to there, without the factor
        self._seen, self._weights = FACTOR * WEIGHT, WEIGHT
        self._moved, self._influence, self._lost = 0.0, torch.zeros(1), False

    @property
    def factor(self) -> float:
        """The number that multiplies the variance of the way."""
        return max(1.0, self._seen / self._weights)

    def _now(self) -> tuple[float, float] | None:
        """log Z of the weights of now, and its variance."""
        if self._at is None or self._lost:
            return None
        value, variance = self._at
        return value + self._moved, variance + self.factor * variance_of(self._influence)

    @property
    def now(self) -> tuple[float, float] | None:
        """log Z and half of its 90 % interval; None where it is not known."""
        now = self._now()
        return None if now is None else (now[0], QUANTILE * math.sqrt(now[1]))

    def begin(self) -> None:
        """A new way begins at the weights of now, which an anchor is on its way for."""
        self._at, self._before = self._now(), variance_of(self._influence)
        self._moved, self._influence, self._lost = 0.0, torch.zeros(1), False

    def move(self, increment: BridgeEstimate | None) -> None:
        """The weights have moved by an `increment`, over the same particles as before; None where
        the laws could not be bridged.
        """
        if increment is None:
            self._lost = True
            return
        self._moved += increment.log_ratio
        self._influence = self._influence + increment.influence

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
            of_way = self.factor * self._before
            excess = max(0.0, surprise**2 - own - max(0.0, variance - of_way))
            self._seen += excess / (self._before + own)
            self._weights += self._before / (self._before + own)
        if surprise**2 > AT_ODDS**2 * (variance + own):
            self._at = found.value, own
            return
        gain = variance / (variance + own)
        self._at = value + gain * surprise, (1 - gain) * variance
