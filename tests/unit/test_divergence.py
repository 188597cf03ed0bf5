"""The watch on reports that were made up: what is well raises no alarm, what is absurd does."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.common.errors import DivergenceError
from pipeline.common.types import EnergyMoments, Figures, RoundReport, StepReport, Usage
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.evaluation.words import in_words
from pipeline.runs.divergence import AT_THE_END, LATER, SOON, DivergenceWatch
from pipeline.runs.rollbacks import CALM, Rollbacks
from pipeline.storage.store import CheckpointStore

Small = Callable[..., RunConfig]
NOTHING = Usage(0.0, 0, 0)
BITS, PLANE = Energy((64,), levels=2), Energy((2,))


def report(
    version: int,
    gap: float = -1.0,
    spread: float = 4.0,
    level: float = 0.0,
    loss: float = 0.0,
    skipped: bool = False,
    chains: bool = True,
) -> StepReport:
    """A step whose data are `gap` nats above its chains, which are at `level`."""
    return StepReport(
        version=version,
        loss=loss,
        parts={"pcd.positive": level + gap, "pcd.negative": level} if chains else {"score": loss},
        gradient_norm=1.0,
        learning_rate=0.1,
        negatives=100 if chains else 0,
        lags=(0,),
        ess=(1.0,),
        lag_bound=0,
        skipped=skipped,
        seconds={},
        energy_moments=(EnergyMoments(0, level, spread**2, 100),) if chains else (),
        usage=(NOTHING,),
    )


def round_of(acceptance: float) -> RoundReport:
    return RoundReport(0, 0, 0, 0, 10, acceptance, 0.1, (), 0, 0, 0.0, NOTHING)


def alarm(
    energy: Energy, of_step: Callable[[int], StepReport], steps: int = 1000, acceptance: float = 0.9
) -> tuple[int, str] | None:
    """The step of the first alarm, and its cause."""
    watch = DivergenceWatch(energy)
    for version in range(1, steps + 1):
        cause = watch.observe(of_step(version), [round_of(acceptance)])
        if cause is not None:
            return version, cause
    return None


def test_a_run_that_is_well_raises_no_alarm() -> None:
    """Noise of a few nats, an early gap of half a nat a dimension, a level that drifts far."""
    noise = np.random.default_rng(0).standard_normal(2001)
    assert alarm(BITS, lambda at: report(at, 4 * noise[at] - 30 * math.exp(-at / 50)), 2000) is None
    assert alarm(PLANE, lambda at: report(at, noise[at], level=-5.0 * at), 2000) is None


def test_at_the_last_step_a_few_steps_are_enough() -> None:
    """A run of few steps does not end as if it were well; one that had a bad step does."""
    for bad, diverged in ((AT_THE_END - 1, False), (AT_THE_END, True)):
        watch = DivergenceWatch(BITS)
        of_last = [watch.observe(report(at, 55.0), [], last=at == bad) for at in range(1, bad + 1)]
        assert (of_last[-1] is not None) == diverged
        assert not any(of_last[:-1])


def test_a_gap_above_the_uniform_laws_likelihood_is_a_divergence() -> None:
    """64 log 2 = 44.4 nats, and 10 for the noise: beyond, whatever the chains are."""
    assert alarm(BITS, lambda at: report(at, 54.0)) is None
    at, cause = alarm(BITS, lambda at: report(at, 55.0)) or (0, "")
    assert at == SOON
    assert "55 at step 20" in cause
    assert "above 54.36" in cause
    assert "lower optimizer.learning_rate" in cause


def test_one_step_in_three_is_no_divergence_and_two_in_three_are() -> None:
    assert alarm(BITS, lambda at: report(at, 500.0 if at % 3 == 0 else 0.0)) is None
    at, _ = alarm(BITS, lambda at: report(at, 0.0 if at % 3 == 0 else 500.0)) or (0, "")
    assert SOON < at <= 2 * SOON


@pytest.mark.parametrize(
    ("wrong", "patience", "said"),
    [
        ({"gap": 121.0}, SOON, "of the data less that of the chains"),
        ({"gap": -301.0}, LATER, "of the chains less that of the data"),
        ({"spread": 301.0}, LATER, "standard deviation"),
        ({"level": 2.0**21}, SOON, "magnitude"),
        ({"gap": math.nan}, SOON, "nan"),
        ({"skipped": True}, SOON, "not finite"),
    ],
)
def test_each_figure_has_its_bound(wrong: dict[str, float], patience: int, said: str) -> None:
    """In the plane data may be 100 + 2 * 10 nats above chains, and chains 100 + 2 * 100 above."""
    at, cause = alarm(PLANE, lambda at: report(at, **wrong)) or (0, "")  # type: ignore[arg-type]
    assert at == patience
    assert said in cause


def test_chains_on_their_way_from_noise_are_given_time() -> None:
    assert alarm(PLANE, lambda at: report(at, -1e5 * math.exp(-at / 10), 1e3 / at)) is None


def test_an_acceptance_that_collapsed_blames_the_kernel() -> None:
    assert alarm(PLANE, report, acceptance=2e-3) is None
    at, cause = alarm(PLANE, report, acceptance=5e-4) or (0, "")
    assert at == LATER
    assert "below 0.001" in cause
    assert "kernel.step_size" in cause


def test_a_loss_without_chains_is_held_against_the_first() -> None:
    """And against the uniform law's, where it tells a likelihood."""

    def of(late: float) -> Callable[[int], StepReport]:
        return lambda at: report(at, loss=50.0 if at < 5 else late, chains=False)

    assert alarm(PLANE, of(499.0)) is None
    assert alarm(PLANE, of(-1e5)) is None
    assert alarm(PLANE, of(501.0)) is not None

    def pseudo(loss: float) -> Callable[[int], StepReport]:
        return lambda at: report(at, loss=loss, chains=False)._replace(parts={"conditional": loss})

    assert alarm(BITS, pseudo(54.0)) is None
    assert alarm(BITS, pseudo(55.0)) is not None


# -- which checkpoints are good --------------------------------------------------------------------


class Played:
    """Rollbacks over a store, played step by step."""

    def __init__(self, config: RunConfig, output: Path) -> None:
        self.config, self.store = config, CheckpointStore(str(output), config.checkpoint.keep)
        self.rollbacks = Rollbacks(config, self.store, BITS)
        self.version = 0

    def save(self) -> None:
        self.store.commit(self.version, [], self.config, BITS)
        self.rollbacks.saved(self.version)

    def steps(self, count: int, gap: float = 0.0) -> None:
        for _ in range(count):
            self.version += 1
            made = report(self.version, gap)._replace(rate_factor=self.rollbacks.factor)
            self.rollbacks.observe(made, [])

    def diverges(self) -> int:
        """Where the run goes back to when it diverges now: a step, 0 the beginning."""
        with pytest.raises(DivergenceError) as failure:
            self.steps(SOON, 1e3)
        self.rollbacks.spend(failure.value)
        checkpoint, _ = next(self.rollbacks.starts())
        self.version = checkpoint.step if checkpoint is not None else 0
        self.rollbacks.went_back(self.version)
        return self.version


def test_a_good_checkpoint_is_one_that_calm_followed(small: Small, tmp_path: Path) -> None:
    run = Played(small("rbm", "trainer.steps=1000", "checkpoint.keep=9"), tmp_path)
    run.rollbacks.begin(0)
    run.steps(10)
    run.save()
    run.steps(CALM)
    run.save()  # at 60, just before it goes wrong
    run.steps(SOON - 1, 1e3)
    run.save()  # at 79, in the middle of it
    assert run.diverges() == 10
    assert [each.step for each in run.store.complete()] == [10]
    assert run.diverges() == 10, "it stays good"


def test_without_a_good_one_the_run_begins_again(small: Small, tmp_path: Path) -> None:
    run = Played(small("rbm", "trainer.steps=1000"), tmp_path)
    run.rollbacks.begin(0)
    run.steps(SOON - 1, 1e3)
    run.save()
    assert run.diverges() == 0
    assert not list(run.store.complete())


def test_a_doubtful_one_is_tried_once(small: Small, tmp_path: Path) -> None:
    """The only one that was kept, written too lately to be known: better than the beginning."""
    run = Played(small("rbm", "trainer.steps=1000", "checkpoint.keep=1"), tmp_path)
    run.rollbacks.begin(0)
    run.steps(500)
    run.save()
    assert run.diverges() == 500
    assert run.diverges() == 0


def test_an_earlier_processs_checkpoints_are_tried_newest_first(
    small: Small, tmp_path: Path
) -> None:
    run = Played(small("rbm", "trainer.steps=1000"), tmp_path)
    for run.version in (100, 200):
        run.store.commit(run.version, [], run.config, BITS)
    run.rollbacks.begin(200)
    assert run.diverges() == 200
    assert run.diverges() == 100
    run.steps(CALM)  # which shows that it is good
    assert run.diverges() == 100


def test_the_learning_rate_falls_and_the_last_time_is_the_end(small: Small, tmp_path: Path) -> None:
    run = Played(small("rbm", "trainer.steps=1000", "trainer.rollbacks=2"), tmp_path)
    run.rollbacks.begin(0)
    run.diverges()
    run.diverges()
    assert (run.rollbacks.count, run.rollbacks.factor) == (2, pytest.approx(0.01))
    with pytest.raises(DivergenceError, match=r"the run diverged: .*after 2 rollbacks"):
        run.diverges()


def test_null_watches_nothing(small: Small, tmp_path: Path) -> None:
    run = Played(small("rbm", "trainer.steps=1000", "trainer.rollbacks=null"), tmp_path)
    run.rollbacks.begin(0)
    run.steps(200, 1e9)
    with pytest.raises(DivergenceError, match="as it is"):
        run.rollbacks.spend(DivergenceError("as it is"))


@pytest.mark.parametrize(
    ("trained", "untrained", "at_most", "warned"),
    [
        (-521.7, -25.3, None, True),
        (math.nan, -25.3, None, True),
        (-26.0, -25.3, None, False),
        (-28.0, -25.3, -25.9, False),
        (-28.0, -25.3, -27.9, True),
        (-20.0, -25.3, None, False),
        (-521.7, math.nan, None, False),
    ],
)
def test_a_model_worse_than_untrained_is_said(
    trained: float, untrained: float, at_most: float | None, warned: bool
) -> None:
    """A run too short for the watch may have diverged as well."""
    figures: Figures = {
        "test_log_likelihood": trained,
        "method": "exact",
        "baselines": {"untrained": untrained},
    }
    if at_most is not None:
        figures["test_log_likelihood_at_most"] = at_most
    told = [line for line in in_words(figures) if line.startswith("warning: ")]
    assert len(told) == warned
    figures["test_log_likelihood_bound"] = figures.pop("test_log_likelihood")
    assert not any(line.startswith("warning: ") for line in in_words(figures)), "a bound is less"
