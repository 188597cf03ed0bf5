"""Boltzmann machine learning of an RNA family beside adabmDCA, and what large models take.

`benchmarks.sequences` runs these as its parts rna, pools and memory.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch

import pipeline
from benchmarks.harness import say
from pipeline.assembly.data import open_data
from pipeline.config.compose import compose
from pipeline.data.base import DataSet
from pipeline.energies.frozen import frozen
from pipeline.energies.potts import PottsModel
from pipeline.training.covariances import Covariances

LEVELS = (0.7, 0.8, 0.9, 0.95)
CHAINS, SWEEPS = 2000, 400
LOOK_SECONDS = 0.1
MOST_BYTES = 8e9
LETTERS = "-ACGU"


def settings(alignment: Path) -> tuple[str, ...]:
    """Returns what every run of the family is told."""
    data = (f"data.path={alignment}", "data.held_out=1")
    return (
        "experiment=rna_potts",
        *data,
        "evaluation.samples=0",
        "evaluation.ais_temperatures=0",
        "metrics.port=0",
    )


def ours(alignment: Path, output: Path, *more: str) -> list[str]:
    """Returns the command line of one run of this project's."""
    asked = (*settings(alignment), f"output={output}", *more)
    return [sys.executable, "-m", "pipeline.train", *asked]


class Side:
    """One program that learns, in a process of one thread. `told` reads from its files the
    correlations that it has told so far, by time.
    """

    def __init__(self, command: list[str], told: Callable[[], list[tuple[float, float]]]) -> None:
        self.told = told
        self._clock: list[tuple[float, float]] = []  # times, and processor seconds by then
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = psutil.Popen(command, env=environment, stdout=subprocess.DEVNULL)

    def look(self) -> bool:
        """Takes in what it has spent, and returns whether it goes on."""
        if self._process.poll() is not None:
            return False
        spent = self._process.cpu_times()
        self._clock.append((time.time(), spent.user + spent.system))
        self.told()
        return True

    def until(self, level: float) -> float | None:
        """Returns the processor seconds until it told so high a correlation; None if it never
        did.
        """
        when = next((at for at, value in self.told() if value >= level), None)
        times, spent = np.array(self._clock).T
        return None if when is None else float(np.interp(when, times, spent))

    def figures(self) -> dict[str, float]:
        """Returns the last correlation that it told, and the processor seconds until its end."""
        return {"told": self.told()[-1][1], "cpu_s": self._clock[-1][1]}


def of_series(file: Path) -> Callable[[], list[tuple[float, float]]]:
    """Returns what reads the rows of a run's metrics, which have their times."""

    def told() -> list[tuple[float, float]]:
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [(row["time"], row["ebm_two_site_pearson"]) for row in rows]

    return told


def of_log(file: Path) -> Callable[[], list[tuple[float, float]]]:
    """Returns what reads a log of adabmDCA, each of whose lines is seen as soon as it is there."""
    seen: list[tuple[float, float]] = []

    def told() -> list[tuple[float, float]]:
        words = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        values = [float(line[5]) for line in words if len(line) == 15 and line[0].isdigit()]
        seen.extend((time.time(), value) for value in values[len(seen) :])
        return seen

    return told


def side_by_side(alignment: Path, rate: float, updates: int) -> dict[str, Any]:
    """Both learn at the same time until 0.95, adabmDCA at the learning rate `rate` for so many
    `updates` at most. Returns for each level what each took, and how their models are judged.
    """
    with TemporaryDirectory() as folder:
        here, family = Path(folder), Path(folder) / "family.fasta"
        family.write_text("".join(_lines(alignment)))
        own, others = here / "ours", here / "theirs"
        one_pool = ("cluster=inline", "chains.pools=1", f"chains.per_pool={CHAINS}")
        theirs = [str(Path(sys.executable).with_name("adabmDCA")), "train", "-d", str(family)]
        theirs += ["-o", str(others), "--alphabet", "rna", "--nchains", str(CHAINS)]
        theirs += ["--device", "cpu", "--no-progress", "--lr", str(rate)]
        theirs += ["--max-gradient-steps", str(updates)]
        sides = {
            "ours": Side(ours(alignment, own, *one_pool), of_series(own / "metrics.jsonl")),
            "adabmDCA": Side(theirs, of_log(others / "adabmDCA.log")),
        }
        going = list(sides.values())
        while going:
            going = [side for side in going if side.look()]
            time.sleep(LOOK_SECONDS)
        data = open_data(compose([*settings(alignment), "output=none"]))
        models = {"ours": _own_model(own), "adabmDCA": _their_model(others / "params.dat")}
        judge = Covariances(data.sample, data.row_weights.sample, len(LETTERS))
        found: dict[str, Any] = {"chains": CHAINS, "rate": rate, "updates": updates, "levels": {}}
        for name, side in sides.items():
            drawn = judge.figures(draws(models[name], data))
            found[name] = {**side.figures(), "drawn": drawn}
        for level in LEVELS:
            took = {name: side.until(level) for name, side in sides.items()}
            found["levels"][str(level)] = took
            say(f"Pearson {level}: " + ", ".join(f"{name} {_told(s)}" for name, s in took.items()))
    return found


def _told(seconds: float | None) -> str:
    return "not reached" if seconds is None else f"{seconds:.1f} s"


def _lines(alignment: Path) -> Iterator[str]:
    import gzip

    with gzip.open(alignment, "rt") as lines:
        yield from lines


def _own_model(output: Path) -> PottsModel:
    energy = pipeline.load(str(output))
    assert isinstance(energy, PottsModel)
    return energy


def _their_model(file: Path) -> PottsModel:
    """Returns the model of a file of parameters: `J i j a b VALUE` and `h i a VALUE`, by line."""
    words = [line.split() for line in file.read_text().splitlines()]
    fields = [line for line in words if line[0] == "h"]
    sites = 1 + max(int(line[1]) for line in fields)
    energy = PottsModel((sites,), len(LETTERS))
    first, second = np.triu_indices(sites, 1)
    pairs = zip(first.tolist(), second.tolist(), strict=True)
    numbers = {pair: number for number, pair in enumerate(pairs)}
    with torch.no_grad():
        for _, i, a, value in fields:
            energy.field[int(i), LETTERS.index(a)] = float(value)
        coupling = np.zeros(energy.coupling.shape, np.float32)
        for kind, i, j, *rest in words:
            if kind == "J":
                a, b, value = rest
                at = numbers[int(i), int(j)]
                coupling[at, LETTERS.index(a), LETTERS.index(b)] = float(value)
        energy.coupling.copy_(torch.from_numpy(coupling))
    return energy


def draws(energy: PottsModel, data: DataSet) -> torch.Tensor:
    """Returns sequences `[CHAINS, L]` of the model, after `SWEEPS` sweeps from independent sites
    with the frequencies of the data.
    """
    start, generator = PottsModel(data.shape, len(LETTERS)), torch.Generator().manual_seed(0)
    start.initialise(data.sample, data.row_weights.sample)
    model, x = frozen(energy), start.sample_base(CHAINS, generator)
    model.requires_grad_(False)
    for number in range(SWEEPS):
        x = model.conditional(model.blocks[number % 2], x).sample(generator)
    return x


WAYS = {
    "one_process": ("cluster=inline",),
    "two_pools": ("cluster=local",),
    "two_pools_two_ranks": ("cluster=local", "trainer.replicas=2", "trainer.batch_size=2"),
}
"""How the same steps are made."""
STEPS_OF_POOLS = 60
"""After so many the chains correlate at 0.95."""


def pools(alignment: Path, pairs: int) -> dict[str, dict[str, float]]:
    """Returns the seconds of training in one process, with two pools on Ray, and with two ranks
    that learn besides, each the median of runs in turn; and the median ratio to one process.
    """
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with TemporaryDirectory() as folder:
        for number in range(pairs):
            for way, took in seconds.items():
                output = Path(folder) / f"{way}-{number}"
                same = (f"trainer.steps={STEPS_OF_POOLS}", "trainer.until_pearson=null")
                run = ours(alignment, output, *WAYS[way], *same, "cluster.threads=1")
                # Ray's workers yield to everybody else by default
                environment = {**os.environ, "RAY_worker_niceness": "0"}
                subprocess.run(run, check=True, stdout=subprocess.DEVNULL, env=environment)
                summary = json.loads((output / "summary.json").read_text())
                took.append(summary["wall_seconds"])
                say(f"{way}: {summary['version']} steps in {took[-1]:.1f} s")
    alone = seconds["one_process"]
    return {
        way: {
            "seconds": statistics.median(took),
            "ratio": statistics.median(its / one for its, one in zip(took, alone, strict=True)),
        }
        for way, took in seconds.items()
    }


MEMORY = {
    "pseudo_likelihood": ("objective=pseudo_likelihood", "optimizer.name=adam", "chains.pools=1"),
    "pcd": ("objective=pcd", "optimizer.name=sgd", "chains.pools=1", "chains.per_pool=100"),
}


def memory(sites: int = 1000, count: int = 200) -> dict[str, float]:
    """Returns the most bytes that a process holds which makes two steps of a model of so many
    `sites` and 21 letters, from 100 sequences and 100 chains, by objective.
    """
    found = {}
    with TemporaryDirectory() as folder:
        codes = np.random.default_rng(0).choice(list("-ACDEFGHIKLMNPQRSTVWY"), (count, sites))
        rows = (f">{number}\n{''.join(row)}\n" for number, row in enumerate(codes))
        (family := Path(folder) / "large.fasta").write_text("".join(rows))
        for name, asked in MEMORY.items():
            command = [sys.executable, "-c", STEPS, "data=fasta", f"data.path={family}"]
            command += ["energy=potts", "energy.levels=21", "kernel=gibbs", "cluster=inline"]
            command += ["trainer.batch_size=100", "optimizer.schedule=constant", *asked]
            command += ["data.held_out=10", "data.identity=null", "optimizer.ema=0"]
            process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
            _, status, usage = os.wait4(process.pid, 0)
            assert status == 0
            found[name] = usage.ru_maxrss * 1024.0
            words = "within" if found[name] <= MOST_BYTES else "over"
            say(f"{name}: {found[name] / 1e9:.2f} GB, {words} {MOST_BYTES / 1e9:.0f}")
    return found


STEPS = """
import sys
from pipeline.config.compose import compose
from pipeline.runs.inline import InlineRunner
runner = InlineRunner(compose(sys.argv[1:]))
runner.start(None, None)
for _ in range(2):
    runner.step()
"""
"""Two steps in one process, without checkpoint and evaluation."""
