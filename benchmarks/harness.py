"""The parts that every benchmark shares: its options, timing in alternation, runs, and results."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.common.json_text import to_json

Value = TypeVar("Value")

say = partial(print, flush=True)
"""Prints a line of progress at once, also where the output is a file."""

OPTIONS: dict[str, dict[str, Any]] = {
    "json": {
        "nargs": "?",
        "const": "-",
        "metavar": "FILE",
        "help": "write the result to FILE; without FILE, print it as the last line",
    },
    "docs": {
        "type": Path,
        "metavar": "FOLDER",
        "help": "write the result, its pictures and its tables into FOLDER",
    },
    "device": {"choices": ("cpu", "cuda"), "default": "cpu"},
    "pairs": {"type": int, "default": 9, "help": "timed pairs of runs"},
}
"""Options that several benchmarks have, by name, as `argparse` takes them."""


def command_line(description: str | None, *options: str) -> ArgumentParser:
    """Make a parser with the `options` named, keys of `OPTIONS`; a benchmark adds its own."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    for name in options:
        parser.add_argument(f"--{name}", **OPTIONS[name])
    return parser


def add_only(parser: ArgumentParser, choices: Iterable[str]) -> None:
    """Add `--only NAME ...`, by default all of the `choices`."""
    names = list(choices)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=names,
        default=names,
        metavar="NAME",
        help="only these of: " + ", ".join(names),
    )


def add_only_row(parser: ArgumentParser, what: str) -> None:
    """Add `--only WHAT[:ENERGY]`, which `chosen` reads."""
    parser.add_argument(
        "--only",
        metavar=f"{what.upper()}[:ENERGY]",
        help=f"one {what}, on energies whose name has ENERGY in it",
    )


def chosen(
    rows: Iterable[tuple[str, str]], only: str | None, parser: ArgumentParser
) -> list[tuple[str, str]]:
    """Return the (name, energy) of `rows` that `--only` asks for.

    `only` is NAME, NAME:ENERGY or None, for all rows; a part of the energy's name is enough, in
    either case of letters. The parser ends the program where no row is meant.
    """
    there = list(rows)
    wanted, _, part = (only or "").partition(":")
    found = [
        (name, energy)
        for name, energy in there
        if wanted in ("", name) and part.lower() in energy.lower()
    ]
    if not found:
        names, energies = (dict.fromkeys(column) for column in zip(*there, strict=True))
        parser.error(
            f"no row is called {only}; names: {'; '.join(names)}; energies: {'; '.join(energies)}"
        )
    return found


# timing


def seconds(
    work: Callable[[], object],
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return what `work` takes by the `clock`, seconds, with what it started on a GPU."""
    _synchronise(device)
    begin = clock()
    work()
    _synchronise(device)
    return clock() - begin


def _synchronise(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def repetitions(timed: Callable[[int], float], budget: float) -> int:
    """Return how many repetitions take about `budget` seconds.

    `timed(n)` runs n of them and returns the seconds that they took.
    """
    count = 1
    while (took := timed(count)) < budget / 4:
        count *= 2
    return math.ceil(count * budget / took)


def alternate(rounds: int, *sides: Callable[[], Value]) -> list[list[Value]]:
    """Run every side once in each of `rounds` rounds, and return what each gave, side by side.

    The order of the sides turns round from one round to the next, so that none always runs after
    the same one, on a processor that it has warmed. A slow stretch of the machine then weighs on
    all sides, and the ratios within rounds are nearly free of it.
    """
    found: list[list[Value]] = [[] for _ in sides]
    for number in range(rounds):
        order = range(len(sides)) if number % 2 == 0 else reversed(range(len(sides)))
        for side in order:
            found[side].append(sides[side]())
    return found


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return above / below, round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median over rounds of above / below."""
    return statistics.median(ratios(above, below))


# runs of the project's own commands


def run(module: str, *arguments: str, output: Path) -> dict[str, Any]:
    """Run `python -m MODULE ARGUMENTS output=OUTPUT` in a process of its own.

    Returns the `summary.json` that it leaves in `output`. Raises `CalledProcessError` where the
    command fails; its errors are on this process's standard error.
    """
    command = [sys.executable, "-m", module, *arguments, f"output={output}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    summary: dict[str, Any] = json.loads((output / "summary.json").read_text())
    return summary


# results


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of installed packages, by name."""
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found}


def conditions(*packages: str) -> dict[str, Any]:
    """Return what a result was made with: the machine, its cores, and versions."""
    return {"machine": platform.machine(), "cores": os.cpu_count(), **versions(*packages)}


def write(content: Any, file: str | Path | None) -> None:
    """Write a result as JSON to `file`; print it as one line where that is "-".

    None, which is what `--json` is where it was not given, writes nothing.
    """
    if file == "-":
        print(to_json(content), flush=True)
    elif file is not None:
        Path(file).write_text(to_json(content, indent=1) + "\n")


END = "<!-- end of figures -->"


def insert(text: str, page: Path, module: str) -> None:
    """Put the tables of `python -m MODULE` into a page of Markdown, between its two marks."""
    mark = f"<!-- figures: made by `python -m {module} --docs docs` -->"
    head, _, rest = page.read_text().partition(mark)
    page.write_text(f"{head}{mark}\n\n{text}\n\n{END}{rest.partition(END)[2]}")
