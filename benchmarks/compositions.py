"""Trained models composed, beside the compositions of the laws they learned.

    python -m benchmarks.compositions [--docs FOLDER]

A ring and a stripe in the plane are learned apart, by `python -m pipeline.train data.law=ring` (`stripe`), and composed with no
further training by `python -m pipeline.sample runs=[A,B] compose=and|or|not`. The densities of both laws are known, and with
them those of their compositions: KL(truth || model) in nats by quadrature; and the energy distance of 1,000 samples, chains
started at noise, to draws of the truth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from matplotlib.figure import Figure
from torch import Tensor

import pipeline
from benchmarks.every_objective import energy_distance
from pipeline.data.toys import LAWS
from pipeline.energies.base import Energy
from pipeline.energies.composition import Conjunction, Disjunction, Negation
from pipeline.evaluation.likelihood import log_z_by_quadrature

REACH, GRID = 12.0, 1000  # of the quadrature: midpoints of [-12, 12]^2
SHOWN = 4.5
PARTS = ("ring", "stripe")
WEIGHT = 0.8  # of what is negated
# noise-contrastive estimation, 20 seconds each; MALA adapts, as compositions are narrower or wider than their parts
RECIPE = (
    *("experiment=toy", "objective=nce", "energy.hidden=[64,64]", "trainer.steps=4000", "kernel.step_size=0.05"),
    *("kernel.target_acceptance=0.6", "evaluation.transitions=1000", "cluster=inline", "metrics.port=0"),
)
SAMPLES = 1000


class Row(NamedTuple):
    """A law and its model: log densities on the grid, `[GRID^2]`, the truth's up to a constant; and samples of the model."""

    name: str
    truth: Tensor
    energy: Energy
    samples: Tensor
    summary: dict[str, Any]


def axis() -> Tensor:
    step = 2 * REACH / GRID
    return (torch.arange(GRID) + 0.5) * step - REACH


def grid() -> Tensor:
    side = axis()
    return torch.cartesian_prod(side, side)


def normalised(log_values: Tensor) -> Tensor:
    """log p of each point of the grid as a share of all, `[GRID^2]` float64."""
    return log_values.double().log_softmax(0)


def compositions(ring: Tensor, stripe: Tensor) -> dict[str, Tensor]:
    """log p of the laws' own compositions, up to a constant."""
    return {
        "and": ring + stripe,
        "or": torch.logaddexp(ring, stripe),
        "not": ring - WEIGHT * stripe,
    }


def composed(models: list[Energy]) -> dict[str, Energy]:
    """The models' compositions, as `python -m pipeline.sample` makes them."""
    return {
        "and": Conjunction(models),
        "or": Disjunction(models, None, [log_z_by_quadrature(model, (-REACH, REACH)) for model in models]),
        "not": Negation(models[0], models[1], WEIGHT),
    }


@torch.no_grad()
def on_grid(log_density: Callable[[Tensor], Tensor]) -> Tensor:
    return normalised(torch.cat([log_density(points) for points in grid().split(50_000)]))


def kl(truth: Tensor, model: Tensor) -> float:
    """sum p (log p - log q) over the grid, nats."""
    return float((truth.exp() * (truth - model)).sum())


def draws(truth: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Of a law on the grid: a point, and uniform within its cell, `[count, 2]`."""
    cells = torch.multinomial(truth.exp().float(), count, replacement=True, generator=generator)
    step = 2 * REACH / GRID
    return grid()[cells] + step * (torch.rand(count, 2, generator=generator) - 0.5)


def call(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", *arguments], check=True, stdout=subprocess.DEVNULL)


def samples_of(output: Path, *arguments: str) -> tuple[Tensor, dict[str, Any]]:
    """What `python -m pipeline.sample` draws, `[SAMPLES, 2]`, and its summary."""
    call("pipeline.sample", *arguments, f"samples={SAMPLES}", f"output={output}")
    with pa.ipc.open_file(output / "samples.arrow") as file:
        flat = file.read_all().column("position").combine_chunks().flatten().to_numpy()
    return torch.tensor(flat).view(SAMPLES, 2), json.loads((output / "summary.json").read_text())


def run(folder: Path) -> list[Row]:
    """Trains both parts, and samples them and their compositions."""
    runs = {name: folder / name for name in PARTS}
    for name in PARTS:
        call("pipeline.train", *RECIPE, f"data.law={name}", f"output={runs[name]}")
    models = {name: pipeline.load(str(path)) for name, path in runs.items()}
    truths = {name: on_grid(LAWS[name][1]) for name in PARTS}
    rows = []
    for name in PARTS:
        samples, _ = samples_of(folder / f"of-{name}", f"run={runs[name]}")
        rows.append(Row(name, truths[name], models[name], samples, json.loads((runs[name] / "summary.json").read_text())))
    both, energies = compositions(*truths.values()), composed(list(models.values()))
    listed = f"runs=[{','.join(map(str, runs.values()))}]"
    for how in both:
        weights = (f"weights=[1,{WEIGHT}]",) if how == "not" else ()
        samples, summary = samples_of(folder / f"of-{how}", listed, f"compose={how}", *weights)
        rows.append(Row(f"ring {how} stripe", normalised(both[how]), energies[how], samples, summary))
    return rows


def figures_of(row: Row, generator: torch.Generator) -> dict[str, Any]:
    model = on_grid(lambda x: -row.energy(x))
    summary = row.summary
    return {
        "law": row.name,
        "kl": kl(row.truth, model),
        "sample_distance": energy_distance(row.samples, draws(row.truth, 4 * SAMPLES, generator)),
        "acceptance": summary.get("acceptance"),
        "samples_r_hat": summary["samples_r_hat"],
        "seconds": summary.get("wall_seconds", summary.get("seconds")),
    }


def draw(rows: list[Row], path: Path) -> None:
    """A row for each law: its density, the model's, and the model's samples."""
    figure = Figure(figsize=(6.6, 2.15 * len(rows)), layout="constrained")
    inside = axis().abs() < SHOWN
    for axes, row in zip(figure.subplots(len(rows), 3), rows, strict=True):
        model = on_grid(lambda x, row=row: -row.energy(x))  # type: ignore[misc]
        for panel, logs in zip(axes[:2], (row.truth, model), strict=True):
            values = logs.exp().view(GRID, GRID)[inside][:, inside].T
            panel.imshow(values, origin="lower", cmap="magma", extent=(-SHOWN, SHOWN, -SHOWN, SHOWN))
        axes[2].scatter(*row.samples.T, s=1.5, alpha=0.5, color="C1")
        axes[2].set_xlim(-SHOWN, SHOWN)
        axes[2].set_ylim(-SHOWN, SHOWN)
        axes[2].set_aspect("equal")
        axes[0].set_ylabel(row.name, fontsize=9)
    for panel, title in zip(
        figure.axes[:3], ("density of the law", "density of the model", "samples of the model"), strict=True
    ):
        panel.set_title(title, fontsize=9)
    for panel in figure.axes:
        panel.set_xticks([])
        panel.set_yticks([])
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, help="write compositions.json and .png there")
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        rows = run(Path(folder))
    figures = [figures_of(row, generator) for row in rows]
    for line in figures:
        print(f"{line['law']:<18} KL {line['kl']:.4f} nats, energy distance {line['sample_distance']:+.4f}", flush=True)
    if arguments.docs:
        draw(rows, arguments.docs / "compositions.png")
        content = {"command": "python -m benchmarks.compositions --docs docs", "weight": WEIGHT, "rows": figures}
        (arguments.docs / "compositions.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
