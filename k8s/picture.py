"""The dashboard's panels, drawn by Matplotlib from what a live Prometheus answers.

    python -m k8s.picture
    python -m k8s.picture --prometheus URL --run NAME --to FILE

The first form draws a run of its own, one of whose pools is killed, into docs/dashboard.png. The
second draws any run, the last `--minutes` of it. Grafana is not in it: queries, places, titles,
legends, units and limits are the dashboard's, the lines are Matplotlib's.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from k8s.expressions import ROOT, dashboard, filled_in
from k8s.live import Prometheus, free_port, kill_a_pool, prometheus, training, wait_for

COLUMNS, COLUMN, UNIT, HEAD = 24, 0.56, 0.36, 0.7
"""The grid's columns; inches of a column, of a unit of height, and of the picture's head."""
POINTS, LETTERS = 240, 7
"""The points of a line, and the letters of a legend to a column of the grid."""
OWN_RUN = (
    *("kernel=replica_exchange", "kernel.inner.target_acceptance=0.6", "trainer.lag=2"),
    *(
        "trainer.steps=1000000",
        "optimizer.schedule=constant",
        "optimizer.learning_rate=1e-3",
        "checkpoint.every=200",
    ),
)
"""The run has a ladder and a lag, so that every panel has something to show."""
PART_SECONDS = 70.0
"""Seconds of training before a pool is killed, and after it came back."""


class Span(NamedTuple):
    """The run that is drawn, between two Unix times, with rates over `interval`."""

    run: str
    start: float
    end: float
    interval: str


class Line(NamedTuple):
    legend: str
    times: list[float]
    values: list[float]


def lines(panel: Mapping[str, Any], source: Prometheus, span: Span) -> list[Line]:
    """Return what the panel's queries return, as its legends call it."""
    found = []
    for query in panel["targets"]:
        promql = filled_in(query["expr"], span.run, span.interval)
        for series in source.over(promql, span.start, span.end, (span.end - span.start) / POINTS):
            legend = filled_legend(query["legendFormat"], series["metric"])
            times, values = zip(*series["values"], strict=True)
            found.append(
                Line(
                    legend,
                    [(at - span.start) / 60 for at in times],
                    [float(value) for value in values],
                )
            )
    return sorted(found, key=lambda line: line.legend)


def filled_legend(legend: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda label: labels.get(label[1], ""), legend)


def in_words(value: float, unit: str) -> str:
    """Return the value with its unit, nearly as Grafana writes it."""
    if unit == "percentunit":
        return f"{100 * value:.3g}%"
    if unit == "s":
        return f"{value / 60:.3g} min" if abs(value) >= 120 else f"{value:.3g} s"
    if unit == "bytes":
        for prefix in ("", "Ki", "Mi", "Gi"):
            if abs(value) < 1024 or prefix == "Gi":
                return f"{value:.3g} {prefix}B"
            value /= 1024
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{text} {unit.removeprefix('suffix: ')}" if unit.startswith("suffix:") else text


def draw_stat(axes: Axes, panel: Mapping[str, Any], found: Sequence[Line]) -> None:
    """Draw the newest value of the first series, large."""
    axes.set_xticks([])
    axes.set_yticks([])
    defaults, text = panel["fieldConfig"]["defaults"], "No data"
    if found and panel["options"]["textMode"] == "name":
        text = found[0].legend
    elif found:
        text = in_words(found[0].values[-1], defaults["unit"])
        for mapping in defaults.get("mappings", ()):
            text = mapping["options"].get(text, {"text": text})["text"]
    axes.text(
        0.5,
        0.5,
        text.replace(" · ", "\n"),
        ha="center",
        va="center",
        fontsize=10 if "·" in text else 17,
    )


def draw_chart(axes: Axes, panel: Mapping[str, Any], found: Sequence[Line], minutes: float) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults["custom"]
    if not found:
        axes.text(
            0.5, 0.5, "No data", ha="center", va="center", color="0.5", transform=axes.transAxes
        )
    elif "stacking" in custom:
        times = sorted({at for line in found for at in line.times})
        heights = [
            [dict(zip(line.times, line.values, strict=True)).get(at, 0.0) for at in times]
            for line in found
        ]
        axes.stackplot(times, heights, labels=[line.legend for line in found], alpha=0.6)
    else:
        for line in found:
            axes.plot(line.times, line.values, label=line.legend, linewidth=1.2, clip_on=False)
    scale_values(axes, defaults, nothing=not any(value for line in found for value in line.values))
    draw_limit(axes, defaults.get("thresholds"))
    axes.set_xlim(0, minutes)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3, linewidth=0.5)
    if found:
        columns = legend_columns([line.legend for line in found], LETTERS * panel["gridPos"]["w"])
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.13),
            ncols=columns,
            fontsize=8,
            frameon=False,
            handlelength=1.2,
        )


def legend_columns(legends: Sequence[str], room: int) -> int:
    """Return how many columns so many letters have room for.

    A column is as wide as its longest legend, with a line before it.
    """
    for rows in range(1, len(legends)):
        widths = [
            max(map(len, legends[top : top + rows])) + 6 for top in range(0, len(legends), rows)
        ]
        if sum(widths) <= room:
            return len(widths)
    return 1


def scale_values(axes: Axes, defaults: Mapping[str, Any], nothing: bool) -> None:
    """Set the vertical axis: its ends, and round numbers in the panel's unit.

    `nothing`: there is no value but 0.
    """
    logarithmic = "scaleDistribution" in defaults["custom"] and not nothing
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    lowest, highest = axes.get_ylim()
    lowest, highest = defaults.get("min", lowest), defaults.get("max", 1.0 if nothing else highest)
    axes.set_ylim(lowest, highest)
    if nothing:
        axes.set_yticks([0.0])
    elif not logarithmic:
        base = 1024.0 ** int(math.log(highest, 1024)) if defaults["unit"] == "bytes" else 1.0
        ticks = [
            base * tick
            for tick in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(
                lowest / base, highest / base
            )
        ]
        axes.set_yticks([tick for tick in ticks if lowest <= tick <= highest])
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: in_words(value, defaults["unit"]))
    )


def draw_limit(axes: Axes, thresholds: Mapping[str, Any] | None) -> None:
    """Colour red where values are bad, as far as the axis goes."""
    if not thresholds:
        return
    lowest, highest = axes.get_ylim()
    below, above = thresholds["steps"]
    edges = (lowest, above["value"]) if below["color"] == "red" else (above["value"], highest)
    if edges[0] < edges[1]:
        axes.axhspan(*edges, color="red", alpha=0.12, linewidth=0)


def placed(figure: Figure, place: Mapping[str, int], height: float) -> Axes:
    """Return axes within the panel's part of the grid, with room for title, labels and legend."""
    width = COLUMNS * COLUMN
    left, low = place["x"] * COLUMN + 0.62, height - HEAD - (place["y"] + place["h"]) * UNIT + 0.12
    wide, high = place["w"] * COLUMN - 0.75, place["h"] * UNIT - 0.5
    if place["h"] > 4:
        low, high = low + 0.56, high - 0.56
    return figure.add_axes((left / width, low / height, wide / width, high / height))


def draw(source: Prometheus, span: Span, file: Path) -> None:
    board = dashboard()
    height = HEAD + UNIT * max(
        panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"]
    )
    figure = plt.figure(figsize=(COLUMNS * COLUMN, height))
    figure.text(
        0.01, 1 - 0.25 / height, f"{board['title']}: run {span.run}", fontsize=15, va="center"
    )
    said = (
        "the dashboard's queries answered by a live Prometheus, drawn by k8s/picture.py; not a"
        " screenshot of Grafana; minutes"
    )
    figure.text(0.01, 1 - 0.52 / height, said, fontsize=9, va="center", color="0.4")
    for panel in board["panels"]:
        place = panel["gridPos"]
        if panel["type"] == "row":
            at = 1 - (HEAD + (place["y"] + 0.5) * UNIT) / height
            figure.text(0.01, at, f"▾ {panel['title']}", fontsize=13, weight="bold", va="center")
            continue
        axes = placed(figure, place, height)
        axes.set_title(panel["title"], fontsize=9, loc="left", weight="bold")
        found = lines(panel, source, span)
        if panel["type"] == "stat":
            draw_stat(axes, panel, found)
        else:
            draw_chart(axes, panel, found, (span.end - span.start) / 60)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def draw_own(file: Path) -> None:
    """Draw a run on this machine, one of whose pools is killed in the middle."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        run = Path(folder) / "digits"
        with prometheus(Path(folder), [port]) as source, training(run, port, *OWN_RUN) as process:
            wait_for(lambda: source.now("ebm_steps_total > 0"), "the first step")
            start = time.time()
            time.sleep(PART_SECONDS)
            kill_a_pool(process)
            wait_for(
                lambda: source.now('ebm_restarts_total{role="pool"} > 0'),
                "the restart of the pool that was killed",
            )
            time.sleep(PART_SECONDS)
            draw(source, Span(run.name, start, time.time(), "10s"), file)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prometheus", metavar="URL")
    parser.add_argument("--run", metavar="NAME")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--interval", default="1m", help="of rates: four scrapes at least")
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "dashboard.png")
    asked = parser.parse_args()
    if asked.prometheus is None and shutil.which("prometheus") is None:
        parser.error(
            "no `prometheus` on the PATH; make k8s-check puts one into .tools/prometheus/usr/bin"
        )
    elif asked.prometheus is None:
        draw_own(asked.to)
    elif asked.run is None:
        parser.error("--prometheus needs --run")
    else:
        now = time.time()
        draw(
            Prometheus(asked.prometheus),
            Span(asked.run, now - 60 * asked.minutes, now, asked.interval),
            asked.to,
        )


if __name__ == "__main__":
    main()
