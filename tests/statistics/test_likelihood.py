"""Exact maximum likelihood against enumeration by hand, closed forms, and finite differences of the
rule's own error.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.common.errors import ArgumentError
from pipeline.energies.base import Energy
from pipeline.energies.lattice import PottsLattice
from pipeline.energies.mlp import MLPEnergy
from pipeline.energies.quadratic import QuadraticBinary
from pipeline.energies.rbm import BernoulliRBM, GaussianRBM, PottsRBM
from pipeline.objectives.likelihood import MaximumLikelihood
from tests.conftest import states
from tests.statistics.laws import double, scramble, seeded
from tests.statistics.laws import states as states_of
from tests.statistics.trainable import (
    Scaled,
    TrainableGaussian,
    TrainableMixture,
    close,
    gradient_of,
    loss_of,
    sides,
)

EXACT = 1e-8


def started(energy: Energy, rows: Tensor, grid: int = 100) -> MaximumLikelihood:
    objective = MaximumLikelihood(grid)
    objective.initialise(energy, rows, seeded(0))
    return objective


def test_on_an_rbm_it_is_the_enumeration_by_hand(tiny_rbm: BernoulliRBM) -> None:
    """-mean log p(x+), and E_data[grad E] - E_model[grad E] with grad E written out: -h(v) v', -v
    and -h(v).
    """
    positives, every = states(5)[[3, 7, 7, 21]], states(5)
    with torch.no_grad():
        unnormalised = [math.exp(-float(tiny_rbm(v[None]))) for v in every]
    z = math.fsum(unnormalised)
    loss = loss_of(started(tiny_rbm, positives), tiny_rbm, sides(positives))
    log_p = [math.log(unnormalised[number] / z) for number in (3, 7, 7, 21)]
    assert float(loss.detach()) == pytest.approx(-math.fsum(log_p) / 4, abs=1e-8)

    def slopes(v: Tensor) -> Tensor:
        h = torch.sigmoid(tiny_rbm.hidden_bias + tiny_rbm.weight @ v).detach()
        return -torch.cat([torch.outer(h, v).flatten(), v, h])

    data = torch.stack([slopes(v) for v in positives]).mean(0)
    model = torch.stack(
        [weight / z * slopes(v) for weight, v in zip(unnormalised, every, strict=True)]
    ).sum(0)
    close(gradient_of(loss, tiny_rbm), data - model, EXACT)


@pytest.mark.parametrize(
    "energy",
    [
        BernoulliRBM((5,), hidden=3, weight_scale=1.0),  # over the hidden states
        BernoulliRBM((3,), hidden=5, weight_scale=1.0),  # over the visible ones
        BernoulliRBM((16,), hidden=15, weight_scale=1.0),  # over the hidden ones, in two chunks
        PottsRBM((4,), levels=3, hidden=2, weight_scale=1.0),
        QuadraticBinary((5,), weight_scale=1.0),
        PottsLattice((2, 2), levels=3, coupling=0.0, periodic=False),
    ],
    ids=["hidden", "visible", "chunks", "potts", "quadratic", "lattice"],
)
def test_log_sum_and_its_gradient_are_those_of_all_states(energy: Energy) -> None:
    """Checkpointed, by hidden or by visible states: as logsumexp of -E over the visible ones, in
    one piece.
    """
    scramble(energy, 0.7)
    whole = torch.logsumexp(-energy(states_of(energy)), 0)
    value = energy.log_sum()
    assert value is not None
    close(value, whole, EXACT)
    close(gradient_of(value, energy), gradient_of(whole, energy), EXACT)


def test_log_sum_of_a_gaussian_rbm_is_its_integral() -> None:
    """In two dimensions, against the midpoint rule."""
    energy = scramble(GaussianRBM((2,), hidden=3, weight_scale=1.0), 0.7)
    side = torch.linspace(-25, 25, 1001, dtype=torch.float64)
    integral = torch.logsumexp(-energy(torch.cartesian_prod(side, side)), 0) + 2 * math.log(0.05)
    value = energy.log_sum()
    assert value is not None
    close(value, integral, EXACT)
    close(gradient_of(value, energy), gradient_of(integral, energy), EXACT)


def one_gaussian() -> TrainableGaussian:
    return TrainableGaussian(double([0.4]), double([[0.7]]))


def two_gaussian() -> TrainableGaussian:
    return TrainableGaussian(double([0.5, -1.0]), double([[1.0, 0.6], [0.6, 0.8]]))


def one_mixture() -> TrainableMixture:
    return TrainableMixture(
        double([0.3, -0.9]), double([[-1.0], [1.5]]), double([[[0.3]], [[0.6]]])
    )


def two_mixture() -> TrainableMixture:
    covariances = double([[[0.6, 0.2], [0.2, 0.5]], [[0.5, -0.2], [-0.2, 0.6]]])
    return TrainableMixture(double([0.3, -0.9]), double([[-1.2, -0.8], [1.2, 0.9]]), covariances)


@pytest.mark.parametrize("make", [one_gaussian, two_gaussian, one_mixture, two_mixture])
def test_the_midpoint_rule_is_the_closed_form(
    make: Callable[[], TrainableGaussian | TrainableMixture],
) -> None:
    """Loss and gradient, with 200 points a side, as many as the default; with 12 they are not."""
    energy = make()
    rows = 1.5 * torch.randn(50, energy.dimension, generator=seeded(1), dtype=torch.float64)
    truth = energy(rows).mean() + energy.log_z()
    loss = loss_of(started(energy, rows, 200), energy, sides(rows))
    close(loss, truth, EXACT)
    close(gradient_of(loss, energy), gradient_of(truth, energy), EXACT)
    coarse = loss_of(started(energy, rows, 12), energy, sides(rows))
    assert abs(float((coarse - truth).detach())) > 1e-4


def test_in_a_box_its_error_falls_with_the_square_of_the_spacing() -> None:
    """Where the density does not vanish at the walls: log of the integral of exp(-k x^2 / 2) over
    [-1, 1] by erf.
    """
    energy = Scaled(1.7, double([0.0]))
    energy.box = (-1.0, 1.0)
    exact = 0.5 * math.log(2 * math.pi / 1.7) + math.log(math.erf(math.sqrt(1.7 / 2)))
    rows = double([[0.2], [-0.4]])
    positive = float(energy(rows).mean().detach())
    losses = [
        float(loss_of(started(energy, rows, grid), energy, sides(rows)).detach())
        for grid in (50, 100, 200)
    ]
    errors = [abs(loss - positive - exact) for loss in losses]
    assert errors[0] < 1e-4
    for wide, narrow in itertools.pairwise(errors):
        assert wide / narrow == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize(
    "energy",
    [
        TrainableGaussian(torch.zeros(3), torch.eye(3)),
        MLPEnergy((3,), [4], 1.0, False),
        QuadraticBinary((21,), weight_scale=0.1),
        BernoulliRBM((21,), hidden=21, weight_scale=0.1),
        GaussianRBM((3,), hidden=21, weight_scale=0.1),
    ],
    ids=["gaussian", "network", "quadratic", "rbm", "gaussian_rbm"],
)
def test_what_has_no_log_z_is_refused(energy: Energy) -> None:
    with pytest.raises(ArgumentError, match="needs log Z"):
        started(energy, energy.sample_base(5, seeded(0)))


def test_a_grid_follows_the_data_and_the_energy() -> None:
    """+- max(6 base_scale, 1.5 max |x|): data far out widen it."""
    energy = Scaled(1.0, double([0.0]))
    near, far = double([[0.1]]), double([[30.0]])
    assert started(energy, near, 100)._rule == (-6.0, 6.0, 100)
    assert started(energy, far, 100)._rule == (-45.0, 45.0, 100)
