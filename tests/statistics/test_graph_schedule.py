"""Graphs that grow and that are decimated: what a pair is worth, against the Fisher information by
enumeration, and models of few pairs, whose pairs must be found.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.training.graph_schedule import EVERY, GraphSchedule
from tests.statistics.test_boltzmann_learning import (
    EXACT,
    LEVELS,
    SITES,
    features,
    gradient_of,
    independent,
    law,
    model,
    states,
    with_gradient,
)

PAIRS = SITES * (SITES - 1) // 2


def places(pair: int) -> tuple[Tensor, Tensor]:
    """The features of the two sites of a pair, and those of the pair itself."""
    i, j = torch.triu_indices(SITES, SITES, 1)[:, pair].tolist()
    letters, both = torch.arange(LEVELS), torch.arange(LEVELS**2)
    sites = torch.cat([i * LEVELS + letters, j * LEVELS + letters])
    return sites, SITES * LEVELS + pair * LEVELS**2 + both


def fisher() -> Tensor:
    """The covariance of all features under the law of independent sites."""
    _, p = independent()
    phi = features(states())
    mean = p @ phi
    return phi.T @ (p[:, None] * phi) - torch.outer(mean, mean)


def most(information: Tensor, gradient: Tensor, where: Tensor) -> Tensor:
    """max_d g.d - d.F d / 2 over changes d of the features `where`."""
    block, own = information[where][:, where], gradient[where]
    return own @ torch.linalg.pinv(block, hermitian=True) @ own / 2


def test_gains_are_what_the_pair_adds_to_its_sites() -> None:
    energy, p = independent()
    phi = features(states())
    g = law(model(6)) @ phi - p @ phi
    with_gradient(energy, g)
    wanted = []
    for pair in range(PAIRS):
        sites, both = places(pair)
        all_of_it = most(fisher(), g, torch.cat([sites, both]))
        wanted.append(all_of_it - most(fisher(), g, sites))
    torch.testing.assert_close(energy.gains(0.0), torch.stack(wanted), **EXACT)
    assert bool((energy.gains(0.01) < energy.gains(0.0)).all())


def test_losses_are_what_fields_cannot_make_up_for() -> None:
    energy, _ = independent()
    with torch.no_grad():
        energy.coupling.copy_(model(6).coupling)
    wanted = []
    for pair in range(PAIRS):
        sites, both = places(pair)
        information, j = fisher(), energy.coupling[pair].detach().flatten()
        across = information[both][:, sites]
        of_sites = torch.linalg.pinv(information[sites][:, sites], hermitian=True)
        left = information[both][:, both] - across @ of_sites @ across.T
        wanted.append(j @ left @ j / 2)
    torch.testing.assert_close(energy.losses(), torch.stack(wanted), **EXACT)


@pytest.mark.parametrize("grows", [True, False])
def test_the_pairs_of_a_sparse_law_are_found(grows: bool) -> None:
    """Trained by exact moments of a law of two pairs."""
    truth = model(8)
    wanted = torch.zeros(PAIRS, dtype=torch.bool)
    wanted[[1, 4]] = True
    truth.couple(wanted)
    phi, (energy, _) = features(states()), independent()
    energy.shares.copy_(torch.stack([law(truth) @ phi[:, : SITES * LEVELS]]).view(SITES, LEVELS))
    graph = GraphSchedule(energy, grows, share=2 / PAIRS, steps=5 * EVERY)
    counts = []
    for step in range(12 * EVERY):
        with_gradient(energy, (law(energy) - law(truth)) @ phi)
        graph.revise(step + 1)
        energy.hold()
        energy.to_natural_(0.0)
        with torch.no_grad():
            for parameter in energy.parameters():
                assert parameter.grad is not None
                parameter -= 0.5 * parameter.grad
        counts.append(int(energy.coupled.sum()))
    assert energy.coupled.tolist() == wanted.tolist()
    order = range(1, 12 * EVERY)
    assert all((counts[k] >= counts[k - 1]) == grows or counts[k] == counts[k - 1] for k in order)
    torch.testing.assert_close(law(energy), law(truth), rtol=0.0, atol=1e-6)
    assert int((gradient_of(energy) != 0).sum()) > 0


def test_the_share_is_reached_in_equal_parts() -> None:
    energy, _ = independent()
    grown = GraphSchedule(energy, True, 0.5, 3 * EVERY)
    assert [grown.wanted(step) for step in (10, 20, 30, 500)] == [1, 2, 3, 3]
    energy, _ = independent()
    thinned = GraphSchedule(energy, False, 0.5, 3 * EVERY)
    assert [thinned.wanted(step) for step in (10, 20, 30, 500)] == [5, 4, 3, 3]


def test_a_gradient_that_is_not_finite_adds_no_pair() -> None:
    energy, p = independent()
    graph = GraphSchedule(energy, True, 0.5, EVERY)
    g = law(model(6)) @ features(states()) - p @ features(states())
    g[-1] = torch.nan
    with_gradient(energy, g)
    graph.revise(EVERY)
    assert not energy.coupled.any()
    g[-1] = 0.0
    with_gradient(energy, g)
    graph.revise(2 * EVERY)
    assert int(energy.coupled.sum()) == 3


def test_only_candidates_are_coupled() -> None:
    """Those of the pairs that a graph began with."""
    energy, p = independent()
    energy.couple(torch.arange(PAIRS) < 2)
    graph = GraphSchedule(energy, True, 1.0, EVERY)
    with_gradient(energy, law(model(6)) @ features(states()) - p @ features(states()))
    graph.revise(EVERY)
    assert energy.coupled.nonzero()[:, 0].tolist() == [0, 1]
