"""The live likelihood of whole runs against the exact one, or against long AIS there and back.

    python -m benchmarks.live [--only CASE ...] [--seed 0] [--json FILE] [--docs FOLDER]

Each case is a run in one process. On a ladder, log Z comes from its rungs and the weights are those
of the step; without one, it comes from AIS and is followed between estimates, and the weights are
the averaged ones. Where log Z can be had exactly, that is switched off for the figure, and is what
it is held against. The result is {"rows": [...]}, a row for each case:

    points      [version, likelihood, low, high, truth, its low, its high] of every figure, nats a
                held-out row; where there is no exact log Z, of at most four, with AIS's
                bounds
    largest     the largest distance of a likelihood from the truth, nats
    covered     how many intervals hold the truth; where that is an interval, how many touch it
    median_half half of an interval, nats, the median
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import harness
from benchmarks.harness import say
from benchmarks.live_picture import draw
from pipeline.assembly.data import noisy_sample, open_data
from pipeline.assembly.energies import make_energy
from pipeline.common.rng import torch_generator
from pipeline.config.compose import compose
from pipeline.config.run import RunConfig
from pipeline.data.base import DataSet
from pipeline.energies.base import Energy
from pipeline.energies.weights import unflatten_
from pipeline.evaluation.ais import log_partition
from pipeline.evaluation.live import as_sampled, exact, level, sampled_rows
from pipeline.evaluation.log_partition import LogPartition
from pipeline.evaluation.paths import path_to
from pipeline.runs.inline import InlineRunner
from pipeline.runs.ladder import LadderLikelihood

CHECKED = 4
"""Figures that are held against AIS, where there is no exact likelihood."""
TEMPERATURES, PARTICLES = 1000, 100
KEPT = 1 << 32
"""Bytes of past weights that are kept for figures of older versions."""
LADDER = ("kernel=replica_exchange",)
GIBBS = (*LADDER, "kernel.inner=gibbs")


class Case(NamedTuple):
    """A run: its overrides, and its steps."""

    steps: int
    overrides: tuple[str, ...]
    enlarged: bool = False


MACHINE = ("experiment=digits_rbm",)
LARGE = (
    *("experiment=digits_rbm", "data=idx", "data.encoding=sampled", "data.noise=0.0"),
    *("data.held_out=297", "optimizer.learning_rate=0.02", "chains.per_pool=50"),
)
PLANE = ("experiment=toy", "data.held_out=1000")
CASES = {
    "RBM 64x16, ladder": Case(2000, (*MACHINE, *GIBBS)),
    "RBM 64x16, AIS": Case(3000, MACHINE),
    "RBM 784x16, ladder": Case(800, (*LARGE, *GIBBS), enlarged=True),
    "RBM 784x16, AIS": Case(8000, LARGE, enlarged=True),
    "deep energy in the plane, ladder": Case(800, (*PLANE, *LADDER)),
    "DBM 64-64-32, AIS": Case(5000, ("experiment=dbm_digits",)),
    "default run, AIS": Case(2000, ()),
    "default run, ladder": Case(400, (*LADDER, "kernel.inner.transitions=5")),
}


@contextmanager
def configured(case: Case, seed: int) -> Iterator[RunConfig]:
    """The case's configuration; within, its data are there."""
    with tempfile.TemporaryDirectory() as folder:
        own = [
            f"seed={seed}",
            f"trainer.steps={case.steps}",
            f"metrics.held_out_every={case.steps // 200}",
        ]
        if case.enlarged:
            own.append(f"data.path={enlarged_digits(Path(folder))}")
        if "kernel=replica_exchange" not in case.overrides:
            own.append("evaluation.live=true")
        yield compose(["cluster=inline", *case.overrides, *own])


def enlarged_digits(folder: Path) -> Path:
    """Write scikit-learn's digits, made 28x28 pixels by linear interpolation, as an IDX file."""
    from sklearn.datasets import load_digits

    images = torch.tensor(load_digits().images / 16)[:, None]
    large = torch.nn.functional.interpolate(images, (28, 28), mode="bilinear")[:, 0]
    file = folder / "digits-idx3-ubyte"
    header = np.array([0x803, *large.shape], dtype=">i4").tobytes()
    file.write_bytes(header + (255 * large).round().byte().numpy().tobytes())
    return file


class Judge:
    """The truth of a run's weights."""

    def __init__(self, config: RunConfig, data: DataSet) -> None:
        self._data, self._energy = data, make_energy(config, data.shape)
        self._energy.requires_grad_(False).eval()
        generator = torch_generator(config.data.split_seed, "held-out-noise")
        noise = torch.randn(data.held_out.shape, generator=generator)
        discrete = self._energy.levels is not None
        self._test = data.held_out if discrete else data.held_out + data.noise * noise
        self._rows = data.sample if discrete else noisy_sample(config, data)

    def exact(self, flat: np.ndarray) -> tuple[float, float, float] | None:
        """The likelihood, and twice itself as its bounds; None where it cannot be had."""
        unflatten_(self._energy, flat)
        log_z = exact(self._energy, self._data)
        return None if log_z is None else (level(self._energy, self._test) - log_z,) * 3

    @torch.no_grad()
    def by_annealing(self, flat: np.ndarray) -> tuple[float, float, float]:
        """The likelihood and its bounds."""
        unflatten_(self._energy, flat)
        rows = sampled_rows(self._energy, self._rows)
        model: Energy = as_sampled(self._energy)
        generator = torch.Generator().manual_seed(1)
        steps = log_partition(path_to(model, rows), TEMPERATURES, PARTICLES, generator, rows)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                found: LogPartition = end.value
                break
        height = level(self._energy, self._test)
        assert found.at_most is not None
        return height - found.value, height - found.at_most, height - found.at_least


def train(case: Case, seed: int) -> list[list[float]]:
    """Make the run, and return its points."""
    with configured(case, seed) as config:
        runner, data = InlineRunner(config), open_data(config)
    judge, ladder = Judge(config, data), LadderLikelihood()
    runner.start(None, None)
    live = runner._scoring._live
    if live is not None:
        live._exact = False
    past: dict[int, np.ndarray] = {}
    points: list[tuple[list[float], np.ndarray]] = []
    for _ in range(case.steps):
        report, rounds, _ = runner.step()
        report = ladder.tell(report, rounds)
        learner = runner._learner
        flat = learner.publish().flat if live is None else learner.averaged()
        past[report.version] = flat.copy()
        if len(past) > max(KEPT // flat.nbytes, 30):
            del past[min(past)]
        version = report.figures.get("log_likelihood_version")
        if version in past:
            names = ("log_likelihood", "log_likelihood_at_least", "log_likelihood_at_most")
            figures = [float(version), *(report.figures[name] for name in names)]
            points.append((figures, past[int(version)]))
    return judged(points, judge)


def judged(points: list[tuple[list[float], np.ndarray]], judge: Judge) -> list[list[float]]:
    """Every point with its exact likelihood, or a few with that of AIS; none without points."""
    if not points:
        return []
    if judge.exact(points[-1][1]) is None:
        chosen = np.linspace(0, len(points) - 1, CHECKED + 1).round().astype(int)[1:]
        pairs = [points[place] for place in np.unique(chosen)]
        return [[*figures, *judge.by_annealing(flat)] for figures, flat in pairs]
    return [[*figures, *(judge.exact(flat) or ())] for figures, flat in points]


def row_of(name: str, points: list[list[float]]) -> dict[str, Any]:
    return {
        "case": name,
        "points": [[round(value, 4) for value in point] for point in points],
        "largest": max(abs(value - truth) for _, value, _, _, truth, _, _ in points),
        "covered": sum(
            low <= above and below <= high for _, _, low, high, _, below, above in points
        ),
        "median_half": statistics.median((point[3] - point[2]) / 2 for point in points),
        "exact": all(point[5] == point[6] for point in points),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table of Markdown."""
    lines = [
        "| run | held against | figures | largest distance | intervals that hold it |"
        " half of an interval, median |\n|---|---|---|---|---|---|"
    ]
    for row in rows:
        count = len(row["points"])
        share = f" ({row['covered'] / count:.0%})" if count >= 20 else ""
        lines.append(
            f"| {row['case']} | {'exact' if row['exact'] else 'AIS'} | {count} |"
            f" {row['largest']:.2f} | {row['covered']}{share} | {row['median_half']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = harness.command_line(__doc__, "json", "docs")
    parser.add_argument("--seed", type=int, default=0)
    harness.add_only(parser, CASES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in arguments.only:
        points = train(CASES[name], arguments.seed)
        if not points:
            say(f"{name}: no figures")
            continue
        rows.append(row_of(name, points))
        told = {key: value for key, value in rows[-1].items() if key != "points"}
        say(f"{told}, of {len(rows[-1]['points'])} figures")
    content = {
        "command": "python -m benchmarks.live",
        **harness.conditions("torch"),
        "seed": arguments.seed,
        "rows": rows,
    }
    if arguments.docs:
        harness.write(content, arguments.docs / "live.json")
        draw(rows, arguments.docs)
        harness.insert(table(rows), arguments.docs / "evaluation.md", "benchmarks.live")
    if arguments.json or not arguments.docs:
        harness.write(content, arguments.json)


if __name__ == "__main__":
    main()
