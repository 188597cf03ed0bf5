"""The error bars of log Z, by annealed importance sampling and by the rungs of a ladder, against
laws whose log Z is known.

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
    ladder             the same of Bennett's estimates between rungs: covered, told, median_error,
                       median_bar

The ladder has 12 rungs and 60 systems. Rungs and step sizes are moved in 15 rounds of 10
transitions each. So many follow at rest, and log Z is told from one more.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from typing import Any

import torch

from benchmarks import harness
from benchmarks.harness import say
from benchmarks.known_laws import KNOWN, Known
from pipeline.chains.sampler import ChainPlan, Sampler
from pipeline.common.types import Bridged
from pipeline.evaluation.ais import log_partition
from pipeline.evaluation.log_partition import LogPartition
from pipeline.evaluation.paths import path_to
from pipeline.kernels import gibbs, mala, replica_exchange, single_site
from pipeline.kernels.bridging import along_ladder
from pipeline.runs.ladder import FEWEST, QUANTILE

RUNGS, SYSTEMS = 12, 60
TRANSITIONS, ROUNDS = 10, 15


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


@torch.no_grad()
def climb(known: Known, seed: int) -> Bridged | None:
    """Estimate log Z as a round of chains on a ladder does."""
    energy, parameters, acceptance = known.energy, dict[str, Any](), None
    if energy.blocks:
        inner = gibbs.kernel
    elif energy.levels is not None:
        inner = single_site.kernel
    else:
        inner, parameters, acceptance = mala.kernel, {"step_size": 0.1}, 0.6
    plan = ChainPlan(
        replica_exchange.over(inner, RUNGS, 1),
        parameters,
        TRANSITIONS,
        restart=0.0,
        rungs=RUNGS,
        ladder_rounds=ROUNDS,
        target_acceptance=acceptance,
        adapt_rounds=ROUNDS,
    )
    generator = torch.Generator().manual_seed(seed)
    sampler = Sampler(energy, plan, SYSTEMS, generator)
    for _ in range(2 * ROUNDS):
        sampler.advance(generator, TRANSITIONS)
    log_weights = sampler.advance(generator, TRANSITIONS).log_weights
    assert log_weights is not None
    return along_ladder(log_weights, energy.base_log_partition())


def ladder_row(known: Known, found: list[Bridged | None]) -> dict[str, Any]:
    told = [one for one in found if one is not None and one.counting >= FEWEST]
    errors = [abs(one.log_partition - known.log_z) for one in told]
    bars = [math.sqrt(one.variance) for one in told]
    return {
        "covered": sum(error <= QUANTILE * bar for error, bar in zip(errors, bars, strict=True)),
        "told": len(told),
        "median_error": statistics.median(errors) if told else None,
        "median_bar": statistics.median(bars) if told else None,
    }


def row_of(
    name: str, known: Known, found: list[LogPartition], ladder: list[Bridged | None]
) -> dict[str, Any]:
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
        "ladder": ladder_row(known, ladder),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table of Markdown."""
    lines = [
        "| law | log Z | AIS: intervals that hold it | brackets that hold it | median distance |"
        " median error bar | ladder: intervals that hold it | median distance | median error bar |"
        "\n|---|---|---|---|---|---|---|---|---|"
    ]
    for row in rows:
        ladder = row["ladder"]
        lines.append(
            f"| {row['law']} | {row['log_z']:.2f} | {row['covered']} of {row['told']} |"
            f" {row['bracketed']} of {row['seeds']} | {_shown(row['median_error'])} |"
            f" {_shown(row['median_bar'])} | {ladder['covered']} of {ladder['told']} |"
            f" {_shown(ladder['median_error'])} | {_shown(ladder['median_bar'])} |"
        )
    parts = [row["ladder"] for row in rows]
    ais, brackets, ladders = (
        _share(sum(one[hit] for one in of), sum(one[count] for one in of))
        for of, hit, count in (
            (rows, "covered", "told"),
            (rows, "bracketed", "seeds"),
            (parts, "covered", "told"),
        )
    )
    lines.append(f"| all | | {ais} | {brackets} | | | {ladders} | | |")
    return "\n".join(lines)


def _share(hits: int, count: int) -> str:
    return f"{hits} of {count} ({hits / max(count, 1):.0%})"


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


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
        ladder = [climb(known, seed) for seed in range(arguments.seeds)]
        rows.append(row_of(name, known, found, ladder))
        of = rows[-1]["ladder"]
        say(
            f"{name}: {rows[-1]['covered']} of {rows[-1]['told']} intervals hold log Z;"
            f" on a ladder {of['covered']} of {of['told']}"
        )
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
