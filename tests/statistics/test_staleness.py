"""The weights of stale negatives, and the controller of the lag."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from pipeline.energies.rbm import BernoulliRBM
from pipeline.training.staleness import (
    LagController,
    batch_weights,
    importance_weights,
)
from tests.conftest import states

EVERYTHING = torch.ones(100, dtype=torch.bool)


def other(rbm: BernoulliRBM) -> BernoulliRBM:
    """The same model some steps of training later."""
    later = BernoulliRBM((5,), hidden=3, weight_scale=1.0).double()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for new, old in zip(later.parameters(), rbm.parameters(), strict=True):
            new.copy_(old + 0.3 * torch.randn(old.shape, generator=generator, dtype=torch.float64))
    return later


def test_weights_carry_one_law_over_to_the_other(tiny_rbm: BernoulliRBM) -> None:
    """Enumerated: p_then(x) w(x), normalised, is p_now(x) for every state."""
    now, v = other(tiny_rbm), states(5)
    with torch.no_grad():
        p_then, p_now = torch.softmax(-tiny_rbm(v), 0), torch.softmax(-now(v), 0)
        product = p_then * importance_weights(tiny_rbm(v), now(v))
    torch.testing.assert_close(product / product.sum(), p_now, rtol=1e-12, atol=1e-15)


def test_weighted_means_are_those_of_the_law_now(tiny_rbm: BernoulliRBM) -> None:
    """From 50,000 draws of the law then, means under the law now, within 6 standard errors (delta
    method; 2e-9 a test).
    """
    now, v = other(tiny_rbm), states(5)
    with torch.no_grad():
        p_then, p_now = torch.softmax(-tiny_rbm(v), 0), torch.softmax(-now(v), 0)
        draws = v[
            torch.multinomial(
                p_then, 50_000, replacement=True, generator=torch.Generator().manual_seed(0)
            )
        ]
        weights = importance_weights(tiny_rbm(draws), now(draws))
    estimate = weights @ draws
    error = ((weights[:, None] * (draws - estimate)).square().sum(0)).sqrt()
    assert float(((estimate - p_now @ v) / error).abs().max()) < 6
    assert float(((draws.mean(0) - p_now @ v) / error).abs().max()) > 12, (
        "unweighted means must be off, or this tests nothing"
    )


def test_equal_versions_give_exactly_uniform_weights() -> None:
    """Even where rounding makes the two energies differ."""
    energy = torch.randn(100, generator=torch.Generator().manual_seed(0))
    weights, ess = batch_weights(
        energy, energy + 1e-6 * torch.randn(100), EVERYTHING, lag=0, reweight=True
    )
    assert weights.tolist() == [0.01] * 100
    assert ess == 1.0
    assert (
        batch_weights(energy, -energy, EVERYTHING, lag=5, reweight=False)[0].tolist()
        == [0.01] * 100
    )


def test_chains_in_their_burn_in_are_left_out() -> None:
    energy, now = torch.zeros(100), torch.randn(100, generator=torch.Generator().manual_seed(0))
    counts = torch.arange(100) >= 40
    weights, ess = batch_weights(energy, now, counts, lag=3, reweight=True)
    assert (weights[:40] == 0).all()
    torch.testing.assert_close(weights[40:], torch.softmax(-now[40:].double(), 0))
    assert ess == pytest.approx(float(1 / (60 * weights.square().sum())))  # Kong 1992
    nobody = torch.zeros(100, dtype=torch.bool)
    assert batch_weights(energy, now, nobody, lag=0, reweight=True)[0].tolist() == [0.01] * 100


def test_huge_differences_of_energy_do_not_overflow() -> None:
    weights = importance_weights(torch.tensor([0.0, 1e6]), torch.tensor([1e6, 0.0]))
    assert weights.tolist() == [0.0, 1.0]


def test_controller_lowers_the_bound_and_raises_it_again() -> None:
    """Poor weights bring it to lock-step, whose ESS of 1 lets it climb back to what was configured,
    and no higher.
    """
    controller = LagController(16, floor=0.3, steered=True)
    bounds = [controller.bound]
    for _ in range(2000):
        controller.observe(0.05 if controller.bound > 0 else 1.0)
        bounds.append(controller.bound)
    assert bounds[0] == 16
    assert min(bounds) == 0
    for _ in range(3000):
        controller.observe(0.9)
        bounds.append(controller.bound)
    assert controller.bound == 16
    assert all(abs(b - a) <= math.ceil(a / 2) for a, b in pairwise(bounds) if b < a)


def steps_until_it_falls(ess: float) -> int:
    controller = LagController(16, floor=0.3, steered=True)
    for step in range(1, 1000):
        controller.observe(ess)
        if controller.bound < 16:
            assert controller.bound == 8
            return step
    return 1000


def test_controller_falls_the_sooner_the_worse_the_weights_are() -> None:
    """When -ln ESS adds up to more than 50 steps at the floor have; what is at the floor or above
    it stays.
    """
    assert steps_until_it_falls(0.05) == math.floor(50 * math.log(0.3) / math.log(0.05)) + 1 == 21
    assert steps_until_it_falls(0.25) == math.floor(50 * math.log(0.3) / math.log(0.25)) + 1 == 44
    assert steps_until_it_falls(0.31) == 1000


def test_controller_does_not_fall_for_a_single_step() -> None:
    """However bad: of 64 chains one has all the weight."""
    controller = LagController(16, floor=0.3, steered=True)
    for step in range(1000):
        controller.observe(1 / 64 if step % 50 == 0 else 0.4)
    assert controller.bound == 16


def test_rises_that_fail_are_tried_ever_less_often() -> None:
    """Where every lag has useless weights lock-step is left for 50, 100, 200, then every 400 steps,
    for 21 at a time.
    """
    controller, bounds = LagController(1, floor=0.3, steered=True), []
    for _ in range(3000):
        controller.observe(1.0 if controller.bound == 0 else 0.05)
        bounds.append(controller.bound)
    changes = [step for step, (one, other) in enumerate(pairwise(bounds)) if one != other]
    lasted = [later - earlier for earlier, later in pairwise(changes)]
    assert lasted[:9] == [50, 21, 100, 21, 200, 21, 400, 21, 400]
    assert sum(bounds[1000:]) < 0.06 * len(bounds[1000:])


def test_a_rise_that_holds_shortens_the_rest() -> None:
    controller, bounds = LagController(4, floor=0.3, steered=True), []
    for step in range(3000):
        controller.observe(0.05 if step < 1000 and controller.bound > 0 else 1.0)
        bounds.append(controller.bound)
    rises = [
        step for step, (one, other) in enumerate(pairwise(bounds)) if other > one and step > 1000
    ]
    assert [later - earlier for earlier, later in pairwise(rises)] == [50, 50, 50]
    assert bounds[-1] == 4


@pytest.mark.parametrize("floor", [0.0, 1.0])
def test_floors_at_their_ends(floor: float) -> None:
    controller = LagController(4, floor, steered=True)
    for _ in range(500):
        controller.observe(0.5)
    assert controller.bound == (4 if floor == 0 else 0)


def test_controller_that_is_not_steered_stays() -> None:
    controller = LagController(16, floor=0.3, steered=False)
    for _ in range(1000):
        controller.observe(0.01)
    assert controller.bound == 16


def test_controller_survives_what_is_not_a_number() -> None:
    controller = LagController(16, floor=0.3, steered=True)
    controller.observe(math.nan)
    for _ in range(500):
        controller.observe(0.01)
    assert controller.bound == 0


def test_controller_that_is_not_steered_takes_nothing_over() -> None:
    lock_step, other = LagController(0, 0.3, steered=False), LagController(2, 0.3, steered=False)
    other.load_state_dict(lock_step.state_dict())
    assert other.bound == 2


def test_controller_resumes_where_it_was() -> None:
    one, two = LagController(16, 0.3, True), LagController(16, 0.3, True)
    for _ in range(120):
        one.observe(0.1)
    two.load_state_dict(one.state_dict())
    for _ in range(500):
        one.observe(0.1)
        two.observe(0.1)
        assert one.bound == two.bound


def test_controller_takes_the_bound_of_an_earlier_versions_checkpoint() -> None:
    controller = LagController(16, 0.3, True)
    controller.load_state_dict({"bound": 3, "smoothed": 0.4, "wait": 7})
    assert controller.bound == 3
    for _ in range(50):
        controller.observe(0.9)
    assert controller.bound == 4
