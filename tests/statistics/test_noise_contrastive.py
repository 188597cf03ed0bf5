"""Noise-contrastive estimation and its conditional form: what they say at the truth, where their
gradients vanish, and their noise laws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pipeline.energies.base import Energy
from pipeline.energies.laws import Gaussian, TruncatedGaussian
from pipeline.energies.quadratic import QuadraticBinary
from pipeline.energies.rbm import BernoulliRBM
from pipeline.objectives.base import Objective, Part, PositiveSide
from pipeline.objectives.noise_contrastive import (
    ConditionalNoiseContrastive,
    IndependentLevels,
    NoiseContrastive,
    fitted,
)
from tests.statistics.laws import P_LIMIT, chi_squared, double, scramble, seeded, states
from tests.statistics.trainable import (
    Scaled,
    TrainableGaussian,
    gradient_of,
    largest_z,
    loss_of,
    sides,
    z_limit,
)

MEAN, COVARIANCE = double([0.5, -1.0]), double([[1.0, 0.6], [0.6, 0.8]])
DRAWS = 3


class Both(torch.nn.Module):
    """What is learned: the energy's parameters and the objective's own."""

    def __init__(self, energy: Energy, objective: Objective) -> None:
        super().__init__()
        self.energy, self.objective = energy, objective


def gaussian() -> TrainableGaussian:
    return TrainableGaussian(MEAN, COVARIANCE)


def wide_noise(energy: Energy, c: float, draws: int = DRAWS) -> NoiseContrastive:
    """With a noise that is not the data's law, and c as given."""
    objective = NoiseContrastive(draws).double()
    objective.noise = Gaussian(double([0.0, -0.5]), double([[1.5, 0.0], [0.0, 2.0]]))
    with torch.no_grad():
        objective.log_z.fill_(c)
    assert energy.dimension == 2
    return objective


def slopes_by_batch(
    energy: Energy, objective: Objective, batches: int = 100, rows: int = 400
) -> Tensor:
    """Gradients of the loss, `[batches, P]`, of data of the law `gaussian()`."""
    law, generator, found = Gaussian(MEAN, COVARIANCE), seeded(7), []
    for _ in range(batches):
        x = law.sample(rows, generator)
        batch = sides(x, objective.draw(energy, x, generator))
        found.append(gradient_of(loss_of(objective, energy, batch), Both(energy, objective)))
    return torch.stack(found)


def z_at(objective: Objective, energy: Energy) -> float:
    slopes = slopes_by_batch(energy, objective)
    return largest_z(slopes, torch.zeros(slopes.shape[1], dtype=torch.float64)) / z_limit(
        slopes.shape[1]
    )


# -- noise-contrastive estimation ------------------------------------------------------------------


def test_at_the_truth_g_is_the_log_odds() -> None:
    """log p - log q - log P for every row, and the parts are the logistic losses of it, by hand."""
    energy = gaussian()
    objective = wide_noise(energy, float(energy.log_z().detach()))
    x, y = normals(6, 2), normals(DRAWS, 6, 2, seed=1)
    p = torch.distributions.MultivariateNormal(MEAN, COVARIANCE)
    q = torch.distributions.MultivariateNormal(double([0.0, -0.5]), torch.diag(double([1.5, 2.0])))
    data, noise = objective.parts(energy, sides(x, (y,)))
    # the posterior chance of data among one of data and P of noise
    chance = torch.exp(p.log_prob(x)) / (
        torch.exp(p.log_prob(x)) + DRAWS * torch.exp(q.log_prob(x))
    )
    y = y.flatten(0, 1)
    against = (
        DRAWS
        * torch.exp(q.log_prob(y))
        / (torch.exp(p.log_prob(y)) + DRAWS * torch.exp(q.log_prob(y)))
    )
    torch.testing.assert_close(data.total, -chance.log().sum(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(noise.total, -against.log().sum(), rtol=1e-10, atol=1e-10)
    assert (data.rows, data.weight, noise.rows, noise.weight) == (6, 1.0, 6 * DRAWS, DRAWS)


def normals(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=seeded(seed), dtype=torch.float64)


def test_the_expected_gradient_vanishes_at_the_truth_and_with_the_true_log_z() -> None:
    """40,000 rows; of theta and of c. Not where c is 0.1 off, nor where the covariance is."""
    energy = gaussian()
    log_z = float(energy.log_z().detach())
    assert z_at(wide_noise(energy, log_z), energy) < 1
    assert z_at(wide_noise(energy, log_z + 0.1), energy) > 1
    other = TrainableGaussian(MEAN, 1.1 * COVARIANCE)
    assert z_at(wide_noise(other, float(other.log_z().detach())), other) > 1


class NoiseOnce(NoiseContrastive):
    """Without the factor P before the noise's mean."""

    def of_positives(self, energy: Energy, positives: PositiveSide) -> Iterator[Part]:
        for part in super().of_positives(energy, positives):
            yield part._replace(weight=1.0)


class NoiseAsData(NoiseContrastive):
    """The noise's logistic loss with the sign of data's."""

    def of_positives(self, energy: Energy, positives: PositiveSide) -> Iterator[Part]:
        data, noise = super().of_positives(energy, positives)
        logit = self._logit(energy, positives.drawn[0].flatten(0, 1))
        yield from (data, noise._replace(total=torch.nn.functional.softplus(-logit).sum()))


class OddsOfOne(NoiseContrastive):
    """Without log P in G."""

    def _logit(self, energy: Energy, u: Tensor) -> Tensor:
        return super()._logit(energy, u) + math.log(self._draws)


@pytest.mark.parametrize("slip", [NoiseOnce, NoiseAsData, OddsOfOne])
def test_slips_in_the_loss_move_its_minimum(slip: type[NoiseContrastive]) -> None:
    energy = gaussian()
    objective = wide_noise(energy, float(energy.log_z().detach()))
    objective.__class__ = slip
    assert z_at(objective, energy) > 1
    assert population_slope(*binary(slip)) > 1e-3


def binary(kind: type[NoiseContrastive], off: float = 0.0) -> tuple[Energy, NoiseContrastive]:
    """An RBM of 32 states, with independent noise of its own frequencies, and c its log Z plus
    `off`.
    """
    rbm = scramble(BernoulliRBM((5,), hidden=3, weight_scale=1.0), seed=5)
    objective = kind(DRAWS).double()
    objective.initialise(rbm, normals(40, 5).gt(0.3).double(), seeded(1))
    with torch.no_grad():
        objective.log_z.copy_(torch.logsumexp(-rbm(states(rbm)), 0) + off)
    return rbm, objective


def population_slope(energy: Energy, objective: NoiseContrastive) -> float:
    """|gradient| of sum_x p(x) data(x) + P sum_y q(y) noise(y), over all states: p the model, q the
    noise.
    """
    every = states(energy)
    with torch.no_grad():
        p, q = torch.softmax(-energy(every), 0), objective.noise.log_density(every).exp()
    assert float(q.sum()) == pytest.approx(1, abs=1e-10)
    pieces = []
    for state, data_share, noise_share in zip(every, p, q, strict=True):
        alone = sides(state[None], (state.expand(DRAWS, 1, -1),))
        data, noise = objective.parts(energy, alone)
        for share, part in ((data_share, data), (noise_share, noise)):
            pieces.append(share * part.weight * part.total / part.rows)
    return float(gradient_of(torch.stack(pieces).sum(), Both(energy, objective)).abs().max())


def test_the_population_loss_is_flat_at_the_truth() -> None:
    """Over {0, 1}^5, enumerated; and steep where c is off."""
    assert population_slope(*binary(NoiseContrastive)) < 1e-10
    assert population_slope(*binary(NoiseContrastive, 0.01)) > 1e-4


def test_log_z_starts_at_its_estimate_and_is_learned() -> None:
    """By importance sampling with 1000 draws of a Gaussian fitted to the data, here the model's own
    law.
    """
    energy = gaussian()
    objective = NoiseContrastive(DRAWS).double()
    objective.initialise(energy, Gaussian(MEAN, COVARIANCE).sample(20_000, seeded(0)), seeded(1))
    assert float(objective.log_z.detach()) == pytest.approx(
        float(energy.log_z().detach()), abs=0.02
    )
    assert [name for name, _ in objective.named_parameters()] == ["log_z"]
    drawn = objective.draw(energy, torch.zeros(7, 2).double(), seeded(2))[0]
    assert drawn.shape == (DRAWS, 7, 2)
    assert drawn.dtype == torch.float64


# -- its conditional form --------------------------------------------------------------------------


def test_the_conditional_form_is_its_formula_and_knows_no_constant() -> None:
    """2 mean log(1 + p(y) / p(x)), by hand; E + 3 gives the same."""
    energy, x = gaussian(), normals(6, 2)
    objective = ConditionalNoiseContrastive(DRAWS, 0.5)
    (y,) = objective.draw(energy, x, seeded(3))
    law = Gaussian(MEAN, COVARIANCE)
    with torch.no_grad():
        ratios = torch.exp(law.log_density(y.flatten(0, 1)).view(DRAWS, 6) - law.log_density(x))
    loss = loss_of(objective, energy, sides(x, (y,)))
    assert float(loss.detach()) == pytest.approx(2 * float(torch.log1p(ratios).mean()), rel=1e-12)
    plain = energy.forward
    energy.forward = lambda x: plain(x) + 3.0  # type: ignore[method-assign]
    torch.testing.assert_close(
        loss_of(objective, energy, sides(x, (y,))), loss, rtol=1e-12, atol=1e-12
    )


def test_the_conditional_forms_expected_gradient_vanishes_at_the_truth() -> None:
    objective = ConditionalNoiseContrastive(DRAWS, 0.7)
    assert z_at(objective, gaussian()) < 1
    assert z_at(objective, TrainableGaussian(MEAN, 1.1 * COVARIANCE)) > 1


class Swapped(ConditionalNoiseContrastive):
    """E(y) - E(x)."""

    def of_positives(self, energy: Energy, positives: PositiveSide) -> Iterator[Part]:
        for y in positives.drawn[0]:
            swapped = PositiveSide(y, (positives.position[None],))
            yield from super().of_positives(energy, swapped)


def conditional_slope(data: Energy, energy: Energy, objective: Objective) -> float:
    """|gradient| of sum_x p(x) sum_y q(y | x) loss(x, y), q flipping each component with
    probability 0.2.
    """
    every = states(energy)
    with torch.no_grad():
        p = torch.softmax(-data(every), 0)
    pieces = []
    for (x, share), y in itertools.product(zip(every, p, strict=True), every):
        flips = int((x != y).sum())
        weight = share * 0.2**flips * 0.8 ** (energy.dimension - flips)
        pieces.append(weight * loss_of(objective, energy, sides(x[None], (y[None, None],))))
    return float(gradient_of(torch.stack(pieces).sum(), energy).abs().max())


def test_the_conditional_population_loss_is_flat_at_the_truth() -> None:
    """Over {0, 1}^4 and all flips, enumerated; not elsewhere, and not with its energies swapped."""
    objective = ConditionalNoiseContrastive(1, 0.2)
    energy, other = (
        scramble(QuadraticBinary((4,), weight_scale=1.0), seed=seed) for seed in (5, 6)
    )
    assert conditional_slope(energy, energy, objective) < 1e-10
    assert conditional_slope(other, energy, objective) > 1e-3
    assert conditional_slope(energy, energy, Swapped(1, 0.2)) > 1e-3


def test_conditional_noise_is_what_it_says() -> None:
    """Normal with `scale` around the row; over {0, 1}^d flips with that probability, whatever the
    value.
    """
    x = double([[3.0, -2.0]]).expand(5000, 2)
    (y,) = ConditionalNoiseContrastive(2, 0.3).draw(gaussian(), x, seeded(0))
    offsets = ((y - x) / 0.3).flatten()
    assert abs(float(offsets.mean())) * math.sqrt(len(offsets)) < 5
    assert abs(float(offsets.square().mean()) - 1) * math.sqrt(len(offsets) / 2) < 5
    bits = double([[0.0, 1.0]]).expand(5000, 2)
    (y,) = ConditionalNoiseContrastive(2, 0.3).draw(
        QuadraticBinary((2,), weight_scale=0.1), bits, seeded(0)
    )
    flips = (y != bits).double().flatten(0, 1)
    assert set(y.unique().tolist()) == {0.0, 1.0}
    assert float(((flips.mean(0) - 0.3).abs() / math.sqrt(0.21 / len(flips))).max()) < 5


# -- noise laws ------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 3])
def test_independent_levels_are_normalised_and_sampled_as_they_say(levels: int) -> None:
    """Over all states; frequencies are the rows', kept off 0 by 0.01."""
    rows = torch.randint(levels, (500, 2, 2), generator=seeded(0)).double()
    rows[:, 0, 0] = 1
    law = IndependentLevels(rows, levels)
    every = torch.cartesian_prod(*[torch.arange(levels).double()] * 4).view(-1, 2, 2)
    density = law.log_density(every).exp()
    assert float(density.sum()) == pytest.approx(1, abs=1e-12)
    share = float((rows[:, 1, 0] == 0).double().mean())
    first = density[every[:, 1, 0] == 0].sum()
    assert float(first) == pytest.approx(share, abs=1e-12)
    rare = float(density[every[:, 0, 0] == 0].sum())
    assert rare == pytest.approx(0.01 / (1 + 0.01 * (levels - 1)), abs=1e-12)
    x = law.sample(20_000, seeded(1))
    assert x.shape == (20_000, 2, 2)
    which = (x.flatten(1).long() * levels ** torch.arange(3, -1, -1)).sum(1)
    assert chi_squared(which, density) > P_LIMIT


def test_the_noise_fits_the_domain() -> None:
    """Its log density integrates to 1 by the midpoint rule, in a box as well."""
    rows = 0.3 * normals(2000, 1) + 0.2
    side = (torch.arange(4000).double() + 0.5) / 2000 - 1
    boxed = Scaled(1.0, double([0.0]))
    boxed.box = (-1.0, 1.0)
    law = fitted(boxed, rows.clamp(-1, 1))
    assert isinstance(law, TruncatedGaussian)
    assert float(law.log_density(side[:, None]).exp().sum() / 2000) == pytest.approx(1, abs=1e-6)
    free = fitted(Scaled(1.0, double([0.0])), rows)
    assert isinstance(free, Gaussian)
    assert float(free.log_density(4 * side[:, None]).exp().sum() / 500) == pytest.approx(
        1, abs=1e-6
    )
    assert isinstance(
        fitted(QuadraticBinary((2,), weight_scale=0.1), rows.expand(-1, 2).gt(0).double()),
        IndependentLevels,
    )
