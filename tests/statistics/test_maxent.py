"""Maximum entropy: laws known in closed form found again, the dual's gradient by enumeration,
moments that no law has.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats
from torch import Tensor

from pipeline.assembly.energies import make_energy
from pipeline.config.compose import compose
from pipeline.data.ising import ising
from pipeline.energies.maxent.exponential_family import ExponentialFamily, family
from pipeline.evaluation.maximum_entropy import against_truth, maximum_entropy
from pipeline.evaluation.moments import by_chains
from pipeline.objectives.chunking import Chunking
from pipeline.objectives.moments import MomentMatching, MomentMatchingByChains
from tests.statistics.test_features import MEANS, PAIRS, with_parameters
from tests.statistics.trainable import gradient_of, loss_of, sides

QUADRATIC = {"kind": "polynomial", "degree": 2}
DICE = (0.05435, 0.07877, 0.11416, 0.16545, 0.23977, 0.34749)  # Jaynes's, of mean 4.5
GENERATOR = torch.Generator()


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def started(objective: MomentMatching, energy: ExponentialFamily) -> MomentMatching:
    objective.initialise(energy, energy.sample_base(2, GENERATOR.manual_seed(0)), GENERATOR)
    return objective


def minimise(energy: ExponentialFamily, moments: list[float], l2: float = 0.0) -> ExponentialFamily:
    """The family at the exact objective's minimum, by its own loss and gradient, in float64."""
    energy.double()
    objective = started(MomentMatching(moments, 0.0, l2), energy)
    batch = sides(torch.empty(0, *energy.shape))
    optimizer = torch.optim.LBFGS(
        [energy.natural],
        max_iter=500,
        tolerance_grad=1e-11,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(objective, energy, batch)
        loss.backward()
        return loss

    optimizer.step(closure)
    return energy


def law(energy: ExponentialFamily) -> tuple[Tensor, Tensor]:
    """All states `[S, d]` and their probabilities, worked out here and not by the energy's own
    sums.
    """
    values = range(energy.levels or 0)
    x = torch.tensor(
        list(itertools.product(values, repeat=energy.dimension)), dtype=torch.float64
    ).view(-1, *energy.shape)
    return x, torch.softmax(-energy(x).detach(), 0)


# -- laws known in closed form ---------------------------------------------------------------------


@pytest.mark.parametrize(("box", "base"), [((-10.0, 11.0), math.inf), (None, 1.5)])
def test_of_given_mean_and_variance_it_is_the_gaussian(
    box: tuple[float, float] | None, base: float
) -> None:
    """lambda = (m / s^2, 1 / (2 b^2) - 1 / (2 s^2)), b the base measure's scale, to 1e-6; entropy
    log(2 pi e s^2) / 2.
    """
    mean, variance = 0.7, 0.64
    energy = minimise(
        family((1,), [QUADRATIC], box=box, base_scale=1.5), [mean, mean**2 + variance]
    )
    expected = numbers(mean / variance, 1 / (2 * base**2) - 1 / (2 * variance))
    torch.testing.assert_close(energy.natural.detach(), expected, rtol=0, atol=1e-6)
    moments = energy.exact_moments()
    assert moments is not None
    assert moments.entropy == pytest.approx(math.log(2 * math.pi * math.e * variance) / 2, abs=1e-6)


def test_in_the_plane_too() -> None:
    """Means, squares and the product: the Gaussian with that covariance, its precision and entropy
    to 1e-6.
    """
    covariance = numbers(1.0, 0.6, 0.6, 0.8).view(2, 2)
    mean = numbers(0.3, -0.2)
    second = covariance + torch.outer(mean, mean)
    energy = family((2,), [QUADRATIC, PAIRS], box=(-8.0, 8.0))
    minimise(
        energy, [*torch.stack([mean, second.diagonal()], 1).flatten().tolist(), float(second[0, 1])]
    )
    precision = torch.linalg.inv(covariance)
    pull = precision @ mean
    expected = numbers(
        float(pull[0]), -float(precision[0, 0]) / 2, float(pull[1]), -float(precision[1, 1]) / 2
    )
    expected = torch.cat([expected, -precision[0, 1:]])
    torch.testing.assert_close(energy.natural.detach(), expected, rtol=0, atol=1e-6)
    moments = energy.exact_moments()
    assert moments is not None
    entropy = math.log(2 * math.pi * math.e) + float(torch.logdet(covariance)) / 2
    assert moments.entropy == pytest.approx(entropy, abs=1e-6)


def test_the_dice_of_mean_4_and_a_half() -> None:
    """Faces are levels 0, ..., 5, so their mean is 3.5; probabilities to the digits that are
    published.
    """
    energy = minimise(family((1,), [MEANS], levels=6), [3.5])
    x, probabilities = law(energy)
    torch.testing.assert_close(probabilities, numbers(*DICE), rtol=0, atol=5e-6)
    assert float(probabilities @ x[:, 0]) == pytest.approx(3.5, abs=1e-9)


def test_a_base_measure_is_tilted() -> None:
    """p_k = r_k exp(lambda k) / Z, lambda found by bisection; without moments asked for, the base
    measure itself.
    """
    rates = np.array([0.5, 0.1, 0.1, 0.3])
    energy = family((1,), [MEANS], levels=4, base_rates=tuple(2 * rates)).double()
    torch.testing.assert_close(law(energy)[1], torch.from_numpy(rates), rtol=0, atol=1e-7)
    levels = np.arange(4)

    def excess(value: float) -> float:
        weights = rates * np.exp(value * levels)
        return float(weights @ levels / weights.sum()) - 2.2

    minimise(energy, [2.2])
    root = optimize.brentq(excess, -10, 10, xtol=1e-12)
    assert energy.natural.item() == pytest.approx(root, abs=1e-6)  # the rates are kept in float32
    drawn = energy.sample_base(40_000, torch.Generator().manual_seed(0)).long().flatten()
    assert stats.chisquare(torch.bincount(drawn, minlength=4).numpy(), 40_000 * rates).pvalue > 1e-6


@pytest.mark.slow
def test_an_ising_model_from_its_pairwise_moments() -> None:
    """3 x 3, parameters from N(0, 1): each recovered to 1e-4 from exact means and neighbours'
    products.
    """
    declared = [MEANS, {"kind": "pairs", "neighbours": True}]
    truth = with_parameters(family((3, 3), declared, levels=2), seed=4)
    x, probabilities = law(truth)
    found = minimise(
        family((3, 3), declared, levels=2), (probabilities @ truth.features(x)).tolist()
    )
    torch.testing.assert_close(found.natural.detach(), truth.natural.detach(), rtol=0, atol=1e-4)


# -- sums and gradients ----------------------------------------------------------------------------


def test_log_z_and_moments_by_quadrature() -> None:
    """Of exp(x/2 + 2x^2 - x^4/2) on [-2.5, 2.5] by scipy's adaptive rule; those of the preset are
    these.
    """
    config = compose(["experiment=maxent_moments"])
    energy = make_energy(config, (1,))
    assert isinstance(energy, ExponentialFamily)
    with torch.no_grad():
        energy.natural.copy_(torch.tensor([0.5, 2.0, 0.0, -0.5]))

    def of(power: int) -> float:
        return float(
            integrate.quad(
                lambda x: x**power * math.exp(x / 2 + 2 * x**2 - x**4 / 2), -2.5, 2.5, epsrel=1e-12
            )[0]
        )

    moments = energy.exact_moments()
    assert moments is not None
    # the midpoint rule's error is of order spacing^2, the spacing 1.2e-3, times the density at the
    # walls, 1e-3
    assert energy.log_partition() == pytest.approx(math.log(of(0)), abs=1e-7)
    expected = [of(power) / of(0) for power in range(1, 5)]
    assert moments.mean.tolist() == pytest.approx(expected, abs=1e-6)
    moments = list(config.objective.moments)  # type: ignore[union-attr, arg-type]
    assert moments == pytest.approx(expected, abs=1e-8)


def test_exact_moments_are_log_zs_derivatives() -> None:
    energy = with_parameters(family((2,), [MEANS, PAIRS], levels=3))
    moments = energy.exact_moments()
    assert moments is not None

    def log_z(natural: Tensor) -> Tensor:
        x, _ = law(energy)
        return torch.logsumexp(energy.features(x) @ natural, 0)

    natural = energy.natural.detach()
    gradient = torch.autograd.functional.jacobian(log_z, natural)
    torch.testing.assert_close(moments.mean, gradient, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        moments.covariance, torch.autograd.functional.hessian(log_z, natural), rtol=0, atol=1e-12
    )
    _, probabilities = law(energy)
    assert moments.entropy == pytest.approx(
        float(torch.special.entr(probabilities).sum()), abs=1e-12
    )


class Unweighted(MomentMatchingByChains):
    """Broken: importance weights left out."""

    def of_negatives(self, energy: Any, negatives: Any, energies: Tensor, weights: Tensor) -> Any:
        return super().of_negatives(energy, negatives, energies, torch.ones_like(weights))


@pytest.mark.parametrize("rates", [None, (0.2, 0.5, 0.3)])
def test_the_duals_gradient(rates: tuple[float, ...] | None) -> None:
    """E[phi] - mu + l1 sign(lambda) + l2 lambda, by enumeration to 1e-10: with log Z, and from
    negatives that are all states, weighted by their probabilities, whole and in chunks. Without the
    weights it is another.
    """
    energy = with_parameters(family((3,), [MEANS, PAIRS], levels=3, base_rates=rates))
    mu = [1.0, 0.9, 1.2, 1.0, 1.1, 0.8]
    x, probabilities = law(energy)
    natural = energy.natural.detach()
    expected = (
        probabilities @ energy.features(x) - numbers(*mu) + 0.1 * natural.sign() + 0.2 * natural
    )
    nothing = torch.empty(0, 3, dtype=torch.float64)
    exact = started(MomentMatching(mu, 0.1, 0.2), energy)
    torch.testing.assert_close(
        gradient_of(loss_of(exact, energy, sides(nothing)), energy), expected, rtol=0, atol=1e-10
    )
    batch = sides(nothing, negatives=x, weights=probabilities * len(x))
    sampled = started(MomentMatchingByChains(mu, 0.1, 0.2), energy)
    torch.testing.assert_close(
        gradient_of(loss_of(sampled, energy, batch), energy), expected, rtol=0, atol=1e-10
    )
    total = torch.zeros_like(expected)
    for piece, share in Chunking(rows=7).split(batch):
        total += share * gradient_of(loss_of(sampled, energy, piece), energy)
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-10)
    broken = started(Unweighted(mu, 0.1, 0.2), energy)
    assert (gradient_of(loss_of(broken, energy, batch), energy) - expected).abs().max() > 0.01


def test_moments_of_data_are_their_means() -> None:
    energy = family((2,), [MEANS, PAIRS], levels=3)
    rows = torch.tensor([[0.0, 2.0], [1.0, 1.0], [2.0, 2.0], [1.0, 0.0]])
    objective = MomentMatching(None, 0.0, 0.0)
    objective.initialise(energy, rows, GENERATOR)
    assert objective.mu.tolist() == [1.0, 1.25, 1.25]


# -- relaxation ------------------------------------------------------------------------------------


def test_the_ridge_misses_by_l2_times_the_parameter() -> None:
    """E[phi] = mu - l2 lambda at the minimum, for moments that no law has as well (the dice's mean
    6 of levels 0, ..., 5).
    """
    for asked in (3.5, 6.0):
        energy = minimise(family((1,), [MEANS], levels=6), [asked], l2=0.1)
        x, probabilities = law(energy)
        assert float(probabilities @ x[:, 0] - asked) == pytest.approx(
            -0.1 * energy.natural.item(), abs=1e-8
        )


def test_the_box_relaxations_optimality() -> None:
    """|E[phi_i] - mu_i| <= l1, and where lambda_i is not 0 the miss is -l1 sign(lambda_i), to 1e-6;
    the objective's own loss is nowhere lower.
    """
    truth = with_parameters(family((2, 3), [MEANS, PAIRS], levels=2), seed=1)
    x, probabilities = law(truth)
    mu, l1 = probabilities @ truth.features(x), 0.03
    dual = maximum_entropy(family((2, 3), [MEANS, PAIRS], levels=2), mu, l1, 0.0)
    assert dual is not None
    best = with_parameters(family((2, 3), [MEANS, PAIRS], levels=2))
    with torch.no_grad():
        best.natural.copy_(torch.from_numpy(dual.natural))
    _, probabilities = law(best)
    miss = (probabilities @ best.features(x) - mu).detach()
    zero = best.natural.detach() == 0
    assert 0 < int(zero.sum()) < len(mu)
    assert float(miss.abs().max()) < l1 + 1e-6
    torch.testing.assert_close(
        miss[~zero], -l1 * best.natural.detach()[~zero].sign(), rtol=0, atol=1e-6
    )
    objective = started(MomentMatching(mu.tolist(), l1, 0.0), best)
    batch = sides(torch.empty(0, 2, 3))
    least = loss_of(objective, best, batch).item()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        with torch.no_grad():
            best.natural.copy_(
                torch.from_numpy(dual.natural) + 0.05 * torch.randn(len(mu), generator=generator)
            )
        assert loss_of(objective, best, batch).item() > least


def test_the_gap_is_the_divergence() -> None:
    """L(lambda) - L(lambda*) = KL(p* || p), by enumeration to 1e-8."""
    truth = with_parameters(family((4,), [MEANS, PAIRS], levels=2), seed=2)
    x, wanted = law(truth)
    energy = with_parameters(family((4,), [MEANS, PAIRS], levels=2), seed=3)
    dual = maximum_entropy(energy, wanted @ truth.features(x), 0.0, 0.0)
    assert dual is not None
    divergence = float((wanted * (wanted / law(energy)[1]).log()).sum())
    assert dual.gap == pytest.approx(divergence, abs=1e-8)
    np.testing.assert_allclose(dual.natural, truth.natural.detach().numpy(), atol=1e-4)


# -- what is said of a run -------------------------------------------------------------------------


def test_moments_by_chains_have_honest_errors() -> None:
    """Against enumeration: |z| < 6 for ten features (t with 63 degrees of freedom: 1e-6 of all),
    and errors no larger than those of one draw a chain. Against another law they are caught.
    """
    config = compose(
        [
            *(
                "energy=maxent",
                "energy.levels=2",
                "kernel=gibbs_with_gradients",
                "kernel.transitions=5",
                "data=none",
            ),
            *(
                "data.levels=2",
                "data.shape=[4]",
                "objective=moments",
                "objective.moments=[1]",
                "evaluation.transitions=400",
            ),
        ]
    )
    energy = with_parameters(family((4,), [MEANS, PAIRS], levels=2), seed=6)
    x, probabilities = law(energy)
    phi = energy.features(x)
    truth = probabilities @ phi
    deviation = (probabilities @ phi.square() - truth.square()).sqrt()
    energy.float().requires_grad_(False)
    *_, expected = _returned(by_chains(config, energy))
    assert float(((expected.mean - truth) / expected.standard_error).abs().max()) < 6
    assert bool((expected.standard_error < deviation / math.sqrt(64)).all())
    energy.natural.mul_(0.7)
    *_, other = _returned(by_chains(config, energy))
    assert float(((other.mean - truth) / other.standard_error).abs().max()) > 6


def _returned(generator: Any) -> Any:
    """What a generator yields, and what it returns last."""
    yield (yield from generator)


@pytest.mark.slow
def test_chi_square_of_the_parameters_is_one() -> None:
    """400 data sets of 4,000 rows of a 2 x 2 Ising model, each fitted exactly: the mean of
    chi-square is that of 8 degrees of freedom within 5 standard errors (and the limit's O(1 /
    rows)), and the bound is exceeded at most once.
    """
    section = compose(["experiment=maxent_ising", "data.shape=[2,2]", "data.rows=2000"]).data
    data = ising(section)  # type: ignore[arg-type]
    energy = family((2, 2), [MEANS, {"kind": "pairs", "neighbours": True}], levels=2).double()
    x, _ = law(energy)
    assert data.log_density is not None
    probabilities = data.log_density(x).exp()
    counts = np.random.default_rng(0).multinomial(4000, probabilities.numpy(), size=400)
    values = []
    for row in counts:
        dual = maximum_entropy(energy, torch.from_numpy(row / 4000) @ energy.features(x), 0.0, 0.0)
        assert dual is not None
        with torch.no_grad():
            energy.natural.copy_(torch.from_numpy(dual.natural))
        found = against_truth(energy, dual, data.log_density, 4000)
        values.append(found["chi_square"])
    assert found["chi_square_freedom"] == 8
    assert abs(np.mean(values) - 8) < 5 * math.sqrt(16 / 400) + 0.1
    assert np.sum(np.array(values) > found["chi_square_bound"]) <= 1


def test_true_parameters_are_read_off_the_law() -> None:
    """Products' by the log odds of two neighbours, the others at 0, which for spins -1, 1 are 4 J;
    a law of another family has none.
    """
    section = compose(["experiment=maxent_ising", "data.shape=[2,2]", "data.rows=2000"]).data
    data = ising(section)  # type: ignore[arg-type]
    energy = family((2, 2), [MEANS, {"kind": "pairs", "neighbours": True}], levels=2)
    dual = maximum_entropy(energy, numbers(*[0.5] * 4, *[0.25] * 4), 0.0, 0.0)
    assert dual is not None
    assert data.log_density is not None
    true = against_truth(energy, dual, data.log_density, 100)["true_parameters"]
    corners = torch.zeros(4, 2, 2)
    corners[1, 0, 0] = corners[2, 1, 0] = corners[3, 0, 0] = corners[3, 1, 0] = 1
    odds = data.log_density(corners)
    assert energy.names[4] == "x[0,0] x[1,0]"
    assert true[4] == pytest.approx(float(odds[0] + odds[3] - odds[1] - odds[2]), abs=1e-9)
    assert true[0] == pytest.approx(float(odds[1] - odds[0]), abs=1e-9)
    assert against_truth(energy, dual, lambda rows: -rows.flatten(1).sum(1).square(), 100) == {}


def test_ising_rows_are_of_their_law() -> None:
    """Frequencies of all 16 states against the density, which sums to 1; p > 1e-6."""
    section = compose(["experiment=maxent_ising", "data.shape=[2,2]", "data.rows=40000"]).data
    data = ising(section)  # type: ignore[arg-type]
    rows = torch.cat([data.sample, data.held_out]).flatten(1).long()
    numbers_of = (rows * 2 ** torch.arange(4)).sum(1)
    x = (torch.arange(16)[:, None] >> torch.arange(4) & 1).view(-1, 2, 2)
    assert data.log_density is not None
    probabilities = data.log_density(x).exp()
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-12)
    assert (
        stats.chisquare(
            torch.bincount(numbers_of, minlength=16).numpy(), len(rows) * probabilities.numpy()
        ).pvalue
        > 1e-6
    )
