"""From the weights of annealed particles to log Z: its estimate, its error, and the bounds between
which it lies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pipeline.kernels.bridging import bennett

FEWEST = 10.0
"""Particles that must count for an error bar to be believed."""
BATCHES = 10
"""Independent batches of particles, whose estimates' spread gives the standard error."""
TAIL = 0.05
"""The chance that a bound is on the wrong side, each of the two."""
STUDENT = 1.833112932656237
"""The quantile of Student's t that a mean of `BATCHES` values exceeds with a chance of `TAIL`."""
APART = 4.0
"""Standard errors that two estimates of the same number may be apart."""


class LogPartition(NamedTuple):
    """An estimate of log Z, nats. `standard_error` is None, and `doubt` says why, where it cannot
    be told.

    log Z is at least `at_least` and at most `at_most`, each with a chance of 5 % of being wrong;
    the latter is None where nothing was annealed backward, and holds as far as the particles that
    began there were draws of the model. `forward` and `backward` are the estimates of each way
    alone: too low and too high on average. `counting` and `counting_backward` say how many of each
    way's particles count in them (`effective_number`).
    """

    value: float
    standard_error: float | None
    at_least: float
    at_most: float | None
    forward: float
    counting: float
    backward: float | None = None
    counting_backward: float | None = None
    doubt: str | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The central 90 % interval of log Z; None where there is no standard error."""
        if self.standard_error is None:
            return None
        half = STUDENT * self.standard_error
        return self.value - half, self.value + half


def log_mean_exp(logs: Tensor) -> float:
    """log (1/N sum_i exp(l_i)) of `logs` [N]."""
    return float(torch.logsumexp(logs, 0)) - math.log(len(logs))


def effective_number(logs: Tensor) -> float:
    """(sum_i w_i)^2 / sum_i w_i^2 of the weights w = exp(`logs`) [N]: the number of equal weights
    whose mean would be as certain (Kong 1992). Between 1 and N.
    """
    return float(torch.exp(2 * torch.logsumexp(logs, 0) - torch.logsumexp(2 * logs, 0)))


def estimate(base: float, forward: Tensor, backward: Sequence[Tensor] = ()) -> LogPartition:
    """log Z from log Z_0 = `base` and log weights: `forward` [N], with E[w] = Z / Z_0, and those of
    particles that went `backward`, with E[w] = Z_0 / Z, about as many for each way in which such
    particles began.

    The estimate is Bennett's of both ways, else that of the one. Its standard error is that of the
    mean over `BATCHES` batches of the particles, each with an estimate of its own. It is not told
    where fewer than `FEWEST` particles count; nor where the two ways, or ways to begin, differ by
    more than `APART` of their errors, for then chains do not reach all that they should.

    A bound of one way is its estimate less (backward: plus) 1.83 standard errors, a quantile of
    Student's t; without one, less log 20: by Markov's inequality a mean of weights is 20 times
    its expectation with a chance of 1 in 20 at most.
    """
    ahead = _OneWay.of(forward)
    found = LogPartition(
        base + ahead.value,
        ahead.error,
        base + ahead.bound,
        None,
        base + ahead.value,
        ahead.counting,
        doubt=ahead.doubt,
    )
    if not backward:
        return found
    ways = [_OneWay.of(weights) for weights in backward]
    weights = torch.stack([some[: min(map(len, backward))] for some in backward], 1).flatten()
    back = _OneWay.of(weights)
    joint = float(bennett(forward, weights))
    counting = [logsigmoid(forward - joint), logsigmoid(weights + joint)]
    doubt = _too_few(min(map(effective_number, counting)), len(forward))
    doubt = doubt or _apart(
        "the ways there and back", ahead.value, ahead.error, -back.value, back.error
    )
    for way in ways[1:]:
        doubt = doubt or _apart(
            "ways back that began apart", ways[0].value, ways[0].error, way.value, way.error
        )
    # where chains do not mix, the way back that saw the most says most
    highest = base - (back.bound if doubt is None else min(way.bound for way in ways))
    pieces = zip(_batches(forward), _batches(weights), strict=True)
    return found._replace(
        value=base + joint,
        standard_error=None if doubt else _error([float(bennett(*piece)) for piece in pieces]),
        at_most=highest,
        backward=base - back.value,
        counting_backward=back.counting,
        doubt=doubt,
    )


def _apart(
    which: str, one: float, error: float | None, other: float, its_error: float | None
) -> str | None:
    """Says that two estimates differ by more than their errors explain; None where they do not, or
    where one has no error.
    """
    if error is None or its_error is None:
        return None
    gap = abs(one - other)
    if gap <= APART * math.hypot(error, its_error):
        return None
    return f"{which} give log Z {gap:.2g} nats apart: chains do not reach the whole model"


class _OneWay(NamedTuple):
    """The log of a mean of weights; a bound that it is above; how many count; why it has no
    error.
    """

    value: float
    error: float | None
    bound: float
    counting: float
    doubt: str | None

    @classmethod
    def of(cls, logs: Tensor) -> _OneWay:
        value, counting = log_mean_exp(logs), effective_number(logs)
        doubt = _too_few(counting, len(logs))
        error = None if doubt else _error([log_mean_exp(piece) for piece in _batches(logs)])
        slack = math.log(1 / TAIL) if error is None else STUDENT * error
        return cls(value, error, value - slack, counting, doubt)


def _too_few(counting: float, particles: int) -> str | None:
    if counting >= FEWEST and particles >= 2 * BATCHES:
        return None
    return f"{counting:.1f} of {particles} particles count, where {FEWEST:.0f} are too few"


def _batches(logs: Tensor) -> Sequence[Tensor]:
    # in one piece each, for particles that began in different ways alternate
    return logs.tensor_split(BATCHES)


def _error(values: list[float]) -> float:
    """The standard error of the mean of independent `values`."""
    return float(torch.tensor(values, dtype=torch.float64).std()) / math.sqrt(len(values))
