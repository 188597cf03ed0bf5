"""The optimizer and its schedule."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pipeline.config.sections import Optimizer
from pipeline.energies.base import Energy
from pipeline.training.gradient import Gradient

SEARCHED, REMEMBERED = 25, 6
"""The most weights that a line search looks at, and the changes that L-BFGS remembers (Nocedal &
Wright 2006, section 7.2: 3 to 20; libLBFGS has 6).
"""


class LineSearch:
    """The steps of an L-BFGS `optimizer`, which looks at the loss of other weights than those it
    began with. Mostly the weights it looks at last are those that it takes: then the next step has
    their gradient.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, learned: Sequence[Tensor]) -> None:
        self._optimizer, self._learned = optimizer, learned
        self._seen: list[Tensor] | None = None
        self._found: tuple[float, dict[str, float]] = (0.0, {})

    def stands(self, gradient: Gradient) -> bool:
        """Returns whether the parameters have the gradient at where they are, and then gives
        `gradient` the loss that was found there.
        """
        if self._seen is None or not all(map(torch.equal, self._seen, self._learned)):
            return False
        gradient.put_back(*self._found)
        return True

    def step(self, loss: float, evaluate: Callable[[], None], gradient: Gradient) -> None:
        """Moves from where the `loss` and its gradient are there; `evaluate` adds those of the
        parameters as they are to `gradient`.
        """
        first = True

        def closure() -> float:
            nonlocal first
            if first:
                first = False
                return loss
            evaluate()
            self._found = gradient.take()
            self._seen = [parameter.detach().clone() for parameter in self._learned]
            return self._found[0]

        self._seen = None
        self._optimizer.step(closure)


def learning_rate(optimizer: Optimizer, step: int, steps: int) -> float:
    """Rate of step `step` (from 0) of `steps`: linear warm-up, then constant, or falling to 0
    linearly or as a cosine.
    """
    rate = optimizer.learning_rate
    if step < optimizer.warmup:
        return rate * (step + 1) / optimizer.warmup
    if optimizer.schedule == "constant":
        return rate
    done = min((step - optimizer.warmup) / max(1, steps - optimizer.warmup), 1.0)
    return rate * (
        1 - done if optimizer.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    )


def make_optimizer(
    config: Optimizer, energy: Energy, beside: Sequence[Tensor]
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Kingma & Ba 2015; Loshchilov & Hutter 2019), or SGD, of
    natural gradients too; the rate is set anew each step. Or L-BFGS (Nocedal & Wright 2006,
    algorithm 7.5), one iteration a step, with a line search for the strong Wolfe conditions.

    `beside`: parameters of the objectives, which no decay touches. Parameters that are split among
    ranks are updated one operation after the other; others by torch's fused form, in one pass.
    """
    named = [
        (name, parameter)
        for name, parameter in energy.named_parameters()
        if parameter.requires_grad
    ]
    if config.name == "lbfgs":
        return eager(torch.optim.LBFGS)(
            [*(parameter for _, parameter in named), *beside],
            lr=config.learning_rate,
            max_iter=1,
            max_eval=SEARCHED,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            history_size=REMEMBERED,
            line_search_fn="strong_wolfe",
        )
    decayed = [parameter for name, parameter in named if name not in energy.undecayed]
    others = [*(parameter for name, parameter in named if name in energy.undecayed), *beside]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": config.weight_decay}]
    groups += [{"params": others, "weight_decay": 0.0}] if others else []
    fused = not any(hasattr(parameter, "full_tensor") for parameter in decayed) or None
    if config.name == "adam":
        betas = (config.momentum, config.beta2)
        return eager(torch.optim.AdamW)(groups, lr=config.learning_rate, betas=betas, fused=fused)
    return eager(torch.optim.SGD)(groups, config.learning_rate, config.momentum, fused=fused)


@cache
def eager(kind: type[torch.optim.Optimizer]) -> type[Any]:
    """Returns `kind` without what torch wraps its methods in for `torch.compile`. The first call of
    any that is wrapped imports `torch._dynamo`, which takes as long as all of torch does.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    step = inspect.unwrap(kind.step)

    def without_gradient(self: torch.optim.Optimizer, closure: Any = None) -> Any:
        with torch.no_grad():
            return step(self, closure)

    return type(kind.__name__, (kind,), {**methods, "step": without_gradient})
