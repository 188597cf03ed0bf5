"""Every objective makes a model better through the door a user takes, by a measure that is not its
own loss.

Short versions of `python -m benchmarks.every_objective`, whose full ones are in
docs/every_objective.md.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.every_objective import TRIALS, Trial, arguments_of, energy_distance
from pipeline.config.parts import OBJECTIVES
from pipeline.train import main
from tests.beside import BINARY, beside

SHORT = {
    "toy": (
        "energy.hidden=[48,48]",
        "trainer.steps=250",
        "optimizer.warmup=50",
        "chains.burn_in=20",
    ),
    "digits_rbm": ("trainer.steps=300",),
}
LITTLE = ("evaluation.samples=20", "evaluation.transitions=40")
# of what is slow, less
LESS = {
    ("toy", "maximum_likelihood"): ("trainer.steps=80",),
    ("toy", "short_run"): ("kernel.transitions=20",),
    ("toy", "pcd, ladder"): ("trainer.steps=200",),
    ("toy", "mixture"): ("trainer.steps=150",),
    ("digits_rbm", "nce"): ("trainer.steps=1000",),
    ("digits_rbm", "maximum_likelihood"): ("trainer.steps=150", "optimizer.learning_rate=0.4"),
}


def derived() -> list[Trial]:
    """Trials of the objectives that the benchmark has none of. The presets of
    `tests/system/test_systems.py` are for those that go with one energy each.
    """
    named = {
        argument.partition("=")[2]
        for trial in TRIALS
        for argument in trial.overrides
        if argument.startswith("objective=")
    }
    named |= {"label_likelihood", "moments"}
    found = []
    for name in sorted(set(OBJECTIVES) - named):
        over_levels = beside("objective", name) == BINARY
        experiment = "digits_rbm" if over_levels else "toy"
        found.append(Trial(name, experiment, (f"objective={name}",)))
    return found


@pytest.mark.slow
@pytest.mark.single
@pytest.mark.usefixtures("undrawn", "coarse")
@pytest.mark.parametrize(
    "trial",
    [*TRIALS, *derived()],
    ids=lambda trial: f"{trial.experiment}-{trial.name}".replace(" ", ""),
)
def test_the_model_gets_better(trial: Trial, tmp_path: Path) -> None:
    """The exact held-out log-likelihood rises by at least a fifth of a nat a row; steps and chains
    stay finite.
    """
    short = (*SHORT[trial.experiment], *LESS.get((trial.experiment, trial.name), ()), *LITTLE)
    assert main([*arguments_of(trial), *short, f"output={tmp_path}"]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["test_log_likelihood"] > summary["baselines"]["untrained"] + 0.2
    assert summary["skipped_steps"] == summary["reseeded_chains"] == 0


def test_energy_distance() -> None:
    """Of two Gaussians in the line a unit apart 2 E|N(1, 2)| - 2 E|N(0, 2)|; about 0 of a law with
    itself.
    """
    generator = torch.Generator().manual_seed(0)
    x, y, z = torch.randn(3, 4000, 1, generator=generator)
    normal = torch.distributions.Normal(0.0, 1.0)
    folded = (
        2 / torch.pi**0.5 * torch.exp(torch.tensor(-0.25))
        + 1
        - 2 * normal.cdf(torch.tensor(-(0.5**0.5)))
    )
    truth = float(2 * folded - 4 / torch.pi**0.5)
    # standard errors of about 0.02 and 0.0005: five of them
    assert energy_distance(x, y + 1) == pytest.approx(truth, abs=0.1)
    assert abs(energy_distance(x, z)) < 0.0025
