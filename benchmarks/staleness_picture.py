"""The picture of `benchmarks.staleness`: likelihoods by lag, and how a steered lag settles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipeline.storage.figures import write_figure

Row = dict[str, Any]
"""A row of the result, as `benchmarks.staleness.rows_of` makes it."""


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Write `staleness.png` into the folder."""
    figure = Figure(figsize=(10.5, 8.2), layout="constrained")
    (rbm, plane), (curve, ends) = figure.subplots(2, 2)
    _draw_lags(
        rbm,
        [row for row in rows if row["task"] == "rbm"],
        "RBM on binarized digits (exact likelihood)",
    )
    _draw_lags(
        plane, [row for row in rows if row["task"] == "8gaussians"], "deep energy on 8 Gaussians"
    )
    digits = [row for row in rows if row["task"] == "digits64"]
    _draw_curves(curve, [row for row in digits if row["steered"]])
    _draw_ends(ends, digits)
    figure.suptitle(
        "Negatives that are so many updates old: counted as they are, or weighted by exp(E then - E"
        " now)"
    )
    figure.supxlabel("means over seeds, bars: standard errors", fontsize=9, color="0.3")
    write_figure(figure, str(folder), "staleness.png")


def _draw_lags(axis: Any, rows: Sequence[Row], title: str) -> None:
    """Draw nats by lag; a value too far down is marked at the lower edge, and written there."""
    lags = sorted({row["lag"] for row in rows})
    lowest = min(_nats(row) - (row["standard_error"] or 0.0) for row in rows)
    low = max(lowest, min(row["test_log_likelihood"] for row in rows if not row["lag"]) - 10)
    highest = max(_nats(row) for row in rows)
    rates = sorted({row["learning_rate"] for row in rows})
    for rate, mark, shift in zip(rates, "os", (-0.05, 0.05), strict=False):
        of_rate = [row for row in rows if row["learning_rate"] == rate]
        level = next(row["test_log_likelihood"] for row in of_rate if not row["lag"])
        label = "lock-step" if mark == "o" else None
        axis.axhline(level, color="0.4", linestyle=":", linewidth=1.2, label=label)
        for reweight in (False, True):
            shown = [row for row in of_rate if row["reweight"] == reweight]
            places = [lags.index(row["lag"]) + shift for row in shown]
            _draw_line(axis, shown, places, low, mark)
    span = highest - low
    axis.set_xticks(range(len(lags)), [str(lag) for lag in lags])
    axis.set_xlim(-0.3, len(lags) - 0.7)
    axis.set_ylim(low - 0.08 * span, highest + 0.42 * span)  # room for the legend
    axis.set_xlabel("lag, updates")
    axis.set_ylabel("held-out log-likelihood, nats")
    axis.set_title(title, fontsize=11)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9, loc="upper center", ncols=2)


def _draw_line(
    axis: Any, rows: Sequence[Row], places: Sequence[float], low: float, mark: str
) -> None:
    """Draw the rows of one rate and way at their places; values under `low` at `low`."""
    colour = "C0" if rows[0]["reweight"] else "C3"
    style = {
        "color": colour,
        "marker": mark,
        "linestyle": "-" if mark == "o" else "--",
        "capsize": 4,
        "markersize": 5,
    }
    way = "reweighted" if rows[0]["reweight"] else "as they are"
    errors = [(row["standard_error"] or 0.0) if _nats(row) >= low else 0.0 for row in rows]
    axis.errorbar(
        places,
        [max(_nats(row), low) for row in rows],
        errors,
        **style,
        label=f"{way}, rate {rows[0]['learning_rate']:g}",
    )
    for place, value in zip(places, map(_nats, rows), strict=True):
        if value < low:
            axis.plot(place, low, marker="v", color=colour, markersize=12)
            axis.annotate(
                "diverged" if value == -math.inf else f"{value:,.0f}",
                (place, low),
                (-10, 0),
                textcoords="offset points",
                color=colour,
                ha="right",
                va="center",
            )


def _nats(row: Row) -> float:
    """Return the mean log-likelihood, -inf where every seed diverged."""
    nats = row["test_log_likelihood"]
    return -math.inf if nats is None else float(nats)


def _draw_curves(axis: Any, rows: Sequence[Row]) -> None:
    """Draw the lag of each steered run over the course of training."""
    for number, row in enumerate(rows):
        for curve in row["lag_curves"]:
            axis.plot(
                np.linspace(0, 100, len(curve)),
                curve,
                color=f"C{2 * number + 2}",
                alpha=0.3,
                linewidth=0.8,
            )
        mean = np.mean(row["lag_curves"], 0)
        label = f"at most {row['lag']}; in the last quarter {row['settled_lag']:.1f}"
        axis.plot(
            np.linspace(0, 100, len(mean)),
            mean,
            color=f"C{2 * number + 2}",
            linewidth=2,
            label=label,
        )
    highest = max(row["lag"] for row in rows)
    ticks = [0, *(2**power for power in range(highest.bit_length()))]
    axis.set_yscale("symlog", linthresh=1, linscale=0.6)
    axis.set_yticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_ylim(-0.1, 2 * highest)
    axis.set_xlabel("training, per cent of its steps")
    axis.set_ylabel("lag, updates (thin: each seed)")
    axis.set_title("deep energy on digits, 64-D: lag steered by the ESS", fontsize=11)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9, loc="upper right")


def _draw_ends(axis: Any, rows: Sequence[Row]) -> None:
    """Draw the final likelihoods of the exact and the steered lags, every seed a dot."""
    names = [f"steered\n≤ {row['lag']}" if row["steered"] else f"lag {row['lag']}" for row in rows]
    for place, row in enumerate(rows):
        colour = "C2" if row["steered"] else "C0"
        there = [value for value in row["by_seed"] if value is not None]
        axis.plot([place + 0.17] * len(there), there, ".", color=colour, alpha=0.4)
        if there:
            mean = row["test_log_likelihood"]
            axis.errorbar(
                place, mean, row["standard_error"] or 0.0, color=colour, marker="o", capsize=4
            )
            axis.annotate(
                f"{mean:.1f}",
                (place, mean),
                (0, 14),
                textcoords="offset points",
                ha="center",
                color=colour,
            )
    axis.set_xticks(range(len(names)), names)
    axis.margins(x=0.1, y=0.18)
    axis.set_ylabel("held-out log-likelihood, nats")
    axis.set_title("deep energy on digits, 64-D: reweighted", fontsize=11)
    axis.grid(alpha=0.3, axis="y")
