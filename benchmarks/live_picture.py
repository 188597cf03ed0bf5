"""The picture of `benchmarks.live`: the live likelihood and the truth, run by run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipeline.storage.figures import write_figure


def draw(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write `live.png` into the folder: of each run, how far the figure and its interval are from
    the truth, nats, by step.
    """
    columns = 3
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(4.0 * columns, 2.7 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis, row in zip(axes.flat, rows, strict=False):
        _draw_run(axis, row)
    for axis in axes.flat[len(rows) :]:
        axis.set_axis_off()
    figure.suptitle("Live likelihood less the truth, nats a held-out row, by step")
    write_figure(figure, str(folder), "live.png")


def _draw_run(axis: Any, row: dict[str, Any]) -> None:
    versions, value, low, high, truth, below, above = np.array(row["points"]).T
    axis.axhline(0, color="0.3", linewidth=0.8)
    if row["exact"]:
        axis.fill_between(versions, low - truth, high - truth, alpha=0.3, label="90 % interval")
        axis.plot(versions, value - truth, ".-", markersize=3, linewidth=1, label="live less exact")
    else:
        spread = np.array([value - low, high - value])
        axis.errorbar(versions, value - truth, spread, fmt="o", capsize=3, label="live less AIS")
        axis.fill_between(
            versions, below - truth, above - truth, color="0.7", alpha=0.5, label="bounds by AIS"
        )
    axis.set_title(row["case"], fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
