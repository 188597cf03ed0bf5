"""Laws on R^d known in closed form: normalised, with an exact sampler. What samplers and estimators
are measured against.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.energies.base import Energy

LOG_2PI = math.log(2 * math.pi)


class Law(Energy):
    """An energy on R^d (or in a box) whose Z, score and samples are exact; all its numbers are
    buffers.
    """

    def log_partition(self) -> float:
        """log Z, nats."""
        raise NotImplementedError

    def score(self, x: Tensor) -> Tensor:
        """-grad E(x) in closed form, `[N, *shape] -> [N, *shape]`, nats per unit of x."""
        raise NotImplementedError

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Exact independent draws, `[count, *shape]` in the buffers' dtype, on the generator's
        device.
        """
        raise NotImplementedError

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) = -E(x) - log Z, `[N, *shape] -> [N]` nats."""
        return -self(x) - self.log_partition()


def mean_and_variance(flat: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The mean and the variance of each component of `flat` rows [S, d], `[d]` each, under their
    `weights` [S] where there are any.
    """
    if weights is None:
        return flat.mean(0), flat.var(0)
    shares = (weights / weights.sum()).to(flat)
    mean = shares @ flat
    return mean, shares @ (flat - mean).square() / (1 - shares.square().sum())


def added_variance(flat: Tensor, noise: float, weights: Tensor | None = None) -> float:
    """The variance that each component of `flat` rows [S, d] is given more where a law is fitted to
    them: that of their `noise`, and 1/1000 of their mean variance, which keeps a covariance
    positive.
    """
    return noise**2 + 1e-3 * float(mean_and_variance(flat, weights)[1].mean()) + 1e-8


class Gaussian(Law):
    """N(m, C): E(x) = (x - m)' P (x - m) / 2 with P = C^-1, log Z = (d log 2 pi + log det C) / 2.

    `mean` [d] and `covariance` [d, d] are those of the flattened rows.
    """

    mean: Tensor
    factor: Tensor
    precision: Tensor

    def __init__(
        self, mean: Tensor, covariance: Tensor, shape: Sequence[int] | None = None
    ) -> None:
        second_moment = (mean.square() + covariance.diagonal()).mean()
        super().__init__(
            mean.shape if shape is None else shape, base_scale=math.sqrt(float(second_moment))
        )
        self.register_buffer("mean", mean)
        self.register_buffer("factor", torch.linalg.cholesky(covariance))
        self.register_buffer("precision", torch.cholesky_inverse(self.factor))

    @classmethod
    def fit(cls, rows: Tensor, noise: float, weights: Tensor | None = None) -> Gaussian:
        """The Gaussian with the rows' mean and covariance `[d, d]`, those under their `weights` [S]
        where there are any, plus `noise`^2 and a little more on its diagonal.
        """
        flat = rows.flatten(1).double()
        size = flat.shape[1]
        extra = added_variance(flat, noise, weights) * torch.eye(size, dtype=torch.float64)
        covariance = torch.cov(flat.T, aweights=weights).reshape(size, -1) + extra
        mean, _ = mean_and_variance(flat, weights)
        return cls(mean.to(rows.dtype), covariance.to(rows.dtype), rows.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        centred = x.flatten(1) - self.mean
        return (centred @ self.precision * centred).sum(1) / 2

    def log_partition(self) -> float:
        return float(self.dimension * LOG_2PI / 2 + self.factor.diagonal().log().sum())

    def score(self, x: Tensor) -> Tensor:
        return ((self.mean - x.flatten(1)) @ self.precision).view_as(x)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        standard = torch.randn(
            (count, self.dimension),
            generator=generator,
            dtype=self.mean.dtype,
            device=generator.device,
        )
        return (self.mean + standard @ self.factor.T).view(count, *self.shape)


class GaussianMixture(Law):
    """E(x) = -log sum_k w_k N(x; m_k, C_k), Z = sum_k w_k: `weights` [K] need not sum to 1; `means`
    [K, d], `covariances` [K, d, d].
    """

    weights: Tensor
    means: Tensor
    factors: Tensor
    precisions: Tensor

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        second_moments = (means.square() + covariances.diagonal(dim1=1, dim2=2)).mean(1)
        super().__init__(
            means.shape[1:], base_scale=math.sqrt(float(weights @ second_moments / weights.sum()))
        )
        self.register_buffer("weights", weights)
        self.register_buffer("means", means)
        self.register_buffer("factors", torch.linalg.cholesky(covariances))
        self.register_buffer("precisions", torch.cholesky_inverse(self.factors))

    def _terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log (w_k N(x; m_k, C_k)), `[N, K]`, and P_k (m_k - x), `[N, K, d]`."""
        centred = self.means - x[:, None]
        pulls = torch.einsum("kij,nkj->nki", self.precisions, centred)
        log_norms = self.dimension * LOG_2PI / 2 + self.factors.diagonal(dim1=1, dim2=2).log().sum(
            1
        )
        return self.weights.log() - log_norms - (centred * pulls).sum(2) / 2, pulls

    def forward(self, x: Tensor) -> Tensor:
        return -torch.logsumexp(self._terms(x)[0], 1)

    def log_partition(self) -> float:
        return math.log(float(self.weights.sum()))

    def score(self, x: Tensor) -> Tensor:
        logs, pulls = self._terms(x)
        return (torch.softmax(logs, 1)[:, :, None] * pulls).sum(1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        standard = torch.randn(
            (count, self.dimension, 1),
            generator=generator,
            dtype=self.means.dtype,
            device=generator.device,
        )
        return self.means[chosen] + (self.factors[chosen] @ standard)[:, :, 0]


class Rings(Law):
    """Rings in the plane: E(x) = -log sum_k w_k exp(-(|x| - R_k)^2 / (2 s^2)), `radii` and
    `weights` [K], `width` s.

    Z = sum_k w_k Z_k with Z_k = 2 pi (s^2 exp(-R_k^2 / (2 s^2)) + R_k s sqrt(pi / 2) (1 + erf(R_k /
    (s sqrt 2)))), the integral of 2 pi r exp(-(r - R_k)^2 / (2 s^2)) over r > 0.
    """

    radii: Tensor
    weights: Tensor
    width: Tensor

    def __init__(self, radii: Tensor, width: float, weights: Tensor) -> None:
        super().__init__((2,), base_scale=float(radii.max()))
        self.register_buffer("radii", radii)
        self.register_buffer("weights", weights)
        self.register_buffer("width", torch.tensor(width, dtype=radii.dtype))

    def _logs(self, radius: Tensor) -> Tensor:
        """log w_k - (r - R_k)^2 / (2 s^2), `[N, 1] -> [N, K]`."""
        return self.weights.log() - ((radius - self.radii) / self.width).square() / 2

    def forward(self, x: Tensor) -> Tensor:
        return -torch.logsumexp(self._logs(torch.linalg.vector_norm(x, dim=1, keepdim=True)), 1)

    def _masses(self) -> Tensor:
        """w_k Z_k, `[K]` float64."""
        radii, width = self.radii.double(), self.width.double()
        ratio = radii / (width * math.sqrt(2))
        integrals = width.square() * torch.exp(-ratio.square()) + radii * width * math.sqrt(
            math.pi / 2
        ) * (1 + torch.erf(ratio))
        return 2 * math.pi * self.weights.double() * integrals

    def log_partition(self) -> float:
        return math.log(float(self._masses().sum()))

    def score(self, x: Tensor) -> Tensor:
        """-dE/dr x / |x|; 0 at the origin, where E has none."""
        radius = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        shares = torch.softmax(self._logs(radius), 1)
        slope = (shares * (self.radii - radius)).sum(1, keepdim=True) / self.width.square()
        return slope * torch.nn.functional.normalize(x)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """A ring with probability w_k Z_k / Z, an angle, and a radius of density r exp(-(r - R)^2 /
        (2 s^2)) by rejection.

        log r lies under its tangent at the density's mode r_0 = (R + sqrt(R^2 + 4 s^2)) / 2, and
        that makes the envelope N(r_0, s^2): a draw r > 0 is accepted with probability (r / r_0)
        exp(1 - r / r_0), a negative one never.
        """
        ring = torch.multinomial(self._masses(), count, replacement=True, generator=generator)
        modes = ((self.radii + (self.radii.square() + 4 * self.width.square()).sqrt()) / 2)[ring]
        radius, pending = torch.empty_like(modes), torch.arange(count, device=modes.device)
        while len(pending):
            mode = modes[pending]
            draw = torch.empty_like(mode).normal_(generator=generator).mul_(self.width).add_(mode)
            ratio = draw / mode
            accepted = torch.empty_like(mode).uniform_(generator=generator) < ratio * torch.exp(
                1 - ratio
            )
            radius[pending[accepted]] = draw[accepted]
            pending = pending[~accepted]
        angle = torch.empty_like(modes).uniform_(0, 2 * math.pi, generator=generator)
        return radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)


class Funnel(Law):
    """x_0 ~ N(0, a^2), and x_i given x_0 ~ N(0, exp(x_0)) for i = 1 .. d - 1, `scale` a (Neal 2003,
    section 8):

    E(x) = x_0^2 / (2 a^2) + (d - 1) x_0 / 2 + exp(-x_0) sum_i x_i^2 / 2,  log Z = d log(2 pi) / 2 +
    log a.
    """

    scale: Tensor

    def __init__(self, dimension: int, scale: float = 3.0) -> None:
        super().__init__((dimension,), base_scale=scale)
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        neck, rest = x[:, 0], x[:, 1:].square().sum(1)
        return (
            (neck / self.scale).square() / 2
            + (self.dimension - 1) * neck / 2
            + torch.exp(-neck) * rest / 2
        )

    def log_partition(self) -> float:
        return self.dimension * LOG_2PI / 2 + math.log(float(self.scale))

    def score(self, x: Tensor) -> Tensor:
        neck, precision = x[:, :1], torch.exp(-x[:, :1])
        pull = precision * x[:, 1:].square().sum(1, keepdim=True) / 2 - (self.dimension - 1) / 2
        return torch.cat([pull - neck / self.scale.square(), -precision * x[:, 1:]], 1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        x = torch.randn(
            (count, self.dimension),
            generator=generator,
            dtype=self.scale.dtype,
            device=generator.device,
        )
        x[:, 0] *= self.scale
        x[:, 1:] *= torch.exp(x[:, :1] / 2)
        return x


class TruncatedGaussian(Law):
    """Independent N(m_i, s_i^2) within the box [low, high]^d: E(x) = |(x - m) / s|^2 / 2 there,

    log Z = sum_i log(s_i sqrt(2 pi) (Phi((high - m_i) / s_i) - Phi((low - m_i) / s_i))). `mean`,
    `std` [d].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Tensor,
        std: Tensor,
        box: tuple[float, float],
        shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__(mean.shape if shape is None else shape, box=box)
        self.low, self.high = box
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @classmethod
    def fit(
        cls,
        rows: Tensor,
        noise: float,
        box: tuple[float, float],
        weights: Tensor | None = None,
    ) -> TruncatedGaussian:
        """The components' means and variances (before truncation) of the rows, under their
        `weights` [S] where there are any, plus `noise`^2 and a little more.
        """
        mean, variance = mean_and_variance(rows.flatten(1).double(), weights)
        variance = variance + noise**2 + 1e-3 * (box[1] - box[0]) ** 2
        return cls(mean.to(rows.dtype), variance.sqrt().to(rows.dtype), box, rows.shape[1:])

    def _ends(self) -> tuple[Tensor, Tensor]:
        """Phi at both walls, `[d]` float64."""
        mean, std = self.mean.double(), self.std.double()
        return torch.special.ndtr((self.low - mean) / std), torch.special.ndtr(
            (self.high - mean) / std
        )

    def forward(self, x: Tensor) -> Tensor:
        return ((x.flatten(1) - self.mean) / self.std).square().sum(1) / 2

    def log_partition(self) -> float:
        low, high = self._ends()
        return float((LOG_2PI / 2 + self.std.double().log() + (high - low).log()).sum())

    def score(self, x: Tensor) -> Tensor:
        return ((self.mean - x.flatten(1)) / self.std.square()).view_as(x)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """By inversion of the cumulative distribution, in float64."""
        low, high = self._ends()
        uniform = torch.rand(
            (count, self.dimension),
            generator=generator,
            dtype=torch.float64,
            device=generator.device,
        )
        x = self.mean + self.std * torch.special.ndtri(low + uniform * (high - low))
        return x.clamp(self.low, self.high).to(self.mean.dtype).view(count, *self.shape)


def _mixture() -> GaussianMixture:
    """Shares 0.2, 0.3 and 0.5, Z = 5; random-walk Metropolis with N(0, 1) steps forgets its start
    in 50 transitions.
    """
    covariances = [[[0.6, 0.2], [0.2, 0.5]], [[0.5, -0.2], [-0.2, 0.6]], [[0.8, 0.0], [0.0, 0.3]]]
    means = [[-1.2, -0.8], [1.2, -0.8], [0.0, 1.2]]
    return GaussianMixture(
        torch.tensor([1.0, 1.5, 2.5]), torch.tensor(means), torch.tensor(covariances)
    )


LAWS: dict[str, Callable[[], Law]] = {
    "gaussian": lambda: Gaussian(torch.tensor([0.5, -1.0]), torch.tensor([[1.0, 0.6], [0.6, 0.8]])),
    "mixture": _mixture,
    "rings": lambda: Rings(torch.tensor([1.0, 2.5]), 0.3, torch.tensor([1.0, 0.8])),
    "funnel": lambda: Funnel(3, 1.5),
    "box": lambda: TruncatedGaussian(
        torch.tensor([0.2, 1.4]), torch.tensor([0.8, 0.5]), (-1.0, 1.0)
    ),
}
