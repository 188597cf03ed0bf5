"""The picture `energies.png`: the energies of data, samples and noise, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from torch import Tensor

from pipeline.energies.base import Energy
from pipeline.storage.figures import draw_figure

MOST = 1000
"""Positions of a kind that are worth drawing."""
TOGETHER = 250
"""Energies worked out at once."""
BINS = 40
FAR = 4
"""Widths of the data's own range, up to which the axis is linear as a whole."""
TRAINING, HELD_OUT, SAMPLES, NOISE = "training rows", "held-out rows", "samples", "noise"
COLOURS = {TRAINING: "C0", HELD_OUT: "C1", SAMPLES: "C2", NOISE: "0.5"}


def draw_energies(
    energy: Energy, kinds: Mapping[str, Tensor], caption: str, output: str
) -> dict[str, str]:
    """Draws `energies.png`, histograms of E of positions `[N, *shape]` by kind (the names above).
    Returns what `draw_figure` returns.
    """

    def figure() -> Figure:
        values = {kind: _energies(energy, rows[:MOST]) for kind, rows in kinds.items() if len(rows)}
        return _histograms(values, caption)

    return draw_figure(figure, output, "energies.png")


@torch.no_grad()
def _energies(energy: Energy, rows: Tensor) -> np.ndarray:
    """Returns E of `rows`, `[N]` nats."""
    return torch.cat([energy(some) for some in rows.split(TOGETHER)]).double().cpu().numpy()


def _histograms(values: Mapping[str, np.ndarray], caption: str) -> Figure:
    """Draws each kind's rows by energy, from the mean of the first kind on, since the level of all
    energies means nothing; each to the same height, whatever its spread.
    """
    zero = next(iter(values))
    level = float(values[zero].mean())
    above = {kind: energies - level for kind, energies in values.items()}
    rows = [above[kind] for kind in (TRAINING, HELD_OUT) if kind in above]
    data = np.concatenate(rows or [above[zero]])
    low, high = (float(end(np.concatenate(list(above.values())))) for end in (np.min, np.max))
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    axis = figure.subplots()
    told = _scale(axis, data, low, high)
    transform = axis.xaxis.get_transform()
    first, last = transform.transform(np.array([low, high]))
    edges = transform.inverted().transform(np.linspace(first, last, BINS + 1))
    edges[[0, -1]] = low, high  # as they are, whatever was rounded on the way
    for kind, energies in above.items():
        axis.hist(
            energies,
            edges.tolist(),
            weights=np.full(len(energies), 1 / np.histogram(energies, edges)[0].max()),
            histtype="stepfilled",
            facecolor=(COLOURS[kind], 0.2),
            edgecolor=COLOURS[kind],
            label=f"{kind} ({len(energies):,}), mean {round(energies.mean(), 2) + 0:,.2f}",
        )
    axis.set_xlabel(f"energy above the mean of {zero}, nats{told}")
    axis.set_ylabel("rows in a bin, over those in the fullest")
    figure.legend(loc="outside lower center", ncols=2)
    figure.suptitle(caption, fontsize=10)
    return figure


def _scale(axis: Any, data: np.ndarray, low: float, high: float) -> str:
    """Sets the scale of energies from `low` to `high`: linear, or beyond what `data` reach
    logarithmic, where noise is so far away that it would squeeze the rest to a line. Returns words
    on it.
    """
    reach = float(np.abs(data).max()) or 1.0
    if max(high, -low) <= FAR * reach:
        if low == high:
            axis.set_xlim(low - 1, high + 1)
        return ""
    decades = np.log10(max(high, -low) / reach)
    axis.set_xscale("symlog", linthresh=reach, linscale=max(1.0, 0.8 * decades))
    inner = [tick for tick in MaxNLocator(5).tick_values(-reach, reach) if abs(tick) <= reach]
    powers = 10.0 ** np.arange(np.floor(np.log10(reach)), np.log10(max(high, -low)) + 1)
    outer = np.outer(powers, (1, 2, 5) if decades < 2 else (1,)).ravel()
    outer = outer[outer > 1.3 * reach]
    ticks = [tick for tick in (*-outer[::-1], *inner, *outer) if low <= tick <= high]
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.4g}"))
    axis.axvspan(reach, max(high, reach), color="0.94", zorder=0)
    axis.axvspan(min(low, -reach), -reach, color="0.94", zorder=0)
    margin = 0.03 * reach
    axis.set_xlim(low - margin, high * 1.1 if high > reach else high + margin)
    return " (shaded: logarithmic)"
