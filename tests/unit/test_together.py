"""The pools of one process in one batch: the same bits as apart, or apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.chains.pool import Pool
from pipeline.chains.sampler import ChainPlan
from pipeline.chains.together import Together
from pipeline.common.types import Weights
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.energies.rbm import BernoulliRBM
from pipeline.energies.weights import flatten
from pipeline.kernels import (
    gibbs,
    gibbs_with_gradients,
    hmc,
    mala,
    random_walk,
    single_site,
    ula,
    underdamped,
)
from pipeline.kernels.base import Kernel
from pipeline.runs.inline import InlineRunner

Small = Callable[..., RunConfig]
POOLS, CHAINS, SIZE = 3, 64, 6


class Springs(Energy):
    """Component by component: a row's energy is the same in any batch, on any machine."""

    def __init__(self, levels: int | None = None) -> None:
        super().__init__((SIZE,), levels=levels)
        self.stiffness = nn.Parameter(torch.linspace(0.5, 2, SIZE))

    def forward(self, x: Tensor) -> Tensor:
        return (self.stiffness * x.square()).sum(1) / 2


class BatchSprings(Springs):
    """A row's energy depends on how many there are."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + len(x))


def whole_numbers_rbm() -> BernoulliRBM:
    """Sums of whole numbers are exact in any order, and so on any machine."""
    rbm = BernoulliRBM((SIZE,), hidden=4, weight_scale=1.0)
    with torch.no_grad():
        for parameter in rbm.parameters():
            parameter.copy_(torch.randint(-2, 3, parameter.shape))
    return rbm


def pools(energy: Energy, kernel: Kernel, parameters: dict[str, Any], **more: Any) -> list[Pool]:
    plan = ChainPlan(kernel, parameters, 3, restart=0.2, **more)
    return [Pool(energy, plan, CHAINS, pool=pool, seed=7, device="cpu") for pool in range(POOLS)]


def compare(energy: Energy, ours: list[Pool], theirs: list[Pool], together: Together) -> None:
    """Rounds of pools `ours` together and of `theirs` one by one, in turns, end the same."""
    flat = flatten(energy)
    for round in range(4):
        published = Weights(round, (flat * (1 + round)).astype(np.float32))
        if round == 2 and energy.levels is None:  # a lost chain is made anew
            for some in (ours, theirs):
                some[1].sampler.position[3] = torch.nan
        turn = [(round + number) % POOLS for number in range(2)]
        rounds = together.advance(turn, published)
        for number, (batch, report) in zip(turn, rounds, strict=True):
            alone, apart = theirs[number].advance(published)
            assert batch.serialize().equals(alone.serialize())  # NaN too
            spent = {"seconds": apart.seconds, "usage": apart.usage}
            assert report._replace(**spent) == apart
            assert report.seconds > 0
            assert report.usage.resident > 0
    for one, other in zip(ours, theirs, strict=True):
        state, same = one.state_dict(), other.state_dict()
        for name in ("position", "age", "generator"):
            assert torch.equal(state[name], same[name]), name
        assert state["position"].untyped_storage().nbytes() == state["position"].nbytes


@pytest.mark.parametrize(
    ("kernel", "parameters", "more"),
    [
        (mala.kernel, {"step_size": 0.1}, {}),
        (mala.kernel, {"step_size": 0.1}, {"gradient_dtype": torch.bfloat16}),
        (ula.kernel, {"step_size": 0.1}, {"replayed": 2}),
        (hmc.kernel, {"step_size": 0.3, "leapfrog_steps": 2, "jitter": 0.2}, {}),
        (underdamped.kernel, {"step_size": 0.3, "friction": 1.0, "steps": 2}, {}),
        (random_walk.kernel, {"step_size": 0.3}, {}),
        (gibbs_with_gradients.kernel, {}, {}),
    ],
    ids=["mala", "mala-bfloat16", "ula-replayed", "hmc", "underdamped", "random-walk", "gwg"],
)
def test_rounds_together_are_bitwise_what_they_are_apart(
    kernel: Kernel, parameters: dict[str, Any], more: dict[str, Any]
) -> None:
    """Two of three pools in turn; chains restart, and one is lost."""
    energy = Springs(levels=2 if kernel is gibbs_with_gradients.kernel else None)
    ours, theirs = (pools(energy, kernel, parameters, **more) for _ in range(2))
    together = Together(ours, 2)
    assert together.as_one
    compare(energy, ours, theirs, together)


@pytest.mark.parametrize("least", [1, 1 << 15], ids=["bulk", "one-by-one"])
def test_gibbs_draws_the_same_coins(least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of drawing them; whether coins are worth a bulk is a matter of one pool's."""
    monkeypatch.setattr("pipeline.energies.conditionals.WORTH_BULK", least)
    energy = whole_numbers_rbm()
    ours, theirs = (pools(energy, gibbs.kernel, {}) for _ in range(2))
    # the probe's own weights are no whole numbers
    monkeypatch.setattr("pipeline.chains.together.agree", lambda *_: True)
    together = Together(ours, 2)
    compare(energy, ours, theirs, together)


def test_pools_whose_rows_would_differ_stay_apart() -> None:
    """Of an energy that depends on its batch the probe says so, and rounds are each pool's own."""
    energy = BatchSprings()
    ours, theirs = (pools(energy, mala.kernel, {"step_size": 0.01}) for _ in range(2))
    together = Together(ours, 2)
    assert not together.as_one
    compare(energy, ours, theirs, together)


def test_pools_that_have_something_of_their_own_stay_apart() -> None:
    """A step size that each adapts, a kernel that draws in another way, one pool alone."""
    tuned = pools(Springs(), mala.kernel, {"step_size": 0.1}, target_acceptance=0.6)
    single = pools(Springs(levels=2), single_site.kernel, {})
    alone = pools(Springs(), mala.kernel, {"step_size": 0.1})
    assert not Together(tuned, 2).as_one
    assert not Together(single, 2).as_one
    assert not Together(alone, 1).as_one


@pytest.mark.parametrize("overrides", [["deep"], ["rbm"], ["deep", "trainer.negatives=8"]])
def test_a_run_ends_the_same_either_way(
    small: Small, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the probe says here of the sizes of matrices, weights and chains are those of pools
    that run one after the other.
    """
    config = small(*overrides, "cluster=inline")
    ends = []
    for apart in (False, True):
        if apart:
            monkeypatch.setattr("pipeline.chains.together.agree", lambda *_: False)
        runner = InlineRunner(config)
        runner.start(None, None)
        for _ in range(4):
            runner.step()
        ends.append((runner._learner.publish().flat, [p.state_dict() for p in runner._pools]))
    assert np.array_equal(ends[0][0], ends[1][0])
    for one, other in zip(ends[0][1], ends[1][1], strict=True):
        assert torch.equal(one["position"], other["position"])
        assert torch.equal(one["generator"], other["generator"])
