"""Conditional energies E(x | c): p(x | c) = exp(-E(x | c)) / Z(c), one Z for each context c."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.common.errors import ArgumentError
from pipeline.energies.arguments import contexts, guarded
from pipeline.energies.base import Energy
from pipeline.energies.discrete import ENUMERABLE_STATES, all_states, log_sum_over_states


class ConditionalEnergy(Energy):
    """An energy over positions x `[N, *shape]` under contexts `[N, *context_shape]`; it brings
    `encode` and `of`.

    `given(context)` is an energy of positions alone, and all that kernels, chains and objectives
    ever see.
    """

    context_shape: tuple[int, ...]

    def __init__(
        self,
        shape: Sequence[int],
        context_shape: Sequence[int],
        *,
        levels: int | None = None,
        box: tuple[float, float] | None = None,
        base_scale: float = 1.0,
    ) -> None:
        super().__init__(shape, levels=levels, box=box, base_scale=base_scale)
        self.context_shape = tuple(context_shape)

    def encode(self, context: Tensor) -> Tensor:
        """The encoding of the contexts `[N, *context_shape]` that `of` needs, `[N, ...]`; it is
        worked out once for many positions.
        """
        return context

    def of(self, x: Tensor, encoding: Tensor) -> Tensor:
        """E(x | c) of positions `[N, *shape]` under encodings `[N, ...]`, `[N]` nats. It writes to
        neither.
        """
        raise NotImplementedError

    def of_all(self, states: Tensor, encoding: Tensor) -> Tensor:
        """E(x | c) of each of the `states` `[S, *shape]` under each of the encodings `[N, ...]`,
        `[S, N]` nats.
        """
        return self.of(
            states.repeat_interleave(len(encoding), 0), repeated(encoding, len(states))
        ).view(len(states), len(encoding))

    def gradient_of(self, x: Tensor, encoding: Tensor) -> tuple[Tensor, Tensor]:
        """`of`, and its gradient in x as `Energy.energy_and_gradient` has it; by autograd, a model
        may bring its own way.
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.of(x, encoding)
            (gradient,) = torch.autograd.grad(energy.sum(), x)
        return energy.detach(), gradient.contiguous()

    def log_sum_of(self, encoding: Tensor) -> Tensor | None:
        """log Z(c) `[N]`, nats, with a graph, where it can be had exactly: here by enumeration of
        at most 2^20 states.
        """
        if self.levels is None or self.levels**self.dimension > ENUMERABLE_STATES:
            return None
        return log_sum_over_states(
            self.levels,
            self.dimension,
            lambda states: -self.of_all(states.view(-1, *self.shape), encoding),
            encoding,
        )

    def argmax_of(self, encoding: Tensor) -> Tensor | None:
        """The most probable positions `[N, *shape]`, where they can be had exactly: here by
        enumeration of at most 2^20 states. Of several that are equally probable, one.
        """
        if self.levels is None or self.levels**self.dimension > ENUMERABLE_STATES:
            return None
        least = encoding.new_full((len(encoding),), torch.inf)
        position = encoding.new_zeros(len(encoding), *self.shape)
        for states in all_states(self.levels, self.dimension, encoding.device):
            x = states.to(encoding.dtype).view(-1, *self.shape)
            energies, number = self.of_all(x, encoding).min(0)
            lower = energies < least
            least[lower], position[lower] = energies[lower], x[number[lower]]
        return position

    def forward(self, x: Tensor) -> Tensor:  # noqa: ARG002 - some have a law without contexts
        """Raises `ArgumentError`: E(x | c) is of a position under a context."""
        remedy = "energies are of positions under a context; use energy.given(context)(x)"
        raise ArgumentError("context", "(missing)", remedy)

    def given(self, context: Tensor | None) -> Energy:
        return self if context is None else self.bound(context)

    def bound(self, context: Tensor) -> Given:
        """E(x | c) as an energy of positions under contexts c `[N, *context_shape]`."""
        return (
            guarded(Given(self, contexts(self, context))) if self.guarded else Given(self, context)
        )


class Given(Energy):
    """A conditional energy bound to contexts `[N, *context_shape]`: an energy of positions.

    Of k N positions, copies of all N one after the other, row i has context i mod N: what a kernel
    or an objective asks that looks at several positions for each chain or row. The encoding is
    worked out here; under weights that changed, bind anew.
    """

    def __init__(self, energy: ConditionalEnergy, context: Tensor) -> None:
        super().__init__(
            energy.shape, levels=energy.levels, box=energy.box, base_scale=energy.base_scale
        )
        self.energy, self.contexts = energy, len(context)
        self._context, self._encoding = context, energy.encode(context)

    def __deepcopy__(self, memo: dict[int, Any]) -> Given:
        """Return the model's copy, bound to the same contexts: an encoding with a graph cannot be
        copied.
        """
        return Given(copy.deepcopy(self.energy, memo), self._context)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Given:
        """The contexts follow the model to another device or precision."""
        super()._apply(fn, recurse)
        self._context = fn(self._context)
        self._encoding = self.energy.encode(self._context)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Given:
        """Sets it for the model, and the encoding follows: of a model that is frozen it has no
        graph, which a chain would go on building.
        """
        super().requires_grad_(requires_grad)
        self._encoding = self.energy.encode(self._context)
        return self

    def _encodings(self, x: Tensor) -> Tensor:
        return repeated(self._encoding, len(x) // self.contexts)

    def forward(self, x: Tensor) -> Tensor:
        return self.energy.of(x, self._encodings(x))

    def energy_and_gradient(self, x: Tensor, beta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The model's own, also on a ladder."""
        return self.on_ladder(x, *self.energy.gradient_of(x, self._encodings(x)), beta)

    def log_sum(self) -> Tensor | None:
        return self.energy.log_sum_of(self._encoding)

    def argmax(self) -> Tensor | None:
        return self.energy.argmax_of(self._encoding)


def repeated(encoding: Tensor, copies: int) -> Tensor:
    """`copies` of `[N, ...]` one after the other, `[copies N, ...]`; not to be written to."""
    if len(encoding) == 1:
        return encoding.expand(copies, *encoding.shape[1:])
    return encoding if copies == 1 else encoding.repeat(copies, *(1,) * (encoding.ndim - 1))
