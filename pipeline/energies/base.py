"""Energies: functions of positions, on a domain, with a base law of known Z."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.energies.conditionals import Conditional

Pull = Callable[[Tensor], None]
"""Adds sum_i s_i grad_theta E(x_i), for `slopes` s [N], to the `grad` of the parameters."""


class Energy(nn.Module):
    """`forward(x)`: `[N, *shape] -> [N]`, in nats; p(x) = exp(-E(x)) / Z.

    Its domain is one of three: `levels` = q says {0, ..., q-1}^d (as floats), `box` = (low, high)
    says [low, high]^d, and neither says R^d. On each the base law E_0, of known Z, is the one that
    knows nothing: uniform, uniform, and N(0, `base_scale`^2). It is where chains start, and where a
    ladder begins.

    `blocks` names the conditionals a Gibbs kernel sweeps over, in order; empty where there are
    none. `undecayed` names parameters with a scale of their own (biases of visible units,
    variances), which weight decay leaves alone.
    """

    blocks: Sequence[str] = ()
    undecayed: Sequence[str] = ()
    # of components of several kinds: 0 for each that is real, q for one in {0, ..., q-1}; such an
    # energy has neither levels nor a box
    kinds: tuple[int, ...] | None = None
    context_shape: tuple[int, ...] | None = None  # of the contexts that it knows
    # how many it is bound to: row i of k contexts x N positions has context i mod k
    # (`pipeline.energies.given`)
    contexts = 1
    # of a loaded energy, what its rows went through (`pipeline.data.scaling.Scale`), if anything
    row_scale: Any = None
    guarded = False  # whether it checks what it is called with (`pipeline.energies.arguments`)

    def __init__(
        self,
        shape: Sequence[int],
        *,
        levels: int | None = None,
        box: tuple[float, float] | None = None,
        base_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.data_shape = (
            self.shape
        )  # of a row of data: a position without the latent columns that `complete` adds
        self.dimension = math.prod(self.shape)
        self.levels, self.box, self.base_scale = levels, box, base_scale

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def real(self) -> bool:
        """True where all components are real numbers, in R^d or in a box."""
        return self.levels is None and self.kinds is None

    def given(self, context: Tensor | None) -> Energy:  # noqa: ARG002 - conditional energies ask
        """The energy of positions under `context` [N, *context_shape]; one that conditions on
        nothing is what it is.
        """
        return self

    def with_latents(self, rows: Tensor) -> Tensor:
        """Data rows `[N, *data shape]` with the latent columns of a position filled in; where there
        are none, as they are.
        """
        return rows

    def of_rows(self, rows: Tensor) -> Tensor:
        """-log p(v) - log Z of data rows v, `[N, *data_shape] -> [N]` nats; where a position has
        latent columns, a number that it is at most.
        """
        return self(rows)

    def visible(self, x: Tensor) -> Tensor:
        """The data's part of positions `[N, *shape]`, `[N, *data shape]`: all of them where there
        are no latent columns.
        """
        return x

    def activations(self, rows: Tensor) -> Tensor | None:  # noqa: ARG002 - some have hidden units
        """The hidden units' values under data rows `[N, *data_shape]`, `[N, units]`: their means in
        a Boltzmann machine, the last hidden layer of a network. None where there are none.
        """
        return None

    def base(self, x: Tensor) -> Tensor:
        """E_0(x), `[N, *shape] -> [N]` nats: |x|^2 / (2 s^2) on R^d, else 0."""
        if self.levels is None and self.box is None:
            return squared_norm(x) / (2 * self.base_scale**2)
        return x.new_zeros(x.shape[0])

    def base_log_partition(self) -> float:
        """log Z_0 in nats: d log q, d log(high - low), or d log(2 pi s^2) / 2."""
        if self.levels is not None:
            return self.dimension * math.log(self.levels)
        if self.box is not None:
            return self.dimension * math.log(self.box[1] - self.box[0])
        return self.dimension * math.log(2 * math.pi * self.base_scale**2) / 2

    def sample_base(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` draws of the base law, `[count, *shape]` float32."""
        size, device = (count, *self.shape), generator.device
        if self.levels is not None:
            return torch.rand(size, generator=generator, device=device).mul_(self.levels).floor_()
        if self.box is not None:
            low, high = self.box
            return torch.rand(size, generator=generator, device=device).mul_(high - low).add_(low)
        return self.base_scale * torch.randn(size, generator=generator, device=device)

    def into_domain(self, x: Tensor) -> Tensor:
        """Rows `[N, *shape]` that noise pushed out of a box, folded back at its walls; others as
        they are.
        """
        return x if self.box is None else reflect(x, self.box)[0]

    def tempered(self, x: Tensor, beta: Tensor) -> Tensor:
        """E_beta(x) = (1 - beta) E_0(x) + beta E(x) with `beta` [N] in [0, 1], a ladder's path from
        the base to the model.
        """
        return (1 - beta) * self.base(x) + beta * self(x)

    def on_ladder(
        self, x: Tensor, energy: Tensor, gradient: Tensor, beta: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """E_beta(x) [N] and its gradient, (1 - beta) grad E_0 + beta grad E, from E(x) and its
        `gradient` [N, ...], which may be overwritten; those themselves without a `beta`. For base
        laws as `base` has them.
        """
        if beta is None:
            return energy, gradient
        weight = beta.view(-1, *(1,) * (gradient.ndim - 1))
        gradient = gradient.mul_(weight)
        if self.levels is None and self.box is None:
            gradient.add_((1 - weight) * x / self.base_scale**2)
        return (1 - beta) * self.base(x) + beta * energy, gradient

    def energy_and_gradient(self, x: Tensor, beta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`E(x)` [N] (or `E_beta(x)`) and its gradient [N, *shape], by autograd; a model may bring
        its own faster way.

        Both are the caller's own, to be overwritten.

        Where there are levels the energy must be defined between them too. With two, `gradient` is
        as for any x; with more, it is that in the one-hot encoding, [N, *shape, q] (see
        `pipeline.energies.discrete`).
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self(x) if beta is None else self.tempered(x, beta)
            (gradient,) = torch.autograd.grad(energy.sum(), x)
        return (
            energy.detach(),
            gradient.contiguous(),
        )  # an energy linear in x has one that is expanded from a number

    def gradient(self, x: Tensor, beta: Tensor | None = None) -> Tensor:
        """The gradient alone, where a model can have it for less."""
        return self.energy_and_gradient(x, beta)[1]

    def pseudo_log_likelihood(self, x: Tensor) -> Tensor | None:  # noqa: ARG002
        """sum_i log p(x_i | the others) of positions `[N, *shape]` over levels, `[N]` nats, without
        components that are missing (Besag 1975), where a model has all sites at once; else None.
        """
        return None

    def energies_and_pull(self, x: Tensor) -> tuple[Tensor, Pull] | None:  # noqa: ARG002
        """E(x) [N] without a graph, and the way back to the weights by hand. None where a model
        has no such way: autograd does it then.
        """
        return None

    def conditional(self, block: str, value: Tensor, beta: Tensor | None = None) -> Conditional:
        """The block's law given the value of the block before it."""
        raise NotImplementedError(f"{type(self).__name__} has no block {block!r}")

    def to_natural_(self, damping: float) -> None:
        """Turns the gradient in the parameters' `grad` into one times the inverse of a Fisher
        information. Raises `NotImplementedError` where the energy knows none.
        """
        raise NotImplementedError(f"{type(self).__name__} knows no Fisher information")

    def initialise(self, rows: Tensor) -> None:
        """Hook for parameters that are best started from the data, `[S, *shape]`; none by
        default.
        """

    def hold(self) -> None:
        """Hook: sets parameters that are held at 0 to it, and their `grad`, once a gradient is
        summed up; none by default.
        """

    def differentiable_gradient(self, x: Tensor) -> Tensor:
        """grad E(x), `[N, *shape]`, with a graph to the parameters (and to x, where that has one),
        by double backward.
        """
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self(x).sum(), x, create_graph=True)
        return gradient

    def gradient_and_curvature(self, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """grad E(x) [N, *shape] and v.H v [P, N], H the Hessian in x, for `directions` v [P, N,
        *shape].

        With a graph to the parameters; by double backward, the gradient shared by all directions. A
        model may bring its own faster way.
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            gradient = self.differentiable_gradient(x)
            curvatures = []
            for v in directions:
                (product,) = torch.autograd.grad((gradient * v).sum(), x, create_graph=True)
                curvatures.append((product * v).flatten(1).sum(1))
        return gradient, torch.stack(curvatures)

    def log_sum(self) -> Tensor | None:
        """log Z in nats, [], or [N] where bound to N contexts, with a graph, where it can be had
        exactly; else None.
        """
        return None

    def argmax(self) -> Tensor | None:
        """The most probable positions, one for each context, `[contexts, *shape]`, where there is
        an exact way; else None.
        """
        return None

    @torch.no_grad()
    def log_partition(self) -> float | None:
        """`log_sum` as a number, worked out in float64."""
        value = copy.deepcopy(self).double().log_sum()
        return None if value is None else float(value)


def add_gradient(parameter: Tensor, pulled: Tensor, values: Tensor) -> None:
    """Adds `pulled`' `values`, of [N, m] and [N, n], to the `grad` of a `parameter` [m, n]."""
    if parameter.grad is None:
        parameter.grad = pulled.T @ values
    else:
        parameter.grad.addmm_(pulled.T, values)


def add_sum(parameter: Tensor, pulled: Tensor) -> None:
    """Adds the sum over rows of `pulled` [N, m] to the `grad` of a `parameter` [m]."""
    total = pulled.sum(0)
    parameter.grad = total if parameter.grad is None else parameter.grad.add_(total)


def site_log_likelihood(energy: Energy, rows: Tensor, sites: Tensor) -> Tensor:
    """log p(x_i | the others), nats, of `rows` [N, *shape] at site i of each, `sites` [N] int64:
    from the energies of the q levels there; float64 [N]. It is 0 where x_i is below 0, missing.
    """
    flat, levels = rows.flatten(1), energy.levels
    assert levels is not None
    chosen = sites[:, None]
    current = flat.gather(1, chosen)
    energies = [
        energy(flat.scatter(1, chosen, (current + k) % levels).view_as(rows)).double()
        for k in range(levels)
    ]
    return torch.log_softmax(-torch.stack(energies), 0)[0].masked_fill_(current[:, 0] < 0, 0.0)


def squared_norm(x: Tensor) -> Tensor:
    """|x|^2 by row, `[N, ...] -> [N]`."""
    if x.requires_grad:
        return x.flatten(1).square().sum(1)
    return torch.linalg.vector_norm(
        x.flatten(1), dim=1
    ).square_()  # three times as fast; its derivatives fail at 0


def reflect(x: Tensor, box: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """`x` folded into the box at its walls, and the sign, 1 or -1 by component, that a velocity
    leaves with.

    Unfolded, the box is repeated with period 2 (high - low), every other copy a mirror image.
    """
    low, high = box
    width = high - low
    phase = torch.remainder(x - low, 2 * width)
    mirrored = phase > width
    folded = torch.where(mirrored, 2 * width - phase, phase) + low
    # rounding may leave it a last bit outside, where the energy is inf
    return folded.clamp(low, high), torch.where(mirrored, -1.0, 1.0).to(x.dtype)
