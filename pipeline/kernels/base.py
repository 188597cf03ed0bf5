"""The shape every kernel has: a pair of functions on named tuples of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.common.rng import Source, blocks, uniform_like
from pipeline.energies.target import Target

# numbers in a row from which, on a CPU, copying some rows is quicker than choosing among all
WORTH_INDEXING = 64
Scale = float | Tensor
"""A number, or one for each chain, `[N]`."""


class Info(NamedTuple):
    """`acceptance` [N]: the probability with which each chain's proposal was accepted (1 where
    nothing is rejected).

    `swaps` [R - 1]: on a ladder of R rungs, the mean probability with which neighbouring rungs
    exchanged; else None. `log_weights` [2, R - 1, N]: there too, those of Bennett's estimate
    (`pipeline.kernels.replica_exchange.swap`). `noise` [N, *shape]: the standard normal draws that
    a replay needs, of kernels that can be replayed.
    """

    acceptance: Tensor
    swaps: Tensor | None = None
    noise: Tensor | None = None
    log_weights: Tensor | None = None


class State(Protocol):
    """A named tuple with at least a `position` [N, *shape]; one that caches more (`energy` [N],
    `gradient` [N, *shape], nats) holds only under the target it was made with.
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
    """`init(position, target) -> State`; `step(generator, state, target, **parameters) -> (State,
    Info)`.

    `replay(previous, noise, target, **parameters) -> position`, where there is one: the same
    transition as a function of the weights, for a `target` whose `gradient` has a graph.

    `streams`: `step` also takes `Streams` for the generator, and moves each block of chains as it
    would alone, as far as the target's arithmetic is the same for a row in any batch.
    """

    init: Callable[[Tensor, Target], Any]
    step: Callable[..., tuple[Any, Info]]
    replay: Callable[..., Tensor] | None = None
    streams: bool = False


def init_energy(position: Tensor, target: Target) -> EnergyState:
    return EnergyState(position, target.energy(position))


def init_gradient(position: Tensor, target: Target) -> GradientState:
    return GradientState(position, *target.energy_and_gradient(position))


def metropolis(generator: Source, log_ratio: Tensor, moved: Any, state: Any) -> tuple[Any, Tensor]:
    """The accept step: `moved` with probability min(1, exp(log_ratio)) [N], else `state`; and that
    probability.

    A ratio that is not finite is a rejection; an energy that is not makes it so, and such a
    proposal is never entered.
    """
    acceptance = log_ratio.nan_to_num(nan=-torch.inf, posinf=-torch.inf).clamp_(max=0).exp_()
    accepted = uniform_like(acceptance, generator) < acceptance
    return choose(accepted, moved, state), acceptance


def choose(accepted: Tensor, moved: Any, state: Any) -> Any:
    """The state with each field of `moved` in the chains whose proposal was `accepted` [N] bool, of
    `state` in the others.

    `moved` is the step's own, and may be overwritten.
    """
    if (
        accepted.is_cuda or state.position[0].numel() < WORTH_INDEXING
    ):  # on a GPU an index would have the host wait
        fields = zip(moved, state, strict=True)
        return type(state)(
            *(torch.where(per_chain(accepted, new), new, old) for new, old in fields)
        )
    rejected = (~accepted).nonzero()[:, 0]
    for new, old in zip(moved, state, strict=True):
        new.index_copy_(0, rejected, old.index_select(0, rejected))
    return moved


def broken(fields: Sequence[Tensor]) -> Tensor:
    """[N] bool: which chains are not finite in any of the `fields` [N, ...] that are theirs: the
    position, and what is cached with it.
    """
    if math.isfinite(sum(field.sum() for field in fields)):  # mostly, and at once
        return torch.zeros(len(fields[0]), dtype=torch.bool, device=fields[0].device)
    return ~torch.stack(
        [
            field.flatten(1).isfinite().all(1) if field.ndim > 1 else field.isfinite()
            for field in fields
        ]
    ).all(0)


def levels_of(target: Target) -> int:
    """q of a discrete target; a discrete kernel on any other is refused when a configuration is
    checked.
    """
    assert target.levels is not None, "a discrete kernel needs an energy over {0, ..., q-1}^d"
    return target.levels


def normal_like(x: Tensor, generator: Source) -> Tensor:
    """Standard normal draws of the shape [N, ...], dtype and device of `x`."""
    drawn = torch.empty_like(x)
    for block, own in blocks(drawn, generator):
        block.normal_(generator=own)
    return drawn


def per_chain(values: Tensor, like: Tensor) -> Tensor:
    """`[N]` shaped to broadcast over `[N, *shape]`."""
    return values if like.ndim == 1 else values.view(-1, *(1,) * (like.ndim - 1))


def add_scaled(x: Tensor, y: Tensor, scale: Scale, out: Tensor | None = None) -> Tensor:
    """x + scale y, `[N, *shape]`; into `out` where that is given."""
    if isinstance(scale, Tensor):
        return torch.addcmul(x, y, per_chain(scale, y), out=out)
    return torch.add(x, y, alpha=scale, out=out)
