"""Energies with factors of one and of two variables, against their factors one by one and sums over
all states.

Transition counts: false alarms as in `laws.P_VALUES`; what is enumerated has none.
"""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple

import pytest
import torch
from torch import Tensor

from pipeline.energies.given import ConditionalEnergy
from pipeline.energies.pairwise import PairwiseEnergy
from pipeline.energies.target import Target
from pipeline.kernels import gibbs_with_gradients, single_site
from tests.statistics.laws import chi_squared, numbers, require, scramble, seeded, states
from tests.statistics.test_transition_matrices import (
    DRAWS,
    TOLERANCE,
    bound,
    gibbs_with_gradients_matrix,
    imbalance,
    law_of,
    single_site_matrix,
)

CONTEXTS = 3


class Case(NamedTuple):
    shape: tuple[int, ...]
    context_shape: tuple[int, ...]
    levels: int
    pairs: Literal["chain", "all"]
    hidden: tuple[int, ...] = ()

    def make(self, scale: float = 1.0) -> PairwiseEnergy:
        energy = scramble(PairwiseEnergy(*self), scale)
        assert isinstance(energy, PairwiseEnergy)
        return energy

    def context(self, count: int = CONTEXTS) -> Tensor:
        return torch.randn(count, *self.context_shape, generator=seeded(3), dtype=torch.float64)


CASES = {
    "chain, a network for all sites": Case((4,), (4, 2), 3, "chain", (5,)),
    "chain, one linear map": Case((3,), (2,), 4, "chain"),
    "binary chain": Case((6,), (6, 2), 2, "chain"),
    "all pairs": Case((2, 2), (3,), 3, "all", (5,)),
    "binary labels": Case((6,), (3,), 2, "all"),
    "one site": Case((1,), (3, 2), 5, "chain"),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def scores(energy: PairwiseEnergy, context: Tensor) -> Tensor:
    """u(c) [L, q] of one `context`, each site's alone where it has features of its own."""
    sites = energy.dimension
    if context.ndim == 2 and len(context) == sites:
        return torch.stack([energy.unary(features) for features in context]) + energy.bias
    return energy.unary(context.flatten()).view(sites, -1) + energy.bias


def by_factors(energy: PairwiseEnergy, x: Tensor, context: Tensor) -> Tensor:
    """E(x | c) of one position and one context: factor by factor."""
    y, u, q = x.flatten().long().tolist(), scores(energy, context), energy.levels or 0
    value = sum(u[i, y[i]] for i in range(len(y)))
    for i, j in itertools.combinations(range(len(y)), 2):
        if not energy.chain:
            a, b = i * q + y[i], j * q + y[j]
            value = value + (energy.coupling[a, b] + energy.coupling[b, a]) / 2
        elif j == i + 1:
            value = value + energy.coupling[y[i], y[j]]
    return -torch.as_tensor(value)


def table(energy: PairwiseEnergy, context: Tensor) -> Tensor:
    """E of all states under each context, [contexts, S], through the rows' way in."""
    x = states(energy)
    return energy.given(context)(x.repeat_interleave(len(context), 0)).view(len(x), len(context)).T


def test_energy_is_the_sum_of_its_factors(case: Case) -> None:
    energy, context = case.make(), case.context()
    x = energy.sample_base(CONTEXTS, seeded(0)).double()
    expected = torch.stack([by_factors(energy, *pair) for pair in zip(x, context, strict=True)])
    torch.testing.assert_close(energy.given(context)(x), expected, rtol=0, atol=1e-10)


def test_gradient_tells_what_a_change_of_one_site_does(case: Case) -> None:
    """Exactly, for every site and level: with two levels by (x' - x) grad, else in the one-hot
    encoding.
    """
    energy, context = case.make(), case.context()
    model = energy.given(context)
    x = energy.sample_base(2 * CONTEXTS, seeded(0)).double()
    value, gradient = model.energy_and_gradient(x)
    torch.testing.assert_close(value, model(x).detach(), rtol=0, atol=1e-10)
    flat = x.flatten(1)
    for site, level in itertools.product(range(energy.dimension), range(case.levels)):
        moved = flat.clone()
        moved[:, site] = level
        change = (model(moved.view_as(x)) - value).detach()
        if case.levels == 2:
            estimate = gradient.flatten(1)[:, site] * (level - flat[:, site])
        else:
            by_level = gradient.flatten(1, -2)[:, site]
            estimate = by_level[:, level] - by_level.gather(1, flat[:, site, None].long())[:, 0]
        torch.testing.assert_close(estimate, change, rtol=0, atol=1e-10)


def test_energies_of_all_states_are_those_of_rows(case: Case) -> None:
    energy, context = case.make(), case.context()
    found = energy.of_all(states(energy), energy.encode(context))
    torch.testing.assert_close(found.T, table(energy, context), rtol=0, atol=1e-10)


def test_log_z_is_the_sum_over_states(case: Case) -> None:
    """By the forward algorithm, and by the enumeration of every conditional energy over levels; in
    the law p(x | c) too.
    """
    energy, context = case.make(), case.context()
    truth = torch.logsumexp(-table(energy, context), 1)
    found = energy.given(context).log_sum()
    assert found is not None
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-10)
    enumerated = ConditionalEnergy.log_sum_of(energy, energy.encode(context))
    torch.testing.assert_close(enumerated, truth, rtol=0, atol=1e-10)
    assert energy.given(context[:1]).log_partition() == pytest.approx(
        float(truth[0].detach()), abs=1e-10
    )


def test_gradient_of_log_z_is_the_marginals(case: Case) -> None:
    """d log Z / d u_i[k] = p(x_i = k | c): what exact maximum likelihood goes by."""
    energy, context = case.make(), case.context()
    code = energy.encode(context).detach().requires_grad_()
    total = energy.log_sum_of(code)
    assert total is not None
    (found,) = torch.autograd.grad(total.sum(), code)
    law = torch.softmax(-table(energy, context).detach(), 1)
    truth = torch.einsum("ns,siq->niq", law, energy.one_hot(states(energy)))
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-10)


def test_log_z_is_refused_where_states_are_too_many() -> None:
    """Pairs of 21 labels; a chain has it at any length."""
    context = torch.randn(2, 3)
    assert PairwiseEnergy((21,), (3,), 2, "all", ()).given(context).log_sum() is None
    assert PairwiseEnergy((21,), (3,), 2, "all", ()).given(context).argmax() is None
    found = PairwiseEnergy((500,), (3,), 3, "chain", ()).given(context).log_sum()
    assert found is not None
    assert found.isfinite().all()


def test_most_probable_states(case: Case) -> None:
    """Viterbi's, and enumeration's, against all states, under 50 contexts."""
    energy, context = case.make(), case.context(50)
    least, number = table(energy, context).min(1)
    for found in (
        energy.given(context).argmax(),
        ConditionalEnergy.argmax_of(energy, energy.encode(context).detach()),
    ):
        assert found is not None
        assert torch.equal(numbers(found, case.levels), number)
        torch.testing.assert_close(energy.given(context)(found), least, rtol=0, atol=1e-10)
    assert len(number.unique()) > 3, "the contexts decide"


def test_a_chain_read_backwards_is_caught() -> None:
    """T is not symmetric: its transpose has another log Z and other energies."""
    case = CASES["chain, one linear map"]
    energy, context = case.make(), case.context()
    before = table(energy, context).detach()
    truth, least = torch.logsumexp(-before, 1), before.argmin(1)
    with torch.no_grad():
        energy.coupling.copy_(energy.coupling.T.clone())
    found, path = energy.given(context).log_sum(), energy.given(context).argmax()
    assert found is not None
    assert path is not None
    assert float((found - truth).detach().abs().max()) > 0.1
    assert not torch.equal(numbers(path, 4), least)


def test_one_site_without_pairs_is_a_softmax_classifier() -> None:
    """log p(y | c) = log softmax(W c + b)[y], contexts images."""
    energy = scramble(PairwiseEnergy((1,), (4, 4), 10, "chain", ()), 0.3)
    assert isinstance(energy, PairwiseEnergy)
    context = torch.randn(6, 4, 4, generator=seeded(0), dtype=torch.float64)
    y = torch.arange(6).double()[:, None]
    logits = context.flatten(1) @ energy.unary[0].weight.T + energy.bias[0]
    log_z = energy.given(context).log_sum()
    assert log_z is not None
    found = -energy.given(context)(y) - log_z
    torch.testing.assert_close(
        found, logits.log_softmax(1)[torch.arange(6), torch.arange(6)], rtol=0, atol=1e-10
    )


def test_bias_starts_at_the_datas_frequencies() -> None:
    """Without the rest, independent sites with the shares of the rows."""
    energy = PairwiseEnergy((2,), (3,), 2, "chain", ())
    energy.initialise(torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 0.0]]))
    torch.testing.assert_close(
        energy.bias.softmax(1).detach(), torch.tensor([[0.25, 0.75], [0.25, 0.75]])
    )
    assert not energy.coupling.any()


# -- the law of each context under discrete kernels ------------------------------------------------


@pytest.mark.parametrize("name", ["chain, a network for all sites", "binary labels", "all pairs"])
def test_kernels_leave_the_law_of_each_context_invariant(name: str) -> None:
    """Transition matrices under each context, and not under the next one's law."""
    energy, context = CASES[name].make(), CASES[name].context()
    for i in range(CONTEXTS):
        model, other = (
            energy.given(context[i : i + 1]),
            energy.given(context[i - 1 : i] if i else context[-1:]),
        )
        for matrix in (gibbs_with_gradients_matrix, single_site_matrix):
            found = matrix(bound(model, None), model)
            assert imbalance(found, law_of(model, None)) < TOLERANCE
            assert imbalance(found, law_of(other, None)) > 1e-3


@pytest.mark.parametrize("kernel", [gibbs_with_gradients.kernel, single_site.kernel])
def test_chains_of_all_contexts_draw_each_from_its_own_rows(
    kernel: gibbs_with_gradients.Kernel,
) -> None:
    """Side by side under one target; counts after one transition against each context's row, and
    against another's.
    """
    case = CASES["chain, a network for all sites"]
    energy, context = case.make(), case.context()
    matrix = (
        gibbs_with_gradients_matrix if kernel is gibbs_with_gradients.kernel else single_site_matrix
    )
    rows = []
    for i in range(CONTEXTS):
        model = energy.given(context[i : i + 1])
        rows.append(matrix(bound(model, None), model)[7])
    target = Target(energy, context=context.repeat(DRAWS, *(1,) * (context.ndim - 1)))
    start = states(energy)[7].expand(CONTEXTS * DRAWS, *energy.shape)
    moved, _ = kernel.step(seeded(0), kernel.init(start, target), target)
    found = numbers(moved.position, case.levels).view(DRAWS, CONTEXTS).T
    require({f"context {i}": chi_squared(found[i], rows[i]) for i in range(CONTEXTS)})
    assert all(chi_squared(found[i], rows[i - 1]) < 1e-9 for i in range(CONTEXTS))
