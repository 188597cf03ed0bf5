"""Kernels against laws that are known: stationarity, closed forms, enumeration; and broken variants that must be caught.

Every z-test here allows |z| < 6: a false alarm of 2e-9 a test, so under 1e-6 for the folder. Seeds are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.energies.base import Energy, Target
from pipeline.energies.rbm import BernoulliRBM
from pipeline.evaluation.ais import GaussianBase
from pipeline.kernels import gibbs, mala, ula
from pipeline.kernels.base import Info, choose, normal_like
from pipeline.kernels.ula import State
from tests.conftest import states

Z_LIMIT = 6.0
CHAINS = 20_000
COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)
Step = Callable[..., tuple[Any, Info]]


def gaussian() -> GaussianBase:
    return GaussianBase((2,), torch.tensor([0.5, -1.0], dtype=torch.float64), COVARIANCE)


def advance(step: Step, position: Tensor, target: Target, transitions: int, **parameters: float) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    state = ula.init(position, target)
    for _ in range(transitions):
        state, _ = step(generator, state, target, **parameters)
    return state.position


def worst_z(x: Tensor, law: GaussianBase, covariance: Tensor) -> float:
    """The largest |z| of the sample's means and second moments against N(m, covariance)'s.

    Var[mean] = C_ii / n; Var[mean of (x_i - m_i)(x_j - m_j)] = (C_ii C_jj + C_ij^2) / n (Isserlis).
    """
    centred, n = x - law.mean, len(x)
    z_mean = centred.mean(0) / (covariance.diagonal() / n).sqrt()
    second = centred.T @ centred / n
    diagonal = covariance.diagonal()
    z_second = (second - covariance) / ((diagonal[:, None] * diagonal + covariance**2) / n).sqrt()
    return float(torch.cat([z_mean.abs(), z_second.abs().flatten()]).max())


def test_mala_leaves_a_correlated_gaussian_as_it_is() -> None:
    """At a step size with a third of the proposals rejected, so that the correction has work to do."""
    law = gaussian()
    start = law.noise(CHAINS, torch.Generator().manual_seed(0)).double()
    assert worst_z(start, law, COVARIANCE) < Z_LIMIT
    target = Target(law)
    assert worst_z(advance(mala.step, start, target, 30, step_size=0.5), law, COVARIANCE) < Z_LIMIT
    _, info = mala.step(torch.Generator().manual_seed(2), ula.init(start, target), target, step_size=0.5)
    assert 0.3 < float(info.acceptance.mean()) < 0.8


def test_mala_reaches_the_law_from_a_bad_start() -> None:
    law = gaussian()
    start = torch.full((CHAINS, 2), 8.0, dtype=torch.float64)
    assert worst_z(advance(mala.step, start, Target(law), 150, step_size=0.3), law, COVARIANCE) < Z_LIMIT


def uncorrected(generator: torch.Generator, state: State, target: Target, *, step_size: float) -> tuple[State, Info]:
    """MALA that forgets log q(x | x') - log q(x' | x)."""
    proposal = state.position - step_size * state.gradient + math.sqrt(2 * step_size) * normal_like(state.position, generator)
    moved = ula.init(proposal, target)
    accepted = torch.rand(len(proposal), generator=generator) < (state.energy - moved.energy).exp()
    return choose(accepted, moved, state), Info(accepted.float())


def uphill(generator: torch.Generator, state: State, target: Target, *, step_size: float) -> tuple[State, Info]:
    """MALA's accept step on a drift of the wrong sign."""
    return mala.step(generator, state._replace(gradient=-state.gradient), target, step_size=step_size)


def wrong_noise(generator: torch.Generator, state: State, target: Target, *, step_size: float) -> tuple[State, Info]:
    """The lecture's slip: drift epsilon with noise sqrt(epsilon), uncorrected, which samples p^2."""
    return ula.step(generator, state, target, step_size=step_size, noise=math.sqrt(step_size))


@pytest.mark.parametrize("broken", [uncorrected, uphill, wrong_noise])
def test_broken_kernels_are_caught(broken: Step) -> None:
    """The stationarity test above fails on each of these."""
    law = gaussian()
    start = law.noise(CHAINS, torch.Generator().manual_seed(0)).double()
    assert worst_z(advance(broken, start, Target(law), 30, step_size=0.5), law, COVARIANCE) > 2 * Z_LIMIT


@pytest.mark.parametrize("noise", [None, 0.3])
def test_ula_has_the_bias_its_recursion_says(noise: float | None) -> None:
    """On N(m, v): x' - m = (1 - e/v)(x - m) + s xi, so the stationary variance is s^2 / (1 - (1 - e/v)^2)."""
    variance, step_size = 0.7, 0.4
    law = GaussianBase((2,), torch.zeros(2, dtype=torch.float64), variance * torch.eye(2, dtype=torch.float64))
    sigma = math.sqrt(2 * step_size) if noise is None else noise
    stationary = sigma**2 / (1 - (1 - step_size / variance) ** 2) * torch.eye(2, dtype=torch.float64)
    start = torch.zeros(CHAINS, 2, dtype=torch.float64)
    end = advance(ula.step, start, Target(law), 40, step_size=step_size, noise=noise)
    assert worst_z(end, law, stationary) < Z_LIMIT
    assert worst_z(end, law, variance * torch.eye(2, dtype=torch.float64)) > 2 * Z_LIMIT


class HalfPlane(Energy):
    """Finite only right of 0; beyond, what bad weights make: inf, -inf or NaN."""

    def __init__(self, beyond: float) -> None:
        super().__init__((1,))
        self.beyond = beyond

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 0, x[:, 0].square() / 2, self.beyond)


@pytest.mark.parametrize("beyond", [math.inf, -math.inf, math.nan])
def test_mala_rejects_what_is_not_finite(beyond: float) -> None:
    target = Target(HalfPlane(beyond))
    state = mala.init(torch.rand(500, 1), target)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        state, info = mala.step(generator, state, target, step_size=0.1)
        assert info.acceptance.isfinite().all()
    assert (state.position > 0).all()
    assert state.energy.isfinite().all()


def visible_law(rbm: BernoulliRBM) -> Tensor:
    return torch.softmax(-rbm(states(5)), 0).detach()


def test_gibbs_leaves_the_enumerated_law_as_it_is(tiny_rbm: BernoulliRBM) -> None:
    """The transition matrix, built from the very conditionals `step` draws from: pi P = pi, and pi_i P_ij = pi_j P_ji."""
    target, v, h = Target(tiny_rbm), states(5), states(3)
    p_hidden = product_of_bernoullis(target.conditional("hidden", v), h)
    p_visible = product_of_bernoullis(target.conditional("visible", h), v)
    transition, pi = p_hidden @ p_visible, visible_law(tiny_rbm)
    torch.testing.assert_close(transition.sum(1), torch.ones(32, dtype=torch.float64))
    torch.testing.assert_close(pi @ transition, pi, rtol=0, atol=1e-12)
    flow = pi[:, None] * transition
    torch.testing.assert_close(flow, flow.T, rtol=0, atol=1e-12)


def product_of_bernoullis(means: Tensor, values: Tensor) -> Tensor:
    """p(values_j | means_i), `[I, J]`."""
    return (means.log() @ values.T + (1 - means).log() @ (1 - values).T).exp()


def test_gibbs_draws_from_its_transition_matrix(tiny_rbm: BernoulliRBM) -> None:
    """Chains from one state, one transition on: counts of all 32 states against the matrix's row, not yet the law itself."""
    target, v, h = Target(tiny_rbm), states(5), states(3)
    transition = product_of_bernoullis(target.conditional("hidden", v), h) @ product_of_bernoullis(
        target.conditional("visible", h), v
    )
    expected = transition[11]
    state = gibbs.init(v[11].expand(CHAINS, 5), target)
    state, _ = gibbs.step(torch.Generator().manual_seed(0), state, target)
    counts = torch.bincount((state.position @ 2 ** torch.arange(5).double()).long(), minlength=32)
    z = (counts - CHAINS * expected) / (CHAINS * expected * (1 - expected)).sqrt()
    assert float(z.abs().max()) < Z_LIMIT
    assert float(((counts - CHAINS * visible_law(tiny_rbm)) / (CHAINS * expected).sqrt()).abs().max()) > Z_LIMIT


def test_kernels_have_one_shape(tiny_rbm: BernoulliRBM) -> None:
    """`init(position, target)`, `step(generator, state, target, **parameters)`; same generator, same draws."""
    law = gaussian()
    for kernel, target, position, parameters in (
        (ula.kernel, Target(law), law.noise(7, torch.Generator()).double(), {"step_size": 0.1}),
        (mala.kernel, Target(law), law.noise(7, torch.Generator()).double(), {"step_size": 0.1}),
        (gibbs.kernel, Target(tiny_rbm), states(5)[:7], {}),
    ):
        state = kernel.init(position, target)
        ends = []
        for _ in range(2):
            moved, info = kernel.step(torch.Generator().manual_seed(3), state, target, **parameters)
            assert moved.position.shape == position.shape
            assert info.acceptance.shape == (7,)
            ends.append(moved.position)
        assert torch.equal(*ends)
        assert torch.equal(state.position, position), "a step must not write to the state it was given"
