"""Negatives made under older weights: the weights that make them count right, and how old they may
be.

Not from the literature in this form; see docs/architecture.md for the trial. The identity behind it
is importance sampling: samples of exp(-E_then) / Z_then stand for exp(-E_now) / Z_now when weighted
by exp(E_then - E_now), self-normalised.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def importance_weights(energy_then: Tensor, energy_now: Tensor) -> Tensor:
    """`w_i = softmax_i(E_then(x_i) - E_now(x_i))`, `[..., M]`, float64, summing to 1 over the last
    axis.

    `energy_then` and `energy_now` [..., M] in nats, of one pool's batch (and one context) under the
    version that shaped it and the one that consumes it. Worked in log space; used as they are,
    untruncated and untempered.
    """
    return torch.softmax(energy_then.double() - energy_now.double(), -1)


def batch_weights(
    energy_then: Tensor,
    energy_now: Tensor,
    counts: Tensor,
    lag: int,
    reweight: bool,
    contexts: int = 1,
) -> tuple[Tensor, float]:
    """A batch's weights [M], float64, summing to 1, and their ESS as a ratio of the rows that
    count.

    Rows come context by context, as many for each of the `contexts`, which share the weight evenly:
    each has a law, and a Z, of its own, and weights are normalised within it. `counts` [M] bool
    leaves out chains still in their burn-in; where none of a context counts, all do. At lag 0, or
    without reweighting, the weights are exactly uniform. The ESS is a mean over contexts.
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

    Log-weights that are normal with variance v have an ESS ratio of exp(-v), so v = -ln ESS is what
    is summed, and each bound is judged by the steps made under it alone. It halves as soon as their
    sum is more than `patience` steps at the `floor` have: weights that are nearly useless are not
    waited for. It rises by one after `patience` steps whose mean is above `floor + margin`;
    lock-step has an ESS of 1, so a bound of 0 always finds room. A rise that fails within
    `patience` steps doubles the time until the next, up to `longest` times `patience`; one that
    holds makes it short again. So where no lag is affordable the bound is 0 nearly always, instead
    of taking turns with 1.
    """

    patience = 50
    margin = 0.2
    longest = 8

    def __init__(self, configured: int, floor: float, steered: bool) -> None:
        self._configured, self._floor, self._steered = configured, floor, steered
        self.bound = configured
        self._variance, self._steps = 0.0, 0  # of the steps that the bound is judged by
        self._risen = False  # whether those are the first after a rise
        self._rest, self._left = (
            1,
            0,
        )  # in `patience` steps: from a fall to the next rise, and what is left of it

    def observe(self, ess: float) -> None:
        """One step's mean ESS ratio."""
        if not self._steered or not 0 < ess < math.inf:
            return
        self._variance, self._steps = self._variance - math.log(ess), self._steps + 1
        most = -math.log(self._floor) if self._floor else math.inf
        if self.bound > 0 and self._variance > self.patience * most:
            if self._risen:
                self._rest = min(2 * self._rest, self.longest)
            self._judge_anew(self.bound // 2, self._rest - 1)
        elif self._steps >= self.patience:
            if self._risen:
                self._rest = 1
            room = math.exp(-self._variance / self._steps) > min(self._floor + self.margin, 0.99)
            if room and not self._left and self.bound < self._configured:
                self._judge_anew(self.bound + 1, 0)
            else:
                self._judge_anew(self.bound, max(self._left - 1, 0))

    def _judge_anew(self, bound: int, left: int) -> None:
        self._risen, self.bound, self._left = bound > self.bound, bound, left
        self._variance, self._steps = 0.0, 0

    def state_dict(self) -> dict[str, float]:
        kept = {
            "variance": self._variance,
            "steps": self._steps,
            "risen": self._risen,
            "rest": self._rest,
            "left": self._left,
        }
        return {"bound": self.bound, **kept}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Takes up another's state; of an earlier version's, the bound alone."""
        if not self._steered:
            return
        self.bound = min(int(state["bound"]), self._configured)
        self._variance, self._steps = state.get("variance", 0.0), int(state.get("steps", 0))
        self._risen, self._rest, self._left = (
            bool(state.get("risen")),
            int(state.get("rest", 1)),
            int(state.get("left", 0)),
        )
