"""The learner: schedules, clipping, averages, and what never reaches the optimizer."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.assembly.chains import make_chains
from pipeline.assembly.data import open_data
from pipeline.assembly.energies import make_energy
from pipeline.assembly.learner import make_learner
from pipeline.common.errors import DivergenceError
from pipeline.config.run import RunConfig
from pipeline.energies.weights import flatten, unflatten_
from pipeline.objectives.base import Term
from pipeline.objectives.contrastive import ContrastiveDivergence
from pipeline.training.learner import Learner
from pipeline.training.optimizer import learning_rate
from pipeline.training.updates import MAX_SKIPPED_IN_A_ROW
from tests.conftest import descended

Small = Callable[..., RunConfig]


def make(config: RunConfig) -> tuple[Learner, Callable[[], list[pa.RecordBatch]]]:
    """A learner, and a function that runs a round of every pool under its newest weights."""
    learner = make_learner(config, open_data(config))
    pools = [make_chains(config, (8, 8), pool) for pool in range(config.chains.pools)]
    return learner, lambda: [pool.advance(learner.publish())[0] for pool in pools]


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("constant", 70, 1.0),
        ("linear", 55, 0.5),
        ("linear", 100, 0.0),
        ("cosine", 55, 0.5),
        ("cosine", 10, 1.0),
    ],
)
def test_learning_rate_schedules(small: Small, schedule: str, step: int, expected: float) -> None:
    config = small(
        "rbm", f"optimizer.schedule={schedule}", "optimizer.warmup=10", "optimizer.learning_rate=1"
    )
    assert learning_rate(config.optimizer, step, 100) == pytest.approx(expected, abs=1e-12)
    assert learning_rate(config.optimizer, 4, 100) == pytest.approx(0.5)


def test_a_plain_sgd_step_is_the_gradients(small: Small) -> None:
    """theta' = theta - rate * (mean grad E(x+) - mean grad E(x-)), by hand, and the clipped one of
    the norm asked for.
    """
    config = small("rbm", "optimizer.schedule=constant", "optimizer.learning_rate=0.1")
    learner, rounds = make(config)
    batches = rounds()
    energy = make_energy(config, (8, 8))
    unflatten_(energy, learner.publish().flat)
    positives = open_data(config).positives(config.seed).next(config.trainer.batch_size).position
    negatives = torch.cat([torch.tensor(batch.column("position").to_pylist()) for batch in batches])
    (energy(positives).mean() - energy(negatives).mean()).backward()
    by_hand = descended(energy, 0.1)
    report, weights = learner.step(batches)
    np.testing.assert_allclose(weights.flat, by_hand.numpy(), atol=1e-6)
    norm = math.sqrt(
        sum(float(p.grad.square().sum()) for p in energy.parameters() if p.grad is not None)
    )
    assert report.gradient_norm == pytest.approx(norm, rel=1e-5)
    clipped, rounds = make(
        small(
            "rbm",
            "optimizer.schedule=constant",
            "optimizer.learning_rate=0.1",
            "optimizer.clip_norm=0.5",
        )
    )
    before = clipped.publish().flat
    _, after = clipped.step(rounds())
    assert float(np.linalg.norm(after.flat - before)) == pytest.approx(0.1 * 0.5, rel=1e-4)


def test_versions_count_steps_and_lags_are_reported(small: Small) -> None:
    config = small("rbm", "trainer.lag=2", "trainer.lag_mode=exact")
    learner, rounds = make(config)
    stale = rounds()
    for version in range(3):
        report, weights = learner.step(stale)
        assert report.version == weights.version == learner.version == version + 1
        assert report.lags == (version, version)
    assert report.ess[0] < 1
    fresh, _ = make(config)
    with pytest.raises(AssertionError, match="cannot reach"):
        fresh.step(rounds())


def test_average_follows_the_weights(small: Small) -> None:
    """With decay 0 the average is the weights; with a decay it is the recursion, warm-up too."""
    learner, rounds = make(small("rbm", "optimizer.ema=0.0"))
    learner.step(rounds())
    assert np.array_equal(learner.averaged(), learner.publish().flat)
    learner, rounds = make(small("rbm", "optimizer.ema=0.5"))
    average = learner.publish().flat.copy()
    for step in range(4):
        _, weights = learner.step(rounds())
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weights.flat
    np.testing.assert_allclose(learner.averaged(), average, atol=1e-6)
    assert np.array_equal(learner.publish().flat, weights.flat), (
        "evaluating must leave the weights as they were"
    )


class NanGradient(torch.autograd.Function):
    """A finite value whose gradient is NaN: what a guard on the loss alone lets through."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return x.clone()

    @staticmethod
    def backward(ctx: object, *gradients: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return gradients[0] * math.nan


@pytest.mark.parametrize("kind", ["loss", "gradient", "gradient by hand"])
def test_what_is_not_finite_never_reaches_the_optimizer(small: Small, kind: str) -> None:
    """The step is skipped and said to be; weights, average and optimizer stay as they were; later
    steps go on.
    """
    learner, rounds = make(small("deep", "optimizer.warmup=0"))
    learner.step(rounds())
    batches, before, average = rounds(), learner.publish().flat, learner.averaged()
    whole, pair = learner.energy.forward, learner.energy.energies_and_pull
    odd = {
        "loss": lambda x: whole(x) * math.nan,
        "gradient": lambda x: NanGradient.apply(whole(x)),
        "gradient by hand": whole,
    }

    def by_hand(x: torch.Tensor) -> Any:
        energies, pull = pair(x)
        return energies, lambda slopes: pull(slopes * math.nan)

    learner.energy.forward = odd[kind]  # type: ignore[method-assign]
    learner.energy.energies_and_pull = (  # type: ignore[method-assign]
        by_hand if kind == "gradient by hand" else lambda _: None
    )
    report, weights = learner.step(batches)
    assert report.skipped
    assert np.array_equal(weights.flat, before)
    assert np.array_equal(learner.averaged(), average)
    learner.energy.forward = whole  # type: ignore[method-assign]
    learner.energy.energies_and_pull = pair  # type: ignore[method-assign]
    report, weights = learner.step(rounds())
    assert not report.skipped
    assert np.isfinite(weights.flat).all()
    assert not np.array_equal(weights.flat, before)


def test_a_run_that_keeps_diverging_stops_with_advice(small: Small) -> None:
    learner, rounds = make(small("deep"))
    batches = rounds()
    whole = learner.energy.forward
    learner.energy.forward = lambda x: whole(x) * math.nan  # type: ignore[method-assign]
    learner.energy.energies_and_pull = lambda _: None  # type: ignore[method-assign]
    for _ in range(MAX_SKIPPED_IN_A_ROW - 1):
        learner.step(batches)
    with pytest.raises(DivergenceError, match=r"lower optimizer\.learning_rate"):
        learner.step(batches)


def test_starts_are_the_rows_the_step_learns_from(small: Small) -> None:
    """Drawn ahead, in order, and used once."""
    learner, rounds = make(small("rbm", "trainer.steps=5"))
    ahead = [learner.starts(step).position.clone() for step in (1, 0, 2)]
    reference = open_data(small("rbm")).positives(0)
    expected = [reference.next(100).position for _ in range(4)]
    assert torch.equal(ahead[1], expected[0])
    assert torch.equal(ahead[0], expected[1])
    learner.step(rounds())
    assert torch.equal(learner.starts(1).position, expected[1])
    learner.step(rounds())
    learner.step(rounds())
    assert torch.equal(learner.starts(3).position, expected[3])


@pytest.mark.parametrize(
    "overrides",
    [
        ["rbm"],
        ["deep"],
        ["deep", "energy.spectral_norm=true"],
        ["conv"],
        ["rbm", "objective=fast_pcd"],
        ["deep", "objective=mixture", "objective.weights={pcd:1,nce:0.5,hutchinson:0.1}"],
    ],
)
def test_state_dict_goes_on_bit_for_bit(small: Small, overrides: list[str]) -> None:
    """Weights, buffers, optimizer, average, data position and noise."""
    config = small(*overrides)
    one, rounds = make(config)
    for _ in range(3):
        one.step(rounds())
    two, _ = make(config)
    stored = io.BytesIO()
    torch.save(one.state_dict(), stored)
    two.load_state_dict(torch.load(io.BytesIO(stored.getvalue()), weights_only=True))
    batches = rounds()
    first, second = one.step(batches), two.step(batches)
    assert np.array_equal(first[1].flat, second[1].flat)
    assert np.array_equal(one.averaged(), two.averaged())
    assert first[0].loss == second[0].loss


def test_settings_of_the_optimizer_are_this_configurations(small: Small) -> None:
    """A resumed learner keeps the moments, and heeds a decay that was changed."""
    one, rounds = make(small("deep"))
    one.step(rounds())
    two, _ = make(small("deep", "optimizer.weight_decay=0.5", "optimizer.momentum=0.9"))
    two.load_state_dict(one.state_dict())
    (group,) = two._updates.optimizer.param_groups
    assert group["weight_decay"] == 0.5
    assert group["betas"] == (0.9, 0.999)
    assert two._updates.optimizer.state


def test_flat_weights_include_buffers(small: Small) -> None:
    """A power iteration a step: the buffers of spectral normalisation move, and are published."""
    learner, rounds = make(small("deep", "energy.spectral_norm=true"))
    names = [name for name, _ in learner.energy.named_buffers()]
    assert names
    before = {name: buffer.clone() for name, buffer in learner.energy.named_buffers()}
    _, weights = learner.step(rounds())
    assert any(
        not torch.equal(before[name], buffer) for name, buffer in learner.energy.named_buffers()
    )
    assert weights.flat.size == flatten(learner.energy).size


def test_noisy_positives_stay_in_the_box(small: Small) -> None:
    """What the data's noise pushes out is folded back at the wall: |2 high - x|."""
    learner, _ = make(small("deep", "energy.box=[-1,1]", "data.noise=0.5"))
    rows = learner.starts(0).position
    assert float(rows.abs().max()) <= 1
    free = make(small("deep", "data.noise=0.5"))[0].starts(0).position
    outside = free > 1
    assert outside.any()
    torch.testing.assert_close(rows[outside & (free < 3)], (2 - free)[outside & (free < 3)])


def test_weight_decay_leaves_biases_of_units_alone(small: Small) -> None:
    """With a gradient of nothing, one step of SGD shrinks the weights of an RBM by rate x decay,
    and no bias.
    """
    config = small(
        "rbm",
        "optimizer.schedule=constant",
        "optimizer.learning_rate=0.1",
        "optimizer.weight_decay=0.5",
    )
    learner, _ = make(config)
    before = {
        name: parameter.detach().clone() for name, parameter in learner.energy.named_parameters()
    }
    for parameter in learner.energy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    learner._updates.step(0.0, 0, lambda: None, learner._gradient)
    after = dict(learner.energy.named_parameters())
    torch.testing.assert_close(after["weight"].detach(), 0.95 * before["weight"])
    assert torch.equal(after["visible_bias"], before["visible_bias"])
    assert torch.equal(after["hidden_bias"], before["hidden_bias"])


def test_a_batch_is_weighed_once_whatever_objectives_ask(small: Small) -> None:
    """Two terms that consume chains: the ESS and the moments of the energies of each batch count
    once, in chunks of rows as at once. The energy that was given is left as it was.
    """
    for chunks in ("null", "7"):
        config = small(
            "rbm", "trainer.lag=2", "trainer.lag_mode=exact", f"trainer.chunk_rows={chunks}"
        )
        data = open_data(config)
        energy = make_energy(config, (8, 8))
        before = flatten(energy)
        terms = [Term(name, 0.5, ContrastiveDivergence(0.1)) for name in ("a.", "b.")]
        learner = Learner(config, energy, terms, data.positives(config.seed))
        pools = [make_chains(config, (8, 8), pool) for pool in range(config.chains.pools)]
        stale = [pool.advance(learner.publish())[0] for pool in pools]
        learner.step(stale)
        report, _ = learner.step(stale)
        assert len(report.ess) == len(report.energy_moments) == len(report.lags) == len(stale)
        assert report.ess[0] < 1
        assert report.parts["a.negative"] == report.parts["b.negative"]
        assert np.array_equal(flatten(energy), before)
