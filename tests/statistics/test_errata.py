"""The lecture's slips, shown to be slips: see docs/systems.md."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.energies.base import Energy
from pipeline.energies.target import Target
from pipeline.kernels import ula

STEP_SIZE, CHAINS, TRANSITIONS = 0.005, 20_000, 800


class Quartic(Energy):
    """E(x) = x^4 / 4 - x, on R."""

    def __init__(self) -> None:
        super().__init__((1,))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0] ** 4 / 4 - x[:, 0]


def moments(power: float) -> Tensor:
    """Mean and variance of the law proportional to p^power, by a midpoint rule on [-5, 5]."""
    x = torch.linspace(-5, 5, 10_001, dtype=torch.float64)[:, None]
    shares = (-power * Quartic()(x)).softmax(0)
    mean = shares @ x[:, 0]
    return torch.stack([mean, shares @ (x[:, 0] - mean).square()])


@pytest.mark.parametrize(
    ("noise", "power"), [(None, 1.0), (math.sqrt(STEP_SIZE), 2.0)], ids=["ours", "the lecture's"]
)
def test_a_drift_of_eta_with_noise_of_its_root_has_the_law_p_squared(
    noise: float | None, power: float
) -> None:
    """Mean and variance of 20,000 chains, within 5 standard errors (6e-7 each) and a hundredth for
    the discretisation's own bias, of O(eta) = 0.005; and those of the other power are far outside.
    """
    generator, target = torch.Generator().manual_seed(0), Target(Quartic())
    state = ula.kernel.init(torch.zeros(CHAINS, 1, dtype=torch.float64), target)
    for _ in range(TRANSITIONS):
        state, _ = ula.kernel.step(generator, state, target, step_size=STEP_SIZE, noise=noise)
    x = state.position[:, 0]
    found = torch.stack([x.mean(), x.var()])
    errors = torch.stack([x.std(), (x - x.mean()).square().std()]) / math.sqrt(CHAINS)
    assert ((found - moments(power)).abs() < 5 * errors + 0.01).all()
    assert ((found - moments(3 - power)).abs() > 5 * errors + 0.05).all()
