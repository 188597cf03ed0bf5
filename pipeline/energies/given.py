"""Conditional energies E(x | c): p(x | c) = exp(-E(x | c)) / Z(c), one Z for each context c."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.energies.base import Energy
from pipeline.energies.discrete import ENUMERABLE_STATES, all_states


class ConditionalEnergy(Energy):
    """What an energy over positions x `[N, *shape]` under contexts `[N, *context_shape]` brings: `encode` and `of`.

    `given(context)` is an energy of positions alone, and all that kernels, chains and objectives ever see.
    """

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
        """What `of` needs of the contexts `[N, *context_shape]`, `[N, ...]`; worked out once for many positions."""
        return context

    def of(self, x: Tensor, code: Tensor) -> Tensor:
        """E(x | c) of positions `[N, *shape]` under codes `[N, ...]`, `[N]` nats."""
        raise NotImplementedError

    def gradient_of(self, x: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """`of`, and its gradient in x as `Energy.energy_and_gradient` has it; by autograd, a model may bring its own way."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.of(x, code)
            (gradient,) = torch.autograd.grad(energy.sum(), x)
        return energy.detach(), gradient.contiguous()

    def log_sum_of(self, code: Tensor) -> Tensor | None:
        """log Z(c) `[N]`, nats, with a graph, where it can be had exactly: here by enumeration of at most 2^20 states."""
        if self.levels is None or self.levels**self.dimension > ENUMERABLE_STATES:
            return None
        sums = []
        for states in all_states(self.levels, self.dimension, code.device):
            x = states.to(code.dtype).repeat_interleave(len(code), 0).view(-1, *self.shape)
            energies = self.of(x, repeated(code, len(states)))
            sums.append(torch.logsumexp(-energies.view(len(states), len(code)), 0))
        return torch.logsumexp(torch.stack(sums), 0)

    def given(self, context: Tensor | None) -> Energy:
        return self if context is None else Given(self, context)


class Given(Energy):
    """A conditional energy bound to contexts `[N, *context_shape]`: an energy of positions.

    Of k N positions, copies of all N one after the other, row i has context i mod N: what a kernel or an objective asks that
    looks at several positions for each chain or row.
    """

    def __init__(self, energy: ConditionalEnergy, context: Tensor) -> None:
        super().__init__(energy.shape, levels=energy.levels, box=energy.box, base_scale=energy.base_scale)
        self.energy, self.contexts = energy, len(context)
        self._code = energy.encode(context)

    def _codes(self, x: Tensor) -> Tensor:
        return repeated(self._code, len(x) // self.contexts)

    def forward(self, x: Tensor) -> Tensor:
        return self.energy.of(x, self._codes(x))

    def energy_and_gradient(self, x: Tensor, beta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The model's own, and on a ladder (1 - beta) grad E_0 + beta grad E."""
        energy, gradient = self.energy.gradient_of(x, self._codes(x))
        if beta is None:
            return energy, gradient
        weight = beta.view(-1, *(1,) * (gradient.ndim - 1))
        gradient = weight * gradient
        if self.levels is None and self.box is None:
            gradient += (1 - weight) * x / self.base_scale**2
        return (1 - beta) * self.base(x) + beta * energy, gradient

    def log_sum(self) -> Tensor | None:
        return self.energy.log_sum_of(self._code)


def repeated(code: Tensor, copies: int) -> Tensor:
    """`copies` of `[N, ...]` one after the other, `[copies N, ...]`."""
    return code if copies == 1 else code.repeat(copies, *(1,) * (code.ndim - 1))
