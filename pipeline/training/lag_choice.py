"""The choice of what is done about negatives that are one version old, by what it does to the
gradient.

Not from the literature in this form. A lag of one feeds each update back into the chains one step
late. To first order plain stale negatives change the gradient by b = -Cov_p(grad E) (theta_t -
theta_{t-1}). The unit of its square is the variance V of the gradient that fresh negatives give: a
bias with |b|^2 = V / 7 adds a seventh to the mean square error that is there anyway. The
trials that `TOLERANCE` rests on: docs/architecture.md, "A lag that knows when it is free".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from torch import Tensor

TOLERANCE = 0.15
"""The largest |b|^2 / V that counts as free."""


class Treatment(StrEnum):
    """The things that can be done about stale negatives, the cheapest first, and lock-step."""

    PLAIN = "plain"
    REWEIGHTED = "reweighted"
    MOVED = "moved"
    NONE = "none"


class Ratio(NamedTuple):
    """An estimate and its standard error."""

    value: float
    error: float


class Halves(NamedTuple):
    """The gradients [P] that two halves of the chains give, which are independent of each other."""

    one: Tensor
    other: Tensor


def squared_bias(stale: Halves, fresh: Halves) -> float:
    """(s_A - f_A) . (s_B - f_B), an unbiased estimate of |b|^2, b = E[s - f].

    A and B are disjoint sets of chains: given the weights they are independent, so the product's
    mean is E[s_A - f_A] . E[s_B - f_B] = |b|^2, however large the noise that a half has. `stale`
    and `fresh` are of the same chains, one round apart, so that most of it cancels. It may be
    negative.
    """
    return float((stale.one - fresh.one).double() @ (stale.other - fresh.other).double())


def variance(fresh: Halves) -> float:
    """|f_A - f_B|^2 / 4, an unbiased estimate of V, the variance of the gradient of both halves.

    Each half has the variance 2 V, and the difference of two that are independent 4 V.
    """
    return float((fresh.one - fresh.other).double().square().sum()) / 4


def relative_bias(squares: Sequence[float], variances: Sequence[float]) -> Ratio:
    """mean(squares) / mean(variances), over steps, with the standard error of its numerator.

    `squares` are `squared_bias` of a few steps, and `variances` those of their fresh gradients.
    """
    count, scale = len(squares), sum(variances) / len(variances)
    mean = sum(squares) / count
    spread = sum((square - mean) ** 2 for square in squares) / max(count - 1, 1)
    if not scale > 0:
        return Ratio(math.inf, math.inf)
    return Ratio(mean / scale, math.sqrt(spread / count) / scale)


def choose(bias: Mapping[Treatment, Ratio], ess: float | None, least_ess: float) -> Treatment:
    """The cheapest treatment that is free, else none: its relative bias, with its standard error,
    is at most `TOLERANCE`, and the `ess` of weights, a ratio, at least `least_ess`.

    Free means: nearly what lock-step does. Weights jump to the law now, to which chains with k
    transitions since are still on their way. Where they do not get there within a round,
    reweighting changes the gradient by more than the lag did, whatever the ESS.
    """
    for treatment in (Treatment.PLAIN, Treatment.REWEIGHTED, Treatment.MOVED):
        free = treatment in bias and sum(bias[treatment]) <= TOLERANCE
        heavy = treatment is Treatment.REWEIGHTED and (ess is None or ess < least_ess)
        if free and not heavy:
            return treatment
    return Treatment.NONE


def possible_gain(interval: float, ahead: float, step: float) -> float:
    """The most that lag can make of lock-step's speed, a ratio of 1 or more.

    A step of lock-step takes `interval` seconds, of which the learner computes for `step` after its
    negatives came, and for `ahead` before, beside the pools. They take interval - step, with the
    way there and back. Under a lag the slower of the two sets the pace:

        interval / max(interval - step, ahead + step)
    """
    return max(1.0, interval / max(interval - step, ahead + step, 1e-9))
