"""Figures of `benchmarks.chaos`, from what a run left, and the table of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

EVERY = 10  # steps from one row of figures to the next
FIRST_SECONDS = 10.0  # of a driver, that its memory is not judged by
Samples = Sequence[tuple[int, float, float]]
"""Process, seconds since 1970, figure."""


class Fault(NamedTuple):
    """A fault that was made: its kind, and when, in seconds since 1970."""

    kind: str
    at: float


class Row(NamedTuple):
    """A row of figures: when, at which step, of which driver."""

    at: float
    step: int
    driver: int


def read_rows(file: Path) -> list[Row]:
    """Returns the rows that were recorded, in the order in which they were."""
    lines = (line.split() for line in file.read_text().splitlines())
    return [Row(float(at), int(step), int(driver)) for at, step, driver in lines]


def stalls(rows: Sequence[Row], faults: Sequence[Fault]) -> list[tuple[str, float]]:
    """Returns for each fault its kind, and how much longer than usual the longest time between two
    rows was that ended behind it and before the next fault, seconds.
    """
    gaps = [(two.at, two.at - one.at) for one, two in pairwise(rows)]
    usual = statistics.median(gap for _, gap in gaps)
    longest = [0.0 for _ in faults]
    for end, gap in gaps:
        before = sum(fault.at < end for fault in faults)
        if before:
            longest[before - 1] = max(longest[before - 1], gap - usual)
    return [(fault.kind, wait) for fault, wait in zip(faults, longest, strict=True)]


def recomputed(rows: Sequence[Row], last: int) -> int:
    """Returns how many steps were made more than once, to the rows' own coarseness; `last` is the
    step that the run ended at.
    """
    return max(0, len(rows) * EVERY - last)


def quantile(values: Sequence[float], share: float) -> float | None:
    """Returns the smallest value that at least this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def while_training(samples: Samples, rows: Sequence[Row]) -> list[tuple[int, float, float]]:
    """Returns the samples (process, seconds, figure) of drivers between their first and last rows:
    to evaluate takes memory of its own.
    """
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    for row in rows:
        first.setdefault(row.driver, row.at)
        last[row.driver] = row.at
    return [s for s in samples if s[0] in first and first[s[0]] <= s[1] <= last[s[0]]]


def slope(samples: Samples) -> float | None:
    """Returns by how much a figure rises in a minute, by least squares within each process.

    `samples` are (process, seconds, figure); the first seconds of a process do not count.
    """
    above = below = 0.0
    for process in {sample[0] for sample in samples}:
        own = [(at, figure) for of, at, figure in samples if of == process]
        late = [(at, figure) for at, figure in own if at - own[0][0] > FIRST_SECONDS]
        if len(late) < 10:
            continue
        when, mean = (statistics.fmean(column) for column in zip(*late, strict=True))
        above += sum((at - when) * (figure - mean) for at, figure in late)
        below += sum((at - when) ** 2 for at, _ in late)
    return 60 * above / below if below else None


def memory(looks: Mapping[str, Samples], rows: Sequence[Row]) -> dict[str, Any]:
    """Returns the memory of driver and object store while they train: the most, and the rise in a
    minute.
    """
    found = {name: while_training(samples, rows) for name, samples in looks.items()}
    return {
        name: {
            "most_mb": rounded(max((figure for _, _, figure in samples), default=None)),
            "mb_a_minute": rounded(slope(samples)),
        }
        for name, samples in found.items()
    }


def rounded(value: float | None) -> float | None:
    """Returns the value to two places."""
    return None if value is None else round(value, 2)


def table(found: dict[str, Any]) -> str:
    """Returns the figures as a page has them."""
    calm, stormy = found["undisturbed"], found["disturbed"]
    stall = stormy["stall_seconds"]
    rows = [
        ("exit status", calm["exit_status"], stormy["exit_status"]),
        ("steps", calm["step"], stormy["step"]),
        ("held-out log-likelihood, nats", *(f"{r['log_likelihood']:.2f}" for r in (calm, stormy))),
        (
            "seconds, start and evaluation included",
            *(f"{r['seconds']:.0f}" for r in (calm, stormy)),
        ),
        (
            "checkpoints lost",
            "",
            f"{len(stormy['checkpoints_lost'])} of {stormy['checkpoints_seen']}",
        ),
        ("steps recomputed", "", stormy["steps_recomputed"]),
        (
            "drivers; tracebacks that they printed",
            "1",
            f"{stormy['drivers']}; {stormy['tracebacks']}",
        ),
        ("stall, seconds: p50, p95", "", f"{stall['p50']}, {stall['p95']}"),
    ]
    for name, words in (("driver", "driver"), ("object_store", "object store")):
        memories = (run["memory"][name] for run in (calm, stormy))
        cells = (f"{memory['most_mb']}, {memory['mb_a_minute']}" for memory in memories)
        rows.append((f"memory of the {words}: most MB, MB more a minute", *cells))
    faults = [
        f"| {kind} | {count} | {stall['p50_by_kind'][kind]} |"
        for kind, count in stormy["faults"].items()
    ]
    return "\n".join(
        [
            f"`{found['command']}`, on {found['cores']} cores:",
            "",
            "| | undisturbed | under faults |",
            "|---|---|---|",
            *(f"| {name} | {one} | {two} |" for name, one, two in rows),
            "",
            "| fault | times | stall, seconds, p50 |",
            "|---|---|---|",
            *faults,
        ]
    )
