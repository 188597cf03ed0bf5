"""Exponential families: the laws of maximum entropy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pipeline.common.errors import ArgumentError
from pipeline.energies.base import Energy
from pipeline.energies.discrete import ENUMERABLE_STATES, all_states, enumerated
from pipeline.energies.maxent.features import FeatureMap, GivenFeatures, Polynomial, declare
from pipeline.energies.quadrature import MidpointRule

POINTS = {1: 4096, 2: 256}  # of the midpoint rule, a side, by dimension
REACH = 8.0  # of it on R^d, in base scales


class Moments(NamedTuple):
    """Exact moments of a law: `mean` E[phi] [F], `covariance` of phi [F, F] (the Fisher information
    of `natural`), and `entropy` -E[log p] in nats (differential, where the domain is not finite).
    float64.
    """

    mean: Tensor
    covariance: Tensor
    entropy: float


class ExponentialFamily(Energy):
    """E(x) = -lambda.phi(x) - log h(x), so p(x) = h(x) exp(lambda.phi(x)) / Z(lambda).

    Among the laws with E[phi] = mu this is the one nearest to the base measure h, in KL divergence,
    and where h is uniform the one of greatest entropy (Jaynes 1957; Wainwright & Jordan 2008,
    section 3.1). `natural` [F] holds lambda, the only parameter, and starts at 0.

    h is the base law: uniform on levels and in a box, exp(-|x|^2 / (2 base_scale^2)) on R^d, where
    `x^2` among the features makes the result independent of it. With `base_rates` [q], scaled to
    sum 1, h(x) = prod_i base_rates[x_i].
    """

    undecayed = ("natural",)
    log_rates: Tensor | None

    def __init__(
        self,
        shape: Sequence[int],
        features: Sequence[FeatureMap],
        *,
        levels: int | None = None,
        box: tuple[float, float] | None = None,
        base_scale: float = 1.0,
        base_rates: Sequence[float] | None = None,
    ) -> None:
        super().__init__(shape, levels=levels, box=box, base_scale=base_scale)
        self._maps = nn.ModuleList(features)
        self.names = tuple(name for some in features for name in some.names)
        self.natural = nn.Parameter(torch.zeros(len(self.names)))
        rates = None if base_rates is None else torch.tensor(base_rates).div(sum(base_rates)).log()
        self.register_buffer("log_rates", rates, persistent=False)

    @property
    def maps(self) -> Sequence[FeatureMap]:
        return cast(Sequence[FeatureMap], self._maps)

    def features(self, x: Tensor) -> Tensor:
        """phi(x), `[N, *shape] -> [N, F]`."""
        return torch.cat([some(x) for some in self.maps], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) - self.features(x) @ self.natural

    def tempered(self, x: Tensor, beta: Tensor) -> Tensor:
        """-beta lambda.phi(x) - log h(x): E_0 is the base measure."""
        return self.base(x) - beta * (self.features(x) @ self.natural)

    def base(self, x: Tensor) -> Tensor:
        """-log h(x), `[N]`."""
        return (
            super().base(x)
            if self.log_rates is None
            else -self.log_rates[x.flatten(1).long()].sum(1)
        )

    def base_log_partition(self) -> float:
        return super().base_log_partition() if self.log_rates is None else 0.0

    def sample_base(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` draws of the base law, `[count, *shape]` float32."""
        if self.log_rates is None:
            return super().sample_base(count, generator)
        drawn = torch.multinomial(
            self.log_rates.exp(), count * self.dimension, True, generator=generator
        )
        return drawn.view(count, *self.shape).float()

    def energy_and_gradient(self, x: Tensor, beta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Over levels in the one-hot encoding, where every map is defined there: it then is the
        exact change on setting one component to another level. Else in x, with a gradient of 0 for
        what has none.
        """
        if self.levels is not None and all(some.multilinear for some in self.maps):
            return self._on_one_hot(x, beta)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self(x) if beta is None else self.tempered(x, beta)
            if not energy.requires_grad:
                return energy, torch.zeros_like(x)
            (gradient,) = torch.autograd.grad(energy.sum(), x, allow_unused=True)
        return energy.detach(), torch.zeros_like(x) if gradient is None else gradient.contiguous()

    def _on_one_hot(self, x: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor]:
        assert self.levels is not None
        with torch.enable_grad():
            encoded = one_hot(x.flatten(1).long(), self.levels).to(x.dtype).requires_grad_()
            value = torch.cat([some.of_one_hot(encoded) for some in self.maps], 1) @ self.natural
            value = value if beta is None else beta * value
            base = (
                encoded.new_zeros(())
                if self.log_rates is None
                else -(encoded @ self.log_rates).sum(1)
            )
            energy = base - value
            (gradient,) = torch.autograd.grad(energy.sum(), encoded)
        if self.levels == 2:
            return energy.detach(), (gradient[..., 1] - gradient[..., 0]).view_as(x)
        return energy.detach(), gradient.reshape(*x.shape, self.levels)

    def log_sum(self) -> Tensor | None:
        """log Z by enumeration of at most 2^20 states; in one or two real dimensions by a midpoint
        rule, of 4096 points or 256 x 256, over the box or on R^d over +- 8 base_scale.

        For smooth densities that vanish at its ends the rule's error falls faster than any power of
        the spacing h, else as h^2.
        """
        if self.levels is not None:
            return enumerated(self)
        if self.dimension not in POINTS:
            return None
        return self.rule.log_integral(self, self.natural).squeeze(0)

    def support(self) -> Iterator[Tensor] | None:
        """The points that sums for Z are taken over, float64, in chunks `[<= 65536, *shape]`: all
        states, or the midpoint rule's points; None where there is no `log_sum`.
        """
        if not self.states:
            return None
        if self.levels is not None:
            states = all_states(self.levels, self.dimension, self.natural.device)
            return (some.view(-1, *self.shape) for some in states)
        return iter([self.rule.points(self.shape, self.natural.double())])

    @property
    def states(self) -> int:
        """The number of points that `support` has; 0 where there is none."""
        if self.levels is not None:
            count = self.levels**self.dimension
            return count if count <= ENUMERABLE_STATES else 0
        return POINTS[self.dimension] ** self.dimension if self.dimension in POINTS else 0

    def log_cell(self) -> float:
        """log of the volume that one point of `support` stands for."""
        return 0.0 if self.levels is not None else self.rule.log_cell(self.dimension)

    @property
    def window(self) -> tuple[float, float]:
        """[low, high]: a side of where densities are integrated and drawn."""
        return self.box or (-REACH * self.base_scale, REACH * self.base_scale)

    @property
    def rule(self) -> MidpointRule:
        """The rule for sums over one or two real dimensions."""
        return MidpointRule(*self.window, POINTS[self.dimension])

    @torch.no_grad()
    def exact_moments(self) -> Moments | None:
        """By the sums that `log_sum` takes; None where it has none."""
        model = copy.deepcopy(self).double()
        chunks, log_z = model.support(), model.log_sum()
        if chunks is None or log_z is None:
            return None
        mean, second, entropy = (
            torch.zeros_like(model.natural),
            torch.zeros_like(torch.outer(model.natural, model.natural)),
            0.0,
        )
        for x in chunks:
            phi, surprise = model.features(x), model(x) + log_z
            weights = torch.exp(model.log_cell() - surprise)
            mean = mean + weights @ phi
            second = second + phi.T @ (weights[:, None] * phi)
            entropy += float(weights @ surprise.nan_to_num(posinf=0.0))
        return Moments(mean, second - torch.outer(mean, mean), entropy)


def family(
    shape: Sequence[int],
    features: Sequence[dict[str, Any]],
    *,
    given: Sequence[Callable[[Tensor], Tensor]] | None = None,
    levels: int | None = None,
    box: tuple[float, float] | None = None,
    base_scale: float = 1.0,
    base_rates: Sequence[float] | None = None,
) -> ExponentialFamily:
    """The family of the features that a configuration declares, and of those `given` in code,
    functions `[N, *shape] -> [N, F]`.

    Raises `ArgumentError` where they are not to be had, or where exp of their sum may have no
    integral on R^d, whatever lambda has been learned so far.
    """
    plain = Energy(shape, levels=levels, box=box, base_scale=base_scale)
    example = plain.sample_base(2, torch.Generator().manual_seed(0))
    maps = [declare(shape, some, example) for some in features]
    maps += [
        GivenFeatures(function, example, getattr(function, "__name__", "given"))
        for function in given or ()
    ]
    for some in maps:
        if isinstance(some, Polynomial) and some.degree > 2 and levels is None and box is None:
            remedy = "on R^d a polynomial of degree over 2 has no Z for some parameters; give a box"
            raise ArgumentError("features", f"polynomial of degree {some.degree}", remedy)
    if not maps:
        remedy = "declare at least one, such as [{kind:means},{kind:pairs}]"
        raise ArgumentError("features", "[]", remedy)
    if base_rates is not None and len(base_rates) != levels:
        raise ArgumentError("base_rates", list(base_rates), f"one for each of levels={levels}")
    return ExponentialFamily(
        shape, maps, levels=levels, box=box, base_scale=base_scale, base_rates=base_rates
    )
