"""The Potts model of 6 sites and 4 letters, against its definition and enumeration in float64."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from pipeline.energies.clamped import Clamped
from pipeline.energies.couplings import columns
from pipeline.energies.discrete import all_states
from pipeline.energies.frozen import frozen
from pipeline.energies.gauges import lattice_gas, zero_sum
from pipeline.energies.letters import WIDTH, Letters
from pipeline.energies.potts import PottsModel
from pipeline.energies.target import Target
from pipeline.kernels import gibbs
from tests.statistics.laws import chi_squared, numbers, require, scramble, seeded

SITES, LEVELS = 6, 4
EXACT = {"rtol": 0.0, "atol": 1e-8}


def model(
    sites: int = SITES, levels: int = LEVELS, scale: float = 0.5, seed: int = 3
) -> PottsModel:
    energy = scramble(PottsModel((sites,), levels), scale, seed)
    assert isinstance(energy, PottsModel)
    return energy


def states(sites: int = SITES, levels: int = LEVELS) -> Tensor:
    return torch.cat(list(all_states(levels, sites)))


def square(energy: PottsModel) -> Tensor:
    """J as [L, L, q, q], pair by pair, with a graph to the parameters."""
    sites, levels = energy.field.shape
    rows = [[torch.zeros(levels, levels).double() for _ in range(sites)] for _ in range(sites)]
    for number, (i, j) in enumerate(combinations(range(sites), 2)):
        rows[i][j], rows[j][i] = energy.coupling[number], energy.coupling[number].T
    return torch.stack([torch.stack(row) for row in rows])


def by_definition(energy: PottsModel, x: Tensor) -> Tensor:
    """-sum_i h_i(x_i) - sum_{i<j} J_ij(x_i, x_j), with a graph to the parameters."""
    letters, sites = x.long(), energy.dimension
    single = sum(energy.field[i, letters[:, i]] for i in range(sites))
    pairs = square(energy)
    coupled = sum(
        pairs[i, j][letters[:, i], letters[:, j]] for i, j in combinations(range(sites), 2)
    )
    return -(single + coupled)


def conditionals(energy: PottsModel, x: Tensor) -> Tensor:
    """log p(x_i = a | the others), `[N, L, q]`, from the energies of all q letters at each site."""
    logs = []
    for site in range(energy.dimension):
        moved = x[:, None].repeat(1, LEVELS, 1)
        moved[:, :, site] = torch.arange(LEVELS).double()
        logs.append((-by_definition(energy, moved.flatten(0, 1))).view(-1, LEVELS).log_softmax(1))
    return torch.stack(logs, 1)


def test_energy_is_the_double_sum() -> None:
    energy, x = model(), states()
    torch.testing.assert_close(energy(x), by_definition(energy, x), **EXACT)
    found = energy.energies_and_pull(x)
    assert found is not None
    torch.testing.assert_close(found[0], by_definition(energy, x), **EXACT)


def test_couplings_are_symmetric_and_zero_on_the_diagonal() -> None:
    """Also where sites fall into several blocks."""
    sites = 2 * (WIDTH // LEVELS) + 3
    energy = model(sites)
    table = torch.cat(
        [columns(energy.coupling, sites, *ends)[:-1] for ends in ((0, 1), (1, 33), (33, sites))], 1
    )
    pairs = table.view(sites, LEVELS, sites, LEVELS)
    assert torch.equal(pairs, pairs.permute(2, 3, 0, 1))
    assert not pairs[range(sites), :, range(sites)].any()
    i, j = 2, sites - 1
    number = list(combinations(range(sites), 2)).index((i, j))
    assert torch.equal(pairs[i, :, j], energy.coupling[number])


def test_log_partition_is_that_of_all_states() -> None:
    energy = model()
    truth = torch.logsumexp(-by_definition(energy, states()), 0)
    found = energy.log_sum()
    assert found is not None
    torch.testing.assert_close(found, truth, **EXACT)
    truths = torch.autograd.grad(truth, list(energy.parameters()))
    for gradient, expected in zip(
        torch.autograd.grad(found, list(energy.parameters())), truths, strict=True
    ):
        torch.testing.assert_close(gradient, expected, **EXACT)


def test_moments_are_the_gradient_of_log_z() -> None:
    """d log Z / d J_ij(a, b) is the frequency of the pair of letters."""
    energy, x = model(), states()
    p = torch.softmax(-by_definition(energy, x), 0).detach()
    one_hot = torch.nn.functional.one_hot(x.long(), LEVELS).double()
    pairs = torch.einsum("n,nia,njb->ijab", p, one_hot, one_hot)
    found = energy.energies_and_pull(x)
    assert found is not None
    found[1](-p)
    assert energy.field.grad is not None
    assert energy.coupling.grad is not None
    torch.testing.assert_close(energy.field.grad, torch.einsum("n,nia->ia", p, one_hot), **EXACT)
    for number, (i, j) in enumerate(combinations(range(SITES), 2)):
        torch.testing.assert_close(energy.coupling.grad[number], pairs[i, j], **EXACT)


def test_gradient_of_energies_is_autograds() -> None:
    energy, x = model(), states()[::7]
    slopes = torch.linspace(-1, 2, len(x)).double()
    truth = torch.autograd.grad((slopes * by_definition(energy, x)).sum(), energy.parameters())
    found = torch.autograd.grad((slopes * energy(x)).sum(), list(energy.parameters()))
    for own, expected in zip(found, truth, strict=True):
        torch.testing.assert_close(own, expected, **EXACT)


@pytest.mark.parametrize("levels", [2, 4])
def test_gradient_in_the_encoding_is_every_change(levels: int) -> None:
    energy, x = model(levels=levels), states(levels=levels)[::5]
    value, gradient = energy.energy_and_gradient(x)
    torch.testing.assert_close(value, energy(x).detach(), **EXACT)
    for site in range(SITES):
        for level in range(levels):
            moved = x.clone()
            moved[:, site] = level
            change = (energy(moved) - energy(x)).detach()
            if levels == 2:
                estimate = (level - x[:, site]) * gradient[:, site]
            else:
                now = gradient[:, site].gather(1, x[:, site, None].long())[:, 0]
                estimate = gradient[:, site, level] - now
            torch.testing.assert_close(estimate, change, **EXACT)


def test_pseudo_likelihood_and_its_gradient() -> None:
    """Weighted, against log conditionals from energies and autograd through them."""
    energy, x = model(), states()[::9]
    weights = torch.rand(len(x), generator=seeded(4), dtype=torch.float64)
    logs = conditionals(energy, x).gather(2, x.long()[..., None])[..., 0]
    truth = (weights[:, None] * logs).sum()
    found = energy.site_log_likelihood(x, weights)
    torch.testing.assert_close(found, truth, **EXACT)
    parameters = list(energy.parameters())
    for own, expected in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(truth, parameters), strict=True
    ):
        torch.testing.assert_close(own, expected, **EXACT)
    plain = energy.site_log_likelihood(x)
    torch.testing.assert_close(plain, logs.sum(), **EXACT)
    torch.testing.assert_close(energy.pseudo_log_likelihood(x), logs.sum(1).detach(), **EXACT)


def test_missing_letters_leave_every_sum() -> None:
    """A sequence with a letter missing has the energy, and the conditionals, of the other sites."""
    energy, x = model(), states()[::11]
    held = x.clone()
    held[:, 2] = -1
    pairs, rest = square(energy), [0, 1, 3, 4, 5]
    single = sum(energy.field[i, x[:, i].long()] for i in rest)
    coupled = sum(pairs[i, j][x[:, i].long(), x[:, j].long()] for i, j in combinations(rest, 2))
    torch.testing.assert_close(energy(held), -(single + coupled), **EXACT)
    shorter = PottsModel((5,), LEVELS).double()
    kept = [n for n, pair in enumerate(combinations(range(SITES), 2)) if 2 not in pair]
    with torch.no_grad():
        shorter.field.copy_(energy.field[rest])
        shorter.coupling.copy_(energy.coupling[kept])
    found, truth = energy.site_log_likelihood(held), shorter.site_log_likelihood(x[:, rest])
    torch.testing.assert_close(found, truth, **EXACT)
    by_row = shorter.pseudo_log_likelihood(x[:, rest])
    torch.testing.assert_close(energy.pseudo_log_likelihood(held), by_row, **EXACT)
    of_field, of_coupling = torch.autograd.grad(found, [energy.field, energy.coupling])
    truths = torch.autograd.grad(truth, [shorter.field, shorter.coupling])
    assert not of_field[2].any()
    torch.testing.assert_close(of_field[rest], truths[0], **EXACT)
    torch.testing.assert_close(of_coupling[kept], truths[1], **EXACT)
    assert float(of_coupling.abs().sum()) == pytest.approx(float(truths[1].abs().sum()), abs=1e-8)


def test_base_law_has_the_sites_independent() -> None:
    energy, x = model(), states()
    truth = torch.logsumexp(-energy.base(x), 0)
    assert energy.base_log_partition() == pytest.approx(float(truth.detach()), abs=1e-10)
    drawn = energy.sample_base(20_000, seeded(5))
    law = torch.softmax(-energy.base(x), 0).detach()
    require({"base": chi_squared(numbers(drawn, LEVELS), law)})
    beta = torch.full((len(x),), 0.3, dtype=torch.float64)
    mixed = 0.7 * energy.base(x) + 0.3 * energy(x)
    torch.testing.assert_close(energy.tempered(x, beta), mixed, **EXACT)
    value, gradient = energy.energy_and_gradient(x, beta)
    torch.testing.assert_close(value, mixed.detach(), **EXACT)
    now = gradient.gather(2, x.long()[..., None])[..., 0].sum(1)
    whole = energy.energy_and_gradient(x)[1].gather(2, x.long()[..., None])[..., 0].sum(1)
    single = -energy.field.detach()[range(SITES), x.long()].sum(1)
    torch.testing.assert_close(now, 0.3 * whole + 0.7 * single, **EXACT)


# -- sweeps ----------------------------------------------------------------------------------------


def sweep_matrix(energy: PottsModel, block: str, beta: float | None = None) -> Tensor:
    """P(x' | x) of one sweep, `[S, S]`."""
    x = states(energy.dimension, energy.field.shape[1])
    temper = None if beta is None else torch.full((len(x) ** 2,), beta, dtype=torch.float64)
    law = energy.conditional(block, x.repeat_interleave(len(x), 0), temper)
    return law.log_prob(x.repeat(len(x), 1)).sum(1).exp().view(len(x), len(x))


@pytest.mark.parametrize("beta", [None, 0.4])
@pytest.mark.parametrize("block", PottsModel.blocks)
def test_sweeps_leave_the_law_as_it_is(block: str, beta: float | None) -> None:
    """Exactly, for 4 sites of 3 letters; there and back together they are reversible."""
    energy = frozen(model(4, 3, 1.0))
    x = states(4, 3)
    law = torch.softmax(
        -(
            energy(x)
            if beta is None
            else energy.tempered(x, torch.full((81,), beta, dtype=torch.float64))
        ),
        0,
    )
    matrix = sweep_matrix(energy, block, beta)
    torch.testing.assert_close(matrix.sum(1), torch.ones(81).double(), **EXACT)
    torch.testing.assert_close(law @ matrix, law, **EXACT)
    back = sweep_matrix(energy, next(name for name in energy.blocks if name != block), beta)
    flow = law[:, None] * (matrix @ back)
    torch.testing.assert_close(flow, flow.T, **EXACT)
    assert not torch.allclose(law[:, None] * matrix, (law[:, None] * matrix).T, atol=1e-4)


def test_sweeps_draw_what_they_say() -> None:
    energy, draws = frozen(model(4, 3, 1.0)), 20_000
    target = Target(energy)
    start = torch.tensor([2.0, 0, 1, 2]).double().expand(draws, -1)
    moved, _ = gibbs.kernel.step(seeded(6), gibbs.kernel.init(start, target), target)
    there, back = (sweep_matrix(energy, block) for block in energy.blocks)
    row = (there @ back)[int(numbers(start[:1], 3))]
    require({"two sweeps": chi_squared(numbers(moved.position, 3), row)})
    with pytest.raises(AssertionError):  # one sweep alone leads elsewhere
        require({"one sweep": chi_squared(numbers(moved.position, 3), there[0])})


@pytest.mark.parametrize("levels", [LEVELS, 21])
def test_sweep_over_many_blocks_sees_what_was_drawn_before(levels: int) -> None:
    """Its laws are the conditionals of the whole energy, sites before new and sites behind old: in
    groups of several sites, and of one.
    """
    sites = WIDTH // levels + 5
    energy = frozen(model(sites, levels))
    x, to = (torch.randint(levels, (3, sites), generator=seeded(seed)).double() for seed in (7, 8))
    x[0, 2] = x[1, -3] = -1  # no letter, until the sweep has been there
    for block, order in (("ascending", 1), ("descending", -1)):
        logs, now = energy.conditional(block, x).log_prob(to), x.clone()
        for site in range(sites)[::order]:
            each = now[:, None].repeat(1, levels, 1)
            each[:, :, site] = torch.arange(levels).double()
            law = (-energy(each.flatten(0, 1))).view(3, levels).log_softmax(1)
            truth = law.gather(1, to[:, site, None].long())[:, 0]
            torch.testing.assert_close(logs[:, site], truth, **EXACT)
            now[:, site] = to[:, site]


def test_sweeps_follow_weights_that_change() -> None:
    """A target's tables are made anew: weights written in place, and others refreshed to."""
    energy, x = model(), states()[::17]
    target = Target(energy)
    to = x.flip(0)
    for change in (0.3, -0.2):
        target.conditional("ascending", x)
        with torch.no_grad():
            energy.coupling += change
        now = target.conditional("ascending", x).log_prob(to)
        truth = frozen(energy).conditional("ascending", x).log_prob(to)
        assert torch.equal(now, truth)
        energy.coupling.data = energy.coupling.data * 1.5
        target.refresh()
        now = target.conditional("ascending", x).log_prob(to)
        truth = frozen(energy).conditional("ascending", x).log_prob(to)
        assert torch.equal(now, truth)


def test_sites_that_are_held_stay() -> None:
    """Of 3 of 4 sites given the other, over their 27 states."""
    energy, free = frozen(model(4, 3, 1.0)), torch.tensor([True, True, False, True])
    held = torch.tensor([[0.0, 0, 2, 0]]).double()
    clamped = Clamped(energy, held, free)
    z = torch.cat(list(all_states(3, 3)))
    law, target = torch.softmax(-clamped(z), 0), Target(clamped)
    state = gibbs.kernel.init(z.repeat(800, 1), target)
    generator = seeded(9)
    for _ in range(15):
        state, _ = gibbs.kernel.step(generator, state, target)
    require({"held": chi_squared(numbers(state.position, 3), law)})


# -- gauges and starts -----------------------------------------------------------------------------


def test_gauges_change_no_law() -> None:
    energy, x = model(), states()
    for gauge in (zero_sum, lambda h, J: lattice_gas(h, J, 2)):
        field, coupling = gauge(energy.field.detach(), energy.coupling.detach())
        other = PottsModel((SITES,), LEVELS).double()
        with torch.no_grad():
            other.field.copy_(field)
            other.coupling.copy_(coupling)
        shift = (other(x) - energy(x)).detach()
        torch.testing.assert_close(shift, shift[:1].expand_as(shift), **EXACT)
        if gauge is zero_sum:
            for values in (field.sum(1), coupling.sum(1), coupling.sum(2)):
                torch.testing.assert_close(values, torch.zeros_like(values), **EXACT)
        else:
            for values in (field[:, 2], coupling[:, 2], coupling[:, :, 2]):
                torch.testing.assert_close(values, torch.zeros_like(values), **EXACT)


def test_fields_start_at_the_data() -> None:
    energy = PottsModel((2,), 3)
    rows = torch.tensor([[0.0, 1], [0, -1], [1, -1]])
    energy.initialise(rows)
    logs = torch.tensor([[3.0, 2, 1], [1, 4, 1]]).log()
    torch.testing.assert_close(energy.field.detach(), logs - logs.mean(1, keepdim=True))
    energy.initialise(rows, torch.tensor([0.5, 0.25, 0.25]))
    logs = torch.tensor([[1.75, 1.25, 1], [1, 2, 1]]).log()
    torch.testing.assert_close(energy.field.detach(), logs - logs.mean(1, keepdim=True))


def test_letters_of_long_sequences_are_told_apart() -> None:
    """Places beyond what float32 counts exactly would not be; they are whole numbers."""
    letters = Letters(torch.full((1, 3), 20.0), 21)
    assert letters.places.tolist() == [[20, 41, 62]]
    assert math.isclose(float(letters.sums(torch.ones(64, 1))), 3.0)
