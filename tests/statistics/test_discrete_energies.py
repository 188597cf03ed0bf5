"""Discrete energies against loops over edges and states, transfer matrices and exact flips; no
randomness but the weights'.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from pipeline.energies.base import Energy
from pipeline.energies.discrete import all_states, enumerated
from pipeline.energies.lattice import PottsLattice
from pipeline.energies.quadratic import QuadraticBinary

SHAPES = [(1,), (2,), (5,), (2, 3), (3, 3), (1, 4), (2, 2), (2, 2, 3)]


def scramble(energy: Energy) -> None:
    """Every parameter drawn from N(0, 1), so that none is symmetric or zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in energy.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            )


def lattice(shape: tuple[int, ...], levels: int, periodic: bool = True) -> PottsLattice:
    energy = PottsLattice(shape, levels, 0.0, periodic).double()
    scramble(energy)
    return energy


def quadratic(shape: tuple[int, ...]) -> QuadraticBinary:
    energy = QuadraticBinary(shape, 1.0).double()
    scramble(energy)
    return energy


def some_states(energy: Energy, count: int = 20) -> Tensor:
    return energy.sample_base(count, torch.Generator().manual_seed(0)).double()


def edges_by_hand(shape: tuple[int, ...], periodic: bool) -> set[frozenset[int]]:
    """Pairs of sites one step apart along one axis, around the end too where `periodic`."""
    sites = list(itertools.product(*map(range, shape)))
    found = set()
    for (a, one), (b, other) in itertools.combinations(enumerate(sites), 2):
        axes = [axis for axis in range(len(shape)) if one[axis] != other[axis]]
        if len(axes) == 1:
            step = abs(one[axes[0]] - other[axes[0]])
            if step == 1 or (periodic and step == shape[axes[0]] - 1):
                found.add(frozenset((a, b)))
    return found


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_lattice_is_the_sum_over_its_edges(shape: tuple[int, ...], periodic: bool) -> None:
    """Each edge once, short sides included; the energy from loops over edges and sites."""
    energy = lattice(shape, 3, periodic)
    edges = list(zip(energy.first.tolist(), energy.second.tolist(), strict=True))
    assert {frozenset(edge) for edge in edges} == edges_by_hand(shape, periodic)
    assert len(edges) == len(edges_by_hand(shape, periodic)) == len(energy.coupling)
    x = some_states(energy)
    for row, value in zip(x.flatten(1).long().tolist(), energy(x).tolist(), strict=True):
        expected = -sum(
            energy.coupling.tolist()[e] for e, (i, j) in enumerate(edges) if row[i] == row[j]
        )
        expected -= float(energy.field.detach()[range(len(row)), row].sum())
        assert value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("shape", "levels"), [((2, 3), 2), ((2, 3), 3), ((5,), 4)])
def test_lattice_gradient_gives_every_change_of_one_site(
    shape: tuple[int, ...], levels: int
) -> None:
    """The energy is linear in each site's encoding: the gradient's differences are exact. Two
    levels have it in x itself.
    """
    energy = lattice(shape, levels)
    x = some_states(energy)
    beta = torch.rand(len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    value, gradient = energy.energy_and_gradient(x, beta)
    torch.testing.assert_close(value, beta * energy(x).detach())
    torch.testing.assert_close(energy.tempered(x, beta).detach(), value)
    torch.testing.assert_close(
        energy.energy_and_gradient(x)[1] * beta.view(-1, *[1] * (gradient.ndim - 1)), gradient
    )
    assert gradient.shape == (x.shape if levels == 2 else (*x.shape, levels))
    flat = x.flatten(1)
    for site, level in itertools.product(range(energy.dimension), range(levels)):
        changed = flat.clone()
        changed[:, site] = level
        difference = energy.tempered(changed.view_as(x), beta).detach() - value
        if levels == 2:
            expected = (level - flat[:, site]) * gradient.flatten(1)[:, site]
        else:
            here = gradient.view(len(x), -1, levels)[:, site]
            expected = here[:, level] - here.gather(1, flat[:, site, None].long())[:, 0]
        torch.testing.assert_close(difference, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("sites", "levels", "coupling"), [(5, 2, 0.8), (6, 3, 0.7), (4, 5, -1.1)])
def test_log_partition_of_a_potts_ring(sites: int, levels: int, coupling: float) -> None:
    """Z = (e^J + q - 1)^n + (q - 1) (e^J - 1)^n, the transfer matrix's eigenvalues; an open chain:
    q (e^J + q - 1)^(n - 1).
    """
    weight = math.exp(coupling)
    ring = (weight + levels - 1) ** sites + (levels - 1) * (weight - 1) ** sites
    chain = levels * (weight + levels - 1) ** (sites - 1)
    for periodic, truth in ((True, ring), (False, chain)):
        energy = PottsLattice((sites,), levels, coupling, periodic).double()
        assert energy.log_partition() == pytest.approx(
            math.log(truth), abs=1e-6
        )  # J is rounded to float32


@pytest.mark.parametrize(("rows", "columns", "levels"), [(4, 3, 2), (3, 3, 3), (5, 3, 2)])
def test_log_partition_of_a_torus_by_transfer_matrix(rows: int, columns: int, levels: int) -> None:
    """Z = tr T^rows with T[s, t] = exp(J [sites of rows s and t that agree] + J [neighbours in s
    that agree] + h.s).

    3^9 states are more than one chunk of the enumeration.
    """
    coupling, field = 0.7, [0.3 * level for level in range(levels)]
    energy = PottsLattice((rows, columns), levels, coupling, periodic=True).double()
    with torch.no_grad():
        energy.coupling.fill_(coupling)
        energy.field.copy_(torch.tensor(field).expand_as(energy.field))
    states = list(itertools.product(range(levels), repeat=columns))
    transfer = torch.zeros(len(states), len(states), dtype=torch.float64)
    for (i, s), (j, t) in itertools.product(enumerate(states), repeat=2):
        across = sum(s[c] == t[c] for c in range(columns))
        within = sum(s[c] == s[(c + 1) % columns] for c in range(columns))
        transfer[i, j] = math.exp(coupling * (across + within) + sum(field[level] for level in s))
    truth = float(torch.linalg.matrix_power(transfer, rows).trace().log())
    assert energy.log_partition() == pytest.approx(truth, abs=1e-6)


def test_two_levels_are_the_ising_model() -> None:
    """-J' sum s_i s_j - sum B_i s_i with s = 2x - 1 and J = 2 J', h_i(1) - h_i(0) = 2 B_i, up to
    one constant.
    """
    coupling, generator = 0.4, torch.Generator().manual_seed(0)
    bias = torch.randn(12, dtype=torch.float64, generator=generator)
    energy = PottsLattice((3, 4), 2, 2 * coupling, periodic=True).double()
    with torch.no_grad():
        energy.coupling.fill_(2 * coupling)
        energy.field[:, 1] = 2 * bias
    x = torch.cat(list(all_states(2, 12)))
    spins = (2 * x - 1).view(-1, 3, 4)
    bonds = (spins * spins.roll(1, 1) + spins * spins.roll(1, 2)).sum((1, 2))
    ising = -coupling * bonds - spins.flatten(1) @ bias
    difference = energy(x.view(-1, 3, 4)).detach() - ising
    torch.testing.assert_close(difference, difference[:1].expand_as(difference), rtol=0, atol=1e-10)


@pytest.mark.parametrize("levels", [2, 3])
def test_lattice_started_from_the_data(levels: int) -> None:
    """Without couplings, its marginals are the data's frequencies; couplings stay."""
    energy = PottsLattice((2, 2), levels, 0.0, periodic=False).double()
    rows = torch.randint(levels, (200, 2, 2), generator=torch.Generator().manual_seed(0)).double()
    energy.initialise(rows)
    x = torch.cat(list(all_states(levels, 4)))
    law = torch.softmax(-energy(x.view(-1, 2, 2)), 0).detach()
    for level in range(levels):
        share = (rows.flatten(1) == level).double().mean(0)
        torch.testing.assert_close(law @ (x == level).double(), share, rtol=0, atol=1e-12)
    assert not energy.coupling.any()


def test_edges_are_not_published() -> None:
    """What goes with the weights is the parameters alone."""
    assert set(PottsLattice((3, 3), 2, 0.5, True).state_dict()) == {"coupling", "field"}
    assert set(QuadraticBinary((3, 3), 0.5).state_dict()) == {"weight", "bias"}


def test_quadratic_is_the_double_sum() -> None:
    """Over pairs i < j; the parameter's diagonal counts for nothing, its two triangles count half
    each.
    """
    energy = quadratic((2, 3))
    weight, bias = energy.weight.tolist(), energy.bias.tolist()
    x = some_states(energy)
    for row, value in zip(x.flatten(1).tolist(), energy(x).tolist(), strict=True):
        pairs = itertools.combinations(range(6), 2)
        expected = -sum((weight[i][j] + weight[j][i]) / 2 * row[i] * row[j] for i, j in pairs)
        expected -= sum(b * x_i for b, x_i in zip(bias, row, strict=True))
        assert value == pytest.approx(expected, abs=1e-12)


def test_quadratic_weights_start_at_their_scale() -> None:
    """80 (80 - 1) / 2 = 3160 entries N(0, 0.3^2): their mean square within 6 standard errors, 6
    sqrt(2 / 3160) = 0.15.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight = QuadraticBinary((80,), 0.3).symmetric().detach()
    assert torch.equal(weight, weight.T)
    assert not weight.diagonal().any()
    assert float(weight.square().sum() / (80 * 79)) / 0.09 == pytest.approx(1, abs=0.15)


def test_quadratic_gradient_by_hand_is_autograds_and_every_flips() -> None:
    energy = quadratic((2, 3))
    x = some_states(energy)
    beta = torch.rand(len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for at in (None, beta):
        for by_hand, by_autograd in zip(
            energy.energy_and_gradient(x, at),
            Energy.energy_and_gradient(energy, x, at),
            strict=True,
        ):
            torch.testing.assert_close(by_hand, by_autograd, rtol=1e-12, atol=1e-12)
    value, gradient = energy.energy_and_gradient(x)
    for site in range(6):
        flipped = x.flatten(1).clone()
        flipped[:, site] = 1 - flipped[:, site]
        change = (1 - 2 * x.flatten(1)[:, site]) * gradient.flatten(1)[:, site]
        torch.testing.assert_close(
            energy(flipped.view_as(x)).detach() - value, change, rtol=0, atol=1e-12
        )


def test_quadratic_started_from_the_data() -> None:
    energy = QuadraticBinary((4,), 0.0).double()
    energy.initialise(torch.tensor([[0.0, 0.0, 0.0, 1.0]] * 5 + [[0.0, 0.4, 1.0, 0.8]] * 5))
    x = torch.cat(list(all_states(2, 4)))
    means = torch.softmax(-energy(x), 0) @ x
    torch.testing.assert_close(
        means.detach(), torch.tensor([0.01, 0.2, 0.5, 0.9], dtype=torch.float64), rtol=0, atol=1e-6
    )


def test_all_states_are_there_once_first_unit_fastest() -> None:
    for levels, units in ((2, 3), (3, 4), (5, 1)):
        rows = torch.cat(list(all_states(levels, units))).long().tolist()
        assert [tuple(reversed(row)) for row in rows] == list(
            itertools.product(range(levels), repeat=units)
        )


@pytest.mark.parametrize("units", [3, 15])
def test_enumerated(units: int) -> None:
    """Independent units: log Z = sum_i log(1 + exp(b_i)); 2^15 states are two chunks."""
    energy = quadratic((units,))
    with torch.no_grad():
        energy.weight.zero_()
    truth = float(torch.nn.functional.softplus(energy.bias.detach()).sum())
    assert energy.log_partition() == pytest.approx(truth, abs=1e-10)


def test_enumeration_is_exact_in_float64_and_gives_up_in_time() -> None:
    """The float32 model is enumerated in float64 and left as it was; above 2^20 states there is no
    answer.
    """
    energy = quadratic((3,)).float()
    x = torch.cat(list(all_states(2, 3)))
    truth = float(torch.logsumexp(-quadratic((3,)).float().double()(x).detach(), 0))
    assert energy.log_partition() == pytest.approx(truth, abs=1e-12)
    assert energy.weight.dtype == torch.float32
    assert QuadraticBinary((21,), 1.0).log_partition() is None
    assert PottsLattice((7, 2), 3, 1.0, periodic=True).log_partition() is None
    assert enumerated(Energy((2,))) is None
