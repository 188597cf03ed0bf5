"""Stale negatives moved under the newest weights before they are learned from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.chains.sampler import ChainPlan, Sampler
from pipeline.energies.base import Energy


class Refresher:
    """Makes the transitions of a `plan` under the weights that `energy` has when they are asked
    for, with random draws from the `generator`. A step size that is adapted is adapted here anew.
    """

    def __init__(self, energy: Energy, plan: ChainPlan, generator: torch.Generator) -> None:
        self._plan, self._generator = plan, generator
        self._sampler = Sampler(energy, plan, 1, generator)

    def move(self, position: Tensor, context: Tensor | None = None) -> Tensor:
        """The positions [N, *shape], under `context` [N, *context_shape] where the model is
        conditional, after the plan's transitions, `[N, *shape]`. A chain that is no longer finite
        stays where it was.
        """
        self._sampler.refresh()
        self._sampler.bind(context)
        self._sampler.position = position
        done = self._sampler.advance(self._generator, self._plan.transitions)
        kept = done.broken.view(-1, *(1,) * (position.ndim - 1))
        return torch.where(kept, position, self._sampler.position)

    def state_dict(self) -> dict[str, Any]:
        return {"tuning": self._sampler.tuning(), "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sampler.load_tuning(state["tuning"])
        self._generator.set_state(state["generator"])
