"""What stale negatives cost, and what importance weights and a steered lag give back.

    python -m benchmarks.staleness [--docs docs] [--json [FILE]] [--processes 2]
        [--only TASK ...] [--runs FILE] [--quick]

Runs with paired seeds are judged by held-out log-likelihoods, nats a row:

`rbm`         the digits RBM 64x16 of `experiment=digits_rbm` at two learning rates, with its exact
              likelihood (all 2^16 hidden states)
`8gaussians`  the deep energy in the plane of `experiment=toy`, MALA and Adam, by quadrature
`digits64`    the deep energy of `make train` on digits with their noise, 64 dimensions, by annealed
              importance sampling
`deep`        the same at short lags and at the learning rate of `make train`; stale negatives are
              also moved two transitions under the newest weights (`trainer.refresh=2`)
`deep_slow`   the same at a learning rate that keeps the weights' ESS near 0.9

Lags are made, not met with: at a lag of s, step t consumes what version max(0, t - s) made
(`trainer.lag_mode=exact`). In a steered run s is the bound that the learner's `LagController` sets
by the weights' effective sample size (ESS). All of it happens in one process, without Ray.

A row is a mean over seeds with its standard error; differences are between runs of the same seed.
The result is {"rows": [the RBM's], "deep_rows": [...], "targets": [...]}. With `--runs` finished
runs are kept in FILE, a line each, and not done again.
"""

from __future__ import annotations

import json
import math
import multiprocessing
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.harness import say
from benchmarks.staleness_picture import Row, draw
from benchmarks.staleness_runs import MOVED, TASKS, Task, Trial, quick, run, trials_of
from pipeline.common.json_text import to_json

TOLERANCE = 0.1  # nats that a reweighted RBM may lose at the largest lag, beside 2 standard errors


def mean_and_error(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the mean of independent values and its standard error, None where they are too few."""
    if not values:
        return None, None
    return float(np.mean(values)), (
        float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    )


Results = dict[Trial, dict[str, Any]]
Runs = dict[int, dict[str, Any]]  # by seed


def rows_of(name: str, task: Task, results: Results) -> list[Row]:
    """Return a row for each rate, lag and way.

    At lag 0 weights are uniform whatever `trainer.reweight` says: one set of runs is both rows.
    """
    groups: dict[tuple[float, int, str], Runs] = defaultdict(dict)
    for trial, result in results.items():
        if trial.task == name:
            groups[trial.learning_rate, trial.lag, trial.way][trial.seed] = result
    rows = []
    for (rate, lag, way), runs in groups.items():
        weighted = way not in ("plain", "moved")
        for reweight in (False, True) if way == "lock-step" and task.plain else (weighted,):
            head = {
                "task": name,
                "lag": lag,
                "learning_rate": rate,
                "reweight": reweight,
                "moved": MOVED if way == "moved" else 0,
                "steered": way == "steered",
            }
            rows.append(head | _figures(runs, groups.get((rate, 0, "lock-step"), {})))
            if way == "steered":
                difference, error = _difference(runs, groups.get((rate, 1, "reweighted"), {}))
                rows[-1] |= {
                    "difference_to_lag_1": difference,
                    "difference_to_lag_1_standard_error": error,
                    "settled_lag": float(np.mean(_kept(runs, "settled_lag"))),
                    "lag_curves": [
                        [round(lag, 2) for lag in result["lag_curve"]] for result in runs.values()
                    ],
                }
    return sorted(
        rows,
        key=lambda row: tuple(
            row[key] for key in ("learning_rate", "steered", "lag", "reweight", "moved")
        ),
    )


def _figures(runs: Runs, lock_step: Runs) -> Row:
    """Return the figures of one row's runs; `worst_ess` is of the worst step of all."""
    there, ess, worst, uncertain = (
        _kept(runs, key) for key in ("nats", "mean_ess", "worst_ess", "log_z_standard_error")
    )
    mean, error = mean_and_error(there)
    difference, difference_error = _difference(runs, lock_step)
    return {
        "test_log_likelihood": mean,
        "standard_error": error,
        "difference_to_lock_step": difference,
        "difference_to_lock_step_standard_error": difference_error,
        "mean_ess": float(np.mean(ess)) if ess else None,
        "worst_ess": min(worst, default=None),
        "seeds": len(runs),
        "diverged": len(runs) - len(there),
        "by_seed": [runs[seed]["nats"] for seed in sorted(runs)],
        **({"log_z_standard_error": float(np.mean(uncertain))} if uncertain else {}),
        "seconds": float(np.mean(_kept(runs, "seconds"))),
    }


def _kept(runs: Runs, key: str) -> list[float]:
    return [result[key] for result in runs.values() if result[key] is not None]


def _difference(runs: Runs, others: Runs) -> tuple[float | None, float | None]:
    """Return the nats more than the `others`', a mean over seeds that both have."""
    pairs = [(runs[seed]["nats"], others[seed]["nats"]) for seed in runs if seed in others]
    return mean_and_error(
        [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
    )


def targets_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the targets and whether each is met.

    One is met where nothing diverged and the loss, nats, is within what is allowed.
    """
    targets = []
    for row in rows:
        largest = max(
            other["lag"] for other in rows if other["task"] == row["task"] and not other["steered"]
        )
        if row["steered"]:
            what, key, slack = (
                f"steered under {row['lag']}, no worse than lag 1",
                "difference_to_lag_1",
                0.0,
            )
        elif row["task"] == "rbm" and row["reweight"] and row["lag"] == largest:
            what, key, slack = (
                f"lag {row['lag']} reweighted, no worse than lock-step",
                "difference_to_lock_step",
                TOLERANCE,
            )
        else:
            continue
        error = row[f"{key}_standard_error"]
        known = row[key] is not None and error is not None and not row["diverged"]
        allowed = -(slack + 2 * error) if known else None
        target = {
            "task": row["task"],
            "learning_rate": row["learning_rate"],
            "what": what,
            "difference": row[key],
        }
        targets.append(
            target
            | {
                "standard_error": error,
                "allowed": allowed,
                "met": known and row[key] >= allowed,
            }
        )
    return targets


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table in Markdown; ± are standard errors."""
    lines = [
        "| task | rate | lag | weights | test, nats | to lock-step | ESS, mean / worst step |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lag = (
            f"steered ≤ {row['lag']}: settled at {row['settled_lag']:.1f}"
            if row["steered"]
            else row["lag"]
        )
        nats = _with_error(row["test_log_likelihood"], row["standard_error"])
        nats += f", {row['diverged']} of {row['seeds']} diverged" if row["diverged"] else ""
        more = _with_error(
            row["difference_to_lock_step"], row["difference_to_lock_step_standard_error"]
        )
        ess = (
            ""
            if row["mean_ess"] is None or not row["lag"]
            else f"{row['mean_ess']:.2f} / {row['worst_ess']:.3f}"
        )
        way = "reweighted" if row["reweight"] else "moved" if row["moved"] else "plain"
        weights, more = (way, more) if row["lag"] else ("", "")
        if row["lag"] or row["reweight"]:  # lock-step once
            lines.append(
                f"| {row['task']} | {row['learning_rate']:g} | {lag} | {weights} | {nats} | {more}"
                f" | {ess} |"
            )
    return "\n".join(lines)


def _with_error(value: float | None, error: float | None) -> str:
    return (
        "" if value is None else f"{value:.2f}" if error is None else f"{value:.2f} ± {error:.2f}"
    )


def carry_out(trials: Sequence[Trial], processes: int, kept: Path | None) -> Results:
    """Return every trial's result, and print a line of progress for each."""
    results: Results = {}
    for line in kept.read_text().splitlines() if kept and kept.exists() else ():
        given, result = json.loads(line)
        results[Trial(**given | {"arguments": tuple(given["arguments"])})] = result
    results = {trial: results[trial] for trial in trials if trial in results}
    left = [trial for trial in trials if trial not in results]
    for trial, result in _one_by_one(left) if processes == 1 else _side_by_side(left, processes):
        results[trial] = result
        if kept:
            with kept.open("a") as lines:
                lines.write(to_json([trial._asdict(), result]) + "\n")
        nats = "diverged" if result["nats"] is None else f"{result['nats']:.2f} nats"
        where = (
            f"[{len(results)}/{len(trials)}] {trial.task}, rate {trial.learning_rate:g}, seed"
            f" {trial.seed}"
        )
        say(f"{where}, lag {trial.lag} {trial.way}: {nats}, {result['seconds']:.0f} s")
    return results


def _one_by_one(trials: Sequence[Trial]) -> Iterator[tuple[Trial, dict[str, Any]]]:
    for trial in trials:
        yield trial, run(trial)


def _side_by_side(
    trials: Sequence[Trial], processes: int
) -> Iterator[tuple[Trial, dict[str, Any]]]:
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run, trial): trial for trial in trials}
        for future in as_completed(futures):
            yield futures[future], future.result()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = harness.command_line(__doc__, "json", "docs")
    harness.add_only(parser, TASKS)
    parser.add_argument("--processes", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument(
        "--runs",
        type=Path,
        metavar="FILE",
        help="keep finished runs there, and do not do them again",
    )
    parser.add_argument(
        "--quick", action="store_true", help="two lags, two seeds, 20 steps: whether it works"
    )
    given = parser.parse_args(arguments)
    if given.docs and len(set(given.only)) < len(TASKS):
        parser.error("--docs draws every task; leave --only out")
    tasks = {name: quick(TASKS[name]) if given.quick else TASKS[name] for name in given.only}
    # seed by seed, so that what is there early makes a whole table
    trials = sorted(
        (trial for name in tasks for trial in trials_of(name, tasks[name])),
        key=lambda trial: trial.seed,
    )
    results = carry_out(trials, given.processes, given.runs)
    rows = [row for name, task in tasks.items() for row in rows_of(name, task, results)]
    targets = targets_of(rows)
    say(table(rows))
    for target in targets:
        verdict = "met" if target["met"] else "NOT MET"
        what = f"{target['task']}, rate {target['learning_rate']:g}: {target['what']}"
        say(f"{what}: {target['difference']}: {verdict}")
    command = "python -m benchmarks.staleness"
    command += " --docs docs" if given.docs else f" --only {' '.join(given.only)}"
    content = {
        "command": command + (" --quick" if given.quick else ""),
        "settings": {name: " ".join(task.arguments) for name, task in tasks.items()},
        **harness.conditions("torch"),
        "targets": targets,
        "rows": [row for row in rows if row["task"] == "rbm"],
        "deep_rows": [row for row in rows if row["task"] != "rbm"],
    }
    if given.docs:
        harness.write(content, given.docs / "staleness.json")
        draw(rows, given.docs)
    harness.write(content, given.json)


if __name__ == "__main__":
    main()
