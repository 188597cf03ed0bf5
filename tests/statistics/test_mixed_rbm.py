"""An RBM of several kinds of visible units: its chains, its gradient and its path from a law fitted
to rows, against sums over its states; and what is imputed by it.

Its real unit is summed over a grid, exact to rounding. z-tests allow |z| < 6 (2e-9 each),
Kolmogorov-Smirnov tests p > 2e-9; seeds are fixed.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pipeline.common.errors import ArgumentError
from pipeline.data.base import TensorPositives
from pipeline.energies.base import Energy
from pipeline.energies.clamped import Clamped
from pipeline.energies.mixed_rbm import MixedRBM
from pipeline.energies.rbm import BernoulliRBM, GaussianRBM, PottsRBM
from pipeline.energies.target import Target
from pipeline.evaluation.ais import log_partition
from pipeline.evaluation.paths import MixedBridge, path_to
from pipeline.kernels import gibbs
from pipeline.library.sampling import sample
from pipeline.training.imputation import ImputedPositives
from tests.statistics.test_rbms import GRID, hidden_states, joint, make

CHAINS, Z_LIMIT, P_LIMIT = 10_000, 6.0, 2e-9
DISCRETE = [0, 2, 3, 4]


def mixed() -> tuple[MixedRBM, Tensor, Tensor]:
    """The machine of `tests.statistics.test_rbms`, all states, and the probability of each, which
    at the real unit's is that of a cell of the grid.
    """
    case = make("mixed")
    assert isinstance(case.rbm, MixedRBM)
    rbm = case.rbm.requires_grad_(False)
    return rbm, case.v, torch.softmax(-rbm(case.v), 0)


def check_law(x: Tensor, states: Tensor, law: Tensor) -> None:
    """Chains at `x` [N, 5] have the law: every state of the discrete units, and the real unit's
    distribution function, which is interpolated between its cells' borders.
    """
    discrete, number = states[:, DISCRETE].unique(dim=0, return_inverse=True)
    shares = torch.zeros(len(discrete)).double().index_add_(0, number, law)
    found = (x[:, None, DISCRETE] == discrete).all(2).double().mean(0)
    z = (found - shares) / (shares * (1 - shares) / len(x)).sqrt()
    assert float(z.abs().max()) < Z_LIMIT
    cells = torch.stack([law[states[:, 1] == value].sum() for value in GRID]).cumsum(0)
    borders = (GRID + 0.1).numpy()
    uniform = np.interp(x[:, 1].numpy(), borders, cells.numpy())
    assert stats.kstest(uniform, "uniform").pvalue > P_LIMIT


def test_gibbs_leaves_the_law_invariant_and_finds_it() -> None:
    """From exact draws after one sweep, and from the base law after 60."""
    rbm, states, law = mixed()
    generator = torch.Generator().manual_seed(0)
    exact = states[torch.multinomial(law, CHAINS, replacement=True, generator=generator)]
    exact[:, 1] += 0.2 * (torch.rand(CHAINS, generator=generator).double() - 0.5)
    once, _ = gibbs.step(generator, gibbs.State(exact), Target(rbm))
    check_law(once.position, states, law)
    state = gibbs.State(rbm.sample_base(CHAINS, generator))
    for _ in range(60):
        state, _ = gibbs.step(generator, state, Target(rbm))
    check_law(state.position, states, law)


def test_the_gradient_of_the_likelihood_is_the_difference_of_two_means() -> None:
    """d log p(x) = -dE(x) + E[dE]: autograd of E, averaged over all states, against that of
    `log_sum`, to 1e-9.
    """
    rbm, states, law = mixed()
    rbm.requires_grad_(True)
    ours = torch.autograd.grad((law * rbm(states)).sum(), list(rbm.parameters()))
    log_z = rbm.log_sum()
    assert log_z is not None
    for mean, exact in zip(ours, torch.autograd.grad(log_z, list(rbm.parameters())), strict=True):
        torch.testing.assert_close(mean, -exact, rtol=0, atol=1e-8)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_the_path_from_a_fitted_law_is_one_of_joint_laws(beta: float) -> None:
    """p(v | h) along it is that of E_beta(v, h) = (1 - beta) A_0(v) + beta E(v, h), and its free
    energy is that with the hidden units summed out.
    """
    rbm, states, law = mixed()
    bridge = path_to(rbm, states[torch.multinomial(law, 300, replacement=True)])
    assert isinstance(bridge, MixedBridge)
    ends = beta * joint(rbm, states), (1 - beta) * bridge.start.visible_energy(states)
    minus = -(ends[0] + ends[1][:, None]).detach()
    betas = torch.full((len(states),), beta, dtype=torch.float64)
    free = bridge.tempered(states, betas)
    torch.testing.assert_close(free, -torch.logsumexp(minus, 1), rtol=0, atol=1e-8)
    h = hidden_states(rbm)
    for number, row in enumerate(h):
        visible = bridge.conditional("visible", row.expand(len(states), -1), betas)
        found = visible.log_prob(states).sum(1) + math.log(0.2)
        truth = torch.log_softmax(minus[:, number], 0)
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-8)


def test_annealing_finds_log_z() -> None:
    """From a law fitted to rows, there and back, to 5 standard errors, which are below 0.02."""
    rbm, states, law = mixed()
    generator = torch.Generator().manual_seed(1)
    rows = states[torch.multinomial(law, 500, replacement=True, generator=generator)]
    running = log_partition(path_to(rbm.float(), rows.float()), 100, 100, generator, rows.float())
    while True:
        try:
            next(running)
        except StopIteration as stop:
            found = stop.value
            break
    truth = rbm.log_partition()
    assert truth is not None
    assert found.standard_error < 0.02
    assert abs(found.value - truth) < 5 * found.standard_error


@pytest.mark.parametrize("missing", [[1, 4], [0, 1, 2]])
def test_chains_that_are_held_have_the_conditional_law(missing: list[int]) -> None:
    rbm, states, law = mixed()
    row = torch.tensor([[1.0, 0.5, 2.0, 0.0, 3.0]]).double()
    row[0, 1] = GRID[62]
    free = torch.zeros(5, dtype=torch.bool)
    free[missing] = True
    clamped = Clamped(rbm, row, free)
    generator = torch.Generator().manual_seed(2)
    state = gibbs.State(clamped.sample_base(CHAINS, generator))
    for _ in range(60):
        state, _ = gibbs.step(generator, state, Target(clamped))
    alike = (states == row)[:, ~free].all(1)
    x, given = clamped.whole(state.position), law * alike / law[alike].sum()
    assert bool((x[:, ~free] == row[:, ~free]).all())
    discrete = [unit for unit in missing if unit != 1]
    values, number = states[:, discrete].unique(dim=0, return_inverse=True)
    shares = torch.zeros(len(values)).double().index_add_(0, number, given)
    found = (x[:, None, discrete] == values).all(2).double().mean(0)
    z = (found - shares) / (shares * (1 - shares) / CHAINS).sqrt()
    assert float(z.abs().max()) < Z_LIMIT
    mean = (given * states[:, 1]).sum()
    deviation = ((given * (states[:, 1] - mean) ** 2).sum() / CHAINS).sqrt()
    assert abs(float((x[:, 1].mean() - mean) / deviation)) < Z_LIMIT


def test_units_of_one_kind_are_the_machine_of_that_kind() -> None:
    """The same energies and log Z, from the same parameters; three levels and more for a Potts
    machine, whose features are in the same order.
    """
    torch.manual_seed(3)
    for other, kinds in (
        (BernoulliRBM((4,), 3, 1.0), (2,) * 4),
        (GaussianRBM((4,), 3, 1.0), (0,) * 4),
        (PottsRBM((4,), 3, 3, 1.0), (3,) * 4),
    ):
        own = MixedRBM((4,), kinds, 3, 1.0)
        missing = own.load_state_dict(other.state_dict(), strict=False).missing_keys
        assert missing in ([], ["log_variance"])
        x = other.sample_base(50, torch.Generator().manual_seed(0))
        torch.testing.assert_close(own(x), other(x))
        assert own.log_partition() == pytest.approx(other.log_partition(), abs=1e-5)


def test_kinds_are_one_for_each_component() -> None:
    with pytest.raises(ArgumentError, match="a row has 3 components; give the kind of each"):
        MixedRBM((3,), (0, 2), 2, 1.0)


def test_kernels_that_move_one_kind_alone_are_refused() -> None:
    rbm = MixedRBM((2,), (0, 3), 2, 1.0)
    with pytest.raises(ArgumentError, match="does not move components of several kinds; use gibbs"):
        sample(rbm, "mala", torch.zeros(4, 2))


def observed_log_likelihood(rbm: Energy, rows: Tensor, states: Tensor, log_volume: float) -> Tensor:
    """The sum over rows of log p of what is not NaN in them, with a graph: over all states that
    agree with it. A real unit that is there has a value of the grid, and no volume.
    """
    minus, total = -rbm(states), rbm.log_sum()
    assert total is not None
    found = []
    for row in rows:
        there = ~row.isnan()
        alike = (states[:, there] == row[there]).all(1)
        volume = log_volume if bool(row[1].isnan()) else 0.0
        found.append(torch.logsumexp(minus[alike], 0) + volume - total)
    return torch.stack(found).sum()


@pytest.mark.parametrize("kind", ["mixed", "bernoulli"])
def test_imputed_rows_have_the_gradient_of_what_is_there(kind: str) -> None:
    """At fixed weights, E over chains of the complete rows' gradient is that of the log-likelihood
    of what is there, by enumeration; rows lack values completely at random. Means of 30 batches of
    20 passes over all rows: |z| < 7 of each of the parameters, t with 29 degrees of freedom (1e-7
    each).
    """
    case = make(kind)
    rbm, generator = case.rbm, torch.Generator().manual_seed(4)
    states = case.v.flatten(1)
    energy = _Flat(rbm)
    law = torch.softmax(-energy(states).detach(), 0)
    rows = states[torch.multinomial(law, 24, replacement=True, generator=generator)]
    missing = torch.rand(rows.shape, generator=generator) < 0.4
    with_holes = rows.masked_fill(missing, torch.nan)
    volume = case.log_volume if kind == "mixed" else 0.0
    exact = torch.autograd.grad(
        observed_log_likelihood(energy, with_holes, states, volume), list(rbm.parameters())
    )
    log_z = rbm.log_sum()
    assert log_z is not None
    of_z = torch.autograd.grad(log_z, list(rbm.parameters()))
    shaped = rows.view(-1, *rbm.shape)
    begun = torch.where(missing.view_as(shaped), rbm.sample_base(24, generator), shaped)
    stream = TensorPositives(begun, 0, 0.0)
    positives = ImputedPositives(stream, rbm, begun, missing.view_as(shaped), 3, 0)
    for _ in range(50):
        positives.next(24)
    batches = []
    for _ in range(30):
        x = torch.cat([positives.next(24).position for _ in range(20)])
        mean = torch.autograd.grad(-rbm(x).sum() / 20, list(rbm.parameters()))
        batches.append(
            torch.cat([(own - 24 * z).flatten() for own, z in zip(mean, of_z, strict=True)])
        )
    found, truth = torch.stack(batches), torch.cat([each.flatten() for each in exact])
    z = (found.mean(0) - truth) / (found.std(0) / math.sqrt(len(found))).clamp(min=1e-9)
    assert float(z.abs().max()) < 7


class _Flat(Energy):
    """The same energy of flattened rows."""

    def __init__(self, rbm: Energy) -> None:
        super().__init__((rbm.dimension,))
        self.rbm = rbm

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.rbm(x.view(-1, *self.rbm.shape))
        return value

    def log_sum(self) -> Tensor | None:
        return self.rbm.log_sum()


def test_what_is_there_stays_and_chains_go_on_where_they_were() -> None:
    """Rows without holes come as they are; a state goes on bitwise; a row that comes twice in a
    batch, where an epoch ends, is the same in both places.
    """
    rbm, states, _ = mixed()
    rows, missing = states[:7].clone(), torch.zeros(7, 5, dtype=torch.bool)
    missing[2, 1] = missing[5, [0, 4]] = True

    def opened() -> ImputedPositives:
        return ImputedPositives(TensorPositives(rows, 0, 0.0), rbm, rows, missing, 2, 0)

    one, other = opened(), opened()
    for _ in range(5):
        drawn = one.next(5)
    kept = rows[drawn.number]
    assert drawn.number is not None
    same = (drawn.position == kept) | missing[drawn.number]
    assert bool(same.all())
    other.load_state_dict(one.state_dict())
    for _ in range(5):
        mine, its = one.next(9), other.next(9)
        assert torch.equal(mine.position, its.position)
        assert mine.number is not None
        for number in mine.number.unique():
            again = mine.position[mine.number == number]
            assert bool((again == again[0]).all())
