"""Energies whose log Z is known, with exact draws or rows near them: what estimates of log Z are
held against.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.energies.base import Energy
from pipeline.energies.discrete import all_states
from pipeline.energies.lattice import PottsLattice
from pipeline.energies.laws import LAWS, Gaussian, GaussianMixture, Law
from pipeline.energies.mlp import MLPEnergy
from pipeline.energies.quadrature import MidpointRule
from pipeline.energies.rbm import (
    BernoulliRBM,
    GaussianRBM,
    PottsRBM,
    RestrictedBoltzmannMachine,
)

ROWS = 1000


class Known(NamedTuple):
    """An energy, its log Z (nats), and rows [1000, *shape] that are draws of it."""

    energy: Energy
    log_z: float
    rows: Tensor


def _law(law: Law) -> Known:
    return Known(law, law.log_partition(), law.sample(ROWS, _seeded()))


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def _gaussian() -> Known:
    """Ten correlated components."""
    factor = torch.randn(10, 10, generator=_seeded())
    return _law(Gaussian(torch.arange(10.0) / 3, factor @ factor.T / 10 + 0.1 * torch.eye(10)))


def _two_modes(dimension: int, apart: float) -> Known:
    """Two round Gaussians of standard deviation 0.5, whose means are `apart` in each component."""
    means = torch.tensor([[-apart / 2], [apart / 2]]).expand(2, dimension)
    covariances = 0.25 * torch.eye(dimension).expand(2, -1, -1)
    return _law(GaussianMixture(torch.tensor([2.0, 1.0]), means, covariances))


def _machine(rbm: RestrictedBoltzmannMachine, weights: float, biases: float = 0.0) -> Known:
    """One with random weights, and hidden biases at which each unit is on half of the time."""
    generator = _seeded()
    rbm.requires_grad_(False)
    rbm.weight.copy_(weights * torch.randn(rbm.weight.shape, generator=generator))
    rbm.visible_bias.add_(biases * torch.randn(rbm.visible_bias.shape, generator=generator))
    means = rbm.features(rbm.sample_base(2000, generator)).mean(0)
    rbm.hidden_bias.copy_(-rbm.weight @ means)
    hidden = len(rbm.hidden_bias)
    h = torch.cat(list(all_states(2, hidden))).float()
    field = torch.addmm(rbm.visible_bias, h, rbm.weight)
    logs = h @ rbm.hidden_bias + rbm.visible_log_partition(field)
    shares = torch.softmax(logs.double(), 0)
    chosen = torch.multinomial(shares, ROWS, replacement=True, generator=generator)
    log_z = rbm.log_partition()
    assert log_z is not None
    return Known(rbm, log_z, rbm.conditional("visible", h[chosen]).sample(generator))


def _gaussian_machine(scale: float, deviation: float = 1.0) -> Known:
    """A Gaussian RBM with 14 hidden units, whose visible units spread over about `scale`."""
    rbm = GaussianRBM((64,), 14, 1.0).requires_grad_(False)
    rbm.log_variance.fill_(2 * math.log(deviation * scale))
    return _machine(rbm, 0.3 * scale)


def _lattice() -> Known:
    """The Potts model with three levels on 3 x 3 sites, near where it orders."""
    lattice = PottsLattice((3, 3), 3, 0.9, periodic=False).requires_grad_(False)
    states = torch.cat(list(all_states(3, 9))).float().view(-1, 3, 3)
    logs = -lattice(states).double()
    shares = torch.softmax(logs, 0)
    chosen = torch.multinomial(shares, ROWS, replacement=True, generator=_seeded())
    return Known(lattice, float(torch.logsumexp(logs, 0)), states[chosen])


def _perceptron() -> Known:
    """A perceptron in the plane, with log Z and draws by quadrature."""
    torch.manual_seed(2)
    energy = MLPEnergy((2,), [32, 32], 2.0, spectral_norm=False).requires_grad_(False)
    for name, parameter in energy.named_parameters():
        if name.endswith("weight"):
            parameter.mul_(3.0)
    rule = MidpointRule(-10.0, 10.0, 1000)
    log_z = float(rule.precise_log_integral(energy))
    centres = torch.linspace(-10, 10, 1001)[:-1] + 0.01
    grid = torch.cartesian_prod(centres, centres)
    shares = torch.softmax(-energy(grid).double(), 0)
    chosen = torch.multinomial(shares.float(), ROWS, replacement=True, generator=_seeded())
    return Known(energy, log_z, grid[chosen])


KNOWN: dict[str, Callable[[], Known]] = {
    "Gaussian, 10 components": _gaussian,
    "mixture in the plane": lambda: _law(LAWS["mixture"]()),
    "rings": lambda: _law(LAWS["rings"]()),
    "funnel": lambda: _law(LAWS["funnel"]()),
    "truncated Gaussian in a box": lambda: _law(LAWS["box"]()),
    "two modes, 8 components": lambda: _two_modes(8, 1.5),
    "two modes far apart": lambda: _two_modes(8, 6.0),
    "perceptron in the plane": _perceptron,
    "RBM 784x16": lambda: _machine(BernoulliRBM((784,), 16, 1.0), 0.3, 1.5),
    "RBM 64x12": lambda: _machine(BernoulliRBM((64,), 12, 1.0), 0.5, 1.0),
    "Potts RBM 20x10, 4 levels": lambda: _machine(PottsRBM((20,), 4, 10, 1.0), 0.6),
    "Gaussian RBM 64x14": lambda: _gaussian_machine(1.0, 0.7),
    "Gaussian RBM 64x14, 0 to 255": lambda: _gaussian_machine(64.0, 0.7),
    "Potts model 3x3, 3 levels": _lattice,
}
