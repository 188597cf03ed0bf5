"""The error bars of log Z by annealed importance sampling, against laws whose log Z is known.

    python -m benchmarks.coverage [--seeds 20] [--temperatures 200] [--particles 100]
        [--only LAW ...] [--json FILE] [--docs FOLDER]

Each law of `benchmarks.known_laws` is scored with every seed. The result is {"rows": [...]}, a row
for each law:

    log_z              the truth, nats
    covered            how many of the 90 % intervals hold it
    told               how many seeds have an interval; the others are called unreliable
    bracketed          how many brackets, from the lower bound to the upper one, hold it
    median_error       of the estimate, nats: the median of its distance from the truth
    median_bar         of the standard error, nats; null where most have none
    doubts             the reasons that were given, with their numbers
"""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

import torch

from benchmarks import harness
from benchmarks.harness import say
from benchmarks.known_laws import KNOWN, Known
from pipeline.evaluation.ais import log_partition
from pipeline.evaluation.log_partition import LogPartition
from pipeline.evaluation.paths import path_to


@torch.no_grad()
def score(known: Known, seed: int, temperatures: int, particles: int) -> LogPartition:
    """Estimate log Z as an evaluation does, from rows that are draws of the law."""
    generator = torch.Generator().manual_seed(seed)
    path = path_to(known.energy, known.rows)
    steps = log_partition(path, temperatures, particles, generator, known.rows)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: LogPartition = end.value
            return found


def row_of(name: str, known: Known, found: list[LogPartition]) -> dict[str, Any]:
    intervals = [one.interval for one in found if one.interval is not None]
    bars = [one.standard_error for one in found if one.standard_error is not None]
    reasons = Counter(one.doubt.partition(" ")[2][:40] for one in found if one.doubt)
    return {
        "law": name,
        "log_z": known.log_z,
        "covered": sum(low <= known.log_z <= high for low, high in intervals),
        "told": len(intervals),
        "seeds": len(found),
        "bracketed": sum(
            one.at_least <= known.log_z <= (one.at_most or one.at_least) for one in found
        ),
        "median_error": statistics.median(abs(one.value - known.log_z) for one in found),
        "median_bar": statistics.median(bars) if 2 * len(bars) > len(found) else None,
        "doubts": dict(reasons),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table of Markdown."""
    lines = [
        "| law | log Z | intervals that hold it | brackets that hold it | median distance |"
        " median error bar |\n|---|---|---|---|---|---|"
    ]
    for row in rows:
        bar = "" if row["median_bar"] is None else f"{row['median_bar']:.4f}"
        lines.append(
            f"| {row['law']} | {row['log_z']:.2f} | {row['covered']} of {row['told']} |"
            f" {row['bracketed']} of {row['seeds']} | {row['median_error']:.4f} | {bar} |"
        )
    covered, told, bracketed, seeds = (
        sum(row[key] for row in rows) for key in ("covered", "told", "bracketed", "seeds")
    )
    lines.append(
        f"| all | | {covered} of {told} ({covered / told:.0%}) | {bracketed} of {seeds}"
        f" ({bracketed / seeds:.0%}) | | |"
    )
    return "\n".join(lines)


def main() -> None:
    parser = harness.command_line(__doc__, "json", "docs")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--temperatures", type=int, default=200)
    parser.add_argument("--particles", type=int, default=100)
    harness.add_only(parser, KNOWN)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in arguments.only:
        known = KNOWN[name]()
        found = [
            score(known, seed, arguments.temperatures, arguments.particles)
            for seed in range(arguments.seeds)
        ]
        rows.append(row_of(name, known, found))
        say(f"{name}: {rows[-1]['covered']} of {rows[-1]['told']} intervals hold log Z")
    content = {
        "command": "python -m benchmarks.coverage",
        **harness.conditions("torch"),
        "temperatures": arguments.temperatures,
        "particles": arguments.particles,
        "rows": rows,
    }
    if arguments.docs:
        harness.write(content, arguments.docs / "coverage.json")
        harness.insert(table(rows), arguments.docs / "evaluation.md", "benchmarks.coverage")
    if arguments.json or not arguments.docs:
        harness.write(content, arguments.json)


if __name__ == "__main__":
    main()
