"""log Z from annealed weights: Bennett's estimate against weights of known laws, error bars and
bounds against laws whose log Z is known, and what is said where no error can be told.
"""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from scipy.special import stdtrit
from torch import Tensor

from benchmarks.known_laws import KNOWN, Known
from pipeline.evaluation.ais import place, there_and_back
from pipeline.evaluation.log_partition import (
    BATCHES,
    STUDENT,
    TAIL,
    LogPartition,
    bennett,
    effective_number,
    estimate,
    log_mean_exp,
)
from pipeline.evaluation.paths import path_to
from tests.statistics.test_evaluation import run

RATIO = 3.0  # log (Z_1 / Z_0) of the weights below


def weights(spread: float, forward: int, backward: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Log weights there and back. Where those there are N(c - s^2 / 2, s^2), Crooks' theorem makes
    those back N(-c - s^2 / 2, s^2).
    """
    generator = torch.Generator().manual_seed(seed)
    ahead, back = (
        spread * torch.randn(count, generator=generator, dtype=torch.float64) - spread**2 / 2
        for count in (forward, backward)
    )
    return ahead + RATIO, back - RATIO


@pytest.mark.parametrize("sizes", [(2000, 2000), (500, 4000)])
def test_bennetts_estimate_finds_the_ratio(sizes: tuple[int, int]) -> None:
    """Within 5 standard errors (6e-7) over 100 seeds; so with numbers of either way."""
    found = torch.tensor([bennett(*weights(1.5, *sizes, seed)) for seed in range(100)])
    error = float(found.std()) / 10
    assert error < 0.01
    assert abs(float(found.mean()) - RATIO) < 5 * error
    assert bennett(*weights(1.5, *sizes)) == pytest.approx(
        -bennett(*reversed(weights(1.5, *sizes))), abs=1e-6
    )


def test_bennetts_estimate_has_the_least_error() -> None:
    """At a spread of 3 nats the mean of weights one way is ten times as uncertain."""
    pairs = [weights(3.0, 200, 200, seed) for seed in range(200)]
    both, one = ([bennett(*pair) for pair in pairs], [log_mean_exp(pair[0]) for pair in pairs])
    errors = [float((torch.tensor(some) - RATIO).square().mean().sqrt()) for some in (both, one)]
    assert errors[0] < 0.4 * errors[1]


def test_the_quantile_of_students_t() -> None:
    assert pytest.approx(stdtrit(BATCHES - 1, 1 - TAIL), rel=1e-14) == STUDENT


def test_effective_number() -> None:
    assert effective_number(torch.zeros(7)) == pytest.approx(7)
    assert effective_number(torch.tensor([0.0, -1000.0, -1000.0])) == pytest.approx(1)
    assert effective_number(torch.tensor([0.0, 0.0, math.log(2)])) == pytest.approx(16 / 6)


def test_an_error_is_not_told_where_few_particles_count() -> None:
    """The bounds are then Markov's, and hold; a single particle has them too."""
    ahead, back = weights(8.0, 200, 200)
    found = estimate(1.0, ahead, [back])
    assert found.standard_error is None
    assert found.interval is None
    assert "of 200 particles count" in str(found.doubt)
    assert found.at_most is not None
    assert found.at_least < 1.0 + RATIO < found.at_most
    assert found.at_least == pytest.approx(1.0 + log_mean_exp(ahead) - math.log(20))
    assert estimate(0.0, ahead[:1]).standard_error is None


def test_ways_that_disagree_are_found_out() -> None:
    ahead, back = weights(0.5, 200, 200)
    assert estimate(0.0, ahead, [back]).doubt is None
    assert "there and back" in str(estimate(0.0, ahead, [back - 0.5]).doubt)
    for shift, doubted in ((0.0, False), (0.6, True)):
        found = estimate(0.0, ahead, [back[:100] - shift, back[100:] + shift])
        assert (found.standard_error is None) == doubted
        assert ("began apart" in str(found.doubt)) == doubted


def test_one_way_alone_has_one_bound() -> None:
    ahead, _ = weights(0.5, 200, 200)
    found = estimate(0.0, ahead)
    assert (found.at_most, found.backward) == (None, None)
    assert found.standard_error is not None
    assert found.value - 2 * found.standard_error < found.at_least < found.value


def test_bounds_hold_as_often_as_they_say() -> None:
    """Over 200 seeds, at spreads where few and where many particles count: 0.05 is 3 standard
    errors of a frequency of 0.05.
    """
    for spread in (0.5, 1.5, 4.0):
        found = [
            estimate(0.0, ahead, [back])
            for ahead, back in (weights(spread, 100, 100, seed) for seed in range(200))
        ]
        below = sum(one.at_least > RATIO for one in found)
        above = sum((one.at_most or 0.0) < RATIO for one in found)
        assert max(below, above) <= (0.05 + 0.05) * 200


@cache
def scores(name: str) -> tuple[Known, list[LogPartition]]:
    """Estimates of a known law, as an evaluation makes them, with 20 seeds; temperatures, which
    take as long to place as the estimate takes, are those of every fifth.
    """
    known, found = KNOWN[name](), []
    path, size = path_to(known.energy, known.rows), 60
    with torch.no_grad():
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            if seed % 5 == 0:
                schedule = run(place(path, size, size, generator))
            way = there_and_back(path, schedule, size, generator, known.rows, size)
            found.append(run(way)[0])
    return known, found


def share_covered(scale: float = 1.0) -> float:
    """The share of the 90 % intervals, made wider by a factor, that hold the truth."""
    held = []
    for name in KNOWN:
        known, found = scores(name)
        for one in found:
            if one.interval is not None:
                half = scale * (one.interval[1] - one.interval[0]) / 2
                held.append(abs(one.value - known.log_z) <= half)
    return sum(held) / len(held)


@pytest.mark.slow
def test_error_bars_cover_the_truth() -> None:
    """Over all laws a 90 % bar covers at least 85 % of the time: of 280 bars, 3 standard errors.
    Bars half as wide do not.
    """
    assert share_covered() >= 0.85
    assert share_covered(0.5) < 0.85


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_a_law_has_its_error_bars(name: str) -> None:
    """Of 20 bars 14 hold it at least (2e-3 for each law where they are right), and nearly every
    seed has one; the bounds enclose it, 90 % of the time.
    """
    known, found = scores(name)
    told = [one for one in found if one.interval is not None]
    assert len(told) >= 17
    assert sum(o.interval[0] <= known.log_z <= o.interval[1] for o in told if o.interval) >= 14
    assert sum(o.at_least <= known.log_z <= (o.at_most or -math.inf) for o in found) >= 14
