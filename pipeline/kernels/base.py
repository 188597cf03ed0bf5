"""The shape every kernel has: a pair of functions on named tuples of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.energies.base import Target

Scale = float | Tensor
"""A number, or one for each chain, `[N]`."""


class Info(NamedTuple):
    """`acceptance` [N]: the probability with which each chain's proposal was accepted (1 where nothing is rejected).

    `swaps` [R - 1]: on a ladder of R rungs, the mean probability with which neighbouring rungs exchanged; else None.
    """

    acceptance: Tensor
    swaps: Tensor | None = None


class State(Protocol):
    """A named tuple with at least a `position` [N, *shape]; one that caches more (`energy` [N], `gradient` [N, *shape], nats)
    holds only under the target it was made with.
    """

    @property
    def position(self) -> Tensor: ...


class EnergyState(NamedTuple):
    position: Tensor
    energy: Tensor


class GradientState(NamedTuple):
    position: Tensor
    energy: Tensor
    gradient: Tensor


class Kernel(NamedTuple):
    """`init(position, target) -> State`; `step(generator, state, target, **parameters) -> (State, Info)`."""

    init: Callable[[Tensor, Target], Any]
    step: Callable[..., tuple[Any, Info]]


def init_energy(position: Tensor, target: Target) -> EnergyState:
    return EnergyState(position, target.energy(position))


def init_gradient(position: Tensor, target: Target) -> GradientState:
    return GradientState(position, *target.energy_and_gradient(position))


def metropolis(generator: torch.Generator, log_ratio: Tensor, moved: Any, state: Any) -> tuple[Any, Tensor]:
    """The accept step: `moved` with probability min(1, exp(log_ratio)) [N], else `state`; and that probability.

    A ratio or an energy that is not finite is a rejection, so that a proposal with either is never entered.
    """
    # an energy of -inf would be accepted for ever; one of inf makes the ratio -inf
    finite = moved.energy.isfinite() & log_ratio.isfinite()
    acceptance = torch.where(finite, log_ratio.clamp(max=0).exp(), 0.0)
    accepted = torch.empty_like(acceptance).uniform_(generator=generator) < acceptance
    return choose(accepted, moved, state), acceptance


def choose(accepted: Tensor, moved: Any, state: Any) -> Any:
    """The state with each field of `moved` in the chains whose proposal was `accepted` [N] bool, of `state` in the others."""
    fields = zip(moved, state, strict=True)
    return type(state)(*(torch.where(per_chain(accepted, new), new, old) for new, old in fields))


def broken(state: Any) -> Tensor:
    """[N] bool: which chains are not finite, in their position or in anything cached with it."""
    return ~torch.stack([field.flatten(1).isfinite().all(1) if field.ndim > 1 else field.isfinite() for field in state]).all(0)


def levels_of(target: Target) -> int:
    """q of a discrete target; a discrete kernel on any other is refused when a configuration is checked."""
    assert target.levels is not None, "a discrete kernel needs an energy over {0, ..., q-1}^d"
    return target.levels


def normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal draws of the shape, dtype and device of `x`."""
    return torch.empty_like(x).normal_(generator=generator)


def per_chain(values: Tensor, like: Tensor) -> Tensor:
    """`[N]` shaped to broadcast over `[N, *shape]`."""
    return values.view(-1, *(1,) * (like.ndim - 1))


def add_scaled(x: Tensor, y: Tensor, scale: Scale) -> Tensor:
    """x + scale y, `[N, *shape]`."""
    return torch.addcmul(x, y, per_chain(scale, y)) if isinstance(scale, Tensor) else torch.add(x, y, alpha=scale)


def squared_norm(x: Tensor) -> Tensor:
    """|x|^2 by chain, `[N, *shape] -> [N]`."""
    return x.flatten(1).square().sum(1)
