"""The course of a run that chooses its lag, with paces and looks made up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.config.run import RunConfig
from pipeline.runs.lag import in_words
from pipeline.training.lag_choice import Treatment
from pipeline.training.lag_trial import PROBE_STEPS, TIMED_STEPS, LagTrial, Look, Pace, Seen

Small = Callable[..., RunConfig]
WORTH = Pace(1.0, 0.0, 0.5)  # seconds, in lock-step
QUICKER = Pace(0.6, 0.0, 0.5)
STEPS = 2000


@pytest.fixture
def trial(small: Small) -> LagTrial:
    return LagTrial(small("rbm", "trainer.lag=auto", f"trainer.steps={STEPS}"))


def run(
    trial: LagTrial,
    plain: float,
    moved: float = 1.0,
    ess: float | None = None,
    *,
    steps: int = STEPS,
    first: int = 0,
    lock_step: Pace = WORTH,
    lagging: Pace = QUICKER,
) -> list[int]:
    """The bounds after each step, of a run in which treatments have these relative biases, and
    reweighted negatives none.
    """
    bounds = []
    for version in range(first + 1, first + steps + 1):
        squares = {Treatment.PLAIN: plain, Treatment.MOVED: moved}
        if ess is not None:
            squares[Treatment.REWEIGHTED] = 0.0
        look = Look(squares, 1.0, ess)
        pace = lagging if trial.bound else lock_step
        trial.observe(version, [Seen(pace, look if trial.probing else None)])
        bounds.append(trial.bound)
    return bounds


def spans(bounds: list[int]) -> list[tuple[int, int]]:
    """The stretches under the lag: from which step to before which one."""
    padded = [0, *bounds, 0]
    changes = [step for step in range(len(bounds) + 1) if padded[step] != padded[step + 1]]
    return list(zip(changes[::2], changes[1::2], strict=True))


def test_what_is_free_and_quicker_is_kept_and_looked_at_again(trial: LagTrial) -> None:
    """In lock-step to a twentieth of the run, and while it looks."""
    bounds = run(trial, plain=0.0)
    due = [99, 399, 699, 999, 1299, 1599]
    assert spans(bounds) == [
        (begin + PROBE_STEPS, end) for begin, end in zip(due, [*due[1:], STEPS], strict=True)
    ]
    choice = trial.choice
    assert (choice.treatment, choice.settled) == ("plain", False)
    assert (choice.possible, choice.gain) == (2.0, pytest.approx(1 / 0.6))
    assert in_words(choice).endswith("1.67 times the steps of lock-step")


def test_what_cannot_be_quicker_is_not_looked_at(trial: LagTrial) -> None:
    bounds = run(trial, plain=0.0, lock_step=Pace(1.0, 0.0, 0.95))
    assert not any(bounds)
    assert trial.choice.bias == {}
    assert in_words(trial.choice) == "lag: lock-step; at best lag would make 1.05 times its steps"


def test_what_is_not_quicker_is_tried_once(trial: LagTrial) -> None:
    bounds = run(trial, plain=0.0, lagging=WORTH)
    first = 99 + PROBE_STEPS
    assert spans(bounds) == [(first, first + TIMED_STEPS)]
    assert trial.choice.treatment == "none"
    assert in_words(trial.choice) == "lag: lock-step; lag was tried, and made 1.00 times its steps"


def test_what_is_not_free_is_never_done(trial: LagTrial) -> None:
    assert not any(run(trial, plain=0.5, ess=0.3))
    words = in_words(trial.choice)
    assert words.startswith("lag: lock-step; stale negatives were not free (")
    assert words.endswith("plain 0.500, moved 1.000, reweighted 0.000; ESS of the weights 0.30)")


def test_what_becomes_free_late_is_done_late(trial: LagTrial) -> None:
    assert not any(run(trial, plain=0.5, steps=1100))
    bounds = run(trial, plain=0.0, first=1100, steps=900)
    assert spans(bounds)[0] == (1299 - 1100 + PROBE_STEPS, 1599 - 1100)


def test_the_treatment_changes_with_what_is_found(trial: LagTrial) -> None:
    run(trial, plain=0.5, moved=0.0, ess=0.3, steps=300)
    assert trial.treatment is Treatment.MOVED
    run(trial, plain=0.5, moved=0.0, ess=0.99, first=300, steps=300)
    assert trial.treatment is Treatment.REWEIGHTED
    run(trial, plain=0.5, moved=0.5, ess=0.3, first=600, steps=300)
    assert (trial.treatment, trial.bound) == (Treatment.NONE, 0)


def test_ranks_are_of_one_mind(trial: LagTrial) -> None:
    """What each of two sees alone would be free for the one only; it is their mean that counts."""
    for version in range(1, STEPS + 1):
        looks = [Look({Treatment.PLAIN: square}, 2.0, None) for square in (0.0, 0.6)]
        trial.observe(version, [Seen(WORTH, look if trial.probing else None) for look in looks])
        assert not trial.bound
    assert trial.choice.bias == {"plain": pytest.approx(0.3)}


def test_a_resumed_run_looks_anew(trial: LagTrial) -> None:
    bounds = run(trial, plain=0.0, first=1700, steps=300)
    assert spans(bounds) == [(TIMED_STEPS - 1 + PROBE_STEPS, 300)]


def test_a_run_that_ends_too_soon_says_so(trial: LagTrial) -> None:
    assert not any(run(trial, plain=0.0, steps=60))
    assert in_words(trial.choice).endswith("too short to look for anything else")
    run(trial, plain=0.0, first=60, steps=50)
    assert in_words(trial.choice).endswith("the run ended while it looked at what lag would do")


def test_too_few_looks_decide_nothing(trial: LagTrial) -> None:
    """Where pools come and go, negatives are rarely all fresh."""
    for version in range(1, 399):
        trial.observe(version, [Seen(WORTH)])
        assert not trial.bound
    assert not trial.probing
    assert trial.choice.bias == {}
