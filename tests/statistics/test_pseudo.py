"""Pseudo-likelihood and ratio matching against conditionals by hand, and where their populations'
gradients vanish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from pipeline.energies.base import Energy
from pipeline.energies.lattice import PottsLattice
from pipeline.energies.potts import PottsModel
from pipeline.energies.quadratic import QuadraticBinary
from pipeline.energies.rbm import BernoulliRBM, PottsRBM
from pipeline.objectives import pseudo
from pipeline.objectives.base import Batch, Objective, Part, PositiveSide
from pipeline.objectives.chunking import Chunking
from pipeline.objectives.pseudo import PseudoLikelihood, RatioMatching
from tests.statistics.laws import P_LIMIT, Ordinal, chi_squared, scramble, seeded, states
from tests.statistics.trainable import close, gradient_of, loss_of, sides

ENERGIES: dict[str, Callable[[], Energy]] = {
    "rbm": lambda: BernoulliRBM((4,), hidden=3, weight_scale=1.0),
    "quadratic": lambda: QuadraticBinary((2, 2), weight_scale=1.0),
    "potts_rbm": lambda: PottsRBM((3,), levels=3, hidden=2, weight_scale=1.0),
    "potts": lambda: PottsModel((4,), levels=3),
    "lattice": lambda: PottsLattice((2, 2), levels=3, coupling=0.0, periodic=False),
    "ordinal": lambda: Ordinal((2, 2)),
}
BINARY = ("rbm", "quadratic")
EXACT = 1e-10


def energy_of(name: str, seed: int = 5) -> Energy:
    return scramble(ENERGIES[name](), seed=seed)


def rows_of(energy: Energy, count: int = 6) -> Tensor:
    every = states(energy)
    return every[torch.randint(len(every), (count,), generator=seeded(1))]


def log_conditional(energy: Energy, x: Tensor, site: int) -> Tensor:
    """log p(x_s | x_-s), [], from the joint law of all states: p(x) over the sum of those that
    agree with x elsewhere.
    """
    every = states(energy).flatten(1)
    log_p = torch.log_softmax(-energy(every.view(-1, *energy.shape)), 0)
    differ = every != x.flatten()
    elsewhere = torch.cat([differ[:, :site], differ[:, site + 1 :]], 1).any(1)
    return log_p[~differ.any(1)][0] - torch.logsumexp(log_p[~elsewhere], 0)


def pseudo_by_hand(energy: Energy, rows: Tensor) -> Tensor:
    return -torch.stack(
        [log_conditional(energy, x, s) for x in rows for s in range(energy.dimension)]
    ).sum() / len(rows)


def ratio_by_hand(energy: Energy, rows: Tensor) -> Tensor:
    """The squared probabilities of the values that are not there."""
    terms = [
        (1 - log_conditional(energy, x, s).exp()).square()
        for x in rows
        for s in range(energy.dimension)
    ]
    return torch.stack(terms).sum() / len(rows)


def drawn(objective: Objective, energy: Energy, rows: Tensor) -> Batch:
    return sides(rows, objective.draw(energy, rows, seeded(0)))


def compare(objective: Objective, by_hand: Callable[[Energy, Tensor], Tensor], name: str) -> None:
    """Loss and gradient of all sites."""
    energy = energy_of(name)
    rows = rows_of(energy)
    loss, truth = loss_of(objective, energy, drawn(objective, energy, rows)), by_hand(energy, rows)
    close(loss, truth, EXACT)
    close(gradient_of(loss, energy), gradient_of(truth, energy), EXACT)


@pytest.mark.parametrize("name", ENERGIES)
def test_pseudo_likelihood_is_the_conditionals(name: str) -> None:
    compare(PseudoLikelihood(None), pseudo_by_hand, name)


def test_weights_and_penalties_of_a_potts_model() -> None:
    """The loss times the sum of all weights is what the field states: a sum over sequences by
    their weights, and squares of fields and of each pair's couplings.
    """
    energy = energy_of("potts")
    assert isinstance(energy, PottsModel)
    rows = rows_of(energy)
    weights = torch.tensor([0.5, 1, 0.25, 1, 1, 0.1], dtype=torch.float64)
    objective, total = PseudoLikelihood(None, l2_fields=0.3, l2_couplings=0.7), float(weights.sum())
    objective.total_weight = total
    batch = Batch(PositiveSide(rows, weights=weights / weights.mean()))
    each = torch.stack([pseudo_by_hand(energy, x[None]) for x in rows])
    squares = 0.3 * energy.field.square().sum() + 0.7 * energy.coupling.square().sum()
    truth = (weights @ each + squares) / total
    close(loss_of(objective, energy, batch), truth, EXACT)
    close(gradient_of(loss_of(objective, energy, batch), energy), gradient_of(truth, energy), EXACT)
    pieces = Chunking(2).split(batch)
    losses = [
        share * part.weight * part.total / part.rows
        for piece, share in pieces
        for part in objective.parts(energy, piece)
    ]
    close(torch.stack(losses).sum(), truth, EXACT)


def test_sites_drawn_of_a_potts_model_are_unbiased() -> None:
    """By energies, as of any model: the mean over the choices of a site is that of all at once."""
    energy = energy_of("potts")
    rows, all_sites, one = rows_of(energy), PseudoLikelihood(None), PseudoLikelihood(1)
    whole = loss_of(all_sites, energy, drawn(all_sites, energy, rows))
    choices = [sides(rows, (torch.full((1, len(rows)), site),)) for site in range(energy.dimension)]
    close(torch.stack([loss_of(one, energy, batch) for batch in choices]).mean(), whole, EXACT)


@pytest.mark.parametrize("name", BINARY)
def test_ratio_matching_is_its_formula(name: str) -> None:
    compare(RatioMatching(None), ratio_by_hand, name)


@pytest.mark.parametrize("objective", [PseudoLikelihood, RatioMatching])
def test_over_the_choices_of_a_site_the_mean_is_that_of_all(
    objective: type[PseudoLikelihood | RatioMatching],
) -> None:
    """Unbiased: exactly, as each of the sites is drawn with the same chance, for every row on its
    own.
    """
    energy = energy_of("rbm")
    rows, all_sites = rows_of(energy), objective(None)
    whole = loss_of(all_sites, energy, drawn(all_sites, energy, rows))
    one = objective(1)
    choices = [sides(rows, (torch.full((1, len(rows)), site),)) for site in range(energy.dimension)]
    close(torch.stack([loss_of(one, energy, batch) for batch in choices]).mean(), whole, EXACT)
    (sites,) = objective(3).draw(energy, rows_of(energy, 10_000), seeded(2))
    assert sites.shape == (3, 10_000)
    pairs = sites[0] * energy.dimension + sites[1]
    assert chi_squared(pairs, torch.full((energy.dimension**2,), 1 / energy.dimension**2)) > P_LIMIT


def population_slope(objective: Objective, data: Energy, energy: Energy) -> float:
    """|gradient| at `energy` of the loss expected under the law of `data`, enumerated."""
    every = states(energy)
    with torch.no_grad():
        law = torch.softmax(-data(every), 0)
    losses = [loss_of(objective, energy, drawn(objective, energy, x[None])) for x in every]
    return float(gradient_of(law @ torch.stack(losses), energy).abs().max())


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        *((PseudoLikelihood(None), name) for name in ENERGIES),
        *((RatioMatching(None), name) for name in BINARY),
    ],
)
def test_populations_are_flat_at_the_truth_alone(objective: Objective, name: str) -> None:
    energy = energy_of(name)
    assert population_slope(objective, energy, energy) < 1e-10
    assert population_slope(objective, energy_of(name, seed=6), energy) > 1e-3


# -- slips -----------------------------------------------------------------------------------------


class Swapped(RatioMatching):
    """E(flipped) - E(x)."""

    def of_positives(self, energy: Energy, positives: PositiveSide) -> Iterator[Part]:
        x = positives.position
        here = energy(x)
        moved = pseudo._energies(energy, x.flatten(1), positives.drawn[0], 1)
        values = torch.sigmoid(moved - here).square()
        yield Part("ratio", values.sum(), values.numel(), float(energy.dimension))


def test_swapped_energies_are_caught() -> None:
    with pytest.raises(AssertionError, match="close"):
        compare(Swapped(None), ratio_by_hand, "rbm")
    assert population_slope(Swapped(None), energy_of("rbm"), energy_of("rbm")) > 1e-3


def test_a_level_left_out_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites that move on by one level only, of three."""
    plain = pseudo._energies
    monkeypatch.setattr(
        pseudo, "_energies", lambda energy, x, sites, shift: plain(energy, x, sites, min(shift, 1))
    )
    with pytest.raises(AssertionError, match="close"):
        compare(PseudoLikelihood(None), pseudo_by_hand, "lattice")
    assert (
        population_slope(PseudoLikelihood(None), energy_of("lattice"), energy_of("lattice")) > 1e-3
    )


def test_sites_of_other_rows_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are drawn, the order of rows and sites matters."""
    energy = energy_of("quadratic")
    rows = rows_of(energy)
    objective = PseudoLikelihood(3)
    batch = drawn(objective, energy, rows)
    terms = [
        log_conditional(energy, x, int(s))
        for x, sites in zip(rows, batch.positives.drawn[0].T, strict=True)
        for s in sites
    ]
    by_hand = -torch.stack(terms).mean() * energy.dimension
    close(loss_of(objective, energy, batch), by_hand, EXACT)
    plain = pseudo._energies

    def transposed(energy: Energy, x: Tensor, sites: Tensor, shift: int) -> Tensor:
        return plain(energy, x, sites.T.reshape(sites.shape), shift)

    monkeypatch.setattr(pseudo, "_energies", transposed)
    assert not torch.allclose(loss_of(objective, energy, batch), by_hand)
