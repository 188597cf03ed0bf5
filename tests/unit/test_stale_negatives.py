"""Stale negatives at the learner: moved where they are to be, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipeline.assembly.chains import make_chains, moving_plan
from pipeline.assembly.data import open_data
from pipeline.assembly.energies import make_energy
from pipeline.assembly.learner import make_learner
from pipeline.chains.batch import decode
from pipeline.chains.sampler import ChainPlan
from pipeline.common.types import Negatives
from pipeline.config.run import RunConfig
from pipeline.energies.rbm import BernoulliRBM
from pipeline.kernels import gibbs
from pipeline.objectives.base import NegativeSide
from pipeline.runs.inline import InlineRunner
from pipeline.training.lag_choice import Treatment
from pipeline.training.lag_trial import Stage
from pipeline.training.learner import Learner
from pipeline.training.refresh import Refresher
from pipeline.training.stale_negatives import StaleNegatives
from tests.conftest import states

Small = Callable[..., RunConfig]
EXACT = ("cluster=inline", "trainer.lag=2", "trainer.lag_mode=exact")


def test_moves_carry_chains_to_the_law_now(tiny_rbm: BernoulliRBM) -> None:
    """From one state, 30 sweeps later: means over 20,000 chains within 6 standard errors (6e-9 a
    test) of the enumerated ones.
    """
    plan = ChainPlan(gibbs.kernel, {}, 30, restart=0.0)
    refresher = Refresher(tiny_rbm, plan, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in tiny_rbm.parameters():
            parameter.data = 0.7 * parameter  # as where weights are filled anew
    moved = refresher.move(torch.zeros(20_000, 5, dtype=torch.float64))
    v = states(5)
    with torch.no_grad():
        law = torch.softmax(-tiny_rbm(v), 0)
    mean = law @ v
    error = (mean * (1 - mean) / 20_000).sqrt()
    assert float(((moved.mean(0) - mean) / error).abs().max()) < 6


def side_of(energy: torch.nn.Module, version: int, *made: int) -> tuple[NegativeSide, list]:
    generator = torch.Generator().manual_seed(1)
    received = []
    for pool, other in enumerate(made):
        x = torch.randn(8, 64, generator=generator)
        age = torch.zeros(8, dtype=torch.int64)
        received.append(Negatives(x, torch.zeros(8), age, pool, 0, version, other))
    position = torch.cat([batch.position for batch in received]).view(-1, *energy.shape)
    return NegativeSide(position), received


def test_only_stale_negatives_move(small: Small) -> None:
    config = small("deep", *EXACT, "trainer.refresh=1")
    energy = make_energy(config, (8, 8))
    stale = StaleNegatives(config, energy, [], moving_plan(config))
    side, received = side_of(energy, 7, 7, 5, 7)
    before = side.position.clone()
    stale.move(side, received, 7)
    moved = (side.position != before).flatten(1).any(1)
    assert moved.tolist() == 8 * [False] + moved[8:16].tolist() + 8 * [False]
    assert moved[8:16].any()
    assert not stale.reweight


@pytest.mark.parametrize("kind", ["deep", "ladder", "rbm", "conditional"])
def test_a_run_moves_its_stale_negatives_and_no_others(small: Small, kind: str) -> None:
    """On a ladder the model's rung, by the inner kernel; under contexts each under its own. The
    first step's are fresh.
    """

    def run(*more: str, steps: int) -> np.ndarray:
        runner = InlineRunner(small(kind, *EXACT, "trainer.reweight=false", *more))
        runner.start(None, None)
        for _ in range(steps):
            runner.step()
        return runner._learner.publish().flat

    moved = "trainer.refresh=2"
    assert np.array_equal(run(steps=1), run(moved, steps=1))
    assert not np.array_equal(run(steps=4), run(moved, steps=4))


def test_moves_go_on_where_a_checkpoint_left_them(small: Small) -> None:
    config = small("deep", *EXACT, "trainer.refresh=1", "kernel.target_acceptance=0.6")
    energy, data = make_energy(config, (8, 8)), open_data(config)
    one, two = make_learner(config, data), make_learner(config, data)
    side, received = side_of(energy, 7, 5)
    one._stale.move(side_of(energy, 7, 5)[0], received, 7)
    two.load_state_dict(one.state_dict())
    other, _ = side_of(energy, 7, 5)
    one._stale.move(side, received, 7)
    two._stale.move(other, received, 7)
    assert torch.equal(side.position, other.position)


def test_in_one_process_a_chosen_lag_is_lock_step(small: Small) -> None:
    flats = []
    for lag in ("0", "auto"):
        runner = InlineRunner(small("deep", "cluster=inline", f"trainer.lag={lag}"))
        runner.start(None, None)
        reports = [runner.step()[0] for _ in range(4)]
        assert reports[-1].lag_choice is None
        flats.append(runner._learner.publish().flat)
    assert np.array_equal(*flats)


def lock_step(learner: Learner, config: RunConfig, steps: int) -> np.ndarray:
    pools = [make_chains(config, (8, 8), pool) for pool in range(config.chains.pools)]
    weights = learner.publish()
    for _ in range(steps):
        _, weights = learner.step([pool.advance(weights)[0] for pool in pools])
    return weights.flat


def test_a_look_changes_nothing(small: Small) -> None:
    """A run that looks, for as long as it is in lock-step, has the weights of one that does not."""
    plain, choosing = small("deep"), small("deep", "trainer.lag=auto")
    data = open_data(plain)
    learner = make_learner(choosing, data)
    trial = learner._stale._trial
    assert trial is not None
    trial.stage, trial._left = Stage.PROBE, 100
    looking = lock_step(learner, choosing, 5)
    assert np.array_equal(looking, lock_step(make_learner(plain, data), plain, 5))
    assert len(trial._looks) == 4
    assert all(square for look in trial._looks for square in look.squares.values())
    assert {*trial._looks[0].squares} == {*Treatment} - {Treatment.NONE}


@pytest.mark.parametrize("treatment", list(Treatment))
def test_stale_negatives_get_what_was_chosen(small: Small, treatment: Treatment) -> None:
    """Weights that are not uniform, or other positions, or neither."""
    config = small("rbm", "trainer.lag=auto", "optimizer.learning_rate=1")
    learner = make_learner(config, open_data(config))
    pools = [make_chains(config, (64,), pool) for pool in range(2)]
    trial = learner._stale._trial
    assert trial is not None
    trial.stage, trial.treatment = Stage.KEEP, treatment
    batches = [pool.advance(learner.publish())[0] for pool in pools]
    learner.step(batches)
    report, _ = learner.step(batches)
    assert report.lags == (1, 1)
    assert (max(report.ess) < 1) == (treatment is Treatment.REWEIGHTED)
    consumed = learner._intake._staging
    sent = torch.cat([decode(batch).position for batch in batches])
    assert torch.equal(consumed, sent) == (treatment is not Treatment.MOVED)
