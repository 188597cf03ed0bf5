"""A graph that changes while a model learns: pairs of sites are coupled, or let go, a few at a
time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

EVERY = 10
"""Steps from one change of the graph to the next, in which couplings settle."""
DAMPING = 0.01
"""Added to the frequency of two letters, so that counts of rare ones do not choose a pair."""


class Coupled(Protocol):
    """An energy with `coupling` [P, q, q] of pairs of sites, of which it holds all at 0 but those
    that are `coupled` [P] bool.
    """

    coupling: Tensor
    coupled: Tensor

    def couple(self, pairs: Tensor) -> None:
        """Couples the `pairs` [P] bool from now on, and no others."""

    def hold(self) -> None:
        """Puts the couplings of all others to 0, and their gradient."""

    def gains(self, damping: float) -> Tensor:
        """Returns what each pair would add to the log-likelihood of a row, nats, [P]."""

    def losses(self) -> Tensor:
        """Returns what the log-likelihood of a row would lose without it, nats, [P]."""


class GraphSchedule:
    """Changes which pairs of sites an `energy` couples, every 10 steps until step `steps`. Then the
    `share` of the pairs that it couples now, its candidates, are coupled, one at least. A graph
    that `grows` begins without any and gains those of the largest `gains` (Calvanese, Lambert,
    Nghe, Zamponi & Weigt 2024, "Towards parsimonious generative modeling of RNA families"). Another
    one loses those of the smallest `losses` (Barrat-Charlaix, Muntoni, Shimagaki, Weigt & Zamponi
    2021, "Sparse generative modeling via parameter reduction of Boltzmann machines"). As many are
    gained or lost each time.
    """

    def __init__(self, energy: Coupled, grows: bool, share: float, steps: int) -> None:
        self._energy, self._grows, self._steps = energy, grows, steps
        self._candidates = energy.coupled.clone()
        self._all = int(self._candidates.sum())
        self._last = max(1, round(share * self._all))
        if grows:
            energy.couple(torch.zeros_like(self._candidates))

    def wanted(self, steps: int) -> int:
        """Returns how many pairs are coupled after so many `steps`."""
        first = 0 if self._grows else self._all
        return first + round(min(1.0, steps / self._steps) * (self._last - first))

    def revise(self, steps: int) -> None:
        """Changes the graph if it is its turn in the last of so many `steps`, by the gradient that
        the parameters have. A gradient that is not finite adds no pair.
        """
        if steps % EVERY:
            return
        energy, coupled = self._energy, self._energy.coupled
        few = self.wanted(steps) - int(coupled.sum())
        few = few if self._grows else -few
        if few <= 0:
            return
        if self._grows:
            worth = energy.gains(DAMPING)
            if not worth.isfinite().all():
                return
            chosen = worth.masked_fill(coupled | ~self._candidates, -torch.inf).topk(few).indices
        else:
            chosen = energy.losses().masked_fill(~coupled, torch.inf).topk(few, largest=False)[1]
        energy.couple(coupled.index_fill(0, chosen, self._grows))

    def settle(self, averages: Iterable[Tensor]) -> None:
        """Puts couplings that were let go to 0 once more after a step, whose momentum has moved
        them, and in the `averages` of the parameters too.
        """
        self._energy.hold()
        held = ~self._energy.coupled
        for values in averages:
            if values.shape == self._energy.coupling.shape:
                values[held] = 0.0

    def state(self) -> Tensor:
        """Returns which pairs are coupled, [P] bool: all that a run which goes on needs to know."""
        return self._energy.coupled

    def load_state(self, coupled: Tensor) -> None:
        """Goes on with the pairs that are `coupled` [P]."""
        self._energy.couple(coupled)

    def figures(self) -> dict[str, float]:
        """Returns the number of `coupled_pairs`."""
        return {"coupled_pairs": float(self._energy.coupled.sum())}
