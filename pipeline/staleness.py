"""Negatives made under older weights: the weights that make them count right, and how old they may be.

Not from the literature in this form; see docs/architecture.md for the trial. The identity behind it is importance sampling:
samples of exp(-E_then) / Z_then stand for exp(-E_now) / Z_now when weighted by exp(E_then - E_now), self-normalised.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def importance_weights(energy_then: Tensor, energy_now: Tensor) -> Tensor:
    """`w_i = softmax_i(E_then(x_i) - E_now(x_i))`, `[..., M]`, float64, summing to 1 over the last axis.

    `energy_then` and `energy_now` [..., M] in nats, of one pool's batch (and one context) under the version that shaped it and
    the one that consumes it. Worked in log space; used as they are, untruncated and untempered.
    """
    return torch.softmax(energy_then.double() - energy_now.double(), -1)


def effective_sample_size(weights: Tensor) -> float:
    """ESS / M = 1 / (M sum_i w_i^2) in (0, 1], for normalised weights [M] (Kong 1992)."""
    return float(1 / (len(weights) * weights.square().sum()))


def batch_weights(
    energy_then: Tensor, energy_now: Tensor, counts: Tensor, lag: int, reweight: bool, contexts: int = 1
) -> tuple[Tensor, float]:
    """A batch's weights [M], float64, summing to 1, and their ESS as a ratio of the rows that count.

    Rows come context by context, as many for each of the `contexts`, which share the weight evenly: each has a law, and a Z,
    of its own, and weights are normalised within it. `counts` [M] bool leaves out chains still in their burn-in; where none
    of a context counts, all do. At lag 0, or without reweighting, the weights are exactly uniform. The ESS is a mean over
    contexts.
    """
    then, now, counts = (values.view(contexts, -1) for values in (energy_then, energy_now, counts))
    counts = counts | ~counts.any(1, keepdim=True)
    size = counts.sum(1, keepdim=True).double()
    if lag == 0 or not reweight:
        return (counts / (contexts * size)).flatten(), 1.0
    weights = importance_weights(then.masked_fill(~counts, -torch.inf), now)
    ess = 1 / (size * weights.square().sum(1, keepdim=True))
    return (weights / contexts).flatten(), float(ess.mean())


class LagController:
    """Lets the ESS steer the bound on lag, between 0 and what is configured.

    The mean ESS ratio of each step is smoothed exponentially (time constant `patience` steps). Below `floor` the bound
    halves; above `floor + margin` it rises by one; after either, `patience` steps pass before the next change, so that
    each is judged by what it did. Lock-step has an ESS of 1, so a bound of 0 always finds room again.
    """

    patience = 50
    margin = 0.2

    def __init__(self, configured: int, floor: float, steered: bool) -> None:
        self._configured, self._floor, self._steered = configured, floor, steered
        self.bound = configured
        self._smoothed = 1.0
        self._wait = self.patience

    def observe(self, ess: float) -> None:
        """One step's mean ESS ratio."""
        if not self._steered or not math.isfinite(ess):
            return
        self._smoothed += (ess - self._smoothed) / self.patience
        self._wait -= 1
        if self._wait > 0:
            return
        if self._smoothed < self._floor and self.bound > 0:
            self._change(self.bound // 2)
        elif self._smoothed > min(self._floor + self.margin, 0.99) and self.bound < self._configured:
            self._change(self.bound + 1)

    def _change(self, bound: int) -> None:
        self.bound, self._wait = bound, self.patience

    def state_dict(self) -> dict[str, float]:
        return {"bound": self.bound, "smoothed": self._smoothed, "wait": self._wait}

    def load_state_dict(self, state: dict[str, float]) -> None:
        if not self._steered:
            return
        self.bound, self._wait = min(int(state["bound"]), self._configured), int(state["wait"])
        self._smoothed = state["smoothed"]
