"""Hidden units of a restricted Boltzmann machine, by their potential: binary ones, Gaussian ones
and double rectified linear ones.

A unit h of potential U that receives a field I has the law

    p(h | I) = exp(-U(h) + I h - Gamma(I)),   Gamma(I) = log sum_h exp(-U(h) + I h),

an integral where h is real. Gamma is the cumulant-generating function: its derivative is the mean
of h. The bias of a unit is part of the field, and the scale of a real one is in its weights.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pipeline.common.rng import Source, uniform_like
from pipeline.energies.base import add_sum
from pipeline.energies.conditionals import Bernoulli, Conditional, Normal

FAR = 4.0
"""Beyond this many standard deviations a tail is worked out by its continued fraction."""
TERMS = 12
"""Of the continued fraction: from `FAR` on its moments are exact to 3e-9 of themselves."""
VERY_FAR = 8.0
"""Beyond this the inversion of a normal distribution function loses digits in float32."""
REFINED = 3
"""Iterations by which a draw of a tail is refined: each multiplies its error by 1 / 64 at most."""
LOG_2PI = math.log(2 * math.pi)
ROOT_2, ROOT_HALF_PI = math.sqrt(2), math.sqrt(math.pi / 2)


class HiddenUnits(nn.Module):
    """Units of one kind, whose functions are of fields `[N, m]`."""

    binary = False

    def log_cumulants(self, field: Tensor) -> Tensor:
        """Gamma(I) of each unit, `[N, m]` nats."""
        raise NotImplementedError

    def mean(self, field: Tensor) -> Tensor:
        """Gamma'(I), the mean of each unit, `[N, m]`; `field` may be overwritten."""
        raise NotImplementedError

    def law(self, field: Tensor) -> Conditional:
        """p(h | I), `[N, m]`."""
        raise NotImplementedError

    def pull(self, field: Tensor, slopes: Tensor) -> Tensor:  # noqa: ARG002 - some have parameters
        """Adds sum_n s_n d/dtheta sum_j -Gamma_j(I_n), for `slopes` s [N], to the `grad` of the
        units' own parameters; by default they have none. Returns `mean`, which it knows then.
        """
        return self.mean(field)


class BernoulliUnits(HiddenUnits):
    """h in {0, 1}, U = 0: Gamma(I) = log(1 + exp(I))."""

    binary = True

    def log_cumulants(self, field: Tensor) -> Tensor:
        return softplus(field)

    def mean(self, field: Tensor) -> Tensor:
        return field.sigmoid_()

    def law(self, field: Tensor) -> Conditional:
        return Bernoulli(field)


class GaussianUnits(HiddenUnits):
    """h in R, U(h) = h^2 / 2: Gamma(I) = I^2 / 2 + log(2 pi) / 2.

    With Gaussian units alone a machine over levels is a Hopfield-Potts model, whose couplings of
    pairs are W'W (Barra, Bernacchia, Santucci & Contucci 2012).
    """

    def log_cumulants(self, field: Tensor) -> Tensor:
        return field.square() / 2 + LOG_2PI / 2

    def mean(self, field: Tensor) -> Tensor:
        return field

    def law(self, field: Tensor) -> Conditional:
        return Normal(field, field.new_ones(field.shape[1:]))


class DoubleReLUUnits(HiddenUnits):
    """Double rectified linear units: h in R, with h+ = max(h, 0) and h- = min(h, 0),

        U(h) = gamma+ h+^2 / 2 + gamma- h-^2 / 2 + theta+ h+ + theta- h-

    (Tubiana, Cocco & Monasson 2019). Of the four numbers of a unit one is the scale of
    its weights and one is its bias. The other two are

        1 / gamma+ = 1 + eta,   1 / gamma- = 1 - eta,   theta+ = -theta- = delta,

    with eta = xi / (1 + |xi|) between -1 and 1, so that both gamma are positive. `asymmetry` [m] is
    xi: a mean that rises faster on one side. `threshold` [m] is delta: above 0 it pulls h to 0,
    below 0 it makes two humps. Both start at 0, where the unit is Gaussian.

    Each side is a Gaussian cut off at 0. With a+ = (I - delta) / sqrt(gamma+), a- = (-I - delta) /
    sqrt(gamma-) and M of `tail_of`,

        exp(Gamma(I)) = M(a+) / sqrt(gamma+) + M(a-) / sqrt(gamma-).
    """

    def __init__(self, units: int) -> None:
        super().__init__()
        self.asymmetry = nn.Parameter(torch.zeros(units))
        self.threshold = nn.Parameter(torch.zeros(units))

    def sides(self, field: Tensor) -> Sides:
        """Both sides of the units under a field `[N, m]`."""
        up, down = self.scales()
        above, below = self.places(field)
        return Sides(tail_of(above), tail_of(below), up, down)

    def scales(self) -> tuple[Tensor, Tensor]:
        """1 / gamma+ and 1 / gamma-, `[m]`."""
        size = 1 + self.asymmetry.abs()
        return (size + self.asymmetry) / size, (size - self.asymmetry) / size

    def places(self, field: Tensor) -> tuple[Tensor, Tensor]:
        """a+ and a- under a field, `[N, m]`."""
        up, down = self.scales()
        return (field - self.threshold) * up.sqrt(), (-field - self.threshold) * down.sqrt()

    def log_cumulants(self, field: Tensor) -> Tensor:
        return torch.logaddexp(*self.sides(field).log_masses())

    def mean(self, field: Tensor) -> Tensor:
        above, below = self.sides(field).firsts()
        return above - below

    def law(self, field: Tensor) -> Conditional:
        return DoubleReLU(field, self.places(field), self.threshold, self.sides(field))

    def pull(self, field: Tensor, slopes: Tensor) -> Tensor:
        """dGamma/d delta = -E|h|, dGamma/d(1 / gamma) = gamma^2 E[h^2] / 2 on each side, and
        d eta/d xi = 1 / (1 + |xi|)^2.
        """
        sides, slopes = self.sides(field), slopes[:, None]
        above, below = sides.firsts()
        mean = above - below
        add_sum(self.threshold, (above + below).mul_(slopes))
        above, below = sides.seconds()
        rate = (1 + self.asymmetry.abs()).square().reciprocal()
        rise = above / sides.up - below / sides.down
        add_sum(self.asymmetry, rise.mul_(slopes).mul_(-rate / 2))
        return mean


class Sides(NamedTuple):
    """The two sides of units under a field, h > 0 and h < 0: `above` and `below` are of |h|
    sqrt(gamma) there, at a+ and a- [N, m]; `up` and `down` [m] are 1 / gamma+ and 1 / gamma-.
    """

    above: Tail
    below: Tail
    up: Tensor
    down: Tensor

    def log_masses(self) -> tuple[Tensor, Tensor]:
        """The log of the integral over each side of exp(-U(h) + I h), `[N, m]`."""
        above, below = self.above.log_mass, self.below.log_mass
        return above + self.up.log() / 2, below + self.down.log() / 2

    def shares(self) -> tuple[Tensor, Tensor]:
        """The probability of each side, `[N, m]`."""
        above, below = self.log_masses()
        return torch.sigmoid(above - below), torch.sigmoid(below - above)

    def firsts(self) -> tuple[Tensor, Tensor]:
        """E[h+] and -E[h-], `[N, m]`."""
        above, below = self.shares()
        return (
            above * self.up.sqrt() * self.above.first,
            below * self.down.sqrt() * self.below.first,
        )

    def seconds(self) -> tuple[Tensor, Tensor]:
        """gamma+ E[h+^2] and gamma- E[h-^2], `[N, m]`."""
        above, below = self.shares()
        return above * self.above.second, below * self.below.second


class DoubleReLU(NamedTuple):
    """Components in R, each on one of its two `sides` and there a Gaussian cut off at 0: under a
    `field` [N, m], with a+ and a- in `places` and the `threshold` [m].
    """

    field: Tensor
    places: tuple[Tensor, Tensor]
    threshold: Tensor
    sides: Sides

    def sample(self, generator: Source) -> Tensor:
        positive = uniform_like(self.field, generator) < self.sides.shares()[0]
        size = draw_tail(torch.where(positive, *self.places), generator)
        return size * torch.where(positive, self.sides.up.sqrt(), -self.sides.down.sqrt())

    def log_prob(self, value: Tensor) -> Tensor:
        curved = value.square() / torch.where(value > 0, self.sides.up, self.sides.down) / 2
        potential = curved + self.threshold * value.abs()
        return self.field * value - potential - torch.logaddexp(*self.sides.log_masses())


KINDS = {"bernoulli": BernoulliUnits, "gaussian": GaussianUnits}


def hidden_units(kind: str, units: int) -> HiddenUnits:
    """So many units of the `kind` bernoulli, gaussian or drelu."""
    return DoubleReLUUnits(units) if kind == "drelu" else KINDS[kind]()


class Tail(NamedTuple):
    """Of u > 0 with a density in proportion to exp(a u - u^2 / 2): the log of its integral M(a),
    E[u] and E[u^2], each of the shape of a.
    """

    log_mass: Tensor
    first: Tensor
    second: Tensor


def tail_of(a: Tensor) -> Tail:
    """Works out both moments and M(a) = Phi(a) / phi(a), Mills' ratio of the normal law at -a,
    elementwise and with a graph:

        M(a) = sqrt(pi / 2) exp(a^2 / 2) erfc(-a / sqrt(2)),
        E[u] = a + 1 / M(a),   E[u^2] = 1 + a E[u].

    Where a << 0 these cancel. There Laplace's continued fraction of M gives, with t = -a,

        E[u] = 1 / (t + K),   E[u^2] = K / (t + K),   K = 2 / (t + 3 / (t + 4 / (t + ...))),

    and 1 / M(a) = t + E[u]. What is left out of it is put at its value for large numbers of terms.
    """
    near, t = a.clamp(min=-FAR), (-a).clamp(min=FAR)
    rest = ((t.square() + 4 * (TERMS + 1)).sqrt() - t) / 2
    for number in range(TERMS, 1, -1):
        rest = number / (t + rest)
    far = 1 / (t + rest)
    log_mass = near.square() / 2 + (torch.erfc(-near / ROOT_2) * ROOT_HALF_PI).log()
    first = near + torch.exp(-log_mass)
    tail = a < -FAR
    return Tail(
        torch.where(tail, -(t + far).log(), log_mass),
        torch.where(tail, far, first),
        torch.where(tail, rest * far, 1 + near * first),
    )


def draw_tail(a: Tensor, generator: Source) -> Tensor:
    """Draws u > 0 with a density in proportion to exp(a u - u^2 / 2), of the shape of `a` [N, m],
    by inversion of its distribution function.

    P(u > r) = Phi(a - r) / Phi(a). Where a << 0 both underflow, and with t = -a

        log P(u > r) = -t r - r^2 / 2 + log M(a - r) - log M(a)

    is solved for r by a fixed point: the last two nearly cancel.
    """
    chance = 1 - uniform_like(a, generator)  # in (0, 1]
    below = (chance * torch.erfc(-a / ROOT_2) / 2).clamp(max=1 - torch.finfo(a.dtype).eps)
    drawn = (a - torch.special.ndtri(below)).clamp(min=0)
    tail = a < -VERY_FAR
    if not bool(tail.any()):
        return drawn
    t, level = (-a).clamp(min=VERY_FAR), -chance.log()
    start, rest = tail_of(-t).log_mass, level
    for _ in range(REFINED + 1):
        far = 2 * rest / (t + (t.square() + 2 * rest).sqrt())
        rest = level + tail_of(-t - far).log_mass - start
    return torch.where(tail, far, drawn)
