"""log Z followed from weights to weights: increments against enumeration, and the intervals of the
filter against errors that are known.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.energies.rbm import BernoulliRBM
from pipeline.evaluation.ais import Schedule
from pipeline.evaluation.log_partition import LogPartition
from pipeline.evaluation.tracking import Track, follow, settled
from pipeline.kernels.bridging import BridgeEstimate, variance_of

GIBBS = Schedule(torch.ones(1), None)


def anchored(value: float, error: float | None, half: float = 1.0) -> LogPartition:
    return LogPartition(value, error, value - half, value + half, value, 50.0)


def test_particles_follow_log_z_of_a_machine(tiny_rbm: BernoulliRBM) -> None:
    """Over 60 increments there and back, through weights that change by 5 % each: within 4.5
    standard errors of enumeration (7e-6) at every tenth.
    """
    generator = torch.Generator().manual_seed(3)
    old, track = tiny_rbm.requires_grad_(False), Track()
    particles = old.sample_base(500, generator).double()
    particles = settled(particles, old, GIBBS, generator, 100)
    begin = old.log_partition()
    assert begin is not None
    track.anchor(anchored(begin, 0.0))
    influence = torch.zeros(500)
    for number in range(60):
        new = BernoulliRBM((5,), hidden=3, weight_scale=1.0).double().requires_grad_(False)
        grows = 1.05 if number < 30 else 1 / 1.05
        for parameter, before in zip(new.parameters(), old.parameters(), strict=True):
            parameter.copy_(grows ** (1 if number % 2 else 0.5) * before)
        particles, increment = follow(particles, old, new, GIBBS, generator)
        assert increment is not None
        track.move(increment)
        influence = influence + increment.influence
        old = new
        if number % 10 == 9:
            truth, now = old.log_partition(), track.now
            assert truth is not None
            assert now is not None
            error = math.sqrt(variance_of(influence))
            assert error < 0.3
            assert abs(now[0] - truth) < 4.5 * error


@pytest.mark.parametrize(("alike", "least"), [(0.0, 0.86), (1.5, 0.8)])
def test_intervals_hold_log_z(alike: float, least: float) -> None:
    """Of 100 runs, 90 % intervals, with errors of particles that persist from one increment to the
    next (correlation 0.9), by themselves, or with an error that all particles have alike over a way
    and that is larger than the sum of theirs, for which the second half of a run counts, when the
    factor is learned. Ten anchors, each 15 increments. Means over runs scatter by less than 0.02.
    """
    generator = np.random.default_rng(0)
    held = []
    for _ in range(100):
        track, truth, off = Track(), 0.0, np.zeros(64)
        track.anchor(anchored(truth + 0.1 * generator.standard_normal(), 0.1 / 1.11))
        for way in range(10):
            track.begin()
            before, bias = truth, alike * generator.standard_normal() / 15
            for _ in range(15):
                off = 0.9 * off + 0.43 * generator.standard_normal(64)
                truth += 0.3
                own = 0.003 * off
                influence = torch.tensor(own - own.mean())
                track.move(BridgeEstimate(0.3 + own.sum() + 0.2 * bias, influence, 60.0))
                if way >= 5:
                    assert track.now is not None
                    value, half = track.now
                    held.append(abs(value - truth) <= half)
            track.anchor(anchored(before + 0.1 * generator.standard_normal(), 0.1 / 1.11))
    assert np.mean(held) > least


def test_an_anchor_without_an_error_bar_is_not_joined() -> None:
    """It is taken where its bounds are the narrower, or say that the prediction is wrong."""
    track = Track()
    track.anchor(anchored(5.0, None, half=2.0))
    assert track.now == pytest.approx((5.0, 2.0))
    track.begin()
    track.anchor(anchored(5.5, None, half=3.0))
    assert track.now == pytest.approx((5.0, 2.0))
    track.anchor(anchored(20.0, None, half=3.0))
    assert track.now == pytest.approx((20.0, 3.0))
    track.anchor(anchored(20.5, None, half=1.0))
    assert track.now == pytest.approx((20.5, 1.0))


def test_a_way_that_is_lost_is_found_at_the_next_anchor() -> None:
    track = Track()
    track.anchor(anchored(5.0, 0.1))
    track.begin()
    track.move(None)
    assert track.now is None
    track.anchor(anchored(7.0, 0.1))
    assert track.now is None  # of weights that it has lost since
    track.begin()
    track.anchor(anchored(8.0, 0.1))
    now = track.now
    assert now is not None
    assert now[0] == 8.0
