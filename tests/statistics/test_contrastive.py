"""Contrastive divergence on an RBM of 32 states: unbiased with the model's own draws, and after k
transitions as enumerated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from pipeline.chains.sampler import ChainPlan, Sampler
from pipeline.energies.base import Energy
from pipeline.energies.rbm import BernoulliRBM
from pipeline.kernels import gibbs
from pipeline.objectives.base import Batch, Objective, Part, Replayed
from pipeline.objectives.chunking import Chunking
from pipeline.objectives.contrastive import ContrastiveDivergence
from pipeline.objectives.improved import ImprovedContrastiveDivergence, Slopes
from pipeline.objectives.noise_contrastive import ConditionalNoiseContrastive, NoiseContrastive
from pipeline.objectives.pseudo import PseudoLikelihood, RatioMatching
from tests.conftest import states
from tests.statistics.laws import numbers, scramble, seeded
from tests.statistics.trainable import close, gradient_of, gradients_by_row, loss_of, sides, z_limit

DRAWS = 10_000
DATA = [0, 3, 7, 7, 9, 21, 30, 31]  # numbers of the states that are the data


class Enumerated(NamedTuple):
    """An RBM with all its states, their law, the gradient of E at each [32, P], and the Gibbs
    kernel's matrix [32, 32].
    """

    rbm: BernoulliRBM
    law: Tensor
    slopes: Tensor
    transition: Tensor

    def ascent(self, transitions: int) -> Tensor:
        """The expected gradient of CD-k from `DATA`: E_data[grad E] - E_{data T^k}[grad E]."""
        return (
            self.start - self.start @ torch.linalg.matrix_power(self.transition, transitions)
        ) @ self.slopes

    @property
    def start(self) -> Tensor:
        return torch.bincount(torch.tensor(DATA), minlength=32).double() / len(DATA)

    @property
    def exact(self) -> Tensor:
        return (self.start - self.law) @ self.slopes


@pytest.fixture(scope="module")
def slow_rbm() -> Enumerated:
    """Weights N(0, 2^2): the kernel forgets slowly, and fifty transitions still show a bias."""
    rbm = scramble(BernoulliRBM((5,), hidden=3, weight_scale=1.0), 2.0, seed=10)
    assert isinstance(rbm, BernoulliRBM)
    v, h = states(5), states(3)
    with torch.no_grad():
        law = torch.softmax(-rbm(v), 0)
        hidden, visible = rbm.conditional("hidden", v), rbm.conditional("visible", h)
        to_hidden = torch.stack([hidden.log_prob(one.expand(32, 3)).sum(1).exp() for one in h], 1)
        to_visible = torch.stack([visible.log_prob(one.expand(8, 5)).sum(1).exp() for one in v], 1)
    transition = to_hidden @ to_visible
    torch.testing.assert_close(law @ transition, law, rtol=0, atol=1e-12)
    return Enumerated(rbm, law, gradients_by_row(rbm, v), transition)


def worst_z(estimate: Tensor, truth: Tensor, variance: Tensor, draws: int) -> float:
    """Of a mean of `draws` values with this `variance` each."""
    return float(((estimate - truth).abs() / (variance / draws).sqrt().clamp(min=1e-12)).max())


def weighted_variance(slopes: Tensor, law: Tensor) -> Tensor:
    return law @ slopes.square() - (law @ slopes).square()


class FlippedNegatives(ContrastiveDivergence):
    def of_negatives(self, *arguments: Any) -> Iterator[Part]:
        for part in super().of_negatives(*arguments):
            yield part._replace(weight=abs(part.weight))


# -- unbiased --------------------------------------------------------------------------------------


def test_with_draws_of_the_model_its_expectation_is_the_likelihoods_gradient(
    slow_rbm: Enumerated,
) -> None:
    """10,000 draws, the standard error by enumeration; a gradient with the negatives' sign flipped
    is far off.
    """
    rbm, slopes = slow_rbm.rbm, slow_rbm.slopes
    drawn = states(5)[torch.multinomial(slow_rbm.law, DRAWS, replacement=True, generator=seeded(2))]
    batch = sides(states(5)[DATA], negatives=drawn)
    variance, limit = weighted_variance(slopes, slow_rbm.law), z_limit(slopes.shape[1])
    estimate = gradient_of(loss_of(ContrastiveDivergence(0.0), rbm, batch), rbm)
    assert worst_z(estimate, slow_rbm.exact, variance, DRAWS) < limit
    flipped = gradient_of(loss_of(FlippedNegatives(0.0), rbm, batch), rbm)
    assert worst_z(flipped, slow_rbm.exact, variance, DRAWS) > 10 * limit


# -- k transitions ---------------------------------------------------------------------------------


def test_the_bias_of_k_transitions_shrinks_as_the_second_eigenvalue(slow_rbm: Enumerated) -> None:
    """|E CD-k - exact| falls with every k, at last by the factor lambda_2 of the Gibbs kernel a
    transition.
    """
    biases = {k: float((slow_rbm.ascent(k) - slow_rbm.exact).norm()) for k in (1, 2, 5, 10, 50, 51)}
    assert all(later < earlier for earlier, later in itertools.pairwise(biases.values()))
    assert biases[1] > 0.05 * float(slow_rbm.exact.norm())
    values = torch.linalg.eigvals(slow_rbm.transition)
    assert float(values.imag.abs().max()) < 1e-10
    second = float(values.real.sort(descending=True).values[1])
    assert biases[50] > 1e-12  # above rounding
    assert biases[51] / biases[50] == pytest.approx(second, rel=1e-3)


@pytest.mark.parametrize("transitions", [1, 2, 5])
def test_cd_k_through_the_gibbs_kernel_has_the_enumerated_expectation(
    slow_rbm: Enumerated, transitions: int
) -> None:
    """40,000 chains, 5,000 from each row of the data, under the standard error of chains that are
    stratified like that.

    One transition more or less would be seen.
    """
    rbm, slopes, chains = slow_rbm.rbm, slow_rbm.slopes, 5000 * len(DATA)
    positives = states(5)[DATA].repeat(5000, 1)
    sampler = Sampler(rbm, ChainPlan(gibbs.kernel, {}, transitions, 0.0), chains, seeded(4))
    sampler.position = positives.clone()
    sampler.advance(seeded(40 + transitions), transitions)
    batch = sides(positives, negatives=sampler.position)
    estimate = gradient_of(loss_of(ContrastiveDivergence(0.0), rbm, batch), rbm)
    after = torch.linalg.matrix_power(slow_rbm.transition, transitions)[DATA]
    variance = torch.stack([weighted_variance(slopes, row) for row in after]).mean(0)
    limit = z_limit(slopes.shape[1])
    assert worst_z(estimate, slow_rbm.ascent(transitions), variance, chains) < limit
    for wrong in (transitions - 1, transitions + 1):
        assert worst_z(estimate, slow_rbm.ascent(wrong), variance, chains) > limit
    counts = torch.bincount(numbers(sampler.position, 2), minlength=32).double() / chains
    assert (
        float(
            (counts - slow_rbm.start @ torch.linalg.matrix_power(slow_rbm.transition, transitions))
            .abs()
            .max()
        )
        < 0.02
    )


def test_the_l2_term_is_weighted_as_the_energies_are(tiny_rbm: BernoulliRBM) -> None:
    """With weights 1.7 and 0.3 of two negatives: loss = -sum w E / 2 + 0.25 sum w E^2 / 2."""
    negatives, weights = states(5)[[3, 19]], torch.tensor([1.7, 0.3], dtype=torch.float64)
    loss = loss_of(
        ContrastiveDivergence(0.25), tiny_rbm, sides(negatives=negatives, weights=weights)
    )
    first, second = tiny_rbm(negatives)
    by_hand = (
        -(1.7 * first + 0.3 * second) + 0.25 * (1.7 * first.square() + 0.3 * second.square())
    ) / 2
    close(loss, by_hand, 1e-12)
    close(gradient_of(loss, tiny_rbm), gradient_of(by_hand, tiny_rbm), 1e-12)


# -- parts, halves and chunks ----------------------------------------------------------------------


def replay(previous: Tensor, noise: Tensor, target: Slopes) -> Tensor:
    return previous - 0.1 * target.gradient(previous) + 0.4 * noise


def test_a_batch_of_one_side_yields_that_side(tiny_rbm: BernoulliRBM) -> None:
    """And the two halves are the whole, part by part."""
    rows = states(5)
    noise, bank = torch.ones(1, 12, 5).double(), rows[4:24]
    negatives = sides(negatives=rows[8:20], past=Replayed(rows[8:20], noise, bank))
    positives = sides(rows[:8])
    whole = Batch(positives.positives, negatives.negatives)
    cases = [
        (ContrastiveDivergence(0.0), ["positive"], ["negative"]),
        (ContrastiveDivergence(0.1), ["positive", "energy_l2"], ["negative", "energy_l2"]),
        (
            ImprovedContrastiveDivergence(0.0, 0.3, 1.0, replay),
            ["positive"],
            ["negative", "sampler_energy", "entropy"],
        ),
        (
            ImprovedContrastiveDivergence(0.0, 0.3, 0.0, replay),
            ["positive"],
            ["negative", "sampler_energy"],
        ),
    ]
    for objective, first, second in cases:
        found = [list(objective.parts(tiny_rbm, batch)) for batch in (positives, negatives, whole)]
        assert [[part.name for part in parts] for parts in found] == [first, second, first + second]
        halves = loss_of(objective, tiny_rbm, positives) + loss_of(objective, tiny_rbm, negatives)
        torch.testing.assert_close(
            halves, loss_of(objective, tiny_rbm, whole), rtol=1e-10, atol=1e-10
        )


def chunked(objective: Objective, energy: Energy, batch: Batch, chunking: Chunking) -> Tensor:
    shares = [
        (share, list(objective.parts(energy, chunk))) for chunk, share in chunking.split(batch)
    ]
    return torch.stack(
        [share * p.weight * p.total / p.rows for share, parts in shares for p in parts]
    ).sum()


@pytest.mark.parametrize(
    "chunking", [Chunking(3), Chunking(None, 2), Chunking(3, 2), Chunking(100, 100), Chunking()]
)
@pytest.mark.parametrize(
    "objective",
    [
        NoiseContrastive(5),
        ConditionalNoiseContrastive(5, 0.3),
        PseudoLikelihood(None),
        PseudoLikelihood(3),
        RatioMatching(None),
        ImprovedContrastiveDivergence(0.1, 0.3, 1.0, replay),
    ],
    ids=[
        "nce",
        "conditional_nce",
        "pseudo_likelihood",
        "three_sites",
        "ratio_matching",
        "improved",
    ],
)
def test_shares_of_chunks_sum_to_the_whole(
    tiny_rbm: BernoulliRBM, objective: Objective, chunking: Chunking
) -> None:
    """Loss and gradient, whatever rows and draws are split into, even where they do not divide."""
    rows = states(5)
    objective.initialise(tiny_rbm, rows[:20], seeded(0))
    weights = torch.rand(12, generator=seeded(1), dtype=torch.float64)
    batch = sides(
        rows[:8],
        objective.draw(tiny_rbm, rows[:8], seeded(3)),
        rows[8:20],
        weights=12 * weights / weights.sum(),
        past=Replayed(
            rows[8:20],
            torch.randn(2, 12, 5, generator=seeded(2), dtype=torch.float64),
            rows[4:24],
        ),
    )
    whole, pieces = (
        loss_of(objective, tiny_rbm, batch),
        chunked(objective, tiny_rbm, batch, chunking),
    )
    torch.testing.assert_close(pieces, whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        gradient_of(pieces, tiny_rbm), gradient_of(whole, tiny_rbm), rtol=1e-10, atol=1e-10
    )
    assert not math.isclose(float(whole.detach()), 0.0)
