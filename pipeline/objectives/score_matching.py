"""Score matching, from the trace or from directions, and by finite differences.

With the score s(x) = -grad E(x) and H the Hessian of E, implicit score matching (Hyvarinen 2005,
theorem 1) minimises

    J = E_data[|grad E(x)|^2 / 2 - tr H(x)] = E_data[|s(x) - grad log p_data(x)|^2] / 2 + const

for densities on R^d that vanish at infinity. No Z, and no chains.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.energies.base import Energy, squared_norm
from pipeline.objectives.base import Objective, Part, PositiveSide
from pipeline.objectives.probes import TraceEstimator, gaussian


class _Directional(Objective):
    """An objective that draws directions `[P, N, *shape]` for every row."""

    def __init__(self, estimator: TraceEstimator, probes: int) -> None:
        super().__init__()
        self._estimator, self._probes = estimator, probes

    def draw(
        self, energy: Energy, positives: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        return (self._estimator(energy, positives, self._probes, generator),)


class ScoreMatching(_Directional):
    """loss = mean_i |grad E(x_i)|^2 / 2 - mean_ip v_ip.H(x_i) v_ip

    Exact where the v are a basis; Hutchinson's estimator of the trace, unbiased, where they are
    random. For directions with E[v v'] = I this is sliced score matching with variance reduction
    (Song et al. 2019, equation 8), which takes the expectation of (v.s)^2 in closed form.
    """

    def of_positives(self, energy: Energy, positives: PositiveSide) -> Iterator[Part]:
        """Parts named score and trace: the mean of |s|^2 / 2, and of the trace of the Hessian of
        E.
        """
        energy = energy.given(positives.context)
        slope, curvatures = energy.gradient_and_curvature(positives.position, positives.drawn[0])
        yield Part("score", slope.square().sum() / 2, len(slope))
        yield Part("trace", curvatures.sum(), curvatures.numel(), -1.0)


class SlicedScoreMatching(_Directional):
    """loss = mean_ip (v_ip.grad E(x_i))^2 / 2 - v_ip.H(x_i) v_ip

    (Song et al. 2019, equation 7).
    """

    def of_positives(self, energy: Energy, positives: PositiveSide) -> Iterator[Part]:
        """Parts named score and trace: the mean of (v.s)^2 / 2, and of v.H v."""
        energy = energy.given(positives.context)
        directions = positives.drawn[0]
        slope, curvatures = energy.gradient_and_curvature(positives.position, directions)
        along = (slope * directions).flatten(2).sum(2)
        yield Part("score", along.square().sum() / 2, along.numel())
        yield Part("trace", curvatures.sum(), curvatures.numel(), -1.0)


class FiniteDifferenceScoreMatching(_Directional):
    """Sliced score matching from energies alone (Pang et al. 2020, FD-SSM), with u = epsilon v:

        v.grad E ~ (E(x + u) - E(x - u)) / (2 epsilon)
        v.H v    ~ (E(x + u) + E(x - u) - 2 E(x)) / epsilon^2

    No second derivatives; three evaluations a direction, E(x) shared by all. The bias is
    O(epsilon^2); rounding in float32 grows as 1 / epsilon^2.
    """

    def __init__(self, estimator: TraceEstimator, probes: int, epsilon: float) -> None:
        super().__init__(estimator, probes)
        self._epsilon = epsilon

    def of_positives(self, energy: Energy, positives: PositiveSide) -> Iterator[Part]:
        """Parts named score and trace, as of sliced score matching."""
        energy = energy.given(positives.context)
        x, directions = positives.position, positives.drawn[0]
        probes = len(directions)
        points = x.expand(2 * probes + 1, *x.shape).clone()
        points[:probes].add_(directions, alpha=self._epsilon)
        points[probes:-1].sub_(directions, alpha=self._epsilon)
        ahead, behind, here = (
            energy(points.flatten(0, 1)).view(len(points), len(x)).split([probes, probes, 1])
        )
        along = (ahead - behind) / (2 * self._epsilon)
        curvatures = (ahead + behind - 2 * here) / self._epsilon**2
        yield Part("score", along.square().sum() / 2, along.numel())
        yield Part("trace", curvatures.sum(), curvatures.numel(), -1.0)


class DenoisingScoreMatching(Objective):
    """With y = x + sigma n, n ~ N(0, I), sigma drawn from the `levels` for each n (Vincent 2011,
    equation 10; weighted by sigma^2 as by Song & Ermon 2019):

        loss = mean sigma^2 |grad E(y) - (y - x) / sigma^2|^2 / 2 = mean |sigma grad E(y) - n|^2 / 2

    One level learns the data's law smoothed by N(0, sigma^2 I). Several learn one law too, since
    the energy knows no sigma: the mixture of the smoothed ones with weights proportional to sigma^2
    (denoising score matching holds for any noise law, and what weighs a level's loss weighs its
    share). The data's own noise comes on top.
    """

    _sigmas: Tensor

    def __init__(self, levels: tuple[float, ...], draws: int) -> None:
        super().__init__()
        self.register_buffer("_sigmas", torch.tensor(levels), persistent=False)
        self._draws = draws

    def draw(
        self, energy: Energy, positives: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """Standard normal `[P, N, *shape]`, and the noise level of each, `[P, N]`."""
        noise = gaussian(energy, positives, self._draws, generator)
        size = (self._draws, len(positives))
        level = torch.randint(len(self._sigmas), size, generator=generator, device=positives.device)
        return noise, self._sigmas.to(positives)[level]

    def of_positives(self, energy: Energy, positives: PositiveSide) -> Iterator[Part]:
        """One part, denoising."""
        energy = energy.given(positives.context)
        noise, sigma = positives.drawn[0].flatten(0, 1), positives.drawn[1].flatten()
        sigma = sigma.view(-1, *(1,) * (noise.ndim - 1))
        clean = positives.position.repeat(len(positives.drawn[0]), *(1,) * (noise.ndim - 1))
        residual = sigma * energy.differentiable_gradient(clean + sigma * noise) - noise
        yield Part("denoising", squared_norm(residual).sum() / 2, len(noise))


class FiniteDifferenceDenoising(DenoisingScoreMatching):
    """Denoising score matching along one random direction a draw, from two evaluations (Pang et al.
    2020, FD-DSM):

        v.grad E(y) ~ (E(y + epsilon v) - E(y - epsilon v)) / (2 epsilon)
        loss = mean (sigma v.grad E(y) - v.n)^2 / 2,   E[v v'] = I

    In expectation over v the loss of denoising score matching, up to O(epsilon^2). The directions
    are those of `estimator`.
    """

    def __init__(
        self, levels: tuple[float, ...], draws: int, estimator: TraceEstimator, epsilon: float
    ) -> None:
        super().__init__(levels, draws)
        self._estimator, self._epsilon = estimator, epsilon

    def draw(
        self, energy: Energy, positives: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        noise, sigmas = super().draw(energy, positives, generator)
        return noise, sigmas, self._estimator(energy, positives, self._draws, generator)

    def of_positives(self, energy: Energy, positives: PositiveSide) -> Iterator[Part]:
        """One part, denoising."""
        energy = energy.given(positives.context)
        noise, sigmas, directions = positives.drawn
        wanted = torch.einsum("pni,pni->pn", directions.flatten(2), noise.flatten(2))
        points = torch.addcmul(
            positives.position, noise, sigmas.view(*sigmas.shape, *(1,) * (noise.ndim - 2))
        ).repeat(2, *(1,) * (noise.ndim - 1))
        points[: len(noise)].add_(directions, alpha=self._epsilon)
        points[len(noise) :].sub_(directions, alpha=self._epsilon)
        ahead, behind = energy(points.flatten(0, 1)).view(2, *sigmas.shape)
        along = (ahead - behind) / (2 * self._epsilon)
        residual = sigmas * along - wanted
        yield Part("denoising", residual.square().sum() / 2, residual.numel())
