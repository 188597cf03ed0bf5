"""Fast weights: their recursion, that chains alone see them, and that a checkpoint holds them."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipeline.assembly.energies import make_energy
from pipeline.chains.batch import decode
from pipeline.config.run import RunConfig
from pipeline.energies.weights import flatten, unflatten_
from pipeline.objectives.contrastive import FastWeights
from tests.conftest import descended
from tests.unit.test_learner import make

Small = Callable[..., RunConfig]
FAST = ("objective=fast_pcd", "objective.fast_rate=0.03", "objective.fast_decay=0.9")
SGD = (
    "optimizer.name=sgd",
    "optimizer.schedule=constant",
    "optimizer.learning_rate=0.1",
    "optimizer.momentum=0.0",
)


def test_the_recursion_by_hand() -> None:
    """phi <- 0.9 phi - 0.5 g, from 0: -0.5 g_1, then -0.45 g_1 - 0.5 g_2."""
    parameters = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(1))]
    fast = FastWeights(parameters, rate=0.5, decay=0.9)
    fast.update([torch.tensor([1.0, -2.0]), torch.tensor([4.0])])
    torch.testing.assert_close(fast.values, [torch.tensor([-0.5, 1.0]), torch.tensor([-2.0])])
    fast.update([torch.tensor([2.0, 0.0]), torch.tensor([0.0])])
    torch.testing.assert_close(fast.values, [torch.tensor([-1.45, 0.9]), torch.tensor([-1.8])])
    assert not any(value.requires_grad for value in fast.values)
    torch.testing.assert_close(parameters[0].detach(), torch.ones(2))


@pytest.mark.parametrize("clip", ["null", "0.5"])
def test_chains_see_both_and_evaluation_theta_alone(small: Small, clip: str) -> None:
    """Over five steps of SGD: theta' = theta - rate g, phi' = decay phi - fast_rate g with the same
    g (clipped, where it is); published is theta + phi.
    """
    learner, rounds = make(
        small("rbm", *FAST, *SGD, f"optimizer.clip_norm={clip}", "optimizer.ema=0.0")
    )
    phi = np.zeros_like(flatten(learner.energy))
    assert np.array_equal(learner.publish().flat, flatten(learner.energy))
    for _ in range(5):
        before = flatten(learner.energy).copy()
        _, weights = learner.step(rounds())
        theta = flatten(learner.energy)
        phi = 0.9 * phi - 0.03 * (before - theta) / 0.1
        np.testing.assert_allclose(weights.flat, theta + phi, atol=1e-6)
        assert np.array_equal(learner.averaged(), theta), "evaluated is theta"
    assert np.abs(phi).max() > 1e-3


def test_the_gradient_is_taken_at_theta(small: Small) -> None:
    """The second step, whose chains ran under theta + phi, descends the loss of theta at their
    positions.
    """
    config = small("rbm", *FAST, *SGD, "objective.energy_l2=0.0")
    learner, rounds = make(config)
    learner.step(rounds())
    batches, theta = rounds(), flatten(learner.energy).copy()
    energy = make_energy(config, (8, 8))
    unflatten_(energy, theta)
    negatives = torch.cat([decode(batch).position for batch in batches]).view(-1, 8, 8)
    (energy(learner.starts(1).position).mean() - energy(negatives).mean()).backward()
    by_hand = descended(energy, 0.1)
    learner.step(batches)
    np.testing.assert_allclose(flatten(learner.energy), by_hand.numpy(), atol=1e-6)


def test_negatives_were_weighed_under_what_was_published(small: Small) -> None:
    """Their energies are those of theta + phi, and they are not reweighted: they are no draws of
    theta's law.
    """
    config = small("rbm", *FAST)
    assert not config.reweight
    learner, rounds = make(config)
    for _ in range(3):
        learner.step(rounds())
    published = make_energy(config, (8, 8))
    unflatten_(published, learner.publish().flat)
    batch = decode(rounds()[0])
    position = batch.position.view(-1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(batch.energy, published(position), rtol=1e-4, atol=1e-3)
        assert not torch.allclose(batch.energy, learner.energy(position), rtol=1e-4, atol=1e-3)


def test_a_checkpoint_goes_on_bit_for_bit(small: Small) -> None:
    config = small("rbm", *FAST)
    one, rounds = make(config)
    for _ in range(3):
        one.step(rounds())
    stored = io.BytesIO()
    torch.save(one.state_dict(), stored)
    two, _ = make(config)
    two.load_state_dict(torch.load(io.BytesIO(stored.getvalue()), weights_only=True))
    assert np.array_equal(one.publish().flat, two.publish().flat)
    assert not np.array_equal(one.publish().flat, flatten(one.energy))
    for _ in range(2):
        batches = rounds()
        (first, published), (second, again) = one.step(batches), two.step(batches)
        assert first.loss == second.loss
        assert np.array_equal(published.flat, again.flat)
    plain, _ = make(small("rbm"))
    assert np.array_equal(plain.publish().flat, flatten(plain.energy)), (
        "without fast weights, theta"
    )


def test_they_leave_where_chains_are() -> None:
    """The energy of the negatives under theta + phi rises with them: -rate g has d E(x-) = rate
    |grad|^2 > 0 along it.
    """
    weight = torch.nn.Parameter(torch.zeros(3))
    negatives, positives = torch.tensor([[1.0, 2.0, 0.5]]), torch.zeros(1, 3)
    loss = (positives @ weight).mean() - (negatives @ weight).mean()
    (gradient,) = torch.autograd.grad(loss, weight)
    fast = FastWeights([weight], rate=0.1, decay=0.95)
    fast.update([gradient])
    assert float((negatives @ fast.values[0]).sum()) == pytest.approx(
        0.1 * float(negatives.square().sum())
    )
