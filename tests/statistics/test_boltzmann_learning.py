"""Boltzmann machine learning of a small Potts model: moments and natural gradients, against sums
over all states.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.common.errors import ArgumentError
from pipeline.energies.discrete import all_states
from pipeline.energies.potts import PottsModel
from pipeline.energies.rbm import BernoulliRBM
from pipeline.objectives.base import Batch, NegativeSide, PositiveSide
from pipeline.objectives.moments import CouplingMoments
from tests.statistics.laws import scramble, seeded

SITES, LEVELS = 4, 3
EXACT = {"rtol": 0.0, "atol": 1e-10}


def model(seed: int) -> PottsModel:
    energy = scramble(PottsModel((SITES,), LEVELS), 0.5, seed)
    assert isinstance(energy, PottsModel)
    return energy


def states() -> Tensor:
    return torch.cat(list(all_states(LEVELS, SITES)))


def law(energy: PottsModel) -> Tensor:
    return torch.softmax(-energy(states()), 0).detach()


def features(x: Tensor) -> Tensor:
    """phi in the order of the parameters, `[N, F]`: which letters stand at a site, and at two."""
    hot = torch.nn.functional.one_hot(x.long(), LEVELS).double()
    i, j = torch.triu_indices(SITES, SITES, 1)
    pairs = hot[:, i, :, None] * hot[:, j, None]
    return torch.cat([hot.flatten(1), pairs.flatten(1)], 1)


def gradient_of(energy: PottsModel) -> Tensor:
    grads = [parameter.grad for parameter in energy.parameters()]
    return torch.cat([grad.flatten() for grad in grads if grad is not None])


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_gradient_is_the_difference_of_moments(l2: float) -> None:
    """Of weighted rows, and of chains that are all states by their law."""
    energy, x, chains = model(1), states(), states()
    weights = torch.rand(len(x), generator=seeded(2), dtype=torch.float64)
    objective = CouplingMoments(l2)
    objective.initialise(energy, x, seeded(3), weights)
    p = law(energy)
    batch = Batch(PositiveSide(x[:1]), NegativeSide(chains, weights=p * len(p)))
    parts = list(objective.parts(energy, batch))
    sum(part.weight * part.total / part.rows for part in parts).backward()
    mu, phi = weights / weights.sum() @ features(x), features(chains)
    held = torch.cat([torch.zeros(SITES * LEVELS), energy.coupling.detach().flatten()])
    torch.testing.assert_close(gradient_of(energy), p @ phi - mu + l2 * held, **EXACT)
    totals = {part.name: float(part.total.detach()) for part in parts}
    mean = float(weights / weights.sum() @ energy(x).detach())
    assert totals["positive"] == pytest.approx(mean, abs=1e-10)


def test_moments_by_chains_are_of_couplings() -> None:
    with pytest.raises(ArgumentError, match="use a Potts model"):
        CouplingMoments(0.0).initialise(PlainRBM(), torch.zeros(2, 3), seeded(0))


class PlainRBM(BernoulliRBM):
    """One without a way by hand."""

    def __init__(self) -> None:
        super().__init__((3,), hidden=2, weight_scale=0.1)

    def energies_and_pull(self, x: Tensor) -> None:  # type: ignore[override]  # noqa: ARG002
        return None


def independent() -> tuple[PottsModel, Tensor]:
    """A model whose frequencies are those of independent sites, and the law of these."""
    energy, rows = PottsModel((SITES,), LEVELS).double(), states()
    weights = torch.rand(len(rows), generator=seeded(5), dtype=torch.float64) ** 3
    energy.initialise(rows, weights)
    log_shares = energy.shares.log()
    p = log_shares[range(SITES), rows.long()].sum(1).exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    return energy, p


def with_gradient(energy: PottsModel, values: Tensor) -> None:
    sizes = [parameter.numel() for parameter in energy.parameters()]
    for parameter, own in zip(energy.parameters(), values.split(sizes), strict=True):
        parameter.grad = own.view_as(parameter).clone()


def test_natural_gradient_is_that_of_independent_sites() -> None:
    """F n = g, with F the covariance of all features under the law of independent sites, and g the
    difference of two laws' moments.
    """
    energy, p = independent()
    phi = features(states())
    mean = p @ phi
    fisher = phi.T @ (p[:, None] * phi) - torch.outer(mean, mean)
    g = law(model(6)) @ phi - mean
    with_gradient(energy, g)
    energy.to_natural_(0.0)
    torch.testing.assert_close(fisher @ gradient_of(energy), g, **EXACT)
    with pytest.raises(AssertionError):  # the gradient as it is solves nothing
        torch.testing.assert_close(fisher @ g, g, **EXACT)


def test_natural_gradient_leaves_couplings_that_are_held() -> None:
    """On a graph it is that of the features which are free."""
    energy, p = independent()
    phi = features(states())
    mean = p @ phi
    fisher = phi.T @ (p[:, None] * phi) - torch.outer(mean, mean)
    kept = torch.arange(len(energy.coupling)) % 3 != 1
    g = law(model(6)) @ phi - mean
    energy.couple(kept)
    with_gradient(energy, g)
    energy.hold()
    energy.to_natural_(0.0)
    n = gradient_of(energy)
    every = kept[:, None, None].expand_as(energy.coupling).flatten()
    free = torch.cat([torch.ones(energy.field.numel(), dtype=torch.bool), every])
    assert bool((n[~free] == 0).all())
    torch.testing.assert_close((fisher @ n)[free], g[free], **EXACT)


def test_damping_holds_rare_letters_back() -> None:
    """Its steps shorten, those of rare letters most, and far damped ones follow the gradient."""
    energy, _ = independent()
    g = law(model(6)) @ features(states()) - law(model(7)) @ features(states())
    found = []
    for damping in (0.0, 0.1, 1e6):
        with_gradient(energy, g)
        energy.to_natural_(damping)
        assert energy.coupling.grad is not None
        found.append(energy.coupling.grad.abs().sum())
    assert found[0] > found[1] > found[2]


def test_steps_of_natural_gradients_find_the_law() -> None:
    """From independent sites to a coupled law, by exact moments: 100 steps, where plain gradients
    of the same rate are far from it.
    """
    truth = law(model(8))
    left = {}
    for natural in (True, False):
        energy = PottsModel((SITES,), LEVELS).double()
        energy.initialise(states(), truth)
        objective = CouplingMoments(0.0)
        objective.initialise(energy, states(), seeded(0), truth)
        optimizer = torch.optim.SGD(energy.parameters(), 0.3)
        for _ in range(100):
            optimizer.zero_grad()
            p = law(energy)
            batch = Batch(PositiveSide(states()[:1]), NegativeSide(states(), weights=p * len(p)))
            parts = objective.parts(energy, batch)
            sum(part.weight * part.total / part.rows for part in parts).backward()
            if natural:
                energy.to_natural_(1e-3)
            optimizer.step()
        left[natural] = float((truth * (truth / law(energy)).log()).sum())
    assert left[True] < 1e-5
    assert left[False] > 30 * left[True], left
