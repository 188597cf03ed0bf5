"""Compositions of energies: products, mixtures and quotients of trained laws, without any further
training.

    and    E = sum_i w_i E_i                     p ~ prod_i p_i^w_i (Hinton 2002: experts)
    or     E = -log sum_i w_i exp(-E_i) / Z_i    p ~ sum_i w_i p_i
    not    E = E_A - w E_B                       p ~ p_A / p_B^w

(Du, Li & Mordatch 2020, section 3, there of conditionals; `w` of a negation is their alpha.) Each
is an `Energy` in turn, so that they nest. Conditional energies come in bound to a context,
`energy.given(context)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pipeline.common.errors import ArgumentError
from pipeline.energies.base import Energy
from pipeline.energies.discrete import enumerated

ROWS = 256  # unit vectors at once


class Composition(Energy):
    """An energy made of several: `parts` of one shape and one domain, and E as a function of their
    energies.

    The base law is uniform where states are finite and in a box, else N(0, s^2), its s from those
    of the parts. Raises `ArgumentError` where shapes or domains differ, or positions hold latent
    columns: the law that energies of (v, h) compose to is not the composition of the laws of v.
    """

    def __init__(self, energies: Sequence[Energy]) -> None:
        check_alike(
            energies,
            [f"{type(energy).__name__} {number}" for number, energy in enumerate(energies)],
        )
        first = energies[0]
        super().__init__(first.shape, levels=first.levels, box=first.box)
        self.parts = nn.ModuleList(energies)
        self._parts = tuple(energies)  # the same modules, as energies
        self.contexts = max(energy.contexts for energy in energies)

    def _base_from(self, precisions: Tensor) -> None:
        """On R^d, E_0 with 1 / s^2 the mean of `precisions` [d]."""
        if self.levels is None and self.box is None:
            self.base_scale = 1 / math.sqrt(float(precisions.mean()))

    def composed(self, energies: Tensor) -> Tensor:
        """E, `[N]`, of the parts' energies `[K, N]`."""
        raise NotImplementedError

    def shares(self, energies: Tensor) -> Tensor:
        """dE / dE_i, `[K, N]`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.composed(torch.stack([part(x) for part in self._parts]))

    @torch.no_grad()
    def energy_and_gradient(self, x: Tensor, beta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The parts' own gradients, sum_i dE / dE_i grad E_i; on a ladder (1 - beta) grad E_0 +
        beta grad E.

        Over levels the differences that the parts' gradients estimate add up where E is linear in
        them; under "or" the sum is the slope of E between levels, an estimate as any that
        Gibbs-with-gradients takes.
        """
        values, gradients = zip(*(part.energy_and_gradient(x) for part in self._parts), strict=True)
        energies = torch.stack(values)
        terms = zip(self.shares(energies), _in_one_form(gradients, self.levels), strict=True)
        gradient = torch.stack([_by_row(share, slope) * slope for share, slope in terms]).sum(0)
        return self.on_ladder(x, self.composed(energies), gradient, beta)

    def log_sum(self) -> Tensor | None:
        """By enumeration of at most 2^20 states; None where there are more, or several contexts."""
        return enumerated(self) if self.contexts == 1 else None


class Conjunction(Composition):
    """E = sum_i w_i E_i, `weights` all positive, 1 each where there are none: what every part
    allows.

    E_0 = sum_i w_i E_0,i: on R^d the precisions 1 / s_i^2 of the parts' base laws add up.
    """

    def __init__(self, energies: Sequence[Energy], weights: Sequence[float] | None = None) -> None:
        super().__init__(energies)
        self.weights = positive_weights(weights, len(energies))
        precisions = torch.stack(
            [w * base_precisions(part) for w, part in zip(self.weights, energies, strict=True)]
        )
        self._base_from(precisions.sum(0))

    def composed(self, energies: Tensor) -> Tensor:
        return (self.shares(energies) * energies).sum(0)

    def shares(self, energies: Tensor) -> Tensor:
        return energies.new_tensor(self.weights)[:, None].expand_as(energies)


class Disjunction(Composition):
    """E = -logsumexp_i(log w_i - E_i - log Z_i): what any part allows; Z = sum_i w_i where the log
    Z_i are right.

    `log_partitions` [K] in nats; only their differences tell. Where there are none they are taken
    to be equal, as Du, Li & Mordatch (2020) do: then a part counts in proportion to w_i Z_i, and a
    Z_i is whatever training left it at. The base law is that of the part whose own is widest.
    Raises `ArgumentError` where weights are not positive, or numbers are not as many as energies.
    """

    def __init__(
        self,
        energies: Sequence[Energy],
        weights: Sequence[float] | None = None,
        log_partitions: Sequence[float] | None = None,
    ) -> None:
        super().__init__(energies)
        weights = positive_weights(weights, len(energies))
        if log_partitions is not None and len(log_partitions) != len(energies):
            raise ArgumentError(
                "log_partitions",
                list(log_partitions),
                f"one number for each of {len(energies)} energies",
            )
        self._base_from(
            min(
                (base_precisions(part) for part in energies),
                key=lambda precisions: float(precisions.mean()),
            )
        )
        log_z = [0.0] * len(energies) if log_partitions is None else log_partitions
        self.offsets = tuple(math.log(w) - z for w, z in zip(weights, log_z, strict=True))

    def _logs(self, energies: Tensor) -> Tensor:
        """log w_i - E_i - log Z_i, `[K, N]`."""
        return energies.new_tensor(self.offsets)[:, None] - energies

    def composed(self, energies: Tensor) -> Tensor:
        return -torch.logsumexp(self._logs(energies), 0)

    def shares(self, energies: Tensor) -> Tensor:
        return torch.softmax(self._logs(energies), 0)


class Negation(Composition):
    """E = E_A - w E_B, `weight` w > 0: what A allows, the less the more B allows it.

    On R^d it may have no Z. Raises `ArgumentError` where the base terms alone leave none, 1 /
    s_A^2 <= w / s_B^2 in some component. That is all that is checked: it is enough where both f = E
    - E_0 grow slower than |x|^2, as networks of SiLUs do, and says nothing of energies whose f
    grows faster.
    """

    def __init__(self, positive: Energy, negative: Energy, weight: float) -> None:
        super().__init__([positive, negative])
        (self.weight,) = positive_weights([weight], 1)
        above, below = base_precisions(positive), base_precisions(negative)
        left = above - self.weight * below
        if self.levels is None and self.box is None and bool((left <= 0).any()):
            most = float((above / below).min())
            raise ArgumentError(
                "weight", weight, f"exp(-E_A + w E_B) has no Z; the base terms allow w < {most:.3g}"
            )
        self._base_from(left)

    def composed(self, energies: Tensor) -> Tensor:
        return energies[0] - self.weight * energies[1]

    def shares(self, energies: Tensor) -> Tensor:
        return energies.new_tensor([1.0, -self.weight])[:, None].expand_as(energies)


def check_alike(energies: Sequence[Energy], names: Sequence[str]) -> None:
    """Raises `ArgumentError` where energies, called `names`, share no shape and domain, have
    latent columns, or components of several kinds.
    """
    first = energies[0]
    for energy, name in zip(energies, names, strict=True):
        if (energy.shape, energy.levels, energy.box) != (first.shape, first.levels, first.box):
            remedy = (
                f"{names[0]} is over {_domain(first)}, {name} over {_domain(energy)}; compose"
                " energies over one domain"
            )
            raise ArgumentError("energies", name, remedy)
        if energy.visible(_zeros(energy, 1)).shape[1:] != energy.shape:
            remedy = "its positions hold latent units; compose energies of the data alone"
            raise ArgumentError("energies", name, remedy)
        if energy.kinds is not None:
            remedy = "has components of several kinds, and no kernel moves a composition of those"
            raise ArgumentError("energies", name, remedy)
    counts = sorted({energy.contexts for energy in energies} - {1})
    if len(counts) > 1:
        remedy = "bound to so many contexts each; bind all to as many, or to one"
        raise ArgumentError("energies", counts, remedy)


def positive_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """The weights, 1 each where there are none. Raises `ArgumentError` unless there are `count`,
    all positive.
    """
    if weights is None:
        return (1.0,) * count
    if len(weights) != count or not all(0 < weight < math.inf for weight in weights):
        raise ArgumentError(
            "weights", list(weights), f"one positive number for each of {count} energies"
        )
    return tuple(float(weight) for weight in weights)


@torch.no_grad()
def base_precisions(energy: Energy) -> Tensor:
    """1 / s_i^2 of the Gaussian E_0, from E_0(e_i) + E_0(-e_i) - 2 E_0(0), `[d]` float64; ones
    where E_0 is no Gaussian.
    """
    if energy.levels is not None or energy.box is not None:
        return torch.ones(energy.dimension, dtype=torch.float64)

    def base(flat: Tensor) -> Tensor:
        return energy.base(flat.view(-1, *energy.shape)).double().cpu()

    units, origin = torch.arange(energy.dimension).split(ROWS), _zeros(energy, 1).flatten(1)
    rows = (one_hot(numbers, energy.dimension).to(origin) for numbers in units)
    return torch.cat([base(row) + base(-row) for row in rows]) - 2 * base(origin)


def _zeros(energy: Energy, count: int) -> Tensor:
    """`[count, *shape]`, in the dtype and on the device of the energy's numbers."""
    like = next(iter(energy.state_dict().values()), torch.zeros(()))
    return like.new_zeros((count, *energy.shape))


def _domain(energy: Energy) -> str:
    shape = "x".join(map(str, energy.shape))
    if energy.levels is not None:
        return f"{shape} of {energy.levels} levels"
    return (
        f"{shape} real numbers" if energy.box is None else f"{shape} numbers in {list(energy.box)}"
    )


def _in_one_form(gradients: Sequence[Tensor], levels: int | None) -> Sequence[Tensor]:
    """Gradients in x beside those in the one-hot encoding: the former as slope_i k for level k,
    `[N, *shape, q]`.
    """
    most = max(gradient.ndim for gradient in gradients)
    if levels is None or all(gradient.ndim == most for gradient in gradients):
        return gradients
    each = torch.arange(levels, dtype=gradients[0].dtype, device=gradients[0].device)
    return [
        gradient if gradient.ndim == most else gradient[..., None] * each for gradient in gradients
    ]


def _by_row(values: Tensor, like: Tensor) -> Tensor:
    """`[N]` shaped to broadcast over `[N, ...]`."""
    return values.view(-1, *(1,) * (like.ndim - 1))
