"""Every objective through the front door, judged by a measure that is not its own loss: the held-out log-likelihood.

    python -m benchmarks.every_objective [--json FILE] [--picture FILE] [--only NAME ...]

In the plane (8 Gaussians, a perceptron) Z comes from quadrature, on the binarized digits (an RBM 64x16) from enumeration.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

import pipeline
from pipeline.build import open_data
from pipeline.compose import compose

COMMON = ("cluster=inline", "metrics.port=0", "evaluation.samples=100", "evaluation.transitions=200", "checkpoint.every=10000")
REACH = 4.5
GRID = 220


class Trial(NamedTuple):
    """`experiment` and what else is given; `name` says what differs from other trials of the same objective."""

    name: str
    experiment: str
    overrides: tuple[str, ...]


def _trials() -> list[Trial]:
    toy = {
        "pcd": ("objective=pcd",),
        "pcd, ladder": (
            *("objective=pcd", "kernel=replica_exchange", "kernel.rungs=6", "kernel.transitions=2"),
            *("kernel.inner.target_acceptance=0.6", "chains.restart=0"),
        ),
        "cd": ("objective=cd",),
        "short_run": ("objective=short_run", "kernel=ula", "kernel.transitions=50", "kernel.step_size=0.02"),
        "improved_cd": ("objective=improved_cd", "kernel=ula", "kernel.step_size=0.02", "kernel.transitions=10"),
        "maximum_likelihood": ("objective=maximum_likelihood", "energy.hidden=[64,64]", "trainer.steps=2000"),
        "mixture": ("objective=mixture", "objective.weights={cd:1.0,hutchinson:0.01}"),
    }
    without_chains = ("score_matching", "hutchinson", "sliced", "finite_difference", "denoising")
    for name in (*without_chains, "denoising_finite_difference", "nce", "conditional_nce"):
        toy[name] = (f"objective={name}",)
    rbm = {
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
        "nce": ("objective=nce", "objective.draws=32", "trainer.steps=20000"),
        "conditional_nce": ("objective=conditional_nce", "objective.scale=0.05"),
        "mixture": ("objective=mixture", "objective.weights={pcd:1.0,pseudo_likelihood:0.1}"),
    }
    l2 = ("objective.energy_l2=0",)
    return [
        *(Trial(name, "toy", overrides) for name, overrides in toy.items()),
        *(Trial(n, "digits_rbm", o + (l2 if n.startswith(("pcd", "cd", "fast")) else ())) for n, o in rbm.items()),
    ]


TRIALS = _trials()


def train(trial: Trial, folder: Path, more: tuple[str, ...] = ()) -> dict[str, Any]:
    """One run's summary."""
    arguments = [f"experiment={trial.experiment}", *trial.overrides, *COMMON, f"output={folder}", *more]
    subprocess.run([sys.executable, "-m", "pipeline.train", *arguments], check=True, stdout=subprocess.DEVNULL)
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def row_of(trial: Trial, summary: dict[str, Any]) -> dict[str, Any]:
    return {
        "objective": trial.name,
        "experiment": trial.experiment,
        "untrained": summary["baselines"]["untrained"],
        "test_log_likelihood": summary["test_log_likelihood"],
        "truth": summary.get("true_log_likelihood"),
        "steps": summary["steps"],
        "seconds": summary["wall_seconds"],
        "overrides": list(trial.overrides),
    }


@torch.no_grad()
def density(folder: Path) -> torch.Tensor:
    """exp(-E) on a grid over the plane, `[GRID, GRID]`, its largest value 1."""
    side = torch.linspace(-REACH, REACH, GRID)
    points = torch.cartesian_prod(side, side)
    energy = pipeline.load(str(folder))(points)
    return torch.exp(energy.min() - energy).view(GRID, GRID).T


def draw(densities: dict[str, torch.Tensor], path: Path) -> None:
    """Small multiples of what each objective learned, the truth first."""
    columns = 4
    rows = math.ceil(len(densities) / columns)
    figure = Figure(figsize=(2.1 * columns, 2.3 * rows), layout="constrained")
    for axis, (name, values) in zip(figure.subplots(rows, columns).flat, densities.items(), strict=False):
        axis.imshow(values, origin="lower", cmap="magma")
        axis.set_title(name, fontsize=9)
    for axis in figure.axes:
        axis.set_axis_off()
    figure.savefig(path, dpi=110)


def truth() -> torch.Tensor:
    data = open_data(compose(["experiment=toy"]))
    assert data.log_density is not None
    side = torch.linspace(-REACH, REACH, GRID)
    values = data.log_density(torch.cartesian_prod(side, side))
    return torch.exp(values - values.max()).view(GRID, GRID).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    parser.add_argument("--picture", type=Path, help="draw the densities learned in the plane there")
    parser.add_argument("--only", nargs="+", choices=sorted({trial.name for trial in TRIALS}))
    arguments = parser.parse_args()
    rows, densities = [], {"the truth": truth()}
    with tempfile.TemporaryDirectory() as folder:
        for number, trial in enumerate(TRIALS):
            if arguments.only and trial.name not in arguments.only:
                continue
            output = Path(folder) / str(number)
            row = row_of(trial, train(trial, output))
            rows.append(row)
            print(
                f"{row['experiment']:<12}{row['objective']:<30}{row['untrained']:8.2f} -> {row['test_log_likelihood']:8.2f} nats"
                f"  {row['steps']} steps, {row['seconds']:.0f} s",
                flush=True,
            )
            if trial.experiment == "toy":
                densities[trial.name] = density(output)
    if arguments.picture:
        draw(densities, arguments.picture)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"command": "python -m benchmarks.every_objective", "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
