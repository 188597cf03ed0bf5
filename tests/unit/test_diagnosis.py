"""Verdicts from reports that were made up: each cause by its own sign, none where all is well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.assembly.chains import make_plan
from pipeline.assembly.data import open_data
from pipeline.assembly.energies import make_energy
from pipeline.assembly.fit import misfits, row_spread
from pipeline.chains.sampler import Sampler
from pipeline.common.rng import torch_generator
from pipeline.common.types import (
    EnergyMoments,
    Motion,
    RoundReport,
    StepReport,
    Usage,
    Verdict,
)
from pipeline.config import parts
from pipeline.config.run import RunConfig
from pipeline.diagnosis.causes import Facts
from pipeline.diagnosis.ending import ending, in_words
from pipeline.diagnosis.watch import Diagnosis
from pipeline.runs.inline import InlineRunner

Small = Callable[..., RunConfig]
NOTHING = Usage(0.0, 0, 0)
WELL = Motion(change=-0.2, spread=4.0, memory=0.5, distance=0.3)
FIGURES = {
    "held_out": 1.0,
    "training": 0.5,
    "told_apart": 0.52,
    "turnover": 0.1,
    "persistence": 0.1,
    "energy_distance": 0.005,
}


def step_of(version: int, **changed: Any) -> tuple[StepReport, list[RoundReport]]:
    """A step of a run that is well, with its two pools' rounds, but for what is `changed`: of the
    figures, of the motion (of pool 1 alone: `other`), of the rounds and of the step.
    """
    motion = WELL._replace(**{k: v for k, v in changed.items() if k in Motion._fields})
    figures = {name: changed.get(name, value) for name, value in FIGURES.items()}
    gap = changed.get("gap", 2.0)
    level = changed.get("level", 0.0)
    moments = tuple(EnergyMoments(pool, level * pool, 16.0, 100) for pool in (0, 1))
    step = StepReport(
        version=version,
        loss=0.0,
        parts={"positive": 0.0, "negative": gap},
        gradient_norm=1.0,
        learning_rate=0.1,
        negatives=200,
        lags=(changed.get("lag", 0),),
        ess=(changed.get("ess", 1.0),),
        lag_bound=0,
        skipped=changed.get("skipped", False),
        seconds={},
        energy_moments=moments,
        usage=(NOTHING,),
        figures=figures if version % 20 == 0 else {},
    )
    rounds = [
        RoundReport(
            pool=pool,
            incarnation=0,
            round=version,
            version=version - 1,
            transitions=500,
            acceptance=changed.get("acceptance", 0.8),
            step_size=0.1,
            swaps=changed.get("swaps", ()),
            reseeded=changed.get("reseeded", 0) if pool else 0,
            restarted=changed.get("restarted", 0),
            seconds=0.1,
            usage=NOTHING,
            motion=changed.get("other", motion) if pool else motion,
        )
        for pool in (0, 1)
    ]
    return step, rounds


def told(config: RunConfig, steps: int = 300, **changed: Any) -> list[tuple[int, Verdict]]:
    """The verdicts on so many steps, and when they came. A value that is a function is one of the
    version.
    """
    diagnosis = Diagnosis(Facts(config, 1.0))
    diagnosis.begin(0, from_scratch=True)
    found = []
    for version in range(1, steps + 1):
        now = {name: v(version) if callable(v) else v for name, v in changed.items()}
        found += [(version, each) for each in diagnosis.observe(*step_of(version, **now))]
    return found


def test_a_run_that_is_well_gets_no_verdict(small: Small) -> None:
    assert told(small("deep"), 2000) == []


@pytest.mark.parametrize(
    ("cause", "changed"),
    [
        ("not_finite", {"skipped": True}),
        ("pool", {"other": WELL._replace(distance=0.001)}),
        ("pool", {"level": 30.0}),
        ("pool", {"reseeded": 10}),
        ("step_size", {"acceptance": 0.01}),
        ("chains_stand", {"memory": 0.995, "distance": 0.01, "acceptance": 1.0}),
        ("chains_short", {"memory": 0.97, "change": -2.0}),
        ("chains_short", {"restarted": 50, "gap": 8.0}),
        ("ladder", {"swaps": (0.4, 0.001, 0.3)}),
        ("lag", {"lag": 8, "ess": 0.05}),
        ("learning_rate", {"gap": -6.0}),
        ("learning_rate", {"energy_distance": 0.1, "turnover": 1.0}),
        ("no_learning", {"turnover": 1e-4}),
        ("no_learning", {"spread": 0.01, "change": 0.0, "gap": 0.001}),
        ("over_fits", {"told_apart": 0.8}),
    ],
)
def test_each_sign_has_its_cause(small: Small, cause: str, changed: dict[str, Any]) -> None:
    """Within 200 steps of a run that was never well, it alone, with its numbers and a remedy."""
    found = told(small("deep"), **changed)
    assert [verdict.cause for _, verdict in found] == [cause]
    version, verdict = found[0]
    assert verdict.since <= version <= 200
    assert any(sign.isdigit() for sign in verdict.words)
    assert ":" in verdict.words


def test_held_out_rows_that_were_chosen_to_be_unlike_are_no_sign(small: Small) -> None:
    diagnosis = Diagnosis(Facts(small("deep"), 1.0, held_out_apart=True))
    diagnosis.begin(0, from_scratch=True)
    reports = (step_of(version, told_apart=0.8) for version in range(1, 301))
    assert [verdict for each in reports for verdict in diagnosis.observe(*each)] == []


def test_a_cause_is_seen_within_100_steps_and_ends(small: Small) -> None:
    """Steps too large from 301 to 500: told by 400, and over by 620."""
    diagnosis = Diagnosis(Facts(small("deep"), 1.0))
    found = []
    for version in range(1, 701):
        rate = 0.01 if 300 < version <= 500 else 0.8
        found += [(version, v) for v in diagnosis.observe(*step_of(version, acceptance=rate))]
    assert [(verdict.cause, verdict.since) for _, verdict in found] == [("step_size", 320)]
    assert found[0][0] <= 400
    assert diagnosis.verdicts[0].until == 500


def test_what_the_data_explain_is_not_told_twice(small: Small) -> None:
    known = Verdict("scale", "the data span 0 to 255: scale the rows")
    diagnosis = Diagnosis(Facts(small("deep"), 1.0), [known])
    for version in range(1, 300):
        assert diagnosis.observe(*step_of(version, acceptance=0.0)) == []
    diagnosis.begin(0)
    assert diagnosis.verdicts == [known]
    assert diagnosis.diverged(300, "energies above 1e6").cause == "scale"


@pytest.mark.parametrize(("acceptance", "cause"), [(0.8, "learning_rate"), (0.01, "step_size")])
def test_a_divergence_has_the_cause_that_was_seen(
    small: Small, acceptance: float, cause: str
) -> None:
    diagnosis = Diagnosis(Facts(small("deep"), 1.0))
    for version in range(1, 41):
        diagnosis.observe(*step_of(version, acceptance=acceptance))
    verdict = diagnosis.diverged(45, "energies above 1e6")
    assert verdict.cause == cause
    assert "diverged at 45" in verdict.words


def test_the_summary_has_verdicts_numbers_and_words(small: Small) -> None:
    """One that is over has its steps; of a run that is well, that chains mix, and how many chains
    are new after a round: 200 (1 - 0.5) / (1 + 0.5).
    """
    diagnosis = Diagnosis(Facts(small("deep"), 1.0))
    for version in range(1, 201):
        diagnosis.observe(*step_of(version))
    found = ending(diagnosis, 200, {})["diagnosis"]
    assert [verdict["cause"] for verdict in found["verdicts"]] == ["well"]
    assert found["figures"]["independent_chains"] == pytest.approx(200 / 3)
    assert "67 of 200" in in_words(found)[0]
    sick = ending(diagnosis, 200, {"samples_likeness": {"memorised": 0.9, "held_out_copies": 0.3}})
    assert [v["cause"] for v in sick["diagnosis"]["verdicts"]] == ["memorises", "copies"]
    over = Verdict("step_size", "steps are too large", 40, 100)
    assert in_words({"verdicts": [over._asdict()]})[0].endswith("too large (step 40 to 100)")


@pytest.mark.parametrize(
    ("scaled", "cause"),
    [
        (lambda rows: rows, None),
        (lambda rows: 127.5 * (rows + 1), "scale"),
        (lambda rows: rows + 1000, "scale"),
        (lambda rows: rows * 1e-6, "scale"),
    ],
)
def test_rows_that_do_not_fit_the_base_law(
    small: Small, scaled: Callable[[torch.Tensor], torch.Tensor], cause: str | None
) -> None:
    config = small("deep", "data.noise=0.0")
    data = open_data(config)
    data = data._replace(sample=scaled(data.sample), held_out=scaled(data.held_out))
    found = misfits(config, make_energy(config, data.shape), data)
    assert [verdict.cause for verdict in found] == ([cause] if cause else [])
    assert row_spread(data) == pytest.approx(float(data.sample.var(0).mean().sqrt()), rel=1e-3)


def test_rows_at_the_walls_of_a_box(small: Small) -> None:
    config = small("deep", "data.noise=0.0", "energy.box=[-1,1]")
    data = open_data(config)  # whose background is at -1
    assert [v.cause for v in misfits(config, make_energy(config, data.shape), data)] == ["box"]
    wide = small("deep", "data.noise=0.0", "energy.box=[-2,2]")
    assert misfits(wide, make_energy(wide, data.shape), data) == []


@pytest.mark.parametrize("name", sorted(parts.PARTS["kernel"]))
def test_a_rounds_beginning_outlives_it(small: Small, name: str) -> None:
    """No kernel overwrites the positions, or their energies, that a round's motion is told from."""
    discrete = name in ("gibbs", "gibbs_with_gradients", "single_site")
    config = small("rbm" if discrete else "deep", f"kernel={name}", "kernel.transitions=3")
    data = open_data(config)
    energy = make_energy(config, data.shape).requires_grad_(False)
    generator = torch_generator(0, "motion")
    sampler = Sampler(energy, make_plan(config), 10, generator)
    before = sampler.position.clone()
    energies = sampler.energy(before)
    done = sampler.advance(generator, 3)
    assert torch.equal(done.start, before)
    if done.start_energy is not None and not config.kernel.ladder:  # its rungs have moved since
        torch.testing.assert_close(done.start_energy, energies)


def test_every_tenth_round_tells_of_its_motion(small: Small) -> None:
    runner = InlineRunner(small("deep"))
    runner.start(None, None)
    told = [[each.motion is not None for each in runner.step()[1]] for _ in range(12)]
    assert told == [[number % 10 == 0] * 2 for number in range(12)]
