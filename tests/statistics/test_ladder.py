"""log Z along a ladder: Bennett's estimate against another root finder, enumeration and quadrature;
and the live likelihood that is made of it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import expit

from pipeline.assembly.chains import make_chains
from pipeline.assembly.data import open_data
from pipeline.assembly.energies import make_energy
from pipeline.chains.sampler import ChainPlan, Sampler
from pipeline.common.types import Bridged, RoundReport, StepReport, Usage, Weights
from pipeline.config.run import RunConfig
from pipeline.energies.quadrature import MidpointRule
from pipeline.energies.rbm import BernoulliRBM
from pipeline.energies.weights import flatten, unflatten_
from pipeline.evaluation.conditional import reach
from pipeline.kernels import gibbs
from pipeline.kernels.bridging import along_ladder, bennett
from pipeline.kernels.replica_exchange import over
from pipeline.runs.inline import InlineRunner
from pipeline.runs.ladder import LadderLikelihood, scatter

Small = Callable[..., RunConfig]
PLANE = ("data=toy", "data.rows=3000", "data.held_out=500", "kernel.adapt_rounds=0")


@pytest.mark.parametrize("sizes", [(300, 300), (100, 400)])
def test_bennetts_ratios_are_the_roots(sizes: tuple[int, int]) -> None:
    """Of three pairs at once, as Brent's method finds them one by one."""
    generator = torch.Generator().manual_seed(0)
    ahead = 2 * torch.randn(3, sizes[0], generator=generator) + torch.tensor([[-30.0], [0], [4]])
    back = 2 * torch.randn(3, sizes[1], generator=generator) - torch.tensor([[-30.0], [0], [4]])
    shift = np.log(sizes[1] / sizes[0])
    for a, b, found in zip(ahead.numpy(), back.numpy(), bennett(ahead, back), strict=True):

        def excess(c: float, a: np.ndarray = a, b: np.ndarray = b) -> float:
            return float(expit(a - c + shift).sum() - expit(b + c - shift).sum())

        assert float(found) == pytest.approx(brentq(excess, -60, 60), abs=1e-6)


def rounds_of(rbm: BernoulliRBM, rounds: int, transitions: int) -> list[Bridged]:
    """Of 60 chains on four rungs, after 50 transitions from the base law."""
    kernel = over(gibbs.kernel, 4, 1)
    generator = torch.Generator().manual_seed(1)
    sampler = Sampler(rbm, ChainPlan(kernel, {}, transitions, 0.0, rungs=4), 60, generator)
    sampler.position = sampler.position.double()
    sampler._target.beta = sampler._target.beta.double()
    sampler.advance(generator, 50)
    found = []
    for _ in range(rounds):
        sampler.advance(generator, 4)  # for the next to be independent
        done = sampler.advance(generator, transitions)
        assert done.log_weights is not None
        one = along_ladder(done.log_weights, rbm.base_log_partition())
        assert one is not None
        found.append(one)
    return found


def test_a_ladder_tells_log_z_of_a_machine(tiny_rbm: BernoulliRBM) -> None:
    """100 rounds: their mean within 4.5 standard errors of enumeration (7e-6), the variance that is
    told within 35 % of theirs (0.1 %: 4.9 errors of a standard deviation, 7 %), and 90 % intervals
    that hold it in 80 at least (0.1 %).
    """
    truth = tiny_rbm.log_partition()
    assert truth is not None
    found = rounds_of(tiny_rbm, 100, 2)
    values = np.array([one.log_partition for one in found])
    told = np.array([one.variance for one in found])
    assert abs(values.mean() - truth) < 4.5 * np.sqrt(told.mean() / len(found))
    assert np.sqrt(told.mean()) == pytest.approx(values.std(ddof=1), rel=0.35)
    assert (np.abs(values - truth) < 1.645 * np.sqrt(told)).sum() >= 80
    assert min(one.counting for one in found) > 10


def test_weights_that_are_not_finite_tell_nothing() -> None:
    weights = torch.zeros(2, 2, 3, 8)
    weights[1, 0, 2, 4] = torch.inf
    assert along_ladder(weights, 0.0) is None


def test_a_pool_tells_log_z_of_a_deep_energy_in_the_plane(small: Small) -> None:
    """Every so many versions, within 5 standard errors of quadrature (6e-7)."""
    config = small("ladder", *PLANE, "chains.per_pool=200", "kernel.transitions=20")
    data = open_data(config)
    energy = make_energy(config, data.shape).requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    for parameter in energy.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    truth = float(MidpointRule(*reach(energy, data), 400).precise_log_integral(energy))
    pool, flat = make_chains(config, data.shape, 0), flatten(energy)
    every = config.metrics.held_out_every
    reports = [pool.advance(Weights(every - 1, flat))[1] for _ in range(20)]
    assert [report.bridged for report in reports] == [None] * 20
    found = pool.advance(Weights(every, flat))[1].bridged
    assert found is not None
    assert found.systems == 200
    assert found.counting > 50
    assert found.variance**0.5 < 0.05
    assert abs(found.log_partition - truth) < 5 * found.variance**0.5


@pytest.mark.parametrize("lag", [0, 2])
def test_a_run_has_its_likelihood(small: Small, lag: int) -> None:
    """Of the version that it says, whose weights move so little that chains keep up: within five of
    its standard errors of quadrature over the same rows (6e-7).
    """
    config = small(
        *("ladder", *PLANE, "chains.per_pool=100", "kernel.transitions=10", "cluster=inline"),
        *("metrics.held_out_every=10", "optimizer.learning_rate=1e-5", f"trainer.lag={lag}"),
        "trainer.lag_mode=exact",
    )
    data, runner, ladder = open_data(config), InlineRunner(config), LadderLikelihood()
    runner.start(None, None)
    energy = make_energy(config, data.shape).requires_grad_(False)
    flat, told = {}, []
    for _ in range(40):
        report, rounds, _ = runner.step()
        flat[report.version] = runner._learner.publish().flat
        report = ladder.tell(report, rounds)
        if "log_likelihood" in report.figures:
            version = int(report.figures["log_likelihood_version"])
            assert report.version == version + 1 + lag
            unflatten_(energy, flat[version])
            log_z = float(MidpointRule(*reach(energy, data), 400).precise_log_integral(energy))
            truth = float(-energy(data.held_out).double().mean()) - log_z
            low, high = (report.figures[f"log_likelihood_at_{end}"] for end in ("least", "most"))
            error = (high - low) / 2 / 1.645
            assert abs(report.figures["log_likelihood"] - truth) < 5 * error
            told.append(version)
    assert told == [10, 20, 30]


def step(version: int, **figures: float) -> StepReport:
    nothing = Usage(0.0, 0, 0)
    return StepReport(
        version, 0.0, {}, 0.0, 0.0, 0, (), (), 1, False, {}, (), (nothing,), figures=figures
    )


def round_of(version: int, bridged: Bridged | None, pool: int = 0) -> RoundReport:
    nothing = Usage(0.0, 0, 0)
    return RoundReport(pool, 0, 0, version, 1, 1.0, None, (), 0, 0, 0.0, nothing, bridged=bridged)


def test_both_sides_are_joined_by_version() -> None:
    """Pools by their systems; a version that one side lacks has no figure, nor one of which few
    systems count.
    """
    ladder = LadderLikelihood()
    one, other = Bridged(2.0, 0.04, 100, 50.0), Bridged(5.0, 0.01, 50, 50.0)
    ladder.tell(step(20, held_out=1.0, training=0.0), [round_of(19, one)])
    told = ladder.tell(step(21), [round_of(20, one), round_of(20, other, 1), round_of(20, None)])
    assert told.figures["log_likelihood"] == pytest.approx(-1.0 - 3.0)
    assert told.figures["log_likelihood_version"] == 20
    half = 1.645 * (0.04 * 4 / 9 + 0.01 / 9) ** 0.5
    assert told.figures["log_likelihood_at_most"] + 4.0 == pytest.approx(half, rel=1e-3)
    assert not ladder.tell(step(22), [round_of(20, one)]).figures  # told already
    ladder.tell(step(40, held_out=1.0, training=0.0), [])
    ladder.tell(step(43), [])
    assert not ladder.tell(step(44), [round_of(40, one)]).figures  # staler than the bound allows
    ladder.tell(step(60, held_out=1.0, training=0.0), [])
    few = one._replace(counting=9.0)
    assert not ladder.tell(step(61), [round_of(60, few)]).figures


def test_an_exact_likelihood_stands_alone() -> None:
    ladder, one = LadderLikelihood(), Bridged(2.0, 0.04, 100, 50.0)
    ladder.tell(step(20, held_out=1.0, training=0.0, log_likelihood=-3.0), [])
    assert not ladder.tell(step(21), [round_of(20, one)]).figures


def test_the_scatter_is_that_of_the_errors() -> None:
    """About a curve, at uneven places: the mean of 300 medians within 35 % of the variance."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(300):
        x = np.cumsum(generator.integers(1, 4, 16)) * 20
        y = np.sqrt(x / 1000) + 0.1 * generator.standard_normal(16)
        found.append(scatter(list(zip(x.tolist(), y.tolist(), strict=True))))
    assert np.mean(found) == pytest.approx(0.01, rel=0.35)
    assert scatter([(1, 0.0), (2, 5.0), (3, 0.0), (4, 5.0)]) == 0
