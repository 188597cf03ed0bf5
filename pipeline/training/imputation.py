"""Values that training rows lack, drawn from the model as it learns, given what is there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.common.rng import torch_generator
from pipeline.common.types import Rows
from pipeline.data.base import Positives
from pipeline.energies.base import Energy


class ImputedPositives:
    """The rows of a `stream`, of which those that `missing` [R, *shape] says lack something get it
    from a chain of their own.

    Row number i's chain is at `rows[i]` [*shape] at first. Each time that the row comes it makes so
    many `sweeps` of Gibbs sampling under `energy`, which a learner changes meanwhile, with what is
    there held, and so is on its way to p(missing | there). Averaged over such rows, the gradient of
    E is that of the log-likelihood of what is there: d log p(v_there) = -E[dE | v_there] + E[dE]
    (the E-step of Monte Carlo EM, Wei & Tanner 1990; persistent, as Younes 1999). The random
    stream is `SeedSequence(seed, "imputation")`.
    """

    def __init__(
        self,
        stream: Positives,
        energy: Energy,
        rows: Tensor,
        missing: Tensor,
        sweeps: int,
        seed: int,
    ) -> None:
        self._stream, self._energy, self._sweeps, self._seed = stream, energy, sweeps, seed
        lacking = missing.flatten(1).any(1)
        # the place of each row among those that lack something; of others -1
        self._place = torch.where(lacking, lacking.cumsum(0) - 1, -1)
        self._missing, self._filled = missing[lacking], rows[lacking].clone()
        self._device = next(energy.parameters()).device
        self._generator = torch_generator(seed, "imputation", device=self._device)
        self._calls = 0

    def next(self, count: int) -> Rows:
        """Returns the stream's next `count` rows, filled."""
        rows = self._stream.next(count)
        assert rows.number is not None, "rows in memory are numbered"
        self._calls += 1
        place = self._place[rows.number]
        own = place >= 0
        if not bool(own.any()):
            return rows
        self._move(place[own].unique())  # a row may come twice, where an epoch ends
        position = rows.position.clone()
        chosen = place[own]
        position[own] = torch.where(self._missing[chosen], self._filled[chosen], position[own])
        return rows._replace(position=position)

    @torch.no_grad()
    def _move(self, chosen: Tensor) -> None:
        """Moves the chains at these places, [n]."""
        like = next(self._energy.parameters())
        x, free = self._filled[chosen].to(like), self._missing[chosen].to(like.device)
        for _ in range(self._sweeps):
            value = x
            for block in self._energy.blocks:
                value = self._energy.conditional(block, value).sample(self._generator)
            x = torch.where(free, value, x)
        self._filled[chosen] = x.to(self._filled)

    def state_dict(self) -> dict[str, Any]:
        """Returns the place in the stream, the chains and their random stream."""
        return {
            **self._stream.state_dict(),
            "imputed": {
                "filled": self._filled.clone(),
                "generator": self._generator.get_state(),
                "calls": self._calls,
                "device": self._device.type,
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there; on another kind of device, in a random stream that was never used."""
        self._stream.load_state_dict(state)
        own = state["imputed"]
        self._filled, self._calls = own["filled"].clone(), own["calls"]
        if own["device"] == self._device.type:
            self._generator.set_state(own["generator"])
        else:
            self._generator = torch_generator(
                self._seed, "imputation", 0, self._calls + 1, device=self._device
            )
