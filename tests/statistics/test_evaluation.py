"""Figures against the truth: AIS, quadrature, enumeration, baselines."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from pipeline.data.base import DataSet, in_memory
from pipeline.energies.base import Energy
from pipeline.energies.laws import LAWS, Gaussian, TruncatedGaussian
from pipeline.energies.rbm import BernoulliRBM
from pipeline.evaluation import likelihood
from pipeline.evaluation.ais import forward_log_partition, log_partition
from pipeline.evaluation.paths import Bridge
from pipeline.evaluation.pictures import nearest_rows
from tests.conftest import states

Value = TypeVar("Value")


class Mixture(Energy):
    """Two Gaussians of std 0.5 at +-1 in every coordinate, unnormalised by a known factor: log Z =
    `log_z`.
    """

    def __init__(self, dimension: int, log_z: float) -> None:
        super().__init__((dimension,))
        self.log_z = log_z

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([(x - 1).square().sum(1), (x + 1).square().sum(1)])
        density = (
            torch.logsumexp(-both / (2 * 0.25), 0)
            - math.log(2)
            - self.dimension / 2 * math.log(2 * math.pi * 0.25)
        )
        return -density - self.log_z

    def draw(self, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        sign = torch.randint(2, (count, 1), generator=generator) * 2.0 - 1
        return sign + 0.5 * torch.randn(count, self.dimension, generator=generator)


def run(steps: Generator[object, None, Value]) -> Value:
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


@pytest.mark.parametrize("dimension", [2, 8])
def test_ais_finds_a_known_log_partition(dimension: int) -> None:
    """Within 5 of its own standard errors (6e-7 if they are right), which must be small."""
    energy = Mixture(dimension, log_z=7.0)
    base = Gaussian.fit(energy.draw(5000), 0.0)
    found = run(
        forward_log_partition(Bridge(base, energy), 400, 400, torch.Generator().manual_seed(1))
    )
    assert found.standard_error is not None
    assert found.standard_error < 0.15
    assert abs(found.value - 7.0) < 5 * found.standard_error
    assert found.counting > 40


@pytest.mark.parametrize("name", ["gaussian", "mixture", "box"])
def test_ais_along_the_energys_own_path(name: str) -> None:
    """From its own base law (in the box: uniform) to within 5 of its own standard errors."""
    law = LAWS[name]()
    found = run(forward_log_partition(law, 200, 400, torch.Generator().manual_seed(1)))
    assert found.standard_error is not None
    assert found.standard_error < 0.1
    assert abs(found.value - law.log_partition()) < 5 * found.standard_error


def test_ais_in_a_box_from_a_fitted_law() -> None:
    """A model that leans on a wall, from the truncated Gaussian fitted to its draws."""
    law = LAWS["box"]()
    base = TruncatedGaussian.fit(
        law.sample(2000, torch.Generator().manual_seed(0)), 0.1, (-1.0, 1.0)
    )
    found = run(
        forward_log_partition(Bridge(base, law), 200, 400, torch.Generator().manual_seed(1))
    )
    assert found.standard_error is not None
    assert found.standard_error < 0.05
    assert abs(found.value - law.log_partition()) < 5 * found.standard_error


def test_bridge_has_the_gradient_of_its_path() -> None:
    bridge = Bridge(LAWS["gaussian"]().double(), LAWS["mixture"]().double())
    x, beta = torch.randn(7, 2, dtype=torch.float64), torch.linspace(0, 1, 7, dtype=torch.float64)
    energy, gradient = bridge.energy_and_gradient(x, beta)
    by_autograd = Energy.energy_and_gradient(bridge, x, beta)
    torch.testing.assert_close(energy, by_autograd[0])
    torch.testing.assert_close(gradient, by_autograd[1])


def test_a_bridge_moves_along_its_path_without_the_model() -> None:
    """To energies and gradients as the model gives them, either way; at 0 to the law's own."""
    bridge = Bridge(LAWS["gaussian"]().double(), LAWS["mixture"]().double())
    x, beta = torch.randn(9, 2, dtype=torch.float64), torch.full((9,), 0.3, dtype=torch.float64)
    state = bridge.energy_and_gradient(x, beta)
    for new in (0.0, 0.2, 0.5, 1.0):
        there = torch.full_like(beta, new)
        for found, truth in zip(
            bridge.moved(x, *state, beta, there),
            bridge.energy_and_gradient(x, there),
            strict=True,
        ):
            torch.testing.assert_close(found, truth)


def test_ais_with_too_few_temperatures_says_so() -> None:
    """One step from base to model: no error bar, and a bound that holds."""
    energy = Mixture(8, log_z=7.0)
    base = Gaussian(torch.full((8,), 3.0), torch.eye(8))
    path, generator = Bridge(base, energy), torch.Generator().manual_seed(1)
    hasty = run(forward_log_partition(path, 2, 400, generator))
    assert hasty.standard_error is None
    assert "of 400 particles count" in str(hasty.doubt)
    assert hasty.at_least < 7.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_model_that_is_not_finite_has_no_figure(value: float) -> None:
    """No error, and no number that looks like one."""

    class Absurd(Energy):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(1) * 0.0 + value

    path = Bridge(Gaussian(torch.zeros(3), torch.eye(3)), Absurd((3,)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        found = run(log_partition(path, 20, 40, generator, torch.zeros(5, 3)))
    assert found.standard_error is None
    assert found.doubt is not None
    assert not math.isfinite(found.value)


def test_gaussian_base_is_normalised() -> None:
    covariance = torch.tensor([[1.0, 0.5], [0.5, 2.0]], dtype=torch.float64)
    base = Gaussian(torch.tensor([1.0, -1.0], dtype=torch.float64), covariance)
    law = torch.distributions.MultivariateNormal(base.mean, covariance)
    x = torch.randn(5, 2, dtype=torch.float64)
    torch.testing.assert_close(base.log_density(x), law.log_prob(x))


def test_quadrature_finds_a_known_log_partition() -> None:
    assert likelihood.log_z_by_quadrature(Mixture(2, log_z=-3.0), (-6.0, 6.0)) == pytest.approx(
        -3.0, abs=1e-5
    )


def binary_data(rbm: BernoulliRBM, count: int) -> DataSet:
    law = torch.softmax(-rbm(states(5)), 0).detach()
    rows = states(5)[
        torch.multinomial(law, count, replacement=True, generator=torch.Generator().manual_seed(0))
    ]
    return in_memory(rows[: count // 2], rows[count // 2 :], 0.0)


def test_exact_likelihood_is_the_enumerated_one(tiny_rbm: BernoulliRBM) -> None:
    data = binary_data(tiny_rbm, 400)
    law = torch.log_softmax(-tiny_rbm(states(5)), 0).detach()
    codes = (data.held_out @ 2 ** torch.arange(5).double()).long()
    tiny_rbm.requires_grad_(False)
    figures = likelihood.exact(
        tiny_rbm, tiny_rbm.log_partition() or 0.0, data.held_out, data.sample
    )
    assert figures["test_log_likelihood"] == pytest.approx(float(law[codes].mean()), abs=1e-10)


def test_pseudo_likelihood_is_unbiased(tiny_rbm: BernoulliRBM) -> None:
    """Against the sum over all pixels of log p(v_i | rest), enumerated; within 6 standard errors of
    the random choice.
    """
    data = binary_data(tiny_rbm, 20_000)
    rows = data.held_out
    with torch.no_grad():
        total = torch.zeros(len(rows), dtype=torch.float64)
        for pixel in range(5):
            flipped = rows.clone()
            flipped[:, pixel] = 1 - flipped[:, pixel]
            both = torch.stack([-tiny_rbm(rows), -tiny_rbm(flipped)])
            total += both[0] - torch.logsumexp(both, 0)
        figures = likelihood.pseudo_likelihood(tiny_rbm, data, torch.Generator().manual_seed(1))
    error = figures["test_pseudo_log_likelihood_standard_error"]
    assert abs(figures["test_pseudo_log_likelihood"] - float(total.mean())) < 6 * error


def test_independent_components_baseline() -> None:
    rows = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    data = in_memory(rows, torch.tensor([[1.0, 0.0]]), 0.0)
    assert likelihood.independent_levels(data, 2) == pytest.approx(
        math.log(2 / 4) + math.log(1 / 4)
    )


def test_independent_components_are_the_smoothed_marginals() -> None:
    """One column: a mixture of normals around the training values."""
    train, test = torch.tensor([[0.0], [0.0], [1.0]]), torch.tensor([[0.3]])
    normal = torch.distributions.Normal(torch.tensor([0.0, 0.0, 1.0]), 0.2)
    truth = torch.logsumexp(normal.log_prob(torch.tensor(0.3)), 0) - math.log(3)
    data = in_memory(train, test, 0.2)
    found, left_out = likelihood.continuous_baselines(data, test, None)
    assert found["independent_components"] == pytest.approx(float(truth), abs=1e-5)
    assert left_out == []


@pytest.mark.parametrize("constants", [0, 1, 3])
def test_baselines_are_on_one_footing(constants: int) -> None:
    """Of independent components both score alike, whatever is constant beside them: they leave it
    out. 6000 rows tell a covariance of 0 to 0.013, worth 2e-4 nats a pair.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(6000, 4, generator=generator) * torch.tensor([1.0, 2.0, 0.5, 1.0])
    rows = torch.cat([torch.full((6000, constants), 7.0), rows], 1)
    data = in_memory(rows[:5000], rows[5000:], 0.0)
    found, left_out = likelihood.continuous_baselines(data, data.held_out, None)
    assert left_out == list(range(constants))
    assert found["independent_components"] == pytest.approx(found["gaussian"], abs=0.01)
    truth = torch.distributions.Normal(torch.zeros(4), torch.tensor([1.0, 2.0, 0.5, 1.0]))
    exact = truth.log_prob(data.held_out[:, constants:]).sum(1).mean()
    assert found["gaussian"] == pytest.approx(float(exact), abs=0.02)


def test_constant_columns_alone_have_no_baselines() -> None:
    data = in_memory(torch.ones(10, 2), torch.ones(3, 2), 0.0)
    assert likelihood.continuous_baselines(data, data.held_out, None) == ({}, [0, 1])


def test_nearest_rows() -> None:
    rows = torch.tensor([[[0.0, 0.0]], [[5.0, 5.0]]])
    assert nearest_rows(torch.tensor([[[4.0, 4.0]], [[1.0, 0.0]]]), rows).tolist() == [
        [[5.0, 5.0]],
        [[0.0, 0.0]],
    ]
