"""Trained models composed, beside the compositions of the laws they learned.

    python -m benchmarks.compositions [--docs FOLDER]

A ring and a stripe in the plane are learned apart, by `python -m pipeline.train data.law=ring`
(`stripe`). They are composed with no further training, by `python -m pipeline.sample runs=[A,B]
compose=and|or|not`. The densities of both laws are known, and with them those of their
compositions. Each row has KL(truth || model) in nats, by quadrature, and the energy distance of
1,000 samples to draws of the truth; the samples' chains start at noise. FOLDER gets
compositions.json and compositions.png.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from matplotlib.figure import Figure
from torch import Tensor

import pipeline
from benchmarks import harness
from benchmarks.every_objective import energy_distance
from benchmarks.harness import say
from pipeline.data.toys import LAWS
from pipeline.evaluation.compositions import REACH, SHOWN, SIDE, WEIGHT, Compared, compare, grid

PARTS = ("ring", "stripe")
# noise-contrastive estimation, 20 seconds each; MALA adapts, as compositions are narrower or wider
# than their parts
RECIPE = (
    "experiment=toy",
    "objective=nce",
    "energy.hidden=[64,64]",
    "trainer.steps=4000",
    "kernel.step_size=0.05",
    "kernel.target_acceptance=0.6",
    "evaluation.transitions=1000",
    "cluster=inline",
    "metrics.port=0",
)
SAMPLES = 1000


class Row(NamedTuple):
    """A law beside its model, and samples of the model `[SAMPLES, 2]` with their summary."""

    name: str
    densities: Compared
    samples: Tensor
    summary: dict[str, Any]


def draws(truth: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw from a law on the grid: a point, and uniformly within its cell, `[count, 2]`."""
    cells = torch.multinomial(truth.exp().float(), count, replacement=True, generator=generator)
    return grid()[cells] + 2 * REACH / SIDE * (torch.rand(count, 2, generator=generator) - 0.5)


def samples_of(output: Path, *arguments: str) -> tuple[Tensor, dict[str, Any]]:
    """Return what `python -m pipeline.sample` draws, `[SAMPLES, 2]`, and its summary."""
    summary = harness.run("pipeline.sample", *arguments, f"samples={SAMPLES}", output=output)
    with pa.ipc.open_file(output / "samples.arrow") as file:
        flat = file.read_all().column("position").combine_chunks().flatten().to_numpy()
    return torch.tensor(flat).view(SAMPLES, 2), summary


def run(folder: Path) -> list[Row]:
    """Train both parts, and sample them and their compositions."""
    runs = {name: folder / name for name in PARTS}
    for name in PARTS:
        harness.run("pipeline.train", *RECIPE, f"data.law={name}", output=runs[name])
    first, second = (pipeline.load(str(path)) for path in runs.values())
    densities = compare(first, second, (LAWS[PARTS[0]][1](grid()), LAWS[PARTS[1]][1](grid())))
    both = f"runs=[{','.join(map(str, runs.values()))}]"
    commands = {
        "first": (PARTS[0], [f"run={runs[PARTS[0]]}"]),
        "second": (PARTS[1], [f"run={runs[PARTS[1]]}"]),
        "and": (" and ".join(PARTS), [both, "compose=and"]),
        "or": (" or ".join(PARTS), [both, "compose=or"]),
        "not": (" not ".join(PARTS), [both, "compose=not", f"weights=[1,{WEIGHT}]"]),
    }
    return [
        Row(name, densities[key], *samples_of(folder / f"of-{key}", *arguments))
        for key, (name, arguments) in commands.items()
    ]


def figures_of(row: Row, generator: torch.Generator) -> dict[str, Any]:
    return {
        "law": row.name,
        "kl": row.densities.kl,
        "sample_distance": energy_distance(
            row.samples, draws(row.densities.truth, 4 * SAMPLES, generator)
        ),
        **{
            key: row.summary[key]
            for key in ("acceptance", "samples_r_hat", "transitions", "seconds")
        },
    }


def draw(rows: list[Row], path: Path) -> None:
    """Draw each law: its density, the model's to the same scale, and the model's samples."""
    figure = Figure(figsize=(6.6, 2.15 * len(rows)), layout="constrained")
    inside = grid().view(SIDE, SIDE, 2)[:, 0, 0].abs() < SHOWN
    for axes, row in zip(figure.subplots(len(rows), 3), rows, strict=True):
        shares = [logs.exp().view(SIDE, SIDE)[inside][:, inside].T for logs in row.densities]
        for panel, values in zip(axes[:2], shares, strict=True):
            extent = (-SHOWN, SHOWN, -SHOWN, SHOWN)
            panel.imshow(
                values,
                origin="lower",
                cmap="magma",
                extent=extent,
                vmin=0,
                vmax=float(shares[0].max()),
            )
        axes[2].scatter(*row.samples.T, s=1.5, alpha=0.5, color="C1")
        axes[2].set_xlim(-SHOWN, SHOWN)
        axes[2].set_ylim(-SHOWN, SHOWN)
        axes[2].set_aspect("equal")
        axes[0].set_ylabel(row.name, fontsize=9)
    for panel, title in zip(
        figure.axes[:3],
        ("density of the law", "density of the model", "samples of the model"),
        strict=True,
    ):
        panel.set_title(title, fontsize=9)
    for panel in figure.axes:
        panel.set_xticks([])
        panel.set_yticks([])
    figure.savefig(path, dpi=110)


def main() -> None:
    arguments = harness.command_line(__doc__, "docs").parse_args()
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        rows = run(Path(folder))
    figures = [figures_of(row, generator) for row in rows]
    for line in figures:
        say(
            f"{line['law']:<18} KL {line['kl']:.4f} nats, energy distance"
            f" {line['sample_distance']:+.4f}"
        )
    if arguments.docs:
        draw(rows, arguments.docs / "compositions.png")
        content = {
            "command": "python -m benchmarks.compositions --docs docs",
            **harness.conditions("torch"),
            "weight": WEIGHT,
            "rows": figures,
        }
        harness.write(content, arguments.docs / "compositions.json")


if __name__ == "__main__":
    main()
