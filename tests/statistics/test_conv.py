"""Convolutional energies: what they see, what they sum, what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.common.errors import ArgumentError
from pipeline.energies.conv import ConvEnergy, Residual
from pipeline.energies.deep import iterate_spectral_norms


def make(
    shape: tuple[int, ...],
    channels: tuple[int, ...] = (3, 4),
    *,
    scales: int = 1,
    spectral_norm: bool = False,
    base_scale: float | None = 1.3,
    box: tuple[float, float] | None = None,
) -> ConvEnergy:
    """A small energy in float64, of the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return (
            ConvEnergy(shape, channels, 5, scales, spectral_norm, base_scale, box).double().eval()
        )


def images(count: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(
        (count, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )


@pytest.mark.parametrize("box", [None, (-1.0, 1.0)])
@pytest.mark.parametrize(
    ("shape", "scales"), [((8, 8), 2), ((1, 28, 28), 1), ((3, 9, 7), 1), ((3, 64, 64), 3)]
)
def test_gradient_is_the_energys_slope(
    shape: tuple[int, ...], scales: int, box: tuple[float, float] | None
) -> None:
    energy = make(shape, scales=scales, box=box)
    x = images(3, shape)
    value, gradient = energy.energy_and_gradient(x)
    assert value.shape == (3,)
    assert gradient.shape == x.shape
    assert gradient.is_contiguous()  # a box has no base term to make it so
    direction, step = images(6, shape)[3:], 1e-5
    with torch.no_grad():
        slope = (energy(x + step * direction) - energy(x - step * direction)) / (2 * step)
        torch.testing.assert_close(energy(x), value)
        torch.testing.assert_close(energy(x[1:2]), value[1:2])  # rows know nothing of each other
    torch.testing.assert_close(
        (gradient * direction).flatten(1).sum(1), slope, rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize(
    ("shape", "stages"),
    [((8, 8), 2), ((3, 9, 7), 2), ((16, 16), 3), ((28, 28), 4), ((3, 64, 64), 5)],
)
def test_stages_halve_the_image_and_the_last_channels_repeat(
    shape: tuple[int, ...], stages: int
) -> None:
    def outputs(*channels: int) -> list[int]:
        return [
            block.branch[-1].out_channels
            for block in make(shape, channels).modules()
            if isinstance(block, Residual)
        ]

    assert outputs(3, 4) == [3, 4, 4, 4, 4][:stages]
    assert outputs(3, 4, 5, 6, 7, 8) == [3, 4, 5, 6, 7][:stages]


@pytest.mark.parametrize("side", [8, 16, 28, 32, 64])
def test_a_unit_of_the_last_stage_sees_the_whole_image(side: int) -> None:
    features = make((side, side)).networks[0][0]
    x = images(1, (1, side, side)).requires_grad_()
    last = features(x)
    assert last.shape == (1, 4, 4, 4)
    (gradient,) = torch.autograd.grad(last[0, 0, 2, 2], x)
    assert gradient.ne(0).all()


def test_a_residual_block_adds_to_what_comes_in() -> None:
    """Zeroing the branch leaves the shortcut: the identity, or a 1x1 convolution where channels
    differ.
    """
    same, wider = (layer for layer in make((8, 8)).networks[0][0] if isinstance(layer, Residual))
    x = images(2, (3, 5, 6))
    with torch.no_grad():
        for block in (same, wider):
            for tensor in block.branch[-1].parameters():
                tensor.zero_()
        torch.testing.assert_close(same(x), x)
        expected = torch.einsum("oi,nihw->nohw", wider.shortcut.weight[..., 0, 0], x)
        torch.testing.assert_close(wider(x), expected)


def test_scales_sum_networks_of_pooled_images() -> None:
    energy = make((3, 18, 16), scales=3)
    x = images(4, (3, 18, 16))
    pooled = x.unflatten(3, (8, 2)).unflatten(2, (9, 2)).mean((3, 5))
    tails = pooled[..., [*range(9), 8], :]  # nine rows pool as ten, the last one twice
    coarse = tails.unflatten(3, (4, 2)).unflatten(2, (5, 2)).mean((3, 5))
    with torch.no_grad():
        values = [
            network(part)[:, 0]
            for network, part in zip(energy.networks, (x, pooled, coarse), strict=True)
        ]
        torch.testing.assert_close(energy.network(x), values[0] + values[1] + values[2])
        first = make((3, 18, 16))  # weights are drawn in order: that of the full size alone
        torch.testing.assert_close(first.network(x), values[0])
    assert (values[1] + values[2]).abs().min() > 1e-6


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_every_parameter_receives_a_gradient(spectral_norm: bool) -> None:
    energy = make((3, 16, 16), (2, 3, 4), scales=2, spectral_norm=spectral_norm)
    energy(images(4, (3, 16, 16))).sum().backward()
    for name, parameter in energy.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_spectral_norm_makes_every_layers_norm_one() -> None:
    energy = make((3, 16, 16), (2, 3, 4), scales=2, spectral_norm=True)
    layers = [layer for layer in energy.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(layers) == 2 * 3 + (6 + 2) + (
        4 + 1
    )  # stem and head; convolutions and wider shortcuts of 3 and 2 stages
    with torch.no_grad():
        for parameter in energy.parameters():
            parameter.mul_(3)
    for _ in range(100):
        iterate_spectral_norms(energy)
    for layer in layers:
        largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
        assert float(largest) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("shape", [(64,), (2, 3, 8, 8)])
def test_rows_that_are_no_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match="need images"):
        make(shape)


@pytest.mark.parametrize(
    ("shape", "most"), [((8, 8), 2), ((3, 9, 7), 2), ((28, 28), 4), ((64, 64), 5)]
)
def test_scales_of_images_too_small_are_refused(shape: tuple[int, ...], most: int) -> None:
    make(shape, scales=most)
    with pytest.raises(ArgumentError, match=r"scales"):
        make(shape, scales=most + 1)


def test_the_base_term_is_that_of_the_domain() -> None:
    x = images(4, (8, 8))
    boxed, free = make((8, 8), base_scale=None, box=(-1.0, 1.0)), make((8, 8), base_scale=2.0)
    with torch.no_grad():
        torch.testing.assert_close(boxed(x), boxed.network(x))
        torch.testing.assert_close(free(x), boxed.network(x) + x.flatten(1).square().sum(1) / 8)
