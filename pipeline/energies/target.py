"""A target: an energy as a kernel sees it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from pipeline.energies.base import Energy
from pipeline.energies.conditionals import Conditional
from pipeline.energies.frozen import frozen, pairs
from pipeline.energies.function import Function, FunctionEnergy


class Target:
    """An energy bound to its weights, to a context where it has one, and on a ladder to `beta` [N]:
    what a kernel samples from.

    A function or a module that is no `Energy` is taken on R^d, without a base term; for another
    domain give a `FunctionEnergy`. The energy itself stays as it is: a target looks at its weights
    through a replica of its own (`frozen`), which builds no graph. Energies and gradients cached in
    a kernel's State hold only under the weights that made them; when the energy's weights change,
    call `refresh`, then the kernel's `init` again. Outside a box the energy is inf.

    With `gradient_dtype` = torch.bfloat16 gradients come from a copy of the energy in that
    precision, energies as ever. MALA and HMC stay exact: their accept step holds for any proposal
    drift that is a fixed function of the position.
    """

    def __init__(
        self,
        energy: Energy | Function,
        beta: Tensor | None = None,
        gradient_dtype: torch.dtype | None = None,
        context: Tensor | None = None,
    ) -> None:
        if not isinstance(energy, Energy):
            energy = FunctionEnergy(energy, ())
        self._energy = frozen(energy)
        self._pairs = pairs(self._energy, energy)
        self._rough = None
        if gradient_dtype is not None:
            self._rough = copy.deepcopy(self._energy).to(gradient_dtype)
        self._gradient_dtype = gradient_dtype
        self.beta = beta
        self.blocks, self.levels, self.box = energy.blocks, energy.levels, energy.box
        self.bind(context)

    def bind(self, context: Tensor | None) -> None:
        """From now on under `context` [N, *context_shape], one a chain: None where the energy
        conditions on nothing.
        """
        self._context = context
        self._bound = self._energy.given(context)
        if self._rough is not None:
            self._bound_rough = self._rough.given(
                None if context is None else context.to(self._gradient_dtype)
            )

    def refresh(self) -> None:
        """Takes over weights that changed."""
        for own, theirs in self._pairs:
            own.data = theirs.data
        self._energy.requires_grad_(False)  # one that is bound to contexts encodes them anew
        if self._rough is not None:
            self._rough.load_state_dict(self._energy.state_dict())
        self.bind(self._context)

    def energy(self, x: Tensor) -> Tensor:
        beta = self._beta(x)
        value = self._bound.forward(x) if beta is None else self._bound.tempered(x, beta)
        # a function may hold parameters that ask for a gradient
        return self._bounded(x, value.detach())

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self._rough is not None:
            return self.energy(x), self.gradient(x)
        energy, gradient = self._bound.energy_and_gradient(x, self._beta(x))
        return self._bounded(x, energy), gradient

    def gradient(self, x: Tensor) -> Tensor:
        """The force alone: cheaper than with its energy where it is of low precision."""
        if self._rough is None:
            return self._bound.gradient(x, self._beta(x))
        beta = self._beta(x)
        return self._bound_rough.gradient(
            x.to(self._gradient_dtype), None if beta is None else beta.to(self._gradient_dtype)
        ).to(x.dtype)

    def conditional(self, block: str, value: Tensor) -> Conditional:
        return self._bound.conditional(block, value, self._beta(value))

    def _beta(self, x: Tensor) -> Tensor | None:
        """One beta a row; a kernel may ask for several rows a chain at once, copies of all chains
        one after the other.
        """
        if self.beta is None or len(x) == len(self.beta):
            return self.beta
        return self.beta.repeat(len(x) // len(self.beta))

    def _bounded(self, x: Tensor, energy: Tensor) -> Tensor:
        if self.box is None:
            return energy
        flat = x.flatten(1)
        inside = (flat.amin(1) >= self.box[0]) & (flat.amax(1) <= self.box[1])
        return torch.where(inside, energy, torch.inf)
