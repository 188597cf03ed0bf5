"""The work of `python -m pipeline.sweep` but for how trials are carried out: its files, its lines,
its table and its picture.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from pipeline.common.errors import ConfigError
from pipeline.common.json_text import to_json
from pipeline.common.types import Figures
from pipeline.config.fields import digest
from pipeline.config.sweep import Sweep
from pipeline.evaluation.curves import plain_ticks
from pipeline.runs.halving import Advance, Result, best_of, halve, rungs_of
from pipeline.storage.figures import draw_figure
from pipeline.storage.files import read_file, write_file

FILE = "sweep.json"
ROWS = 12  # of the table that is printed
Say = Callable[[str], None]


def name_of(sweep: Sweep) -> str:
    """Returns the folder's name where none is given: that of the runs, and a hash of what is
    asked.
    """
    return f"sweep-{sweep.base.name}-{digest(_asked(sweep))}"


def carry_out(sweep: Sweep, output: str, advance: Advance, say: Say) -> Figures:
    """Carries the sweep out, goes on with one that was begun under `output`, and returns what
    `sweep.json` holds, which is written after each trial. Raises `ConfigError` where another sweep
    is there, `PipelineError`.
    """
    steps = sweep.base.trainer.steps
    rungs = rungs_of(steps, sweep.settings.rungs, sweep.settings.factor)
    results = _known(sweep, output)
    count = len(sweep.trials)
    say(f"{count} trials, judged at steps {', '.join(f'{step:,}' for step in rungs)}, to {output}")
    if results:
        say(f"{len(results)} results are there already")
    done = {rung: sum(result.rung == rung for result in results) for rung in range(len(rungs))}
    for result in halve(count, rungs, sweep.settings.factor, list(results), advance):
        results.append(result)
        done[result.rung] += 1
        say(_line(sweep, result, done[result.rung], len(rungs)))
        _write(sweep, output, rungs, results)
    figures = _write(sweep, output, rungs, results)
    figures |= draw_figure(lambda: _picture(sweep, results), output, "sweep.png")
    return figures


def _asked(sweep: Sweep) -> Figures:
    """All that decides the results, and which trial has which number."""
    settings = sweep.settings
    return {
        "fixed": sorted(text for text in sweep.fixed if not text.startswith("output=")),
        "swept": [[key, values] for key, values in sweep.swept.items()],
        "judged": {
            "rungs": settings.rungs,
            "factor": settings.factor,
            "figure": settings.figure,
        },
    }


def _known(sweep: Sweep, output: str) -> list[Result]:
    """The results of an earlier time."""
    try:
        found = json.loads(read_file(f"{output}/{FILE}"))
    except FileNotFoundError:
        return []
    asked = _asked(sweep)
    if {key: found.get(key) for key in asked} != asked:
        remedy = "another sweep is there; give another output, or its own command line"
        raise ConfigError("output", output, remedy)
    return [
        Result(**{**one, "score": -math.inf if one["score"] is None else one["score"]})
        for one in found["results"]
    ]


def _write(sweep: Sweep, output: str, rungs: Sequence[int], results: Sequence[Result]) -> Figures:
    best = best_of(results)
    stood: dict[int, int] = {}
    for result in results:
        stood[result.trial] = max(stood.get(result.trial, 0), result.step)
    figures: Figures = {
        **_asked(sweep),
        "steps": list(rungs),
        "trials": sweep.trials,
        "results": [result.as_figures() for result in results],
        "best": None if best is None else sweep.trials[best.trial],
        "best_run": None if best is None else f"{output}/trials/{best.trial:04d}",
        "best_score": None if best is None else best.score,
        "share_of_steps": sum(stood.values()) / (len(sweep.trials) * rungs[-1]),
        "processor_seconds": sum(result.seconds for result in results),
        "output": output,
    }
    write_file(output, FILE, to_json(figures, indent=1).encode())
    return figures


def _line(sweep: Sweep, result: Result, number: int, rungs: int) -> str:
    settings = " ".join(sweep.trials[result.trial])
    found = f"failed: {result.failed}" if result.failed else _score(result)
    return f"rung {result.rung + 1}/{rungs}, result {number}: {settings}  {found}"


def _score(result: Result) -> str:
    if result.low is None or result.high is None or result.high - result.low < 0.005:
        return f"{result.score:.3f}"
    return f"{result.score:.2f} ({result.low:.2f} to {result.high:.2f})"


def in_words(sweep: Sweep, figures: Figures) -> str:
    """Returns the last lines: a table of the best trials, and where everything is."""
    results = [Result(**one) for one in figures["results"]]
    last = {result.trial: result for result in results}  # the later, the further
    ranked = sorted(
        last.values(), key=lambda r: (-r.rung, -math.inf if r.score is None else -r.score)
    )
    keys = list(sweep.swept)
    measure = figures["judged"]["figure"] or "held-out log-likelihood, nats a row"
    rows = [["step", measure, *keys]]
    for result in ranked[:ROWS]:
        values = [text.partition("=")[2] for text in sweep.trials[result.trial]]
        found = "failed" if result.failed else _score(result)
        rows.append([f"{result.step:,}", found, *values])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["", *("  ".join(map(str.rjust, row, widths)) for row in rows)]
    if len(ranked) > ROWS:
        lines.append(f"  ({len(ranked) - ROWS} more are in {FILE})")
    lines += [
        "",
        f"done: {len(sweep.trials)} trials made {figures['share_of_steps']:.0%} of the steps of"
        f" full runs, {figures['processor_seconds']:.0f} s of processor time",
    ]
    if figures["best"] is None:
        lines.append("every trial failed; the first says why: " + str(results[0].failed))
    else:
        lines += [
            f"  best        {' '.join(figures['best'])}",
            f"  its run     {figures['best_run']}",
        ]
    why = figures.get("undrawn_sweep")
    picture = f"{figures['output']}/sweep.png" if why is None else f"no picture: {why}"
    return "\n".join(
        [*lines, f"  picture     {picture}", f"  results     {figures['output']}/{FILE}"]
    )


def _picture(sweep: Sweep, results: Sequence[Result]) -> Figure:
    """Draws the score of each trial by step, and for each key the scores at the last rung that all
    trials came to, by value.
    """
    figure = Figure(figsize=(3.6 * (1 + len(sweep.swept)), 3.6), layout="constrained")
    axes = figure.subplots(1, 1 + len(sweep.swept), squeeze=False)[0]
    well = [result for result in results if result.failed is None]
    best = best_of(results)
    for trial in range(len(sweep.trials)):
        way = sorted((r.step, r.score) for r in well if r.trial == trial)
        if way:
            mark: dict[str, Any] = {"color": "0.6", "lw": 1, "marker": "o", "ms": 3}
            if best is not None and trial == best.trial:
                mark |= {"color": "C1", "lw": 2, "zorder": 3, "label": "best"}
            axes[0].plot(*zip(*way, strict=True), **mark)
    axes[0].set_xlabel("step")
    axes[0].set_ylabel(sweep.settings.figure or "held-out log-likelihood, nats a row")
    axes[0].legend()
    plain_ticks(axes[0])
    for axis, key in zip(axes[1:], sweep.swept, strict=True):
        values = sweep.swept[key]
        for rung in sorted({result.rung for result in well}):
            there = [r for r in well if r.rung == rung]
            places = [values.index(_value(sweep, r.trial, key)) for r in there]
            axis.plot(places, [r.score for r in there], "o", ms=4, label=f"rung {rung + 1}")
        axis.set_xticks(range(len(values)), values)
        axis.margins(x=0.15)
        axis.set_xlabel(key)
    axes[-1].legend()
    figure.suptitle(f"{sweep.base.name}: {len(sweep.trials)} trials")
    return figure


def _value(sweep: Sweep, trial: int, key: str) -> str:
    return dict(text.split("=", 1) for text in sweep.trials[trial])[key]
