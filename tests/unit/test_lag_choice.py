"""The choice of what stale negatives get: estimates against closed forms, and the rule."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.chains.sampler import ChainPlan
from pipeline.common.types import Negatives
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.kernels import ula
from pipeline.objectives.base import NegativeSide, Term
from pipeline.objectives.contrastive import ContrastiveDivergence
from pipeline.training.lag_choice import (
    TOLERANCE,
    Ratio,
    Treatment,
    choose,
    possible_gain,
    relative_bias,
)
from pipeline.training.lag_probe import LagProbe
from pipeline.training.lag_trial import Look
from pipeline.training.refresh import Refresher

Small = Callable[..., RunConfig]
SHIFT, STEP, ROWS, DIMENSION = 0.3, 0.25, 500, 30
FREE, COSTLY = Ratio(0.4 * TOLERANCE, 0.4 * TOLERANCE), Ratio(0.9 * TOLERANCE, 0.2 * TOLERANCE)


class Hill(Energy):
    """E(x) = |x - theta|^2 / 2, so that p is N(theta, 1), and grad_theta E = theta - x."""

    def __init__(self) -> None:
        super().__init__((DIMENSION,))
        self.middle = nn.Parameter(torch.zeros(DIMENSION))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.middle).square().sum(1) / 2


def looks(config: RunConfig, count: int) -> list[Look]:
    """Looks at steps whose negatives are exact, and that move the middle by `SHIFT` each."""
    energy, generator = Hill(), torch.Generator().manual_seed(3)
    plan = ChainPlan(ula.kernel, {"step_size": STEP, "noise": None}, 2, restart=0.0)
    refresher = Refresher(energy, plan, torch.Generator().manual_seed(4))
    term = Term("", 1.0, ContrastiveDivergence(0.0))
    probe, found = LagProbe(config, energy, term, refresher), []
    for version in range(count + 1):
        with torch.no_grad():
            energy.middle[0] += SHIFT
            received = []
            for pool in range(2):
                x = energy.middle + torch.randn(ROWS, DIMENSION, generator=generator)
                age = torch.zeros(ROWS, dtype=torch.int64)
                received.append(Negatives(x, energy(x), age, pool, 0, version, version))
        side = NegativeSide(torch.cat([batch.position for batch in received]))
        if (look := probe.look(side, received, version)) is not None:
            found.append(look)
    return found


@pytest.mark.parametrize("chunks", ["null", "150"])
def test_bias_and_ess_are_those_of_two_normal_laws(small: Small, chunks: str) -> None:
    """|b|^2 is the shift's square, V the variance of a mean over all rows. ULA of step e takes
    (1 - e) of the shift away each time. Log-weights of variance s^2 have an ESS of exp(-s^2), and
    leave no bias of exact draws.
    """
    found = looks(small("deep", f"trainer.chunk_rows={chunks}"), 40)
    assert len(found) == 40
    moved = (1 - STEP) ** 4
    expected = {Treatment.PLAIN: 1.0, Treatment.REWEIGHTED: 0.0, Treatment.MOVED: moved}
    for treatment, share in expected.items():
        value, error = relative_bias([look.squares[treatment] for look in found], [2.0] * 40)
        assert value == pytest.approx(share * SHIFT**2 / 2, abs=5 * error)
        assert error < 0.15 * SHIFT**2 / 2
    noise = sum(look.variance for look in found) / 40
    assert noise == pytest.approx(DIMENSION / (2 * ROWS), rel=5 * math.sqrt(2 / (40 * DIMENSION)))
    ratios = [look.ess for look in found if look.ess is not None]
    assert sum(ratios) / 40 == pytest.approx(math.exp(-(SHIFT**2)), abs=0.01)


def test_no_ess_where_nothing_may_be_reweighted(small: Small) -> None:
    (look,) = looks(small("deep", "trainer.reweight=false"), 1)
    assert look.ess is None


def test_only_one_version_is_looked_at(small: Small) -> None:
    """Not at batches of several versions, nor across a step that was not seen."""
    energy, term = Hill(), Term("", 1.0, ContrastiveDivergence(0.0))
    probe = LagProbe(small("deep"), energy, term, None)

    def look(version: int, *made: int) -> Look | None:
        x = torch.randn(4, DIMENSION)
        age = torch.zeros(4, dtype=torch.int64)
        received = [Negatives(x, energy(x).detach(), age, 0, 0, 0, other) for other in made]
        return probe.look(NegativeSide(x.repeat(len(made), 1)), received, version)

    assert look(5, 5, 5) is None
    assert look(6, 6, 6) is not None
    assert look(7, 7, 6) is None
    assert look(8, 8, 8) is None
    assert look(10, 10, 10) is None
    assert look(11, 11, 11) is not None
    assert energy.middle.grad is None


def test_the_noise_of_halves_is_no_bias() -> None:
    """Where stale and fresh have one law, 400 steps average to nothing within 5 standard errors,
    though a single one is off by far more.
    """
    generator = torch.Generator().manual_seed(0)
    squares = [float(one @ other) for one, other in torch.randn(400, 2, 50, generator=generator)]
    value, error = relative_bias(squares, [1.0] * 400)
    assert abs(value) < 5 * error
    assert error == pytest.approx(math.sqrt(50 / 400), rel=0.2)


def test_a_gradient_that_is_nothing_is_infinitely_wrong() -> None:
    assert relative_bias([1.0, 2.0], [0.0, 0.0]) == (math.inf, math.inf)


@pytest.mark.parametrize(
    ("plain", "reweighted", "moved", "ess", "expected"),
    [
        (FREE, FREE, FREE, 0.9, Treatment.PLAIN),
        (COSTLY, FREE, FREE, 0.9, Treatment.REWEIGHTED),
        (COSTLY, FREE, FREE, 0.7, Treatment.MOVED),
        (COSTLY, COSTLY, FREE, 0.9, Treatment.MOVED),
        (COSTLY, COSTLY, COSTLY, 0.9, Treatment.NONE),
        (COSTLY, FREE, COSTLY, 0.7, Treatment.NONE),
        (COSTLY, None, None, None, Treatment.NONE),
    ],
)
def test_the_cheapest_that_is_free(
    plain: Ratio,
    reweighted: Ratio | None,
    moved: Ratio | None,
    ess: float | None,
    expected: Treatment,
) -> None:
    found = zip(Treatment, (plain, reweighted, moved), strict=False)
    bias = {treatment: ratio for treatment, ratio in found if ratio is not None}
    assert choose(bias, ess, 0.8) is expected


@pytest.mark.parametrize(
    ("interval", "ahead", "step", "expected"),
    [
        (10.0, 0.0, 5.0, 2.0),  # rounds and steps cost the same, one after the other
        (10.0, 4.0, 3.0, 10 / 7),  # half of the step is done beside the pools already
        (10.0, 0.0, 9.5, 10 / 9.5),  # there is next to nothing to wait for
        (10.0, 0.0, 1.0, 10 / 9),  # the pools are nearly all there is
        (10.0, 10.0, 1.0, 1.0),
    ],
)
def test_possible_gain(interval: float, ahead: float, step: float, expected: float) -> None:
    assert possible_gain(interval, ahead, step) == pytest.approx(expected)
