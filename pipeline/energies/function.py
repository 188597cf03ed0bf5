"""An energy that is a function of the user's own, as it stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pipeline.common.errors import ArgumentError
from pipeline.energies.base import Energy

Function = Callable[[Tensor], Tensor]
"""Positions `[N, *shape]` to energies `[N]`, nats: a function, a module, or a method of one."""


class FunctionEnergy(Energy):
    """E(x) = `function`(x), with nothing added, on the domain given. On R^d, N(0, `base_scale`^2)
    is its base law, and no part of E.

    A module stays as it is: kernels look at a replica of it (`frozen`), and so for a module whose
    method is given. A function that calls a module runs it in the mode that it is in.

    Raises `ArgumentError` where `function` is none; when called, where it does not return one
    energy for each row, or where a gradient is asked of one that has none.
    """

    def __init__(
        self,
        function: Function,
        shape: Sequence[int],
        *,
        levels: int | None = None,
        box: tuple[float, float] | None = None,
        base_scale: float = 1.0,
    ) -> None:
        super().__init__(shape, levels=levels, box=box, base_scale=base_scale)
        if not callable(function):
            remedy = "should be a function or a module from positions [N, *shape] to nats [N]"
            raise ArgumentError("energy", type(function).__name__, remedy)
        owner = getattr(function, "__self__", None)
        self.owner = owner if isinstance(owner, nn.Module) else None
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Returns the function's own values. Raises `ArgumentError` where they are no energies."""
        value = self.function(x)
        name = getattr(self.function, "__name__", type(self.function).__name__)
        if not isinstance(value, Tensor) or value.shape != (len(x),):
            given = (
                f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            )
            remedy = f"gave {given} for x of shape {list(x.shape)}; should give shape [{len(x)}]"
            raise ArgumentError("energy", name, f"{remedy}, one energy a row")
        if x.requires_grad and torch.is_grad_enabled() and not value.requires_grad:
            remedy = "has no gradient in x; should be worked out from x by torch, nothing detached"
            raise ArgumentError("energy", name, remedy)
        return value
