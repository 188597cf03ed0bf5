"""Feature maps by hand, and the gradients that kernels take from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.assembly.energies import construct_energy
from pipeline.common import plugins
from pipeline.common.errors import ArgumentError, ConfigError
from pipeline.config.compose import compose
from pipeline.energies.maxent.exponential_family import ExponentialFamily, family
from pipeline.energies.maxent.features import Histogram, Pairs, Polynomial
from pipeline.energies.target import Target
from pipeline.kernels import mala

MEANS, PAIRS = {"kind": "means"}, {"kind": "pairs", "neighbours": False}
HISTOGRAM = {"kind": "histogram", "low": -0.5, "high": 2.5, "bins": 3}
CUBIC = {"kind": "polynomial", "degree": 3}


def with_parameters(energy: ExponentialFamily, seed: int = 0) -> ExponentialFamily:
    """In float64, its parameters drawn from N(0, 1)."""
    energy.double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        energy.natural.copy_(
            torch.randn(energy.natural.shape, generator=generator, dtype=torch.float64)
        )
    return energy


def test_features_by_hand() -> None:
    x = torch.tensor([[[2.0, 3.0], [5.0, 7.0]]])
    cubic = Polynomial((2, 2), 3)
    assert cubic(x).tolist() == [[2, 4, 8, 3, 9, 27, 5, 25, 125, 7, 49, 343]]
    assert cubic.names[:4] == ("x[0,0]", "x[0,0]^2", "x[0,0]^3", "x[0,1]")
    every = Pairs((2, 2), False)
    assert every(x).tolist() == [[6, 10, 14, 15, 21, 35]]
    assert every.names[1] == "x[0,0] x[1,0]"
    near = Pairs((2, 2), True)
    assert near(x).tolist() == [[10, 21, 6, 35]]
    assert near.names == ("x[0,0] x[1,0]", "x[0,1] x[1,1]", "x[0,0] x[0,1]", "x[1,0] x[1,1]")


def test_histogram_bins_are_half_open_but_the_last() -> None:
    histogram = Histogram((1,), 0.0, 1.0, 4)
    x = torch.tensor([[-0.01], [0.0], [0.25], [0.99], [1.0], [1.01]])
    zero = [0.0] * 4
    assert histogram(x).tolist() == [
        zero,
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 0, 1],
        zero,
    ]
    assert histogram.names == (
        "x in [0, 0.25)",
        "x in [0.25, 0.5)",
        "x in [0.5, 0.75)",
        "x in [0.75, 1)",
    )


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("rates", [None, (0.2, 0.5, 0.3)])
def test_the_gradient_over_levels_is_the_exact_change(
    levels: int, rates: tuple[float, ...] | None
) -> None:
    """Energies of all states agree with the one-hot form; setting one component to another level
    changes the energy by the difference of two entries of the gradient.
    """
    base = None if rates is None else rates[:levels]
    energy = with_parameters(
        family((3,), [MEANS, PAIRS, HISTOGRAM, CUBIC], levels=levels, base_rates=base)
    )
    chunks = energy.support()
    assert chunks is not None
    x = torch.cat(list(chunks))
    value, gradient = energy.energy_and_gradient(x)
    torch.testing.assert_close(value, energy(x).detach(), rtol=0, atol=1e-12)
    for site in range(3):
        for level in range(levels):
            moved = x.clone()
            moved[:, site] = level
            change = (energy(moved) - energy(x)).detach()
            if levels == 2:
                predicted = (level - x[:, site]) * gradient[:, site]
            else:
                predicted = (
                    gradient[:, site, level]
                    - gradient[:, site].gather(1, x[:, site : site + 1].long())[:, 0]
                )
            torch.testing.assert_close(predicted, change, rtol=0, atol=1e-12)
    beta = torch.rand(len(x), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tempered, _ = energy.energy_and_gradient(x, beta)
    torch.testing.assert_close(
        tempered, ((1 - beta) * energy.base(x) + beta * energy(x)).detach(), rtol=0, atol=1e-12
    )


def test_the_gradient_over_reals_is_the_derivative() -> None:
    energy = with_parameters(family((2,), [CUBIC, PAIRS, HISTOGRAM], box=(-2.0, 3.0)))
    x = torch.tensor([[0.3, -1.2], [2.1, 0.7]], dtype=torch.float64)
    _, gradient = energy.energy_and_gradient(x)
    for site in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[site] = 1e-6
        slope = (energy(x + step) - energy(x - step)) / 2e-6
        torch.testing.assert_close(gradient[:, site], slope.detach(), rtol=0, atol=1e-7)


def test_a_histogram_alone_has_no_gradient_and_mala_walks_all_the_same() -> None:
    """A box cut in two, twice as probable on the right: 2,000 chains, |z| < 5 (chance of a false
    alarm 6e-7).
    """
    energy = family(
        (1,), [{"kind": "histogram", "low": 0.0, "high": 1.0, "bins": 2}], box=(0.0, 1.0)
    )
    with torch.no_grad():
        energy.natural.copy_(torch.tensor([0.0, math.log(2)]))
    generator = torch.Generator().manual_seed(3)
    x = energy.sample_base(2000, generator)
    assert energy.energy_and_gradient(x)[1].abs().max() == 0
    target = Target(energy)
    state = mala.kernel.init(x, target)
    for _ in range(60):
        state, _ = mala.kernel.step(generator, state, target, step_size=0.05)
    share = float((state.position > 0.5).float().mean())
    assert abs(share - 2 / 3) < 5 * (2 / 9 / 2000) ** 0.5


def square_norm(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1, keepdim=True)


class Radial(nn.Module):
    """|x - c| and its square, c a parameter of the module."""

    names = ("r", "r^2")

    def __init__(self) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        radius = (x - self.centre).norm(dim=1, keepdim=True)
        return torch.cat([radius, radius.square()], 1)


def test_features_given_in_code() -> None:
    energy = family((2,), [MEANS], given=[square_norm, Radial()], box=(-3.0, 3.0))
    assert energy.names == ("x[0]", "x[1]", "square_norm[0]", "r", "r^2")
    assert energy.features(torch.tensor([[1.0, 5.0]])).tolist() == [[1, 5, 26, 3, 9]]
    assert [name for name, parameter in energy.named_parameters() if parameter.requires_grad] == [
        "natural"
    ]
    assert energy.exact_moments() is not None


def counts(x: Tensor) -> Tensor:
    return (x.flatten(1) == 2).sum(1, keepdim=True)


def test_features_of_whole_numbers_need_no_gradient() -> None:
    energy = family((2,), [], given=[counts], levels=3)
    with torch.no_grad():
        energy.natural.fill_(1.0)
    value, gradient = energy.energy_and_gradient(torch.tensor([[2.0, 2.0], [0.0, 1.0]]))
    assert value.tolist() == [-2, 0]
    assert gradient.abs().max() == 0


def scaled(shape: tuple[int, ...], scale: float) -> Callable[[Tensor], Tensor]:
    return lambda x: scale * x.view(-1, *shape)


def test_features_from_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name = "scaled"

        def load(self) -> Any:
            return scaled

    monkeypatch.setattr(
        plugins, "entry_points", lambda group: [Point()] if group == "pipeline.features" else []
    )

    def declared(function: str) -> Any:
        features = f"energy.features=[{{kind:custom,{function}}}]"
        return construct_energy(compose(["energy=maxent", features]).energy, (2,))

    energy = declared("entry_point:scaled,options:{scale:3.0}")
    assert energy.features(torch.tensor([[1.0, 2.0]])).tolist() == [[3, 6]]
    for wrong in ("entry_point:other", "entry_point:scaled,options:{width:1}"):
        with pytest.raises(ConfigError, match=r"energy\.features="):
            declared(wrong)


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        ([{"kind": "polynomial", "degree": 3}], {}, r"polynomial of degree 3: on R\^d"),
        ([PAIRS], {}, "pairs: a position of shape .1. has no two components"),
        (
            [{"kind": "histogram", "low": 1.0, "high": 1.0, "bins": 2}],
            {},
            "a histogram needs low < high",
        ),
        ([], {}, r"features=\[\]: declare at least one"),
        (
            [MEANS],
            {"levels": 3, "base_rates": (0.5, 0.5)},
            r"base_rates=.*one for each of levels=3",
        ),
        ([], {"given": [lambda x: x.sum()]}, r"must map \[2, 1\] to \[2, F\]; it gave \[\]"),
        ([], {"given": [lambda x: x @ torch.ones(5)]}, r"must map .* it failed"),
    ],
)
def test_refusals(features: list[dict[str, Any]], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        family((1,), features, **options)


def test_features_are_declared_on_the_command_line() -> None:
    histogram = "{kind:histogram,low:0,high:1,bins:2}"
    declared = f"energy.features=[{{kind:means}},{{kind:pairs,neighbours:true}},{histogram}]"
    section = compose(["energy=maxent", "energy.box=[0,1]", declared]).energy
    options = section.model_dump(exclude={"name", "given"})
    energy = family((2, 2), **options)  # type: ignore[arg-type]
    assert len(energy.names) == 4 + 4 + 8
    for wrong in (
        "[{kind:moments}]",
        "[{kind:polynomial}]",
        "[{kind:means,degree:2}]",
        "[{kind:polynomial,degree:0}]",
    ):
        with pytest.raises(ConfigError, match=r"energy\.features"):
            compose(["energy=maxent", f"energy.features={wrong}"])
