"""Statistics of sequences against those of an alignment, by enumeration of a small Potts model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.energies.discrete import all_states
from pipeline.energies.potts import PottsModel
from pipeline.evaluation.alignments import (
    TRIPLES,
    Agreement,
    Weighted,
    chosen_triples,
    compare,
    covariances,
    frequencies,
    three_site_correlations,
)
from pipeline.evaluation.sequence_pictures import draw_sequences, principal_components
from tests.statistics.laws import scramble

SITES, LEVELS, DRAWS = 6, 3, 4000


@pytest.fixture(scope="module")
def law() -> Weighted:
    """All states of a Potts model with their probabilities as weights, which sum to 7."""
    energy = scramble(PottsModel((SITES,), LEVELS), 0.5, 3)
    states = torch.cat(list(all_states(LEVELS, SITES)))
    weights = torch.softmax(-energy(states).detach().double(), 0)
    return Weighted(states.numpy().astype(np.int64), 7 * weights.numpy())


def draws(law: Weighted, seed: int = 0) -> Weighted:
    shares = law.weights / law.weights.sum()
    numbers = np.random.RandomState(seed).choice(len(shares), DRAWS, p=shares)
    return Weighted(law.codes[numbers], np.ones(DRAWS))


def moments(rows: Weighted) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first three moments of the one-hot letters, by definition, with central ones of orders 2
    and 3: [L, q], [L, q, L, q], [L, q, L, q, L, q].
    """
    shares = rows.weights / rows.weights.sum()
    hot = (rows.codes[..., None] == np.arange(LEVELS)).astype(float)
    mean = np.einsum("n,nia->ia", shares, hot)
    off = hot - mean
    second = np.einsum("n,nia,njb->iajb", shares, off, off)
    return mean, second, np.einsum("n,nia,njb,nkc->iajbkc", shares, off, off, off, optimize=True)


def test_statistics_are_the_moments_by_definition(law: Weighted) -> None:
    mean, second, third = moments(law)
    np.testing.assert_allclose(frequencies(law, LEVELS), mean, atol=1e-12)
    for site in range(SITES - 1):
        expected = second[site][:, site + 1 :].transpose(1, 0, 2)
        np.testing.assert_allclose(covariances(law, LEVELS, site), expected, atol=1e-12)
    triples = chosen_triples(SITES)
    assert len(triples) == math.comb(SITES, 3)
    found = three_site_correlations(law, LEVELS, triples)
    for (i, j, k), own in zip(triples, found, strict=True):
        np.testing.assert_allclose(own, third[i][:, j][:, :, k], atol=1e-12)


def test_the_law_agrees_with_itself(law: Weighted) -> None:
    found = compare(law, law, LEVELS).figures()
    assert found == pytest.approx(dict.fromkeys(found, 1.0), abs=1e-9)


def test_draws_of_the_law_agree_as_far_as_their_noise_lets_them(law: Weighted) -> None:
    """A statistic of variance V over letters, estimated with noise of variance v, correlates with
    the exact one at sqrt(V / (V + v)) on average. v is the variance of the letters, or of products
    of their deviations, over the number of draws; the bound has four times that.
    """
    found = compare(law, draws(law), LEVELS).figures()
    mean, second, third = moments(law)
    shares = law.weights / law.weights.sum()
    off = (law.codes[..., None] == np.arange(LEVELS)) - mean
    pairs = [(i, j) for i in range(SITES) for j in range(i + 1, SITES)]
    products = np.stack([off[:, i, :, None] * off[:, j, None] for i, j in pairs], 1)
    cases = {"one_site": (mean, off), "two_site": (None, products)}
    triples = [
        off[:, i, :, None, None] * off[:, j, None, :, None] * off[:, k, None, None]
        for i, j, k in chosen_triples(SITES)
    ]
    cases["three_site"] = (None, np.stack(triples, 1))
    for name, (exact, values) in cases.items():
        own = np.tensordot(shares, values, 1)
        noise = (np.tensordot(shares, values**2, 1) - own**2).mean() / DRAWS
        spread = (own if exact is None else exact).var()
        assert math.sqrt(spread / (spread + 4 * noise)) < found[name] <= 1, name
    own = np.tensordot(shares, products, 1)
    noise = (np.tensordot(shares, products**2, 1) - own**2).mean() / DRAWS
    # entries of a pair of sites are dependent: as if a pair had a single one
    error = math.sqrt(noise / (own.var() * len(pairs)))
    assert abs(found["two_site_slope"] - 1) < 4 * error
    assert second.shape == (SITES, LEVELS) * 2
    assert third.shape == (SITES, LEVELS) * 3


def test_shuffled_columns_have_no_covariances(law: Weighted) -> None:
    """One-site frequencies stay; a covariance is within 5 standard errors of 0, each."""
    rows = draws(law)
    random = np.random.RandomState(1)
    codes = np.stack([random.permutation(column) for column in rows.codes.T], 1)
    apart = Weighted(codes, rows.weights)
    np.testing.assert_allclose(frequencies(apart, LEVELS), frequencies(rows, LEVELS), atol=1e-12)
    share = frequencies(rows, LEVELS)
    variance = share * (1 - share)
    for site in range(SITES - 1):
        bound = 5 * np.sqrt(variance[site][None, :, None] * variance[site + 1 :, None] / DRAWS)
        assert (np.abs(covariances(apart, LEVELS, site)) < bound).all()
    found = compare(rows, apart, LEVELS).figures()
    assert found["one_site"] == pytest.approx(1)
    # Pearson of two things that have nothing to do with each other, over 15 pairs of 4 free letters
    assert abs(found["two_site"]) < 4 / math.sqrt(15 * 4)
    assert abs(found["two_site_slope"]) < 0.1


def test_weights_count_as_copies(law: Weighted) -> None:
    codes = law.codes[:40:3]
    weights = np.arange(len(codes)) % 3 + 1.0
    copies = Weighted(np.repeat(codes, weights.astype(int), 0), np.ones(int(weights.sum())))
    for site in range(SITES - 1):
        np.testing.assert_allclose(
            covariances(Weighted(codes, weights), LEVELS, site),
            covariances(copies, LEVELS, site),
            atol=1e-12,
        )


def test_sequences_that_lack_a_letter_count_where_they_have_all(law: Weighted) -> None:
    codes = law.codes.copy()
    codes[::2, 0], codes[::3, 4] = -1, -1
    holes = Weighted(codes, law.weights)
    there = (codes[:, 0] >= 0) & (codes[:, 4] >= 0)
    whole = Weighted(law.codes[there], law.weights[there])
    np.testing.assert_allclose(
        covariances(holes, LEVELS, 0)[3], covariances(whole, LEVELS, 0)[3], atol=1e-12
    )
    np.testing.assert_allclose(frequencies(holes, LEVELS).sum(1), 1)
    codes[:, 2] = -1
    assert not frequencies(holes, LEVELS)[2].any()
    assert np.isfinite(covariances(holes, LEVELS, 1)).all()


def test_triples_are_the_same_each_time_and_distinct() -> None:
    chosen = chosen_triples(50)
    assert len({tuple(triple) for triple in chosen.tolist()}) == TRIPLES
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, chosen_triples(50))
    assert chosen_triples(2).shape == (0, 3)


def test_an_agreement_of_what_does_not_vary_is_undefined() -> None:
    agreement = Agreement(0.25)
    assert (agreement.pearson, agreement.slope) == (None, None)
    agreement.add(np.array([0.1, 0.1]), np.array([0.0, 0.2]))
    assert (agreement.pearson, agreement.slope) == (None, None)
    pairs = np.random.RandomState(0).normal(0, 0.05, (2, 300))
    agreement = Agreement(0.25)
    for part in np.split(pairs, 3, axis=1):
        agreement.add(*part)
    assert agreement.pearson == pytest.approx(np.corrcoef(pairs)[0, 1])
    assert agreement.slope == pytest.approx(np.polyfit(*pairs, 1)[0])
    assert agreement.cells.sum() == 300


def test_principal_components_are_those_of_the_weighted_covariance(law: Weighted) -> None:
    """Against all eigenvectors of the covariance of the one-hot letters, up to their signs."""
    mean, second, _ = moments(law)
    values, axes = np.linalg.eigh(second.reshape(SITES * LEVELS, -1))
    (own, other), shares = principal_components(law, [law.codes, law.codes[:5]], LEVELS)
    hot = (law.codes[..., None] == np.arange(LEVELS)) - mean
    expected = hot.reshape(len(hot), -1) @ axes[:, [-1, -2]]
    signs = np.sign((own * expected).sum(0))
    np.testing.assert_allclose(own * signs, expected, atol=1e-8)
    np.testing.assert_allclose(other, own[:5], atol=1e-12)
    np.testing.assert_allclose(shares, values[[-1, -2]] / values.sum(), atol=1e-10)


def test_the_picture_is_drawn(law: Weighted, tmp_path: Path) -> None:
    """Also of an alignment with gaps that are missing, and of samples that are all the same."""
    energy = scramble(PottsModel((SITES,), LEVELS), 0.5, 3).float().requires_grad_(False)
    codes = law.codes.copy()
    codes[::2, 0] = -1
    holes = Weighted(codes, law.weights)
    samples = torch.zeros(20, SITES)
    found = compare(holes, Weighted(samples.numpy().astype(np.int64), np.ones(20)), LEVELS)
    generator = torch.Generator().manual_seed(0)
    assert not draw_sequences(energy, found, holes, samples, generator, "law", str(tmp_path))
    assert (tmp_path / "sequences.png").stat().st_size > 10_000
