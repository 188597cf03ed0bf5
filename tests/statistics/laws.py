"""Small float64 laws with exact samplers, measures of a sample of them, and limits of a failure.

`LAWS` holds every law that `pipeline.config.parts.KERNELS` names, and a few more. Discrete ones
have at most 256 states and are enumerated; their weights are N(0, 1) or larger, so that nothing is
nearly uniform.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from pipeline.energies import laws
from pipeline.energies.base import Energy
from pipeline.energies.discrete import all_states
from pipeline.energies.lattice import PottsLattice
from pipeline.energies.laws import Gaussian, GaussianMixture, TruncatedGaussian
from pipeline.energies.potts import PottsModel
from pipeline.energies.rbm import BernoulliRBM, GaussianRBM, PottsRBM

# test_kernels.py and test_transition_matrices.py together take some 740 p-values (`require` counts
# them, and stops at 2000), each of which falls below 5e-8 with a probability of 5e-8: by the union
# bound, which does not ask how they depend on one another, correct kernels fail anywhere in them
# with a probability of at most 2000 * 5e-8 = 1e-4. The p-values are asymptotic; that 740 count as
# 2000 pays for a tail 2.7 times too heavy (means of 4000 squares of normals: 1.8 times). In z: |z|
# > 5.45.
P_VALUES = 2000
P_LIMIT = 1e-4 / P_VALUES
REFERENCE = 40_000
SMALLEST_CELL = 20
_counted = 0

Statistics = Callable[[Tensor], dict[str, Tensor]]


def require(p_values: Mapping[str, float]) -> None:
    """Counts the p-values, and asks each to exceed the limit."""
    global _counted
    _counted += len(p_values)
    assert _counted <= P_VALUES, (
        "more p-values than the false-alarm rate allows for: raise P_VALUES"
    )
    assert p_values
    worst = min(p_values, key=lambda name: p_values[name])
    assert p_values[worst] > P_LIMIT, f"{worst}: p = {p_values[worst]:.1e}"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Known:
    """A law that can be drawn from exactly: `sample(count, generator)`, `[count, *shape]` float64.

    `statistics` are scalars by row whose distributions are compared; the means of `moments` are
    known: `means`, by name. A discrete law has the `probabilities` of its states instead, numbered
    with the first unit fastest. `stream`: which of the streams for references is its own.
    """

    energy: Energy
    sample: Callable[[int, torch.Generator], Tensor]
    statistics: Statistics
    moments: Statistics
    means: Mapping[str, float]
    probabilities: Tensor | None = None
    stream: int = 0

    @cached_property
    def reference(self) -> Tensor:
        """The draws that samples are compared with, from a stream of their own."""
        return self.sample(REFERENCE, seeded(987_654_321 + self.stream))

    @cached_property
    def reference_statistics(self) -> dict[str, Tensor]:
        return self.statistics(self.reference)

    def p_values(self, x: Tensor) -> dict[str, float]:
        """Is `x` [N, *shape] a sample of this law? Chi-squared over the states, or a two-sample
        Kolmogorov-Smirnov test of each statistic (conservative where values tie).
        """
        if self.probabilities is not None:
            return {"chi-squared": chi_squared(numbers(x, self.levels), self.probabilities)}
        found, expected = self.statistics(x), self.reference_statistics
        return {name: kolmogorov_smirnov(found[name], expected[name]) for name in expected}

    def moment_p_values(self, x: Tensor) -> dict[str, float]:
        """The z of every known moment, with the standard error of as many exact draws; chi-squared
        where it is discrete.
        """
        if self.probabilities is not None:
            return self.p_values(x)
        found, exact = self.moments(x), self.moments(self.reference)
        return {
            name: normal_p_value(
                (float(found[name].mean()) - mean) / float(exact[name].std()) * math.sqrt(len(x))
            )
            for name, mean in self.means.items()
        }

    @property
    def levels(self) -> int:
        assert self.energy.levels is not None
        return self.energy.levels


def kolmogorov_smirnov(sample: Tensor, reference: Tensor) -> float:
    return float(stats.ks_2samp(sample.numpy(), reference.numpy(), method="asymp").pvalue)


def normal_p_value(z: float) -> float:
    return float(2 * stats.norm.sf(abs(z)))


def chi_squared(observed: Tensor, probabilities: Tensor) -> float:
    """Of the categories `observed` [N] int64; those expected fewer than 20 times are counted as
    one.
    """
    expected = len(observed) * probabilities.double()
    counts = torch.bincount(observed, minlength=len(probabilities)).double()
    rare = expected < SMALLEST_CELL
    cells, hoped = (
        [counts[~rare], counts[rare].sum()[None]],
        [expected[~rare], expected[rare].sum()[None]],
    )
    if float(hoped[1]) < SMALLEST_CELL:
        least = int(hoped[0].argmin())
        for part in (cells, hoped):
            part[0][least] += part[1][0]
            part.pop()
    return float(stats.chisquare(torch.cat(cells).numpy(), torch.cat(hoped).numpy()).pvalue)


def numbers(x: Tensor, levels: int) -> Tensor:
    """Which state each row is, `[N]` int64: the first unit fastest, as in `states`."""
    flat = x.flatten(1).long()
    return flat @ levels ** torch.arange(flat.shape[1])


def states(energy: Energy) -> Tensor:
    """All states `[S, *shape]`, float64."""
    assert energy.levels is not None
    return torch.cat(list(all_states(energy.levels, energy.dimension))).view(-1, *energy.shape)


def products(x: Tensor) -> dict[str, Tensor]:
    """Coordinates and their products two by two, squares among them."""
    flat = x.flatten(1)
    names = itertools.combinations_with_replacement(range(flat.shape[1]), 2)
    return {f"x{i}": column for i, column in enumerate(flat.T)} | {
        f"x{i} x{j}": flat[:, i] * flat[:, j] for i, j in names
    }


def continuous(
    energy: Energy,
    sample: Callable[[int, torch.Generator], Tensor],
    means: Mapping[str, float],
    moments: Statistics = products,
) -> Known:
    def statistics(x: Tensor) -> dict[str, Tensor]:
        """Coordinates, products of different ones, distance from 0, energy."""
        flat = x.flatten(1)
        pairs = itertools.combinations(range(flat.shape[1]), 2)
        measured = {f"x{i}": column for i, column in enumerate(flat.T)} | {
            f"x{i} x{j}": flat[:, i] * flat[:, j] for i, j in pairs
        }
        with torch.no_grad():
            return measured | {"radius": torch.linalg.vector_norm(flat, dim=1), "energy": energy(x)}

    return Known(energy, sample, statistics, moments, means)


def discrete(energy: Energy, probabilities: Tensor | None = None) -> Known:
    if probabilities is None:
        with torch.no_grad():
            probabilities = torch.softmax(-energy(states(energy)), 0)
    every, law = states(energy), probabilities

    def sample(count: int, generator: torch.Generator) -> Tensor:
        return every[torch.multinomial(law, count, replacement=True, generator=generator)]

    return Known(energy, sample, lambda _: {}, lambda _: {}, {}, law)


def tempered(known: Known, beta: float) -> Known:
    """The law of the ladder's rung at `beta`, exactly: enumerated; or, where E_beta = (1 - beta)
    E_0 + beta E, by rejection.

    With normalised densities p_0^(1-beta) p^beta <= (1 - beta) p_0 + beta p: draws of that mixture
    are accepted with the probability that is the quotient of the two sides. The statistics are
    those of the law at beta = 1.
    """
    energy = known.energy
    if known.probabilities is not None:
        every = states(energy)
        with torch.no_grad():
            return discrete(
                energy, torch.softmax(-energy.tempered(every, double([beta]).expand(len(every))), 0)
            )
    log_partition = energy.log_partition()
    assert log_partition is not None

    def sample(count: int, generator: torch.Generator) -> Tensor:
        size, kept = 4 * count, torch.empty(0, *energy.shape, dtype=torch.float64)
        while len(kept) < count:
            base, model = base_sample(energy, size, generator), known.sample(size, generator)
            from_model = torch.rand(size, generator=generator) < beta
            x = torch.where(from_model.view(-1, *(1,) * len(energy.shape)), model, base)
            with torch.no_grad():
                log_base, log_model = (
                    -energy.base(x) - energy.base_log_partition(),
                    -energy(x) - log_partition,
                )
            envelope = torch.logaddexp(log_base + log_of(1 - beta), log_model + log_of(beta))
            accepted = torch.rand(size, generator=generator, dtype=torch.float64).log() < (
                (1 - beta) * log_base + beta * log_model - envelope
            )
            kept = torch.cat([kept, x[accepted]])
        return kept[:count]

    return Known(energy, sample, known.statistics, known.moments, {}, stream=1 + round(1000 * beta))


def base_sample(energy: Energy, count: int, generator: torch.Generator) -> Tensor:
    """E_0 on R^d, in float64 (`noise` draws float32)."""
    assert energy.box is None
    return energy.base_scale * torch.randn(
        (count, *energy.shape), generator=generator, dtype=torch.float64
    )


def log_of(share: float) -> float:
    return math.log(share) if share > 0 else -math.inf


# -- the laws --------------------------------------------------------------------------------------


def mixture_means(weights: Tensor, means: Tensor, covariances: Tensor) -> dict[str, float]:
    """Of `products`: sum_k w_k m_k and sum_k w_k (C_k + m_k m_k')."""
    shares = weights / weights.sum()
    first = torch.einsum("k,ki->i", shares, means)
    second = torch.einsum("k,kij->ij", shares, covariances + means[:, :, None] * means[:, None, :])
    pairs = itertools.combinations_with_replacement(range(len(first)), 2)
    return {f"x{i}": float(mean) for i, mean in enumerate(first)} | {
        f"x{i} x{j}": float(second[i, j]) for i, j in pairs
    }


def of_gaussian(law: Gaussian, energy: Energy | None = None) -> Known:
    """`energy` is what the statistics measure, where it is not the law's own."""
    covariance = law.factor @ law.factor.T
    means = mixture_means(torch.ones(1).double(), law.mean[None], covariance[None])
    return continuous(law if energy is None else energy, law.sample, means)


def gaussian() -> Known:
    law = laws.LAWS["gaussian"]().double()
    assert isinstance(law, Gaussian)
    return of_gaussian(law)


def of_mixture(law: GaussianMixture, energy: Energy | None = None) -> Known:
    covariances = law.factors @ law.factors.transpose(1, 2)
    means = mixture_means(law.weights, law.means, covariances)
    return continuous(law if energy is None else energy, law.sample, means)


def mixture() -> Known:
    law = laws.LAWS["mixture"]().double()
    assert isinstance(law, GaussianMixture)
    return of_mixture(law)


def box() -> Known:
    """Independent truncated Gaussians: their moments are scipy's."""
    law = laws.LAWS["box"]().double()
    assert isinstance(law, TruncatedGaussian)
    means = [float(component.mean()) for component in truncated(law)]
    squares = [float(component.moment(2)) for component in truncated(law)]
    expected = {f"x{i}": mean for i, mean in enumerate(means)} | {
        f"x{i} x{i}": square for i, square in enumerate(squares)
    }
    return continuous(law, law.sample, expected | {"x0 x1": means[0] * means[1]})


def truncated(law: TruncatedGaussian) -> list[stats.rv_continuous]:
    return [
        stats.truncnorm((law.low - mean) / std, (law.high - mean) / std, mean, std)
        for mean, std in zip(law.mean.tolist(), law.std.tolist(), strict=True)
    ]


def rings() -> Known:
    """No direction is preferred; E|x|^2 by summation over the radius."""
    law = laws.LAWS["rings"]().double()
    radius = torch.linspace(0, 6, 60_001, dtype=torch.float64)
    with torch.no_grad():
        masses = radius * torch.exp(-law(torch.stack([radius, torch.zeros_like(radius)], 1)))
    square = float((masses * radius.square()).sum() / masses.sum())
    return continuous(
        law, law.sample, {"x0": 0, "x1": 0, "x0 x0": square / 2, "x1 x1": square / 2, "x0 x1": 0}
    )


def funnel() -> Known:
    """Its moments are those of what makes it: x_0 / a and x_i exp(-x_0 / 2) are standard normal."""
    law = laws.LAWS["funnel"]().double()
    assert isinstance(law, laws.Funnel)

    def moments(x: Tensor) -> dict[str, Tensor]:
        return products(torch.cat([x[:, :1] / law.scale, x[:, 1:] * torch.exp(-x[:, :1] / 2)], 1))

    means = {
        name: float(name in {"x0 x0", "x1 x1", "x2 x2"})
        for name in moments(torch.zeros(1, 3).double())
    }
    return continuous(law, law.sample, means, moments)


def scramble(energy: Energy, scale: float = 1.0, seed: int = 5) -> Energy:
    """Float64, every parameter from N(0, `scale`^2)."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in energy.double().parameters():
            parameter.copy_(
                scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            )
    return energy


def rbm() -> Known:
    return discrete(scramble(BernoulliRBM((5,), hidden=3, weight_scale=1.0), 2.0, seed=10))


def potts_rbm() -> Known:
    return discrete(scramble(PottsRBM((4,), levels=3, hidden=2, weight_scale=1.0), 1.7, seed=8))


def potts() -> Known:
    return discrete(scramble(PottsModel((4,), levels=3), 0.8, seed=12))


def lattice() -> Known:
    return discrete(scramble(PottsLattice((2, 2), levels=3, coupling=0.0, periodic=False), 1.5))


def gaussian_rbm() -> Known:
    energy = scramble(GaussianRBM((2,), hidden=2, weight_scale=1.0), seed=20)
    assert isinstance(energy, GaussianRBM)
    return of_mixture(mixture_of(energy), energy)


def mixture_of(rbm: GaussianRBM) -> GaussianMixture:
    """sum_h exp(-E(v, h)) is a mixture, over the states of h, of N(b + W'h, s^2) with weights
    proportional to

    exp(c.h + sum_i ((b + W'h)_i^2 - b_i^2) / (2 s_i^2)): 0.25, 0.57, 0.13 and 0.05 in
    `gaussian_rbm`.
    """
    hidden = torch.cat(list(all_states(2, len(rbm.hidden_bias))))
    variance, bias = rbm.log_variance.detach().exp(), rbm.visible_bias.detach()
    means = bias + hidden @ rbm.weight.detach()
    logs = hidden @ rbm.hidden_bias.detach() + (
        (means.square() - bias.square()) / (2 * variance)
    ).sum(1)
    return GaussianMixture(logs.softmax(0), means, torch.diag(variance).expand(len(hidden), -1, -1))


class Ordinal(Energy):
    """Levels 0, 1, 2 as numbers: E(x) = x.W x / 2 + b.x + sum_i sin(2 x_i), whose gradient is [N,
    *shape]: no one-hot encoding, and a poor estimate of what a change of level does.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape, levels=3)
        self.weight = torch.nn.Parameter(torch.zeros(self.dimension, self.dimension))
        self.bias = torch.nn.Parameter(torch.zeros(self.dimension))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return (
            (flat @ self.weight * flat).sum(1) / 2 + flat @ self.bias + torch.sin(2 * flat).sum(1)
        )


def ordinal() -> Known:
    return discrete(scramble(Ordinal((2, 2)), 0.7))


LAWS: dict[str, Callable[[], Known]] = {
    "gaussian": gaussian,
    "mixture": mixture,
    "box": box,
    "rings": rings,
    "funnel": funnel,
    "rbm": rbm,
    "potts_rbm": potts_rbm,
    "potts": potts,
    "lattice": lattice,
    "gaussian_rbm": gaussian_rbm,
    "ordinal": ordinal,
}


@cache
def law(name: str) -> Known:
    return LAWS[name]()


# -- what ULA keeps instead ------------------------------------------------------------------------


def ula_on_gaussian(target: Gaussian, step_size: float, noise: float | None) -> Known:
    """x' - m = A (x - m) + sigma xi with A = 1 - epsilon P: its stationary law is N(m, sigma^2 (1 -
    A^2)^-1).
    """
    one = torch.eye(target.dimension, dtype=torch.float64)
    contraction = one - step_size * target.precision
    variance = 2 * step_size if noise is None else noise**2
    covariance = variance * torch.linalg.inv(one - contraction @ contraction)
    return of_gaussian(Gaussian(target.mean, (covariance + covariance.T) / 2, target.shape), target)


@dataclass(frozen=True)
class ClampedWalk:
    """The stationary law of x' = clamp(drifted(x) + sigma xi, low, high): atoms at both walls, a
    smooth density between.

    That density, f(y) = sum_i m_i phi((y - drifted(x_i)) / sigma) / sigma, is found at
    Gauss-Legendre nodes x_i (Nystrom's method), exact to the eye of float64 as long as sigma is not
    small beside the box.
    """

    means: Tensor
    masses: Tensor
    points: Tensor
    sigma: float
    box: tuple[float, float]

    @classmethod
    def solve(
        cls, drifted: Callable[[Tensor], Tensor], sigma: float, box: tuple[float, float]
    ) -> ClampedWalk:
        low, high = box
        nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(200))
        points = torch.cat([double([low]), low + (nodes + 1) * (high - low) / 2, double([high])])
        means = drifted(points)
        inner = torch.exp(-((points[None, 1:-1] - means[:, None]) / sigma).square() / 2) / (
            sigma * math.sqrt(2 * math.pi)
        )
        into_low, into_high = (
            torch.special.ndtr((low - means) / sigma),
            torch.special.ndtr((means - high) / sigma),
        )
        transition = torch.cat(
            [into_low[:, None], inner * weights * (high - low) / 2, into_high[:, None]], 1
        )
        torch.testing.assert_close(
            transition.sum(1), torch.ones(len(points), dtype=torch.float64), rtol=0, atol=1e-10
        )
        system = torch.cat(
            [transition.T - torch.eye(len(points), dtype=torch.float64), torch.ones(1, len(points))]
        )
        right = torch.zeros(len(system), 1, dtype=torch.float64)
        right[-1] = 1
        return cls(
            means,
            torch.linalg.lstsq(system, right, driver="gelsd").solution[:, 0],
            points,
            sigma,
            box,
        )

    def moment(self, power: int) -> float:
        return float(self.masses @ self.points**power)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """By inversion: below the distribution function at the lower wall, that wall; above its
        limit at the upper, that.
        """
        grid = torch.linspace(*self.box, 4001, dtype=torch.float64)
        distribution = torch.special.ndtr((grid[:, None] - self.means) / self.sigma) @ self.masses
        uniform = torch.rand(count, generator=generator, dtype=torch.float64)
        return torch.from_numpy(np.interp(uniform.numpy(), distribution.numpy(), grid.numpy()))


def _drifted(x: Tensor, mean: Tensor, std: Tensor, step_size: float) -> Tensor:
    return x - step_size * (x - mean) / std**2


def ula_in_box(target: TruncatedGaussian, step_size: float, noise: float | None) -> Known:
    """Components are independent, each a `ClampedWalk`."""
    sigma = math.sqrt(2 * step_size) if noise is None else noise
    assert target.box is not None
    walks = []
    for mean, std in zip(target.mean, target.std, strict=True):
        drift = partial(_drifted, mean=mean, std=std, step_size=step_size)
        walks.append(ClampedWalk.solve(drift, sigma, target.box))
    first, second = ([walk.moment(power) for walk in walks] for power in (1, 2))
    means = {
        "x0": first[0],
        "x1": first[1],
        "x0 x0": second[0],
        "x0 x1": first[0] * first[1],
        "x1 x1": second[1],
    }
    return continuous(
        target,
        lambda count, generator: torch.stack([w.sample(count, generator) for w in walks], 1),
        means,
    )


def ula_law(known: Known, step_size: float, noise: float | None) -> Known:
    """What the unadjusted chain leaves invariant in place of `known`."""
    if isinstance(known.energy, Gaussian):
        return ula_on_gaussian(known.energy, step_size, noise)
    assert isinstance(known.energy, TruncatedGaussian)
    return ula_in_box(known.energy, step_size, noise)
