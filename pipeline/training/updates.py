"""Updates of the parameters, once their gradient is there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pipeline.common.errors import DivergenceError
from pipeline.config.sections import Optimizer
from pipeline.energies.base import Energy
from pipeline.energies.deep import iterate_spectral_norms
from pipeline.objectives.contrastive import FastWeights
from pipeline.training.gradient import Gradient
from pipeline.training.graph_schedule import GraphSchedule
from pipeline.training.optimizer import LineSearch, learning_rate, make_optimizer
from pipeline.training.ranks import (
    Alone,
    load_moments,
    optimizer_state,
    split_as,
    stored,
    whole,
)

MAX_SKIPPED_IN_A_ROW = 20


class Updates:
    """The parameters of an `energy` that lies on its ranks as `layout` says, and those `beside` it,
    which are the objectives'; their optimizer, the moving average of the energy's, the `fast`
    weights that chains run under besides, and the `graph`, which changes the pairs of sites that
    are coupled, where there are such. `steps` is how many the run makes.

    An update is skipped where the loss or gradient is not finite. After 20 of those in a row it
    raises `DivergenceError`.
    """

    def __init__(
        self,
        config: Optimizer,
        steps: int,
        energy: Energy,
        beside: Sequence[nn.Parameter],
        layout: Alone,
        fast: Callable[[Sequence[Tensor]], FastWeights] | None,
        graph: Callable[[Energy], GraphSchedule] | None,
    ) -> None:
        self._config, self._steps, self._energy, self._layout = config, steps, energy, layout
        self.parameters = [p for p in energy.parameters() if p.requires_grad]
        self.learned = [*self.parameters, *beside]
        self.graph = None if graph is None else graph(energy)
        self.average: list[Tensor] = []
        self.begin_average()
        self._fast = None if fast is None else fast(self.parameters)
        self.optimizer = make_optimizer(config, energy, beside)
        searches = config.name == "lbfgs"
        self._search = LineSearch(self.optimizer, self.learned) if searches else None
        self._skipped_in_a_row = 0
        self.rate_factor = 1.0

    def begin_average(self) -> None:
        """Begins the average at the parameters as they are; where it never differs from them, it is
        the same memory.
        """
        own = [parameter.detach() for parameter in self.parameters]
        self.average = [some.clone() for some in own] if self._config.ema else own

    def published(self) -> Sequence[Tensor]:
        """The parameters that chains are to run under."""
        if self._fast is None:
            return self.parameters
        return [own + fast for own, fast in zip(self.parameters, self._fast.values, strict=True)]

    def stands(self, gradient: Gradient) -> bool:
        """Returns whether the parameters have their gradient from the search of the last step, and
        then gives `gradient` the loss that was found there.
        """
        return self._search is not None and self._search.stands(gradient)

    def rate(self, version: int) -> float:
        """The learning rate of step `version`."""
        return learning_rate(self._config, version, self._steps) * self.rate_factor

    def hold(self, version: int) -> None:
        """Changes the graph if it is its turn at step `version`. Parameters that the energy holds
        are where they belong then, and have no gradient.
        """
        if self.graph is not None:
            self.graph.revise(version + 1)
        self._energy.hold()

    def step(
        self, loss: float, version: int, evaluate: Callable[[], None], gradient: Gradient
    ) -> tuple[float, bool]:
        """Clips and applies the gradient at `loss`, unless one of the two is not finite; returns
        the norm before, and whether it was skipped. `evaluate` adds the gradient of the parameters
        as they are to `gradient`, for a line search.
        """
        norm = self._clip()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._skip(version)
            return norm, True
        self._skipped_in_a_row = 0
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(version)
        if self._config.name == "natural":
            self._energy.to_natural_(self._config.damping)
        if self._fast is not None:
            self._fast.update([p.grad for p in self.parameters if p.grad is not None])
        if self._search is None:
            self.optimizer.step()
        else:
            self._search.step(loss, evaluate, gradient)
        with self._layout.whole():
            iterate_spectral_norms(self._energy)
        # a short run's average would be all start: warm the decay up (as TensorFlow's
        # ExponentialMovingAverage does)
        decay = min(self._config.ema, (1 + version) / (10 + version))
        get_ema_multi_avg_fn(decay)(self.average, self.parameters, None)
        if self.graph is not None:
            self.graph.settle(self.average)
        return norm, False

    def _clip(self) -> float:
        """Clips the gradient, and returns its norm before."""
        # of every gradient, so that a NaN in one is seen behind a loss that is finite
        total = nn.utils.get_total_norm([p.grad for p in self.learned if p.grad is not None])
        if self._config.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.learned, self._config.clip_norm, total)
        return float(whole(total))

    def _skip(self, version: int) -> None:
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise DivergenceError(
                f"{MAX_SKIPPED_IN_A_ROW} steps in a row had a loss or gradient that is not"
                f" finite (step {version}); lower optimizer.learning_rate or"
                " kernel.step_size, set optimizer.clip_norm, or raise objective.energy_l2"
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything but the parameters themselves, tensors and plain numbers only; the same
        however the model lies on its ranks.
        """
        return {
            "average": [stored(tensor) for tensor in self.average],
            "optimizer": optimizer_state(self.optimizer),
            "fast": None if self._fast is None else self._fast.values,
            "graph": None if self.graph is None else self.graph.state(),
            "rate": {"configured": self._config.learning_rate, "factor": self.rate_factor},
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Takes up what `state_dict` returned. A learning rate that was configured anew is what is
        wanted, whatever rollbacks had made of the one before.
        """
        pairs = zip(state["average"], self.parameters, strict=True)
        self.average = [
            split_as(tensor.to(device), parameter.detach()) for tensor, parameter in pairs
        ]
        load_moments(self.optimizer, state["optimizer"])
        if self._fast is not None:
            self._fast.values = [tensor.to(device) for tensor in state["fast"]]
        # a run whose graph was fixed, or of before there were others, has none
        if self.graph is not None and state.get("graph") is not None:
            self.graph.load_state(state["graph"])
        rate = state.get("rate", {})
        if rate.get("configured") == self._config.learning_rate:
            self.rate_factor = rate["factor"]
