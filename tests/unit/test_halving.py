"""Successive halving on trials whose scores are known, and the command lines of sweeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import pytest

from pipeline.common.errors import ConfigError
from pipeline.config.sweep import parse
from pipeline.runs.halving import Advance, Result, best_of, halve, rungs_of


def by(score: Callable[[int, int], float], made: list[tuple[int, int]]) -> Advance:
    """Trials that score so by number and rung; what is asked for is noted in `made`."""

    def advance(trials: Sequence[int], rung: int, step: int) -> Iterator[Result]:
        for trial in trials:
            made.append((trial, rung))
            value = score(trial, rung)
            failed = "diverged" if value == -math.inf else None
            yield Result(trial, rung, step, value, 0.0, failed=failed)

    return advance


def test_a_third_goes_on_to_three_times_the_steps() -> None:
    made: list[tuple[int, int]] = []
    rungs = rungs_of(4500, 3, 3)
    results = list(halve(27, rungs, 3, (), by(lambda trial, _: float(trial), made)))
    assert rungs == [500, 1500, 4500]
    assert [sum(rung == r for _, rung in made) for r in range(3)] == [27, 9, 3]
    assert {trial for trial, rung in made if rung == 2} == {24, 25, 26}
    best = best_of(results)
    assert best is not None
    assert (best.trial, best.step) == (26, 4500)


def test_what_is_known_is_not_made_again_and_failures_do_not_go_on() -> None:
    made: list[tuple[int, int]] = []

    def score(trial: int, _: int) -> float:
        return -float(trial) if trial else -math.inf

    whole = list(halve(6, [1, 3], 3, (), by(score, made)))
    assert {trial for trial, rung in made if rung == 1} == {1, 2}
    for cut in range(len(whole)):
        made.clear()
        rest = list(halve(6, [1, 3], 3, whole[:cut], by(score, made)))
        assert len(made) == len(whole) - cut
        assert best_of([*whole[:cut], *rest]) == best_of(whole)
    none = list(halve(2, [1, 3], 3, (), by(lambda *_: -math.inf, made)))
    assert best_of(none) is None
    assert len(none) == 2


def test_a_few_steps_have_as_many_rungs_as_there_can_be() -> None:
    assert rungs_of(2, 3, 3) == [1, 2]
    assert rungs_of(1, 3, 3) == [1]


def test_every_combination_is_a_trial() -> None:
    asked = parse(
        ["experiment=toy", "seed=1,2", "energy.hidden=[8],[8,8]", "objective=pcd,cd", "output=x"]
    )
    assert len(asked.trials) == 8
    assert asked.swept["energy.hidden"] == ["[8]", "[8,8]"]
    config = asked.config(7, "here")
    assert (config.seed, config.energy.hidden, config.objective.name) == (2, (8, 8), "cd")
    assert (config.output, config.cluster.name, config.recorders) == ("here", "inline", ("series",))
    assert asked.base.output == "x"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "sweep=(missing): no key has several values; give key=a,b,c"),
        (["seed=1,2", "sweep.rungs=0"], "sweep.rungs=0: should be greater than or equal to 1"),
        (["seed=1,2", "sweep.rung=2"], "sweep.rung=2: unknown key"),
        (["trainer.stepz=1,2"], "trainer.stepz=1: unknown key; did you mean trainer.steps"),
        (["trainer.steps=10,0"], "trainer.steps=0: should be greater than or equal to 1"),
        (["seed=1,2", "trainer.steps", "100"], "trainer.steps=(missing): write trainer.steps=100"),
        (["optimizer.learning_rate=interval(0,1)"], "values are given one by one"),
        (["seed=range(0,20000)"], "too many trials: at most 10,000"),
        (
            ["experiment=conditional_regression", "seed=1,2"],
            "sweep.figure=null: energy=conditional_mlp on data=conditional_toy has no held-out",
        ),
        (["experiment=maxent_moments", "seed=1,2"], "on data=none has no held-out"),
        (["energy=mlp,rbm"], "kernel=mala: energy=rbm is over"),
        (["output=a,b"], "output=a,b: is the same for all trials"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_its_first_trial(
    arguments: list[str], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(arguments)
    assert words in str(caught.value)
