"""Discrete kernels by enumeration: their transition matrices on at most 256 states, from the
functions that `step` draws with.

Each matrix P has rows that sum to 1, pi P = pi and pi_i P_ij = pi_j P_ji to 1e-10; and counts show
that `step` draws from its rows. The law pi is the energy's own, or at beta = 0.45 the tempered one.
False alarms: `laws.P_VALUES`; enumeration has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from pipeline.energies.base import Energy
from pipeline.energies.dbm import DeepBoltzmannMachine
from pipeline.energies.discrete import all_states
from pipeline.energies.lattice import PottsLattice
from pipeline.energies.quadratic import QuadraticBinary
from pipeline.energies.rbm import BernoulliRBM, PottsRBM
from pipeline.energies.target import Target
from pipeline.kernels import gibbs, gibbs_with_gradients, single_site
from pipeline.kernels.base import Kernel
from tests.statistics import laws
from tests.statistics.laws import chi_squared, double, numbers, require, scramble, seeded, states

BETA = 0.45
DRAWS = 8000
TOLERANCE = 1e-10

ENERGIES: dict[str, Callable[[], Energy]] = {
    "rbm": lambda: laws.rbm().energy,
    "potts_rbm": lambda: laws.potts_rbm().energy,
    "lattice": lambda: laws.lattice().energy,
    "ordinal": lambda: laws.ordinal().energy,
    "binary lattice": lambda: scramble(PottsLattice((2, 3), 2, 0.0, True)),
    "quadratic": lambda: scramble(QuadraticBinary((2, 3), 1.0)),
    "two categories": lambda: scramble(PottsRBM((5,), 2, 3, 1.0)),
    "image": lambda: scramble(BernoulliRBM((2, 3), 3, 1.0)),
    "dbm": lambda: scramble(DeepBoltzmannMachine((3,), (2, 2), 1.0, 1)),
    "four levels": lambda: scramble(PottsLattice((4,), 4, 0.0, False)),
}
RBMS = ["rbm", "potts_rbm", "two categories", "image"]


# -- the matrices ----------------------------------------------------------------------------------


def bound(energy: Energy, beta: float | None) -> Target:
    """The target, tempered or not, for any number of chains."""
    return Target(energy, None if beta is None else double([beta]))


@torch.no_grad()
def law_of(energy: Energy, beta: float | None) -> Tensor:
    """pi, `[S]`."""
    x = states(energy)
    return torch.softmax(
        -(
            energy(x)
            if beta is None
            else energy.tempered(x, torch.full((len(x),), beta, dtype=torch.float64))
        ),
        0,
    )


def gibbs_matrix(target: Target, energy: Energy) -> Tensor:
    """P(v' | v) = sum_h p(h | v) p(v' | h), `[S, S]`, over all states h of the hidden units."""
    v = states(energy)
    units = target.conditional("hidden", v).sample(seeded(0)).shape[1]
    h = torch.cat(list(all_states(2, units)))

    def table(block: str, given: Tensor, values: Tensor) -> Tensor:
        """p(values_j | given_i), `[I, J]`."""
        conditional = target.conditional(block, given.repeat_interleave(len(values), 0))
        repeated = values.repeat(len(given), *(1,) * (values.ndim - 1))
        return conditional.log_prob(repeated).flatten(1).sum(1).exp().view(len(given), len(values))

    return table("hidden", v, h) @ table("visible", h, v)


def gibbs_with_gradients_matrix(target: Target, energy: Energy) -> Tensor:
    """P(x' | x): of every move, the probability that it is proposed and, by Hastings' ratio,
    accepted; else x stays.
    """
    x = states(energy)
    state = gibbs_with_gradients.kernel.init(x, target)
    forward = gibbs_with_gradients.log_proposals(state, target)
    matrix, rows = torch.zeros(len(x), len(x), dtype=torch.float64), torch.arange(len(x))
    for number in range(forward.shape[1]):
        chosen = forward[:, number]
        possible = chosen.isfinite()
        move = torch.full((len(x),), number)
        moved, ratio = gibbs_with_gradients.propose(state, forward, move, target)
        assert ((moved.position != x).flatten(1).sum(1) == possible).all(), (
            "a move changes one site, and staying is none"
        )
        back = gibbs_with_gradients.reverse(x, move, target)
        returned = gibbs_with_gradients.apply(moved.position, back, target)
        assert torch.equal(returned[possible], x[possible]), "the way back leads back"
        into = numbers(moved.position, energy.levels or 0)
        flow = chosen.exp() * ratio.clamp(max=0).exp()
        matrix.index_put_((rows[possible], into[possible]), flow[possible], accumulate=True)
    return matrix + torch.diag(1 - matrix.sum(1))


def single_site_matrix(target: Target, energy: Energy) -> Tensor:
    """P(x' | x): every site as often, set to what its energies say."""
    x = states(energy)
    state = single_site.kernel.init(x, target)
    matrix, rows = torch.zeros(len(x), len(x), dtype=torch.float64), torch.arange(len(x))
    for number in range(energy.dimension):
        site = torch.full((len(x), 1), number)
        values, energies, _ = single_site.alternatives(state, site, target)
        shares = energies.neg().softmax(1)
        for value, energy_there, share in zip(values.T, energies.T, shares.T, strict=True):
            position = x.flatten(1).scatter(1, site, value[:, None]).view_as(x)
            torch.testing.assert_close(energy_there, target.energy(position))
            matrix.index_put_(
                (rows, numbers(position, energy.levels or 0)),
                share / energy.dimension,
                accumulate=True,
            )
    return matrix


class Case(NamedTuple):
    kernel: Kernel
    matrix: Callable[[Target, Energy], Tensor]
    name: str
    beta: float | None

    def __str__(self) -> str:
        return f"{self.matrix.__name__.removesuffix('_matrix')}-{self.name}" + (
            "" if self.beta is None else "-tempered"
        )


CASES = [
    Case(kernel, matrix, name, beta)
    for kernel, matrix, names in (
        (gibbs.kernel, gibbs_matrix, RBMS),
        (gibbs_with_gradients.kernel, gibbs_with_gradients_matrix, list(ENERGIES)),
        (single_site.kernel, single_site_matrix, list(ENERGIES)),
    )
    for name in names
    for beta in (None, BETA)
]


# -- the functions that test -----------------------------------------------------------------------


def imbalance(matrix: Tensor, pi: Tensor) -> float:
    """How far from detailed balance, and from rows of probabilities that sum to 1."""
    flow = pi[:, None] * matrix
    errors = [matrix.sum(1) - 1, pi @ matrix - pi, flow - flow.T, matrix.clamp(max=0)]
    return max(float(error.abs().max()) for error in errors)


def row_p_values(
    kernel: Kernel, target: Target, energy: Energy, matrix: Tensor
) -> dict[str, float]:
    """One transition of many chains from one state, its first, middle and most probable: counts
    against the matrix's row.
    """
    x, found = states(energy), {}
    for number in {0, len(x) // 2, int(target.energy(x).argmin())}:
        state = kernel.init(x[number].expand(DRAWS, *energy.shape), target)
        moved, _ = kernel.step(seeded(number), state, target)
        found[f"from {number}"] = chi_squared(
            numbers(moved.position, energy.levels or 0), matrix[number]
        )
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_detailed_balance(case: Case) -> None:
    energy = ENERGIES[case.name]()
    pi = law_of(energy, case.beta)
    matrix = case.matrix(bound(energy, case.beta), energy)
    assert len(pi) <= 256
    assert imbalance(matrix, pi) < TOLERANCE


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kernel_reaches_every_state(case: Case) -> None:
    """Irreducible and aperiodic: some power of the matrix has no zero; so pi is the one law it
    leaves as it is.
    """
    energy = ENERGIES[case.name]()
    reach = (case.matrix(bound(energy, case.beta), energy) > 0).double()
    for _ in range(5):
        reach = (reach @ reach > 0).double()
    assert reach.all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_step_draws_from_the_rows(case: Case) -> None:
    energy = ENERGIES[case.name]()
    target = bound(energy, case.beta)
    require(row_p_values(case.kernel, target, energy, case.matrix(target, energy)))


@pytest.mark.parametrize("kernel", [gibbs.kernel, gibbs_with_gradients.kernel, single_site.kernel])
def test_one_transition_is_not_yet_the_law(kernel: Kernel) -> None:
    """So the counts above do tell one row from another."""
    energy = laws.potts_rbm().energy
    law = law_of(energy, None).expand(81, 81)
    assert max(row_p_values(kernel, bound(energy, None), energy, law).values()) < laws.P_LIMIT


def test_every_chain_moves_under_its_own_beta() -> None:
    """Two halves of one call, cold and warm, draw from the rows of two matrices."""
    energy = laws.potts_rbm().energy
    for kernel, matrix in ((gibbs.kernel, gibbs_matrix), (single_site.kernel, single_site_matrix)):
        betas = double([1.0, BETA])
        target = Target(energy, betas.repeat_interleave(DRAWS))
        start = states(energy)[0].expand(2 * DRAWS, *energy.shape)
        moved, _ = kernel.step(seeded(0), kernel.init(start, target), target)
        for beta, x in zip(betas.tolist(), moved.position.split(DRAWS), strict=True):
            row = matrix(bound(energy, beta), energy)[0]
            require({f"beta {beta}": chi_squared(numbers(x, energy.levels or 0), row)})
