"""What stale negatives cost, and what importance weights and a steered lag give back: held-out
log-likelihoods, paired seeds.

    python -m benchmarks.staleness [--docs docs] [--json [FILE]] [--processes 2] [--only TASK ...]
    [--runs FILE] [--quick]

`rbm`         the digits RBM 64x16 of `experiment=digits_rbm`, nats exactly (all 2^16 hidden states), at two learning rates
`8gaussians`  the deep energy in the plane of `experiment=toy`, MALA and Adam, nats by quadrature
`digits64`    the deep energy of `make train` on digits with their noise, 64 dimensions, nats by annealed importance sampling

Lags are made, never met with: at a lag of s step t consumes what version max(0, t - s) made
(`trainer.lag_mode=exact`). In a steered run s is the bound that the learner's `LagController` sets
by the weights' effective sample size (ESS). All of it in one process, without Ray. A row is a mean
over seeds with its standard error; differences are between runs of the same seed. `--json` prints
{"rows": [the RBM's], "deep_rows": [...], "targets": [...]} as the last line, or writes it to FILE.
With `--runs` finished runs are kept in FILE, a line each, and not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from pipeline.assembly.chains import make_chains
from pipeline.assembly.data import open_data
from pipeline.assembly.learner import make_learner
from pipeline.common.errors import DivergenceError
from pipeline.common.types import Figures, Progress, StepReport, Weights
from pipeline.config.compose import compose
from pipeline.config.run import RunConfig
from pipeline.evaluation.report import evaluate
from pipeline.runs.inline import InlineRunner
from pipeline.storage.figures import write_figure

COMMON = ("cluster=inline", "metrics.port=0", "evaluation.samples=0")
QUICK = ("trainer.steps=20", "evaluation.ais_temperatures=20", "evaluation.ais_particles=8")
STRETCHES = 100  # that a steered run is cut into for the curve of its lag
TOLERANCE = 0.1  # nats that a reweighted RBM may lose at the largest lag, beside 2 standard errors


class Task(NamedTuple):
    """A model and its data. `lags` are exact ones, 0 the first; `bounds` those of steered runs;
    `plain`: negatives are also counted as they are.
    """

    arguments: tuple[str, ...]
    rates: tuple[float, ...]
    lags: tuple[int, ...]
    bounds: tuple[int, ...]
    plain: bool
    seeds: int


class Trial(NamedTuple):
    """One run. `way`: lock-step, plain, reweighted or steered, where `lag` is the bound that is
    configured.
    """

    task: str
    learning_rate: float
    lag: int
    way: str
    seed: int
    arguments: tuple[str, ...]


LAGS = (0, 4, 16, 64)
TASKS = {
    "rbm": Task(("experiment=digits_rbm",), (0.05, 0.2), LAGS, (), True, 10),
    "8gaussians": Task(("experiment=toy", "trainer.steps=2000"), (5e-3,), LAGS, (), True, 2),
    "digits64": Task(
        ("trainer.steps=3000", "evaluation.ais_temperatures=2000", "evaluation.ais_particles=100"),
        (1e-3,),
        (0, 1, 4, 16),
        (16,),
        False,
        2,
    ),
}
SETTINGS = {
    "lock-step": ("trainer.lag=0",),
    "plain": ("trainer.lag_mode=exact", "trainer.reweight=false"),
    "reweighted": ("trainer.lag_mode=exact", "trainer.reweight=true"),
    "steered": ("trainer.lag_mode=bound", "trainer.reweight=true"),
}


def quick(task: Task) -> Task:
    """The same in seconds: two lags, two seeds, 20 steps."""
    return task._replace(
        arguments=(*task.arguments, *QUICK), lags=task.lags[:2], bounds=task.bounds[:1], seeds=2
    )


def trials_of(name: str, task: Task) -> Iterator[Trial]:
    """Every way of the task, for each seed and rate."""
    exact = [
        (lag, way)
        for lag in task.lags[1:]
        for way in (("plain", "reweighted") if task.plain else ("reweighted",))
    ]
    ways = [(0, "lock-step"), *exact, *((bound, "steered") for bound in task.bounds)]
    for seed in range(task.seeds):
        for rate in task.rates:
            for lag, way in ways:
                given = (f"optimizer.learning_rate={rate}", f"seed={seed}", *SETTINGS[way])
                given += (f"trainer.lag={lag}",) if lag else ()
                yield Trial(name, rate, lag, way, seed, (*COMMON, *task.arguments, *given))


class SteeredRunner:
    """As `InlineRunner` under an exact lag, but for the lag: it is what the learner's controller
    allows.

    Step t consumes one round under version max(0, t - bound), never one that is not there yet:
    where the bound falls, the chains go on under newer weights from where they are, and where it
    rises by one, under the same again.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        torch.set_num_threads(config.cluster.threads)
        self._data = open_data(config)
        self._learner = make_learner(config, self._data)
        self._pools = [make_chains(config, self._data.shape, pool) for pool in range(config.pools)]
        self._window: deque[Weights] = deque(
            [self._learner.publish()], maxlen=config.trainer.lag + 1
        )
        self._bound = config.trainer.lag

    def step(self) -> tuple[StepReport]:
        window = self._window
        weights = window[max(0, len(window) - 1 - self._bound)]
        pools = self._config.pools_of_step(self._learner.version)
        report, newest = self._learner.step(
            [self._pools[pool].advance(weights)[0] for pool in pools]
        )
        window.append(newest)
        self._bound = report.lag_bound
        return (report,)

    def evaluate(self, output: str) -> Iterator[Progress | Figures]:
        return evaluate(self._config, self._learner.averaged(), self._data, output)


def run(trial: Trial) -> dict[str, Any]:
    """One run's figures: `nats` of a held-out row (None where it diverged), ESS as ratios in (0,
    1], lags in versions.
    """
    clock = time.perf_counter()
    config = compose(trial.arguments)
    runner: SteeredRunner | InlineRunner
    if trial.way == "steered":
        runner = SteeredRunner(config)
    else:
        runner = InlineRunner(config)
        runner.start(None, None)
    ess, lags, nats, error = [], [], math.nan, None
    try:
        for _ in range(config.trainer.steps):
            report = runner.step()[0]
            lags.append(report.lags[0])
            if trial.way != "plain":  # negatives that are counted as they are have no weights
                ess.append(sum(report.ess) / len(report.ess))
        *_, figures = runner.evaluate("")  # no samples: nothing is written
        assert isinstance(figures, dict)
        nats, error = figures["test_log_likelihood"], figures.get("log_z_standard_error")
    except DivergenceError:
        pass
    return {
        "nats": nats if math.isfinite(nats) else None,
        "log_z_standard_error": error,
        "mean_ess": float(np.nanmean(ess)) if ess else None,
        "worst_ess": float(np.nanmin(ess)) if ess else None,
        "lag_curve": [
            float(stretch.mean())
            for stretch in np.array_split(np.array(lags), STRETCHES)
            if len(stretch)
        ],
        "settled_lag": float(np.mean(lags[-max(1, len(lags) // 4) :])),
        "seconds": round(time.perf_counter() - clock, 1),
    }


def mean_and_error(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The mean of independent values and its standard error; None where there are too few."""
    if not values:
        return None, None
    return float(np.mean(values)), (
        float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    )


Results = dict[Trial, dict[str, Any]]
Runs = dict[int, dict[str, Any]]  # by seed
Row = dict[str, Any]


def rows_of(name: str, task: Task, results: Results) -> list[Row]:
    """A row for each rate, lag and way. At lag 0 weights are uniform whatever `trainer.reweight`
    says: one set of runs.
    """
    groups: dict[tuple[float, int, str], Runs] = defaultdict(dict)
    for trial, result in results.items():
        if trial.task == name:
            groups[trial.learning_rate, trial.lag, trial.way][trial.seed] = result
    rows = []
    for (rate, lag, way), runs in groups.items():
        for reweight in (False, True) if way == "lock-step" and task.plain else (way != "plain",):
            head = {
                "task": name,
                "lag": lag,
                "learning_rate": rate,
                "reweight": reweight,
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
        rows, key=lambda row: (row["learning_rate"], row["steered"], row["lag"], row["reweight"])
    )


def _figures(runs: Runs, lock_step: Runs) -> Row:
    """What the runs of one row have in common; `worst_ess` is of the worst step of all."""
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
    """Nats more than the `others`, a mean over seeds that both have."""
    pairs = [(runs[seed]["nats"], others[seed]["nats"]) for seed in runs if seed in others]
    return mean_and_error(
        [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
    )


def targets_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What is to be reached, and whether it is: nothing diverged, and the loss is within what is
    allowed, nats.
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
    """In Markdown; ± are standard errors."""
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
        weights, more = (
            ("reweighted" if row["reweight"] else "plain", more) if row["lag"] else ("", "")
        )
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


def draw(rows: Sequence[Row], folder: Path) -> None:
    """`staleness.png`."""
    figure = Figure(figsize=(10.5, 8.2), layout="constrained")
    (rbm, plane), (curve, ends) = figure.subplots(2, 2)
    _draw_lags(
        rbm,
        [row for row in rows if row["task"] == "rbm"],
        "RBM on binarized digits (exact likelihood)",
    )
    _draw_lags(
        plane, [row for row in rows if row["task"] == "8gaussians"], "deep energy on 8 Gaussians"
    )
    digits = [row for row in rows if row["task"] == "digits64"]
    _draw_curves(curve, [row for row in digits if row["steered"]])
    _draw_ends(ends, digits)
    figure.suptitle(
        "Negatives that are so many updates old: counted as they are, or weighted by exp(E then - E"
        " now)"
    )
    figure.supxlabel("means over seeds, bars: standard errors", fontsize=9, color="0.3")
    write_figure(figure, str(folder), "staleness.png")


def _draw_lags(axis: Any, rows: Sequence[Row], title: str) -> None:
    """Nats by lag; what lies too far down is marked at the lower edge, with its value."""
    lags = sorted({row["lag"] for row in rows})
    nats = [
        -math.inf if row["test_log_likelihood"] is None else row["test_log_likelihood"]
        for row in rows
    ]
    lowest = min(
        value - (row["standard_error"] or 0.0) for row, value in zip(rows, nats, strict=True)
    )
    low = max(lowest, min(row["test_log_likelihood"] for row in rows if not row["lag"]) - 10)
    span = max(nats) - low
    for rate, mark, shift in zip(
        sorted({row["learning_rate"] for row in rows}), "os", (-0.05, 0.05), strict=False
    ):
        level = next(
            row["test_log_likelihood"]
            for row in rows
            if not row["lag"] and row["learning_rate"] == rate
        )
        axis.axhline(
            level,
            color="0.4",
            linestyle=":",
            linewidth=1.2,
            label="lock-step" if mark == "o" else None,
        )
        for reweight, colour in ((False, "C3"), (True, "C0")):
            chosen = [
                (row, value)
                for row, value in zip(rows, nats, strict=True)
                if row["learning_rate"] == rate
            ]
            shown = [(row, value) for row, value in chosen if row["reweight"] == reweight]
            places = [lags.index(row["lag"]) + shift for row, _ in shown]
            errors = [
                (row["standard_error"] or 0.0) if value >= low else 0.0 for row, value in shown
            ]
            style = {
                "color": colour,
                "marker": mark,
                "linestyle": "-" if mark == "o" else "--",
                "capsize": 4,
                "markersize": 5,
            }
            label = f"{'reweighted' if reweight else 'as they are'}, rate {rate:g}"
            axis.errorbar(
                places, [max(value, low) for _, value in shown], errors, **style, label=label
            )
            for place, (_, value) in zip(places, shown, strict=True):
                if value < low:
                    axis.plot(place, low, marker="v", color=colour, markersize=12)
                    text = "diverged" if value == -math.inf else f"{value:,.0f}"
                    axis.annotate(
                        text,
                        (place, low),
                        (-10, 0),
                        textcoords="offset points",
                        color=colour,
                        ha="right",
                        va="center",
                    )
    axis.set_xticks(range(len(lags)), [str(lag) for lag in lags])
    axis.set_xlim(-0.3, len(lags) - 0.7)
    axis.set_ylim(low - 0.08 * span, max(nats) + 0.42 * span)  # room for the legend
    axis.set_xlabel("lag, updates")
    axis.set_ylabel("held-out log-likelihood, nats")
    axis.set_title(title, fontsize=11)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9, loc="upper center", ncols=2)


def _draw_curves(axis: Any, rows: Sequence[Row]) -> None:
    """The lag of each steered run, over the course of training."""
    for number, row in enumerate(rows):
        for curve in row["lag_curves"]:
            axis.plot(
                np.linspace(0, 100, len(curve)),
                curve,
                color=f"C{2 * number + 2}",
                alpha=0.3,
                linewidth=0.8,
            )
        mean = np.mean(row["lag_curves"], 0)
        label = f"at most {row['lag']}; in the last quarter {row['settled_lag']:.1f}"
        axis.plot(
            np.linspace(0, 100, len(mean)),
            mean,
            color=f"C{2 * number + 2}",
            linewidth=2,
            label=label,
        )
    highest = max(row["lag"] for row in rows)
    ticks = [0, *(2**power for power in range(highest.bit_length()))]
    axis.set_yscale("symlog", linthresh=1, linscale=0.6)
    axis.set_yticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_ylim(-0.1, 2 * highest)
    axis.set_xlabel("training, per cent of its steps")
    axis.set_ylabel("lag, updates (thin: each seed)")
    axis.set_title("deep energy on digits, 64-D: lag steered by the ESS", fontsize=11)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9, loc="upper right")


def _draw_ends(axis: Any, rows: Sequence[Row]) -> None:
    """Final likelihoods of the exact and the steered lags, every seed a dot."""
    names = [f"steered\n≤ {row['lag']}" if row["steered"] else f"lag {row['lag']}" for row in rows]
    for place, row in enumerate(rows):
        colour = "C2" if row["steered"] else "C0"
        there = [value for value in row["by_seed"] if value is not None]
        axis.plot([place + 0.17] * len(there), there, ".", color=colour, alpha=0.4)
        if there:
            mean = row["test_log_likelihood"]
            axis.errorbar(
                place, mean, row["standard_error"] or 0.0, color=colour, marker="o", capsize=4
            )
            axis.annotate(
                f"{mean:.1f}",
                (place, mean),
                (0, 14),
                textcoords="offset points",
                ha="center",
                color=colour,
            )
    axis.set_xticks(range(len(names)), names)
    axis.margins(x=0.1, y=0.18)
    axis.set_ylabel("held-out log-likelihood, nats")
    axis.set_title("deep energy on digits, 64-D: reweighted", fontsize=11)
    axis.grid(alpha=0.3, axis="y")


def carry_out(trials: Sequence[Trial], processes: int, kept: Path | None) -> Results:
    """Every trial's result, a line of progress for each."""
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
                lines.write(json.dumps([trial._asdict(), result]) + "\n")
        nats = "diverged" if result["nats"] is None else f"{result['nats']:.2f} nats"
        where = (
            f"[{len(results)}/{len(trials)}] {trial.task}, rate {trial.learning_rate:g}, seed"
            f" {trial.seed}"
        )
        print(
            f"{where}, lag {trial.lag} {trial.way}: {nats}, {result['seconds']:.0f} s", flush=True
        )
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="",
        metavar="FILE",
        help="print the rows as one line, or write them to FILE",
    )
    parser.add_argument(
        "--docs", type=Path, metavar="FOLDER", help="write staleness.json and staleness.png there"
    )
    parser.add_argument("--processes", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
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
    tasks = {
        name: quick(task) if given.quick else task
        for name, task in TASKS.items()
        if name in given.only
    }
    # seed by seed, so that what is there early makes a whole table
    trials = sorted(
        (trial for name in tasks for trial in trials_of(name, tasks[name])),
        key=lambda trial: trial.seed,
    )
    results = carry_out(trials, given.processes, given.runs)
    rows = [row for name, task in tasks.items() for row in rows_of(name, task, results)]
    targets = targets_of(rows)
    print(table(rows))
    for target in targets:
        verdict = "met" if target["met"] else "NOT MET"
        print(
            f"{target['task']}, rate {target['learning_rate']:g}: {target['what']}:"
            f" {target['difference']}: {verdict}"
        )
    content = {
        "command": (
            "python -m benchmarks.staleness --docs docs" + (" --quick" if given.quick else "")
        ),
        "settings": {name: " ".join(task.arguments) for name, task in tasks.items()},
        "torch": torch.__version__,
        "targets": targets,
        "rows": [row for row in rows if row["task"] == "rbm"],
        "deep_rows": [row for row in rows if row["task"] != "rbm"],
    }
    if given.docs:
        (given.docs / "staleness.json").write_text(json.dumps(content, indent=1) + "\n")
        draw(rows, given.docs)
    if given.json:
        Path(given.json).write_text(json.dumps(content, indent=1) + "\n")
    elif given.json is not None:
        print(json.dumps(content))


if __name__ == "__main__":
    main()
