"""The shape every kernel has: a pair of functions on named tuples of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.energies.base import Target


class Info(NamedTuple):
    """`acceptance` [N]: the probability with which each chain's proposal was accepted (1 where nothing is rejected)."""

    acceptance: Tensor


class State(Protocol):
    """A named tuple with at least a `position` [N, *shape]; one that caches more (`energy` [N], `gradient` [N, *shape], nats)
    holds only under the target it was made with.
    """

    @property
    def position(self) -> Tensor: ...


class Kernel(NamedTuple):
    """`init(position, target) -> State`; `step(generator, state, target, **parameters) -> (State, Info)`."""

    init: Callable[[Tensor, Target], Any]
    step: Callable[..., tuple[Any, Info]]


def normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal draws of the shape, dtype and device of `x`."""
    return torch.empty_like(x).normal_(generator=generator)


def choose(accepted: Tensor, moved: Any, state: Any) -> Any:
    """The state with each field of `moved` in the chains whose proposal was `accepted` [N] bool, of `state` in the others."""
    fields = zip(moved, state, strict=True)
    return type(state)(*(torch.where(per_chain(accepted, new), new, old) for new, old in fields))


def per_chain(values: Tensor, like: Tensor) -> Tensor:
    """`[N]` shaped to broadcast over `[N, *shape]`."""
    return values.view(-1, *(1,) * (like.ndim - 1))
