"""Slopes and curvatures: a model's own against double backward and against Hessians, and what is
learned through them.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.energies import mlp
from pipeline.energies.base import Energy
from pipeline.energies.conv import ConvEnergy
from pipeline.energies.mlp import MLPEnergy
from tests.statistics.test_score_matching import close, normal, with_gradient

TOLERANCE = 1e-9
BOX = (-1.0, 2.0)


def perceptron(
    shape: tuple[int, ...] = (2, 3),
    hidden: tuple[int, ...] = (8, 6),
    normalised: bool = False,
    box: tuple[float, float] | None = None,
) -> MLPEnergy:
    """Weights of order 1: no layer is nearly linear, and the last one counts."""
    energy = MLPEnergy(shape, hidden, 1.5, normalised, box).double()
    with torch.no_grad():
        for index, parameter in enumerate(energy.parameters()):
            parameter.copy_(
                normal(20 + index, *parameter.shape) / max(1, parameter.shape[-1]) ** 0.5
            )
    return energy.eval()


def functional(energy: Energy, slope: Tensor, curvatures: Tensor) -> Tensor:
    """A smooth function of both, nonlinear in either, and its gradient in all parameters."""
    weights = normal(30, *slope.shape), normal(31, *curvatures.shape)
    return with_gradient(
        energy, (weights[0] * slope).sin().sum() + (weights[1] * curvatures).sin().sum()
    )


def check(energy: Energy) -> None:
    x, v = 2 * normal(32, 4, *energy.shape), normal(33, 3, 4, *energy.shape)
    own, other = energy.gradient_and_curvature(x, v), Energy.gradient_and_curvature(energy, x, v)
    for one, two in zip(own, other, strict=True):
        close(one, two, TOLERANCE)
    close(own[0], energy.differentiable_gradient(x), TOLERANCE)
    close(functional(energy, *own), functional(energy, *other), TOLERANCE)


@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize(
    ("shape", "hidden"), [((1,), (3,)), ((5,), (7,)), ((2, 3), (8, 6)), ((3, 1, 2), (4, 5, 6))]
)
def test_the_perceptrons_own_is_double_backward(
    shape: tuple[int, ...],
    hidden: tuple[int, ...],
    normalised: bool,
    box: tuple[float, float] | None,
) -> None:
    check(perceptron(shape, hidden, normalised, box))


def test_slips_of_the_perceptron_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each derivative of SiLU in turn; the third enters gradients alone. And a base term where
    there is none.
    """
    for name in ("silu_backward", "_second", "_third"):
        derivative = getattr(mlp, name)
        with monkeypatch.context() as patch:
            patch.setattr(
                mlp, name, lambda *given, derivative=derivative: 1.001 * derivative(*given)
            )
            with pytest.raises(AssertionError, match="not close"):
                check(perceptron())

    class Based(MLPEnergy):
        def gradient_and_curvature(self, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
            slope, curvatures = super().gradient_and_curvature(x, directions)
            return slope + x / self.base_scale**2, curvatures

    with pytest.raises(AssertionError, match="not close"):
        check(Based((2,), (3,), 1.5, False, BOX).double().eval())


def hessians(energy: Energy, x: Tensor) -> Tensor:
    """[N, d, d], by autograd, row by row."""
    rows = [torch.autograd.functional.hessian(lambda y: energy(y[None])[0], row) for row in x]
    return torch.stack(rows).view(len(x), energy.dimension, energy.dimension)


def images(shape: tuple[int, ...], normalised: bool, scales: int = 1) -> ConvEnergy:
    with torch.random.fork_rng():
        torch.manual_seed(34)
        energy = ConvEnergy(shape, (2, 3), 4, scales, normalised, 1.5).double()
    with torch.no_grad():
        for network in energy.networks:
            head = network[1][-1]
            if not torch.nn.utils.parametrize.is_parametrized(head):
                head.weight.mul_(10)  # it starts small
    return energy.eval()


@pytest.mark.parametrize(
    "energy",
    [
        perceptron(),
        perceptron(normalised=True, box=BOX),
        images((4, 3), False),
        images((2, 3, 3), True),
        images((8, 7), False, 2),
    ],
    ids=["mlp", "mlp-normalised-box", "conv", "conv-rgb-normalised", "conv-scales"],
)
def test_curvatures_are_the_hessians(energy: Energy) -> None:
    x, v = normal(35, 2, *energy.shape), normal(36, 2, 2, *energy.shape)
    slope, curvatures = energy.gradient_and_curvature(x, v)
    h, flat = hessians(energy, x), v.flatten(2)
    close(curvatures.detach(), torch.einsum("pni,nij,pnj->pn", flat, h, flat), TOLERANCE)
    close(slope.detach(), energy.energy_and_gradient(x)[1], TOLERANCE)


def test_float32_agrees_with_float64() -> None:
    """The hand-written one keeps what float32 can: to 2e-5 of the largest entry."""
    energy = perceptron((20,), (30, 30))
    x, v = normal(37, 50, 20), normal(38, 2, 50, 20)
    exact = functional(energy, *energy.gradient_and_curvature(x, v))[1:]
    single = energy.float()
    slope, curvatures = single.gradient_and_curvature(x.float(), v.float())
    rough = functional(single, slope.double(), curvatures.double())[1:].double()
    assert float((rough - exact).abs().max()) < 2e-5 * float(exact.abs().max())
