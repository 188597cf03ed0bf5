"""The four restricted Boltzmann machines against sums over their joint law, and conditionals
against their own draws.

For Gaussian visible units the sum over v is one over a grid, exact to rounding: the midpoint rule
on Gaussians wider than twice the spacing. z-tests allow |z| < 6, Kolmogorov-Smirnov tests p > 2e-9;
seeds are fixed.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from scipy import stats
from torch import Tensor

from pipeline.energies.base import Energy
from pipeline.energies.conditionals import Bernoulli, Categorical, Normal
from pipeline.energies.discrete import CategoricalEnergy
from pipeline.energies.mixed_rbm import MixedRBM
from pipeline.energies.rbm import BernoulliRBM, GaussianRBM, PottsRBM, RestrictedBoltzmannMachine

Z_LIMIT, P_LIMIT = 6.0, 2e-9
DRAWS = 40_000
HIDDEN = 3
BETAS = [0.0, 0.3, 0.8, 1.0]
KINDS = (2, 0, 3, 2, 4)
GRID = torch.arange(-60, 61).double() / 5


class Case(NamedTuple):
    """An RBM, all values its visible units can have (or a grid), and the log volume of each."""

    rbm: RestrictedBoltzmannMachine
    v: Tensor
    log_volume: float


def product(values: Tensor, count: int) -> Tensor:
    return torch.cartesian_prod(*[values] * count).view(-1, count)


def make(kind: str, hidden: int = HIDDEN) -> Case:
    """Parameters drawn from N(0, 1): nothing about the law is nearly uniform, symmetric or
    independent.
    """
    case = {
        "bernoulli": Case(
            BernoulliRBM((2, 2), hidden, 1.0), product(torch.arange(2), 4).view(-1, 2, 2), 0.0
        ),
        "gaussian": Case(
            GaussianRBM((1, 2), hidden, 1.0),
            product(GRID, 2).view(-1, 1, 2),
            math.log(0.04),
        ),
        "potts": Case(
            PottsRBM((3, 1), 3, hidden, 1.0), product(torch.arange(3), 3).view(-1, 3, 1), 0.0
        ),
        "mixed": Case(
            MixedRBM((5,), KINDS, hidden, 1.0),
            torch.cartesian_prod(
                *(torch.arange(kind).double() if kind else GRID for kind in KINDS)
            ),
            math.log(0.2),
        ),
    }[kind]
    case.rbm.double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in case.rbm.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            if name == "log_variance":
                parameter.mul_(0.5)
    return case._replace(v=case.v.double())


@pytest.fixture(params=["bernoulli", "gaussian", "potts", "mixed"])
def case(request: pytest.FixtureRequest) -> Case:
    return make(request.param)


def hidden_states(rbm: RestrictedBoltzmannMachine) -> Tensor:
    return product(torch.arange(2).double(), len(rbm.hidden_bias))


@torch.no_grad()
def joint(rbm: RestrictedBoltzmannMachine, v: Tensor, beta: float = 1.0) -> Tensor:
    """E_beta(v, h) = A(v) - beta (c.h + phi(v).W h) for all pairs, `[V, H]`, as each kind's paper
    writes it.
    """
    flat, h, weight, bias = v.flatten(1), hidden_states(rbm), rbm.weight, rbm.visible_bias
    if isinstance(rbm, BernoulliRBM):
        alone, pull = -(flat @ bias), flat @ weight.T @ h.T
    elif isinstance(rbm, GaussianRBM):
        variance = rbm.log_variance.exp()
        alone, pull = (
            ((flat - bias) ** 2 / (2 * variance)).sum(1),
            (flat / variance) @ weight.T @ h.T,
        )
    elif isinstance(rbm, MixedRBM):
        # parameters: of the real unit, of both binary ones, of 3 levels, of 4 levels
        variance, (real, others) = rbm.log_variance.exp(), (flat[:, 1], flat[:, [0, 3]])
        columns = torch.stack([flat[:, 2] + 3, flat[:, 4] + 6], 1).long()
        alone = (real - bias[0]) ** 2 / (2 * variance) - others @ bias[1:3] - bias[columns].sum(1)
        drawn = others @ weight.T[1:3] + weight.T[columns].sum(1)
        pull = ((real / variance)[:, None] * weight.T[0] + drawn) @ h.T
    else:
        # column of unit i at level k in the parameters: i q + k
        columns = flat.long() + 3 * torch.arange(flat.shape[1])
        alone, pull = -bias[columns].sum(1), weight.T[columns].sum(1) @ h.T
    return alone[:, None] - beta * (pull + h @ rbm.hidden_bias)


def test_free_energy_sums_the_hidden_units_out(case: Case) -> None:
    """At every beta: of the tempered joint law, not beta times the free energy. torch's softplus is
    off by up to exp(-20).
    """
    for beta in BETAS:
        truth = -torch.logsumexp(-joint(case.rbm, case.v, beta), 1)
        tempered = case.rbm.tempered(case.v, torch.full((len(case.v),), beta, dtype=torch.float64))
        torch.testing.assert_close(tempered.detach(), truth, rtol=0, atol=1e-8)
    torch.testing.assert_close(case.rbm(case.v).detach(), truth, rtol=0, atol=1e-8)


def test_each_chain_has_its_own_beta(case: Case) -> None:
    v, betas = case.v[7:11], torch.tensor(BETAS, dtype=torch.float64)
    truth = [-torch.logsumexp(-joint(case.rbm, v[i : i + 1], BETAS[i]), 1)[0] for i in range(4)]
    torch.testing.assert_close(case.rbm.tempered(v, betas).detach(), torch.stack(truth))


def test_ladders_begin_at_a_base_of_known_partition_function(case: Case) -> None:
    """E_0 by the path and by `base`, and log Z_0 as their sum."""
    base = case.rbm.base(case.v).detach()
    torch.testing.assert_close(
        case.rbm.tempered(case.v, torch.zeros(len(case.v)).double()).detach(), base
    )
    truth = float(torch.logsumexp(-base, 0)) + case.log_volume
    assert case.rbm.base_log_partition() == pytest.approx(truth, abs=1e-10)


def test_noise_is_the_base_law(case: Case) -> None:
    """Counts of every state against exp(-E_0 - log Z_0); Gaussian units against N(b_i, s_i^2)."""
    x = case.rbm.sample_base(DRAWS, torch.Generator().manual_seed(0))
    assert x.shape == (DRAWS, *case.rbm.shape)
    if isinstance(case.rbm, GaussianRBM):
        normal = torch.distributions.Normal(
            case.rbm.visible_bias.detach(), torch.exp(case.rbm.log_variance.detach() / 2)
        )
        for column in normal.cdf(x.flatten(1)).T:
            assert stats.kstest(column.numpy(), "uniform").pvalue > P_LIMIT
        return
    if isinstance(case.rbm, MixedRBM):
        _check_mixed_noise(case, x)
        return
    law = torch.exp(-case.rbm.base(case.v).detach() - case.rbm.base_log_partition())
    assert worst_z((x.flatten(1)[:, None] == case.v.flatten(1)).all(2), law) < Z_LIMIT


def _check_mixed_noise(case: Case, x: Tensor) -> None:
    """The real unit's values, and the counts of every state of the others: all are independent."""
    assert isinstance(case.rbm, MixedRBM)
    mean, deviation = case.rbm.visible_bias[0], torch.exp(case.rbm.log_variance[0] / 2)
    uniform = torch.distributions.Normal(mean, deviation).cdf(x[:, 1]).detach()
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > P_LIMIT
    rest = [0, 2, 3, 4]
    states, number = case.v[:, rest].unique(dim=0, return_inverse=True)
    law = torch.exp(-case.rbm.base(case.v).detach() - case.rbm.base_log_partition())
    shares = torch.zeros(len(states)).double().index_add_(0, number, law) * math.exp(
        case.log_volume
    )
    assert worst_z((x[:, None, rest] == states).all(2), shares) < Z_LIMIT


@pytest.mark.parametrize("beta", [None, *BETAS])
def test_conditionals_are_those_of_the_joint_law(case: Case, beta: float | None) -> None:
    """log p(h | v) and log p(v | h) of every pair, tempered or not."""
    rbm, h, minus = (
        case.rbm,
        hidden_states(case.rbm),
        -joint(case.rbm, case.v, 1.0 if beta is None else beta),
    )
    shape = (len(case.v), len(h))
    v_each, h_each = case.v.repeat_interleave(len(h), 0), h.repeat(len(case.v), 1)
    betas = None if beta is None else torch.full((len(v_each),), beta, dtype=torch.float64)
    with torch.no_grad():
        hidden = rbm.conditional("hidden", v_each, betas).log_prob(h_each)
        visible = rbm.conditional("visible", h_each, betas).log_prob(v_each)
    assert hidden.shape == h_each.shape
    assert visible.shape == v_each.shape
    torch.testing.assert_close(
        hidden.sum(1).view(shape), torch.log_softmax(minus, 1), rtol=0, atol=1e-9
    )
    torch.testing.assert_close(
        visible.flatten(1).sum(1).view(shape) + case.log_volume,
        torch.log_softmax(minus, 0),
        rtol=0,
        atol=1e-9,
    )


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian", "potts", "mixed"])
@pytest.mark.parametrize("hidden", [2, 6])
def test_log_partition_is_the_sum_over_the_joint_law(kind: str, hidden: int) -> None:
    """Whichever layer has fewer states is the one enumerated; a Gaussian one cannot be."""
    case = make(kind, hidden)
    truth = float(torch.logsumexp(-joint(case.rbm, case.v).flatten(), 0)) + case.log_volume
    assert case.rbm.log_partition() == pytest.approx(truth, abs=1e-9)


def test_log_partition_is_refused_where_no_layer_is_small() -> None:
    assert BernoulliRBM((21,), 21, 1.0).log_partition() is None
    assert BernoulliRBM((2,), 21, 1.0).log_partition() is not None
    assert PottsRBM((14,), 3, 21, 1.0).log_partition() is None
    assert GaussianRBM((1,), 21, 1.0).log_partition() is None


@pytest.mark.parametrize("tempered", [False, True])
@pytest.mark.parametrize("kind", ["bernoulli", "gaussian", "potts"])
def test_gradient_by_hand_is_autograds(kind: str, tempered: bool) -> None:
    """For categories autograd goes through the one-hot encoding."""
    case = make(kind)
    x = case.v[:: max(1, len(case.v) // 50)]
    beta = (
        torch.rand(len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        if tempered
        else None
    )
    general: type[Any] = CategoricalEnergy if isinstance(case.rbm, PottsRBM) else Energy
    by_hand, by_autograd = (
        case.rbm.energy_and_gradient(x, beta),
        general.energy_and_gradient(case.rbm, x, beta),
    )
    assert by_hand[1].shape == (*x.shape, *([3] if general is CategoricalEnergy else []))
    for one, other in zip(by_hand, by_autograd, strict=True):
        assert not one.requires_grad
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)


def test_two_categories_are_a_binary_rbm() -> None:
    """x is encoded as (1 - x, x): weights W_1 - W_0, biases b_1 - b_0 and c + W_0; the gradient is
    that in x.
    """
    potts, binary = (
        PottsRBM((2, 2), 2, HIDDEN, 1.0).double(),
        BernoulliRBM((2, 2), HIDDEN, 1.0).double(),
    )
    with torch.no_grad():
        potts.visible_bias.normal_(generator=torch.Generator().manual_seed(0))
        zero, one = potts.weight.view(HIDDEN, 4, 2).unbind(2)
        binary.weight.copy_(one - zero)
        binary.hidden_bias.copy_(potts.hidden_bias + zero.sum(1))
        binary.visible_bias.copy_(potts.visible_bias[1::2] - potts.visible_bias[::2])
    x = make("bernoulli").v
    (value, gradient), (expected, expected_gradient) = (
        potts.energy_and_gradient(x),
        binary.energy_and_gradient(x),
    )
    torch.testing.assert_close(value, expected - potts.visible_bias[::2].sum().detach())
    torch.testing.assert_close(gradient, expected_gradient)
    torch.testing.assert_close(
        CategoricalEnergy.energy_and_gradient(potts, x)[1], expected_gradient
    )


def test_visible_units_start_from_the_data() -> None:
    """Without weights, the law of independent units: means, variances (of at least 1e-3),
    frequencies (of at least 0.01).
    """
    binary, gaussian, potts = (
        BernoulliRBM((2,), 2, 0.0),
        GaussianRBM((2,), 2, 0.0),
        PottsRBM((2,), 3, 2, 0.0),
    )
    binary.initialise(torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
    torch.testing.assert_close(
        torch.sigmoid(binary.visible_bias).detach(), torch.tensor([0.5, 0.99])
    )
    gaussian.initialise(torch.tensor([[1.0, 7.0], [3.0, 7.0]]))
    assert gaussian.visible_bias.tolist() == [2.0, 7.0]
    assert gaussian.log_variance.exp().tolist() == pytest.approx([2.0, 1e-3])
    potts.initialise(torch.tensor([[0.0, 2.0], [1.0, 2.0]]))
    expected = torch.tensor([[0.5, 0.5, 0.01], [0.01, 0.01, 1.0]])
    torch.testing.assert_close(potts.visible_bias.view(2, 3).exp().detach(), expected)


def worst_z(hits: Tensor, law: Tensor) -> float:
    """The largest |z| of the frequencies of `hits` [N, K] against probabilities `law` [K]."""
    return float(((hits.double().mean(0) - law) / (law * (1 - law) / len(hits)).sqrt()).abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bernoulli_draws_have_their_log_prob(dtype: torch.dtype) -> None:
    """Marginals and all eight joint outcomes of three units: the units are independent. In float32
    so many have their bits in bulk.
    """
    logits = torch.tensor([-2.0, 0.3, 1.5], dtype=torch.float64)
    x = Bernoulli(logits.to(dtype).expand(DRAWS, 3)).sample(torch.Generator().manual_seed(0))
    assert x.dtype == dtype
    law = Bernoulli(logits.expand(DRAWS, 3))
    outcomes = product(torch.arange(2).double(), 3)
    probabilities = Bernoulli(law.logits[: len(outcomes)]).log_prob(outcomes).sum(1).exp()
    assert float(probabilities.sum()) == pytest.approx(1)
    assert worst_z((x[:, None] == outcomes).all(2), probabilities) < Z_LIMIT
    torch.testing.assert_close(law.log_prob(torch.ones(3))[0], torch.sigmoid(law.logits[0]).log())


def test_categorical_draws_have_their_log_prob() -> None:
    """All outcomes of two units of four levels, their logits not normalised; a level ruled out is
    never drawn.
    """
    logits = torch.tensor([[3.0, 5.0, 4.0, 3.5], [0.0, -1.0, -torch.inf, 1.0]], dtype=torch.float64)
    law = Categorical(logits.expand(DRAWS, 2, 4))
    x = law.sample(torch.Generator().manual_seed(0))
    assert x.dtype == torch.float64
    outcomes = product(torch.arange(4).double(), 2)
    probabilities = Categorical(logits.expand(len(outcomes), 2, 4)).log_prob(outcomes).sum(1).exp()
    assert float(probabilities.sum()) == pytest.approx(1)
    possible = probabilities > 0
    hits = (x[:, None] == outcomes).all(2)
    assert not hits[:, ~possible].any()
    assert worst_z(hits[:, possible], probabilities[possible]) < Z_LIMIT


def test_normal_draws_have_their_log_prob() -> None:
    """log_prob is torch's; the draws, standardised component by component, are uniform in its
    distribution function.
    """
    mean, std = (
        torch.tensor([[1.0, -2.0]], dtype=torch.float64),
        torch.tensor([0.3, 2.0], dtype=torch.float64),
    )
    law, truth = Normal(mean.expand(DRAWS, 2), std), torch.distributions.Normal(mean, std)
    x = law.sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(law.log_prob(x), truth.log_prob(x))
    uniform = truth.cdf(x)
    for column in uniform.T:
        assert stats.kstest(column.numpy(), "uniform").pvalue > P_LIMIT
    assert abs(math.sqrt(DRAWS) * float(torch.corrcoef(uniform.T)[0, 1])) < Z_LIMIT
