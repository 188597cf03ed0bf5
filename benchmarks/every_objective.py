"""Every objective through the front door, judged by measures that are not its own loss.

    python -m benchmarks.every_objective [--docs FOLDER] [--only NAME ...]

The first measure is the held-out log-likelihood: in the plane (8 Gaussians, a perceptron) with Z by
quadrature, on the binarized digits (an RBM 64x16) by enumeration. In the plane there is also the
energy distance between 1,000 samples, whose chains start at noise, and held-out rows. FOLDER gets
every_objective.json, every_objective.md and every_objective.png.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

import pipeline
from benchmarks import harness
from benchmarks.harness import say
from pipeline.assembly.chains import make_plan
from pipeline.assembly.data import open_data
from pipeline.assembly.energies import make_energy
from pipeline.common.rng import torch_generator
from pipeline.config.compose import compose
from pipeline.energies.base import Energy
from pipeline.evaluation.samples import draw_from_noise

COMMON = (
    "cluster=inline",
    "metrics.port=0",
    "evaluation.samples=1000",
    "evaluation.transitions=500",
    "checkpoint.every=10000",
)
REACH = 4.5
GRID = 220


ADAM = ("optimizer.name=adam", "optimizer.learning_rate=0.01")
# the field's form for short runs: a small noise, apart from the step (Nijkamp et al. 2019)
TEMPERED = ("kernel.step_size=0.01", "kernel.noise=0.05")
SHORT = "evaluation.transitions=50"  # short runs are judged by runs of their own length


class Trial(NamedTuple):
    """A run of `experiment` with `overrides`; no other of the experiment has its `name`."""

    name: str
    experiment: str
    overrides: tuple[str, ...]


def _in_the_plane() -> list[Trial]:
    trials = {
        "pcd": ("objective=pcd",),
        "pcd, ladder": (
            *("objective=pcd", "kernel=replica_exchange", "kernel.rungs=6", "kernel.transitions=2"),
            *("kernel.inner.target_acceptance=0.6", "chains.restart=0"),
        ),
        "cd": ("objective=cd",),
        "short_run": (
            "objective=short_run",
            "kernel=ula",
            "kernel.transitions=50",
            *TEMPERED,
            SHORT,
        ),
        "improved_cd": (
            "objective=improved_cd",
            "kernel=ula",
            "kernel.step_size=0.02",
            "kernel.transitions=10",
        ),
        "maximum_likelihood": (
            "objective=maximum_likelihood",
            "objective.grid=100",
            "energy.hidden=[64,64]",
        ),
        "mixture": ("objective=mixture", "objective.weights={cd:1.0,hutchinson:0.01}"),
    }
    without_chains = ("score_matching", "hutchinson", "sliced", "finite_difference", "denoising")
    for name in (*without_chains, "denoising_finite_difference", "nce", "conditional_nce"):
        trials[name] = (f"objective={name}",)
    return [Trial(name, "toy", overrides) for name, overrides in trials.items()]


def _on_digits() -> list[Trial]:
    trials = {
        "pcd": ("objective=pcd",),
        "pcd, ladder": (
            "objective=pcd",
            "kernel=replica_exchange",
            "kernel.inner=gibbs",
            "kernel.rungs=6",
            "chains.per_pool=50",
        ),
        "cd-1": ("objective=cd", "chains.per_pool=50"),
        "cd-10": ("objective=cd", "chains.per_pool=50", "kernel.transitions=10"),
        "fast_pcd": ("objective=fast_pcd",),
        "maximum_likelihood": ("objective=maximum_likelihood",),
        "pseudo_likelihood": ("objective=pseudo_likelihood",),
        "ratio_matching": ("objective=ratio_matching",),
        "nce": ("objective=nce", *ADAM),
        "conditional_nce": ("objective=conditional_nce", "objective.scale=0.05", *ADAM),
        "mixture": (
            *("objective=mixture", "objective.weights={pcd:1.0,pseudo_likelihood:0.1}"),
            "objective.terms.pcd.energy_l2=0",
        ),
    }
    l2 = ("objective.energy_l2=0",)
    return [
        Trial(name, "digits_rbm", given + (l2 if name.startswith(("pcd", "cd", "fast")) else ()))
        for name, given in trials.items()
    ]


TRIALS = [*_in_the_plane(), *_on_digits()]


def arguments_of(trial: Trial) -> list[str]:
    return [f"experiment={trial.experiment}", *COMMON, *trial.overrides]


def train(trial: Trial, folder: Path, more: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return one run's summary."""
    return harness.run("pipeline.train", *arguments_of(trial), *more, output=folder)


def row_of(trial: Trial, summary: dict[str, Any], folder: Path) -> dict[str, Any]:
    energy = pipeline.load(str(folder)) if trial.experiment == "toy" else None
    return {
        "objective": trial.name,
        "experiment": trial.experiment,
        "untrained": summary["baselines"]["untrained"],
        "test_log_likelihood": summary["test_log_likelihood"],
        "truth": summary.get("true_log_likelihood"),
        "sample_distance": None if energy is None else sample_distance(trial, energy),
        "steps": summary["steps"],
        "seconds": summary["wall_seconds"],
        "overrides": list(trial.overrides),
    }


def sample_distance(trial: Trial, energy: Energy | None) -> float:
    """Return the energy distance of the trial's samples to 1,000 held-out rows.

    Without an `energy`, the samples are those of the trial's untrained one.
    """
    config = compose(arguments_of(trial))
    data = open_data(config)
    model = (energy or make_energy(config, data.shape)).requires_grad_(False)
    count, transitions = config.evaluation.samples, config.evaluation.transitions
    run = draw_from_noise(
        model, make_plan(config), count, transitions, torch_generator(config.seed, "evaluation")
    )
    while True:
        try:
            next(run)
        except StopIteration as stop:
            return energy_distance(stop.value.position, data.held_out[:1000])


def energy_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """Estimate 2 E|X - Y| - E|X - X'| - E|Y - Y'| from rows [N, d] and [M, d].

    It is >= 0, and 0 for one law only (Szekely & Rizzo 2013).
    """

    def within(z: torch.Tensor) -> float:
        return float(torch.cdist(z, z).sum()) / (len(z) * (len(z) - 1))

    return 2 * float(torch.cdist(x, y).mean()) - within(x) - within(y)


@torch.no_grad()
def density(folder: Path) -> torch.Tensor:
    """Return exp(-E) on a grid over the plane, `[GRID, GRID]`, its largest value 1."""
    side = torch.linspace(-REACH, REACH, GRID)
    points = torch.cartesian_prod(side, side)
    energy = pipeline.load(str(folder))(points)
    return torch.exp(energy.min() - energy).view(GRID, GRID).T


def draw(densities: dict[str, torch.Tensor], scores: dict[str, float], path: Path) -> None:
    """Draw the density that each objective learned, the truth first, over its held-out
    log-likelihood.
    """
    columns = 4
    rows = math.ceil(len(densities) / columns)
    figure = Figure(figsize=(2.1 * columns, 2.3 * rows), layout="constrained")
    for axis, (name, values) in zip(
        figure.subplots(rows, columns).flat, densities.items(), strict=False
    ):
        axis.imshow(values, origin="lower", cmap="magma")
        axis.set_title(name, fontsize=9)
        axis.set_xlabel(f"{scores[name]:.2f} nats", fontsize=9)
    for axis in figure.axes:
        axis.set(xticks=[], yticks=[], frame_on=False)
    figure.suptitle("below each: log-likelihood of a held-out row", fontsize=9)
    figure.savefig(path, dpi=110)


def truth() -> torch.Tensor:
    data = open_data(compose(["experiment=toy"]))
    assert data.log_density is not None
    side = torch.linspace(-REACH, REACH, GRID)
    values = data.log_density(torch.cartesian_prod(side, side))
    return torch.exp(values - values.max()).view(GRID, GRID).T


HEAD = """# What each objective learns

This page is made by `python -m benchmarks.every_objective --docs docs`. Every objective went
through `python -m pipeline.train`, and is judged by measures that are not its own loss.
Log-likelihoods are in nats a held-out row. Seconds are those of one run each, in one process, and
other work on the machine may have made them longer.

![The densities learned in the plane](every_objective.png)

"""


def page(rows: list[dict[str, Any]], untrained: float) -> str:
    """Return the page, in Markdown."""
    text = HEAD
    toys = [row for row in rows if row["experiment"] == "toy"]
    if toys:
        text += (
            "## Eight Gaussians in the plane\n\nA perceptron 2-128-128-1 learns from 16,000 rows; Z"
            f" is by quadrature. The law itself scores\n{toys[0]['truth']:.2f}, the untrained model"
            f" {toys[0]['untrained']:.2f}. The distance is the energy distance of 1,000 samples,"
            f" whose chains\nstarted at noise, to held-out rows: {untrained:.3f} for the untrained"
            " model, 0 for the law itself.\n\n| objective | log-likelihood | distance of samples |"
            " steps | seconds | overrides |\n|---|---|---|---|---|---|\n"
        )
        text += "".join(
            f"| {row['objective']} | {row['test_log_likelihood']:.2f} |"
            f" {row['sample_distance']:.3f} | {_end(row)}"
            for row in toys
        )
    digits = [row for row in rows if row["experiment"] == "digits_rbm"]
    if digits:
        text += (
            "\n## An RBM on the binarized digits\n\nIt has 64 visible and 16 hidden units; log Z is"
            f" by enumeration. The untrained model scores {digits[0]['untrained']:.2f}.\n\n|"
            " objective | log-likelihood | steps | seconds | overrides |\n|---|---|---|---|---|\n"
        )
        text += "".join(
            f"| {row['objective']} | {row['test_log_likelihood']:.2f} | {_end(row)}"
            for row in digits
        )
    return text


def _end(row: dict[str, Any]) -> str:
    return f"{row['steps']:,} | {row['seconds']:.0f} | `{' '.join(row['overrides'])}` |\n"


def main() -> None:
    parser = harness.command_line(__doc__, "docs")
    harness.add_only(parser, sorted({trial.name for trial in TRIALS}))
    arguments = parser.parse_args()
    rows, densities = [], {"the truth": truth()}
    with tempfile.TemporaryDirectory() as folder:
        for number, trial in enumerate(TRIALS):
            if trial.name not in arguments.only:
                continue
            output = Path(folder) / str(number)
            row = row_of(trial, train(trial, output), output)
            rows.append(row)
            say(
                f"{trial.experiment:<12}{trial.name:<30}{row['untrained']:8.2f} ->"
                f" {row['test_log_likelihood']:8.2f} nats  {row['steps']} steps,"
                f" {row['seconds']:.0f} s"
            )
            if trial.experiment == "toy":
                densities[trial.name] = density(output)
    if arguments.docs:
        toys = [row for row in rows if row["experiment"] == "toy"]
        scores = {row["objective"]: row["test_log_likelihood"] for row in toys}
        scores["the truth"] = toys[0]["truth"] if toys else math.nan
        draw(densities, scores, arguments.docs / "every_objective.png")
        command = "python -m benchmarks.every_objective --docs docs"
        content = {"command": command, **harness.conditions("torch"), "rows": rows}
        harness.write(content, arguments.docs / "every_objective.json")
        text = page(rows, sample_distance(TRIALS[0], None))
        (arguments.docs / "every_objective.md").write_text(text)


if __name__ == "__main__":
    main()
