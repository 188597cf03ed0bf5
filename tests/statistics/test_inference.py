"""Search for the most probable position, against exact inference on small cases. Seeds are fixed;
nothing here is a z-test.
"""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

import pipeline
from pipeline.energies.base import Energy
from pipeline.energies.conditional_mlp import ConditionalMLP
from pipeline.energies.laws import GaussianMixture
from pipeline.energies.pairwise import PairwiseEnergy
from pipeline.energies.rbm import BernoulliRBM
from pipeline.evaluation.search import Found, Schedule, anneal, argmax, descend
from tests.statistics import laws
from tests.statistics.laws import double, numbers, scramble, seeded, states


def pairwise(
    sites: int, levels: int, pairs: Literal["chain", "all"], count: int, scale: float = 1.0
) -> tuple[PairwiseEnergy, Tensor]:
    energy = scramble(PairwiseEnergy((sites,), (4,), levels, pairs, ()), scale)
    assert isinstance(energy, PairwiseEnergy)
    return energy, torch.randn(count, 4, generator=seeded(1), dtype=torch.float64)


def share_found(found: Found, exact: Found) -> float:
    """Of the contexts, how many have a position of the least energy."""
    assert exact.exact
    return float((found.energy < exact.energy + 1e-9).double().mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sites", "levels", "pairs"), [(8, 4, "chain"), (12, 2, "all"), (18, 2, "all"), (5, 4, "all")]
)
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_annealed_chains_find_what_is_exact(
    sites: int, levels: int, pairs: Literal["chain", "all"], scale: float
) -> None:
    """Under each of 20 contexts, by the default schedule: from nearly uniform laws to frustrated
    ones.
    """
    energy, context = pairwise(sites, levels, pairs, 20, scale)
    bound = energy.given(context)
    found = anneal(bound, seeded(0))
    assert not found.exact
    assert share_found(found, argmax(bound)) == 1
    torch.testing.assert_close(found.energy, bound(found.position).detach(), rtol=0, atol=1e-10)


def test_chains_that_are_not_annealed_fall_short() -> None:
    """One chain at a temperature of 2: so the test above can fail."""
    energy, context = pairwise(18, 2, "all", 20)
    bound = energy.given(context)
    warm = Schedule(restarts=1, sweeps=3, first=0.5, last=0.5)
    assert share_found(anneal(bound, seeded(0), warm), argmax(bound)) < 0.8


@pytest.mark.parametrize(
    "energy",
    [
        laws.rbm().energy,
        laws.potts_rbm().energy,
        laws.lattice().energy,
        scramble(BernoulliRBM((16,), 6, 1.0), 2.0),
    ],
    ids=["rbm", "potts_rbm", "lattice", "rbm in four chunks"],
)
def test_without_a_context(energy: Energy) -> None:
    """One position, enumerated; and annealed, on beta E and not on an RBM's ladder, whose visible
    biases stay as they are.
    """
    found, x = argmax(energy), states(energy)
    assert found.exact
    assert found.position.shape == (1, *energy.shape)
    assert int(numbers(found.position, energy.levels or 0)) == int(energy(x).argmin())
    assert share_found(anneal(energy, seeded(0)), found) == 1


def test_what_is_exact_is_searched_for_exactly() -> None:
    """A chain at any length; pairs of 20 labels, not of 21."""
    for sites, levels, pairs, exact in (
        (40, 5, "chain", True),
        (20, 2, "all", True),
        (21, 2, "all", False),
    ):
        energy, context = pairwise(sites, levels, pairs, 2)  # type: ignore[arg-type]
        found = argmax(energy.given(context), seeded(0))
        assert found.exact == exact
        assert found.position.shape == (2, sites)
        other = energy.sample_base(400, seeded(0)).double()
        assert (energy.given(context)(other).view(200, 2) >= found.energy).all()


def test_search_leaves_the_model_as_it_was_and_repeats() -> None:
    """No default stream is touched; one generator finds the same; without one the seed is 0."""
    energy, context = pairwise(21, 2, "all", 3)
    energy.train()
    state = torch.get_rng_state()
    first, second = (argmax(energy.given(context), seeded(0)) for _ in range(2))
    assert torch.equal(first.position, second.position)
    assert torch.equal(first.position, argmax(energy.given(context)).position)
    assert torch.equal(state, torch.get_rng_state())
    assert energy.training
    assert all(parameter.requires_grad for parameter in energy.parameters())


@pytest.mark.parametrize("box", [None, (-2.0, 1.0)])
def test_descent_finds_the_highest_mode_of_each_context(box: tuple[float, float] | None) -> None:
    """Of a perceptron on the line, or in a box, where it may lie at a wall, to the spacing of a
    grid.
    """
    energy = scramble(ConditionalMLP((1,), (), (8, 8), 1.5, box), 0.7, seed=5)
    context = torch.linspace(-2, 2, 9, dtype=torch.float64)
    found = argmax(energy.given(context))
    assert not found.exact
    low, high = box or (-9.0, 9.0)
    grid = torch.linspace(low, high, 20_001, dtype=torch.float64)
    values = energy.given(context)(grid.repeat_interleave(9)[:, None]).view(-1, 9).detach()
    least, number = values.min(0)
    assert (found.energy <= least + 1e-9).all()
    torch.testing.assert_close(
        found.position[:, 0], grid[number], rtol=0, atol=(high - low) / 20_000
    )
    if box is not None:
        assert ((found.position == low) | (found.position == high)).any()


def test_descent_goes_on_along_a_wall() -> None:
    """In the plane, where one component is at a wall long before the other is where it is best."""
    energy = scramble(ConditionalMLP((2,), (1,), (8, 8), 1.0, (-2.0, 1.0)), 0.7, seed=5)
    context = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    found = descend(energy.given(context), seeded(0))
    side = torch.linspace(-2, 1, 301, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    values = energy.given(context)(grid.repeat_interleave(9, 0)).view(-1, 9).detach()
    assert (found.energy <= values.amin(0) + 1e-9).all()
    walls = (found.position == -2) | (found.position == 1)
    assert (walls.sum(1) == 1).any()


def test_descent_chooses_among_modes() -> None:
    """Of a mixture in the plane whose lesser component draws most of the descents: some of single
    starts end there.
    """
    covariances = torch.eye(2, dtype=torch.float64).repeat(2, 1, 1)
    law = GaussianMixture(
        double([0.4, 0.6]), double([[0.0, 0.0], [4.0, 3.0]]), covariances
    ).double()
    best = [descend(law, seeded(seed)).position[0] for seed in range(5)]
    single = [descend(law, seeded(seed), restarts=1).position[0] for seed in range(5)]
    assert all(math.dist(x.tolist(), (4.0, 3.0)) < 0.01 for x in best)
    assert any(math.dist(x.tolist(), (0.0, 0.0)) < 0.01 for x in single)


def test_the_public_search_answers_for_each_context() -> None:
    """`pipeline.argmax_y` is the least energy among all states, under every context by itself."""
    energy, context = pairwise(5, 3, "chain", 6)
    found = pipeline.argmax_y(energy, context)
    everything = states(energy)
    for number, one in enumerate(context):
        values = energy.given(one[None])(everything)
        assert torch.equal(found.position[number], everything[values.argmin()])
    assert found.exact
