"""What chains learn about their own kernel, and ladders of them: adapted, checkpointed, emitted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.assembly.chains import make_chains, make_plan
from pipeline.assembly.energies import make_energy
from pipeline.chains import batch as negatives
from pipeline.chains.sampler import ChainPlan, Sampler
from pipeline.common.types import Weights
from pipeline.config.compose import compose
from pipeline.config.run import RunConfig
from pipeline.energies.laws import LAWS, Gaussian
from pipeline.energies.weights import flatten
from pipeline.kernels import hmc, mala, random_walk, replica_exchange
from pipeline.kernels.adaptation import Ladder, StepSizes, respaced
from pipeline.kernels.base import Kernel

Small = Callable[..., RunConfig]


@pytest.mark.parametrize(
    ("kernel", "parameters", "target"),
    [
        (random_walk.kernel, {"step_size": 50.0}, 0.3),
        (mala.kernel, {"step_size": 1e-3}, 0.6),
        (hmc.kernel, {"step_size": 5.0, "leapfrog_steps": 4, "jitter": 0.2}, 0.8),
    ],
)
def test_step_sizes_find_their_acceptance_and_then_stay(
    kernel: Kernel, parameters: dict[str, float], target: float
) -> None:
    """From one to two orders of magnitude off, to within 0.03 (noise of 500 chains x 5: 0.01);
    fixed from round 150 on.
    """
    plan = ChainPlan(kernel, parameters, 5, 0.0, target_acceptance=target, adapt_rounds=150)
    generator = torch.Generator().manual_seed(0)
    sampler = Sampler(LAWS["gaussian"](), plan, 500, generator)
    for _ in range(150):
        sampler.advance(generator, 5)
    found = sampler.step_size
    rates = torch.stack([sampler.advance(generator, 5).acceptance.mean() for _ in range(20)])
    assert abs(float(rates.mean()) - target) < 0.03
    assert sampler.step_size == found


def test_step_sizes_without_end_go_on_following() -> None:
    steps = StepSizes(1.0, 1, 0.5, None)
    for _ in range(5000):
        steps.update(torch.tensor([0.5]))
    for _ in range(100):
        steps.update(torch.tensor([1.0]))
    assert steps.values[0] > 5
    steps.update(torch.tensor([torch.nan]))
    assert steps.values[0] > 5


def test_each_rung_has_a_step_size_of_its_own() -> None:
    """A base of scale 5 and a model of scale 0.1: the lowest rung ends with far longer steps than
    the highest.
    """
    law = Gaussian(torch.zeros(2), 0.01 * torch.eye(2))
    law.base_scale = 5.0
    plan = ChainPlan(
        replica_exchange.over(mala.kernel, 4, 1),
        {"step_size": 0.1},
        1,
        0.0,
        rungs=4,
        target_acceptance=0.6,
        ladder_rounds=0,
    )
    generator = torch.Generator().manual_seed(0)
    sampler = Sampler(law, plan, 200, generator)
    for _ in range(200):
        done = sampler.advance(generator, 1)
    assert (done.acceptance.view(4, -1).mean(1) - 0.6).abs().max() < 0.1
    low, *_, high = sampler.tuning()["steps"]["logs"]
    assert low - high > 5  # squared scales differ by a factor of 2,500, e^7.8


@pytest.mark.slow
def test_ladder_ends_with_equal_swap_rates() -> None:
    """The same ladder unadapted swaps at rates that differ threefold."""

    def rates(rounds: int) -> Tensor:
        law = Gaussian(torch.tensor([1.0, 0.0]), 0.003 * torch.eye(2))
        law.base_scale = 3.0
        kernel = replica_exchange.over(hmc.kernel, 5, 1)
        plan = ChainPlan(
            kernel,
            {"step_size": 0.05, "leapfrog_steps": 5, "jitter": 0.2},
            2,
            0.0,
            rungs=5,
            ladder_rounds=rounds,
            target_acceptance=0.8,
        )
        generator = torch.Generator().manual_seed(0)
        sampler = Sampler(law, plan, 100, generator)
        for _ in range(150):
            sampler.advance(generator, 2)
        return torch.stack([sampler.advance(generator, 2).swaps for _ in range(50)]).mean(0)

    fixed, adapted = rates(0), rates(150)
    assert float(fixed.max() / fixed.min()) > 3
    assert float(adapted.max() / adapted.min()) < 1.3


def test_respacing_equalises_the_barrier_of_a_known_one() -> None:
    """Rejections of a barrier Lambda(beta) = sqrt(beta), taken as exact: the rungs go to beta = (k
    / R)^2.
    """
    betas = torch.linspace(0, 1, 401, dtype=torch.float64)
    moved = respaced(betas, 1 - betas.sqrt().diff())
    expected = torch.linspace(0, 1, 401, dtype=torch.float64).square()
    assert float((moved - expected).abs().max()) < 3e-3
    assert moved[0] == 0
    assert moved[-1] == 1
    assert (moved.diff() > 0).all()


def test_rungs_gather_at_a_sharp_barrier_without_meeting() -> None:
    """A barrier that rises within 1e-3 of beta = 0.5 alone, as at a phase transition."""
    betas = torch.linspace(0, 1, 7, dtype=torch.float64)
    for _ in range(50):
        betas = respaced(betas, 1 - torch.sigmoid((betas - 0.5) / 1e-3).diff())
        assert (betas.diff() > 0).all()
    rejections = torch.sigmoid((betas - 0.5) / 1e-3).diff()
    assert float(rejections.max() / rejections.min()) < 1.1


def test_ladder_stays_after_its_warm_up() -> None:
    ladder = Ladder(4, 20)
    for _ in range(20):
        ladder.update(torch.tensor([0.9, 0.5, 0.1]))
    after = ladder.betas
    for _ in range(50):
        ladder.update(torch.tensor([0.1, 0.5, 0.9]))
    assert torch.equal(ladder.betas, after)


LADDER = (
    "kernel=replica_exchange",
    "kernel.rungs=3",
    "kernel.adapt_rounds=40",
    "kernel.inner.target_acceptance=0.6",
)


def published(config: RunConfig, version: int = 0) -> Weights:
    return Weights(version, flatten(make_energy(config, (8, 8))))


def test_a_ladder_emits_the_models_rung(small: Small) -> None:
    """A batch has one row a chain, with the model's own energy; every rung's transitions and swaps
    are reported.
    """
    config = small("deep", *LADDER, "chains.restart=0")
    chains = make_chains(config, (8, 8), 0)
    for _ in range(3):
        batch, report = chains.advance(published(config))
    received = negatives.decode(batch)
    assert received.position.shape == (8, 64)
    energy = make_energy(config, (8, 8))
    torch.testing.assert_close(received.energy, energy(received.position.view(-1, 8, 8)).detach())
    assert report.transitions == 2 * 3 * 8
    assert len(report.swaps) == 2
    assert received.age.tolist() == [6] * 8


def test_a_ladder_restarts_its_lowest_rung(small: Small) -> None:
    """The chains that are emitted go on: none of them is young."""
    config = small(
        "deep",
        *LADDER,
        "chains.restart=1.0",
        "kernel.inner.step_size=1e-9",
        "kernel.inner.target_acceptance=null",
    )
    chains = make_chains(config, (8, 8), 0)
    chains.advance(published(config))
    before = chains.state_dict()["position"].clone()
    batch, report = chains.advance(published(config))
    assert report.restarted == 8
    assert negatives.decode(batch).age.tolist() == [4] * 8
    # positions move between rungs, but only those of the lowest were drawn anew
    after = chains.state_dict()["position"]
    kept = (torch.cdist(after.flatten(1), before.flatten(1)).amin(1) < 1e-2).sum()
    assert int(kept) == 16


@pytest.mark.parametrize("overrides", [("kernel.target_acceptance=0.6",), LADDER])
def test_what_was_adapted_is_in_the_checkpoint(small: Small, overrides: tuple[str, ...]) -> None:
    """Chains that take up a state go on bit for bit, with its step sizes and rungs."""
    config = small("deep", *overrides)
    one, two = make_chains(config, (8, 8), 0), make_chains(config, (8, 8), 0)
    for _ in range(15):
        _, first = one.advance(published(config))
    two.load_state_dict(one.state_dict())
    (batch, after), (again, resumed) = (
        one.advance(published(config)),
        two.advance(published(config)),
    )
    assert batch.equals(again)
    assert after.step_size == resumed.step_size != first.step_size
    assert after.swaps == resumed.swaps
    for _ in range(15):
        assert one.advance(published(config))[0].equals(two.advance(published(config))[0])


def test_a_revived_ladder_starts_every_rung_from_its_last_batch(small: Small) -> None:
    config = small("deep", *LADDER)
    chains, fresh = make_chains(config, (8, 8), 0), make_chains(config, (8, 8), 0)
    last, _ = chains.advance(published(config))
    fresh.revive(1, 1, last)
    position = fresh.state_dict()["position"].view(3, 8, 64)
    for rung in position:
        assert torch.equal(rung, negatives.decode(last).position)


def test_broken_rungs_are_reseeded_and_counted(small: Small) -> None:
    config = small("deep", *LADDER, "chains.restart=0")
    chains = make_chains(config, (8, 8), 0)
    state = chains.state_dict()
    state["unplaced"] = None  # they are where they are to begin
    state["position"][[1, 20]] = torch.nan  # one of the lowest rung, one of the model's
    chains.load_state_dict(state)
    batch, report = chains.advance(published(config))
    assert report.reseeded == 2
    assert negatives.decode(batch).position.isfinite().all()


def test_plans_hold_what_the_configuration_says() -> None:
    plan = make_plan(compose(["kernel=hmc", "kernel.force=bfloat16", "kernel.adapt_rounds=7"]))
    assert plan.gradient_dtype is torch.bfloat16
    assert (plan.target_acceptance, plan.adapt_rounds, plan.rungs) == (0.8, 7, 1)
    assert set(plan.parameters) == {"step_size", "leapfrog_steps", "jitter", "mass"}
    ladder = make_plan(compose(["kernel=replica_exchange", "kernel.inner=random_walk"]))
    assert (ladder.rungs, ladder.ladder_rounds, ladder.target_acceptance) == (8, 1000, 0.3)


@pytest.mark.parametrize("kernel", ["random_walk", "hmc"])
def test_steps_stay_within_a_box_that_accepts_any(small: Small, kernel: str) -> None:
    """On a flat law nothing is rejected and the step size grows: to the box's width, where
    positions are still spread.
    """
    config = small(
        "deep", f"kernel={kernel}", "energy.box=[-1,1]", "chains.restart=0", "chains.per_pool=50"
    )
    flat = Weights(0, 0 * flatten(make_energy(config, (8, 8))))
    chains = make_chains(config, (8, 8), 0)
    for _ in range(120):
        batch, report = chains.advance(flat)
    assert report.step_size == pytest.approx(2.0)
    position = negatives.decode(batch).position
    assert position.abs().max() <= 1
    # 3,200 uniform numbers: the mean within 6 standard errors, a share of a quarter beyond 3/4
    # likewise
    assert abs(float(position.mean())) < 6 * (1 / 3 / 3200) ** 0.5
    assert (
        abs(float((position.abs() > 0.75).double().mean()) - 0.25) < 6 * (0.25 * 0.75 / 3200) ** 0.5
    )


def test_a_step_size_configured_anew_is_taken(small: Small) -> None:
    """Adapted ones are taken up from a checkpoint only where they began at the one that is
    configured now.
    """
    config = small("deep", "kernel.target_acceptance=0.6")
    chains = make_chains(config, (8, 8), 0)
    _, report = chains.advance(published(config))
    other = make_chains(
        small("deep", "kernel.target_acceptance=0.6", "kernel.step_size=0.003"), (8, 8), 0
    )
    other.load_state_dict(chains.state_dict())
    assert other.sampler.step_size == pytest.approx(0.003)
    same = make_chains(config, (8, 8), 0)
    same.load_state_dict(chains.state_dict())
    assert same.sampler.step_size == report.step_size
