"""Seconds until a model reaches a held-out log-likelihood: this project and its peers.

    python -m benchmarks.time_to_likelihood [--tune] [--seeds 3] [--only NAME[:TASK]] [--json FILE]
        [--docs FOLDER]

The digits RBM 64x16 is to reach -18.5 nats a test row, with log Z by enumeration; the default
perceptron is to reach -10, with log Z by AIS. This project's runs go through
`python -m pipeline.train`, in one process and through Ray, and their averaged weights are those of
its checkpoints. Peers run the loops of `benchmarks.contestants`. All weights are evaluated here, by
the same code on the same rows.

`--tune` tries every setting of `SETTINGS` once, as many for each contestant, and keeps the trials
in FILE. Without it the trials are those that FILE holds. `--docs` has it as time_to_likelihood.json
in FOLDER, and puts a table into FOLDER/performance.md. The setting that was the quickest to reach
a little more than the target is then run with other seeds.

Seconds are those of the training loop, after imports; a checkpoint or a snapshot stops the clock.
`command_seconds` are those of the whole process, from the shell, to the end of all its steps.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

import pipeline
from benchmarks import harness
from benchmarks.contestants import Setting, Snapshot
from benchmarks.harness import say
from benchmarks.likelihood_settings import SETTINGS
from pipeline.assembly.data import noisy_sample, open_data
from pipeline.assembly.energies import make_energy
from pipeline.common.rng import torch_generator
from pipeline.common.types import Figures
from pipeline.config.compose import compose
from pipeline.config.run import RunConfig
from pipeline.data.base import DataSet
from pipeline.energies.base import Energy
from pipeline.evaluation import likelihood

OURS = {"this project, inline": "inline", "this project, Ray": "local"}
COMMON = (
    "metrics.port=0",
    "recorders=[series]",
    "checkpoint.keep=1000",
    "evaluation.samples=0",
    "evaluation.ais_temperatures=0",
)
CHECKPOINTS = 8
BOUNDS = ("at_least", "at_most")


class Task(NamedTuple):
    """A model that is to reach `target` nats a held-out row; `given` are its overrides.

    Settings are compared by the seconds to `margin` more: what just reaches the target with one
    seed misses it with others.
    """

    target: float
    margin: float
    given: tuple[str, ...]


TASKS = {
    "digits RBM": Task(-18.5, 0.15, ("experiment=digits_rbm",)),
    "digits perceptron": Task(
        -10.0, 0.5, ("evaluation.ais_temperatures=1000", "evaluation.ais_particles=100")
    ),
}


class Run(NamedTuple):
    """A training: its snapshots in the order of time, and the seconds of the whole command."""

    snapshots: list[Snapshot]
    command_seconds: float


# runs


def train(task: str, name: str, setting: Setting, seed: int) -> Run:
    """Train in a process of its own. Raises `CalledProcessError` where that fails."""
    with tempfile.TemporaryDirectory() as folder:
        if name in OURS:
            return through_the_front_door(TASKS[task], OURS[name], setting, seed, Path(folder))
        file = Path(folder) / "snapshots.pt"
        arguments = [task, name, str(seed), json.dumps(setting), str(file)]
        command = [sys.executable, "-m", "benchmarks.contestants", *arguments]
        quiet = subprocess.DEVNULL
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=quiet, stderr=quiet)
        seconds = time.perf_counter() - began
        return Run([Snapshot(*kept) for kept in torch.load(file)], seconds)


def through_the_front_door(
    task: Task, cluster: str, setting: Setting, seed: int, output: Path
) -> Run:
    """Run `python -m pipeline.train`, with `CHECKPOINTS` checkpoints."""
    every = max(1, setting["steps"] // CHECKPOINTS)
    given = (*task.given, *COMMON, *setting["overrides"], f"trainer.steps={setting['steps']}")
    places = (f"cluster={cluster}", f"checkpoint.every={every}", f"metrics.every={every}")
    began = time.perf_counter()
    summary = harness.run("pipeline.train", *given, *places, f"seed={seed}", output=output)
    seconds = time.perf_counter() - began
    return Run(checkpoints(output, summary["wall_seconds"]), seconds)


def checkpoints(output: Path, wall_seconds: float) -> list[Snapshot]:
    """Return the averaged weights in a run's checkpoints, and its seconds until each of them.

    A row of the series is recorded before the save of its step is begun, and says how long steps
    waited for earlier ones, which does not count. The run's clock stops when the last checkpoint
    is written.
    """
    rows = (json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines())
    recorded = {
        row["step"]: row["time"] - row["ebm_checkpoint_stall_seconds_total"] for row in rows
    }
    folders = sorted((output / "checkpoints").glob("[0-9]*"))
    began = (folders[-1] / "manifest.json").stat().st_mtime - wall_seconds
    kept = []
    for folder in folders:
        weights = [p.detach().clone() for p in pipeline.load(str(folder)).parameters()]
        kept.append(Snapshot(recorded[int(folder.name)] - began, weights))
    return kept


# likelihoods


@cache
def model_of(task: str) -> tuple[RunConfig, DataSet, Energy]:
    """Return the task's configuration, its data and its energy."""
    config = compose([*TASKS[task].given])
    data = open_data(config)
    return config, data, make_energy(config, data.shape, None).requires_grad_(False).eval()


@torch.no_grad()
def scored(task: str, snapshot: Snapshot) -> Figures:
    """Evaluate the weights on the held-out rows as the end of a run does: exactly for the RBM, by
    AIS there and back for the perceptron.
    """
    config, data, energy = model_of(task)
    for own, other in zip(energy.parameters(), snapshot.weights, strict=True):
        own.copy_(other.view_as(own))
    log_z = energy.log_partition()
    if log_z is not None:
        return likelihood.exact(energy, log_z, data.held_out, data.sample)
    noise = torch_generator(config.data.split_seed, "held-out-noise")
    rows = data.held_out + data.noise * torch.randn(data.held_out.shape, generator=noise)
    work = likelihood.by_annealing(energy, rows, noisy_sample(config, data), config)
    while True:
        try:
            next(work)
        except StopIteration as end:
            figures: Figures = end.value
            return figures


def nats(task: str, snapshot: Snapshot) -> float:
    """Return the held-out log-likelihood, nats a row."""
    return float(scored(task, snapshot)["test_log_likelihood"])


class Passing(NamedTuple):
    """The seconds at which a target was passed, and the first snapshot after it."""

    seconds: float
    after: Snapshot


def crossing(
    snapshots: list[Snapshot], evaluate: Callable[[Snapshot], float], target: float
) -> Passing | None:
    """Return where `evaluate` passes `target`; None where the last snapshot is below it.

    The pair of snapshots around it is found by bisection, so that few are evaluated: of a curve
    that passes the target several times, one passing is found. Between the two the curve is taken
    for a line; before the first there is nothing to draw one from, and its seconds are returned.
    """
    values: dict[int, float] = {}

    def reached(index: int) -> bool:
        values[index] = evaluate(snapshots[index])
        return values[index] >= target

    below, above = -1, len(snapshots) - 1
    if not reached(above):
        return None
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if reached(middle) else (middle, above)
    after = snapshots[above]
    if below < 0 or not math.isfinite(values[below]):
        return Passing(after.seconds, after)
    before = snapshots[below].seconds
    share = (target - values[below]) / (values[above] - values[below])
    return Passing(before + share * (after.seconds - before), after)


# the benchmark


def attempt(
    task: str, name: str, setting: Setting, seed: int, tuning: bool = False
) -> dict[str, Any]:
    """Train and evaluate once; `seconds` is None where the target is not reached.

    Unless it is for `tuning`, the bounds of the likelihood at the snapshot after the target was
    passed are added, where it is by AIS.
    """
    run = train(task, name, setting, seed)
    found: list[float] = []

    def evaluate(snapshot: Snapshot) -> float:
        found.append(nats(task, snapshot))
        return found[-1]

    target = TASKS[task].target + (TASKS[task].margin if tuning else 0.0)
    passing = crossing(run.snapshots, evaluate, target)
    figures: dict[str, Any] = {
        "seconds": passing and round(passing.seconds, 3),
        "nats_at_the_end": round(found[0], 2),
        "seconds_in_all": round(run.snapshots[-1].seconds, 3),
        "command_seconds": round(run.command_seconds, 2),
    }
    if passing is not None and not tuning:
        after = scored(task, passing.after)
        bounds = {side: after.get(f"test_log_likelihood_{side}") for side in BOUNDS}
        if None not in bounds.values():
            figures["nats_after"] = bounds
    say(f"{task}, {name}, seed {seed}: {json.dumps(figures)}")
    return figures


def order(trial: dict[str, Any]) -> tuple[float, float]:
    """Sort trials by the seconds to the target; those that miss it by their nats, after all."""
    seconds = trial["seconds"]
    return (math.inf if seconds is None else seconds), -trial["nats_at_the_end"]


def tuned(task: str, name: str) -> list[dict[str, Any]]:
    """Try each of the contestant's settings once."""
    return [
        {"setting": setting, **attempt(task, name, setting, seed=0, tuning=True)}
        for setting in SETTINGS[task][name]
    ]


def row_of(task: str, name: str, trials: list[dict[str, Any]], seeds: int) -> dict[str, Any]:
    """Run the best of the `trials` with seeds 1, 2, ... and return medians over them."""
    setting = min(trials, key=order)["setting"]
    runs = [attempt(task, name, setting, seed) for seed in range(1, seeds + 1)]
    reached = sorted(math.inf if run["seconds"] is None else run["seconds"] for run in runs)
    median = reached[len(reached) // 2]
    return {
        "task": task,
        "who": name,
        "seconds": None if math.isinf(median) else median,
        "command_seconds": statistics.median(run["command_seconds"] for run in runs),
        "setting": setting,
        "tried": len(trials),
        "by_seed": runs,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table of Markdown; times are beside the quickest peer's of the task."""
    lines = [
        "| model | who | seconds | by seed | quickest peer / this | whole command, seconds |\n"
        "|---|---|---|---|---|---|"
    ]
    for row in rows:
        peers = [
            other["seconds"]
            for other in rows
            if other["task"] == row["task"] and other["who"] not in OURS and other["seconds"]
        ]
        ratio = f"{min(peers) / row['seconds']:.2f}" if peers and row["seconds"] else ""
        by_seed = ", ".join(_shown(run["seconds"]) for run in row["by_seed"])
        lines.append(
            f"| {row['task']} | {row['who']} | {_shown(row['seconds'])} | {by_seed} | {ratio} |"
            f" {row['command_seconds']:.1f} |"
        )
    return "\n".join(lines)


def _shown(seconds: float | None) -> str:
    return "not reached" if seconds is None else f"{seconds:.3g}"


def main() -> None:
    parser = harness.command_line(__doc__, "json", "docs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tune", action="store_true", help="try all settings anew")
    harness.add_only_row(parser, "contestant")
    arguments = parser.parse_args()
    file = None if arguments.json in (None, "-") else Path(arguments.json)
    if arguments.docs:
        file = arguments.docs / "time_to_likelihood.json"
    kept = json.loads(file.read_text()) if file is not None and file.exists() else {}
    trials = kept.get("trials", {})
    rows = {(row["task"], row["who"]): row for row in kept.get("rows", [])}
    there = [(name, task) for task in TASKS for name in SETTINGS[task]]
    for name, task in harness.chosen(there, arguments.only, parser):
        tried = trials.setdefault(task, {})
        if arguments.tune or name not in tried:
            tried[name] = tuned(task, name)
        rows[task, name] = row_of(task, name, tried[name], arguments.seeds)
        content = {
            "command": "python -m benchmarks.time_to_likelihood --tune",
            **harness.conditions("torch", "ray", "scikit-learn", "ebmkit", "rbms", "torchebm"),
            "tasks": {task: TASKS[task]._asdict() for task in TASKS},
            "rows": [rows[task, name] for name, task in there if (task, name) in rows],
            "trials": trials,
        }
        if file is not None:
            harness.write(content, file)
        if arguments.docs:
            page = arguments.docs / "performance.md"
            harness.insert(table(content["rows"]), page, "benchmarks.time_to_likelihood")
    if file is None:
        harness.write(content, arguments.json)


if __name__ == "__main__":
    main()
