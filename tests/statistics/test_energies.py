"""Energies against brute force, closed forms and autograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.build import make_energy
from pipeline.compose import compose
from pipeline.energies.base import Energy, flatten, signature, unflatten_
from pipeline.energies.deep import ConvEnergy, MLPEnergy, iterate_spectral_norms
from pipeline.energies.rbm import BernoulliRBM
from pipeline.errors import CheckpointError, ConfigError
from tests.conftest import states


def joint_energy(rbm: BernoulliRBM, v: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """E(v, h) for all pairs, `[V, H]`."""
    return -(v @ rbm.visible_bias)[:, None] - (h @ rbm.hidden_bias)[None] - v @ rbm.weight.T @ h.T


def test_rbm_free_energy_sums_the_hidden_units_out(tiny_rbm: BernoulliRBM) -> None:
    v, h = states(5), states(3)
    expected = -torch.logsumexp(-joint_energy(tiny_rbm, v, h), 1)
    torch.testing.assert_close(tiny_rbm(v), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("visible", "hidden"), [(5, 3), (3, 5)])
def test_rbm_log_partition_is_the_sum_over_all_states(visible: int, hidden: int) -> None:
    """Whichever layer is smaller is the one enumerated."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rbm = BernoulliRBM((visible,), hidden=hidden, weight_scale=1.0).double()
    truth = float(torch.logsumexp(-joint_energy(rbm, states(visible), states(hidden)).flatten(), 0))
    assert rbm.log_partition() == pytest.approx(truth, abs=1e-10)
    assert BernoulliRBM((21,), hidden=21, weight_scale=1.0).log_partition() is None


def test_rbm_conditionals_are_those_of_the_joint_law(tiny_rbm: BernoulliRBM) -> None:
    v, h = states(5), states(3)
    joint = torch.softmax(-joint_energy(tiny_rbm, v, h).flatten(), 0).view(32, 8)
    hidden_means = (joint / joint.sum(1, keepdim=True)) @ h
    visible_means = (joint / joint.sum(0)).T @ v
    torch.testing.assert_close(tiny_rbm.conditional("hidden", v), hidden_means)
    torch.testing.assert_close(tiny_rbm.conditional("visible", h), visible_means)


def test_rbm_started_from_the_data_is_independent_pixels(tiny_rbm: BernoulliRBM) -> None:
    mean = torch.tensor([0.2, 0.5, 0.9, 0.3, 0.7])
    tiny_rbm.initialise(mean)
    torch.testing.assert_close(torch.sigmoid(tiny_rbm.visible_bias).float(), mean)


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_mlp_gradient_by_hand_is_autograds(spectral_norm: bool) -> None:
    energy = MLPEnergy((3, 4), [7, 6, 5], 1.3, spectral_norm).double().eval()
    x = torch.randn(9, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    by_hand, by_autograd = energy.energy_and_gradient(x), Energy.energy_and_gradient(energy, x)
    torch.testing.assert_close(by_hand[0], by_autograd[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(by_hand[1], by_autograd[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(8, 8), (1, 28, 28), (3, 9, 7)])
def test_conv_energy_takes_images_of_any_size(shape: tuple[int, ...]) -> None:
    energy = ConvEnergy(shape, [4, 8], 16, 1.0, spectral_norm=False).double()
    x = torch.randn(2, *shape, dtype=torch.float64)
    value, gradient = energy.energy_and_gradient(x)
    assert value.shape == (2,)
    direction, epsilon = torch.randn_like(x), 1e-6
    difference = (energy(x + epsilon * direction) - energy(x - epsilon * direction)) / (2 * epsilon)
    torch.testing.assert_close((gradient * direction).flatten(1).sum(1), difference.detach(), rtol=1e-6, atol=1e-6)


def test_conv_refuses_rows_that_are_no_images() -> None:
    with pytest.raises(ConfigError, match="energy=mlp"):
        ConvEnergy((64,), [4], 16, 1.0, spectral_norm=False)


def test_deep_energy_far_out_is_its_gaussian_base() -> None:
    """The base term wins: E(r u) / (r^2 / 2 s^2) -> 1, so Z is finite (a SiLU network grows linearly)."""
    energy = MLPEnergy((2,), [16], 2.0, spectral_norm=False)
    u = torch.tensor([[0.6, 0.8]])
    assert float(energy(1e5 * u)) / (1e10 / 8) == pytest.approx(1, abs=1e-3)


def test_spectral_norm_bounds_the_slope_once_iterated() -> None:
    """Every layer's largest singular value tends to 1 under power iteration; forward passes leave the buffers alone."""
    energy = MLPEnergy((6,), [8, 8], 1.0, spectral_norm=True).eval()
    before = flatten(energy)
    energy(torch.randn(3, 6))
    assert np.array_equal(before, flatten(energy))
    for _ in range(300):
        iterate_spectral_norms(energy)
    for layer in energy.layers:
        assert float(torch.linalg.matrix_norm(layer.weight, 2)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("overrides", [[], ["energy.spectral_norm=true"], ["energy=conv"], ["experiment=digits_rbm"]])
def test_flat_weights_round_trip_with_buffers(overrides: list[str]) -> None:
    """What `flatten` takes from one copy makes another the same function; a wrong size is refused."""
    config = compose(overrides)
    one, other = make_energy(config, (8, 8)), make_energy(compose([*overrides, "seed=1"]), (8, 8))
    x = one.noise(5, torch.Generator().manual_seed(0))
    assert not torch.equal(one(x), other(x))
    flat = flatten(one)
    flat.setflags(write=False)
    unflatten_(other, flat)
    assert torch.equal(one.eval()(x), other.eval()(x))
    assert sum(math.prod(shape) for _, shape, _ in signature(one)) == flat.size  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="do not fit"):
        unflatten_(other, flat[:-1])


def test_initial_weights_depend_on_the_seed_alone() -> None:
    config = compose([])
    torch.manual_seed(1)
    first = flatten(make_energy(config, (8, 8)))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert np.array_equal(first, flatten(make_energy(config, (8, 8))))
    assert torch.equal(before, torch.get_rng_state())
