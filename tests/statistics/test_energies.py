"""Energies against brute force, closed forms and autograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.assembly.energies import make_energy
from pipeline.config.compose import compose
from pipeline.energies.base import Energy
from pipeline.energies.deep import iterate_spectral_norms
from pipeline.energies.mlp import MLPEnergy
from pipeline.energies.weights import flatten, signature, unflatten_


@pytest.mark.parametrize("spectral_norm", [False, True])
@pytest.mark.parametrize("shape", [(1,), (2,), (3, 4)])
def test_mlp_gradient_by_hand_is_autograds(shape: tuple[int, ...], spectral_norm: bool) -> None:
    """Few columns are multiplied in another way."""
    energy = MLPEnergy(shape, [9, 6, 10], 1.3, spectral_norm).double().eval()
    x = torch.randn(9, *shape, generator=torch.Generator().manual_seed(0)).double()
    by_hand, by_autograd = energy.energy_and_gradient(x), Energy.energy_and_gradient(energy, x)
    torch.testing.assert_close(by_hand[0], by_autograd[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(by_hand[1], by_autograd[1], rtol=1e-12, atol=1e-12)


def test_deep_energy_far_out_is_its_gaussian_base() -> None:
    """The base term wins: E(r u) / (r^2 / 2 s^2) -> 1, so Z is finite (a SiLU network grows
    linearly).
    """
    energy = MLPEnergy((2,), [16], 2.0, spectral_norm=False)
    u = torch.tensor([[0.6, 0.8]])
    assert float(energy(1e5 * u).detach()) / (1e10 / 8) == pytest.approx(1, abs=1e-3)


def test_spectral_norm_bounds_the_slope_once_iterated() -> None:
    """Every layer's largest singular value tends to 1 under power iteration; forward passes leave
    the buffers alone.
    """
    energy = MLPEnergy((6,), [8, 8], 1.0, spectral_norm=True).eval()
    before = flatten(energy)
    energy(torch.randn(3, 6))
    assert np.array_equal(before, flatten(energy))
    for _ in range(300):
        iterate_spectral_norms(energy)
    for layer in energy.layers:
        assert float(torch.linalg.matrix_norm(layer.weight, 2).detach()) == pytest.approx(
            1, abs=1e-3
        )


@pytest.mark.parametrize(
    "overrides", [[], ["energy.spectral_norm=true"], ["energy=conv"], ["experiment=digits_rbm"]]
)
def test_flat_weights_round_trip_with_buffers(overrides: list[str]) -> None:
    """`flatten`'s array makes another copy the same function; a wrong size is refused."""
    config = compose(overrides)
    one, other = make_energy(config, (8, 8)), make_energy(compose([*overrides, "seed=1"]), (8, 8))
    x = one.sample_base(5, torch.Generator().manual_seed(0))
    assert not torch.equal(one(x), other(x))
    flat = flatten(one)
    flat.setflags(write=False)
    unflatten_(other, flat)
    assert torch.equal(one.eval()(x), other.eval()(x))
    shapes = [shape for _, shape, _ in signature(one)]
    assert sum(map(math.prod, shapes)) == flat.size  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="do not fit"):
        unflatten_(other, flat[:-1])


def test_initial_weights_depend_on_the_seed_alone() -> None:
    config = compose([])
    torch.manual_seed(1)
    first = flatten(make_energy(config, (8, 8)))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert np.array_equal(first, flatten(make_energy(config, (8, 8))))
    assert torch.equal(before, torch.get_rng_state())
