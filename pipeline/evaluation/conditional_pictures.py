"""The picture `samples.png` of conditional models: the law of positions under a few contexts,
learned and true.
"""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pipeline.data.base import DataSet
from pipeline.energies.base import Energy
from pipeline.storage.figures import draw_figure

CELLS = 160
SHOWN = 4  # contexts whose law is drawn
SEQUENCES = 24


def draw_conditional(
    energy: Energy, samples: Tensor, context: Tensor, data: DataSet, caption: str, output: str
) -> dict[str, str]:
    """Draws, of real positions in one dimension under a context of one number, the whole law; in
    two dimensions the law under a few contexts; of levels the rows themselves. Samples `[M,
    *shape]` are those under `context` [M, *context_shape]. Returns what `draw_figure` returns.
    """
    return draw_figure(
        lambda: _figure(energy, samples, context, data, caption), output, "samples.png"
    )


@torch.no_grad()
def _figure(
    energy: Energy, samples: Tensor, context: Tensor, data: DataSet, caption: str
) -> Figure:
    if energy.levels is not None:
        return _levels(energy.levels, samples, data, caption)
    known = bool(data.rows)  # whether there are rows to draw beside the samples
    if energy.dimension == 1 and context.shape[1:] == (1,) and known:
        return _line(energy, samples, context, data, caption)
    if energy.dimension == 2 and known:
        return _planes(energy, samples, context, data, caption)
    return _marginals(samples, data, caption)


def _line(energy: Energy, samples: Tensor, context: Tensor, data: DataSet, caption: str) -> Figure:
    """Draws p(y | x) over the plane of x and y: held-out rows, samples, the model, and the truth
    where it is known.
    """
    assert data.context is not None
    x, (low, high) = data.context.held_out, _reach(data.held_out)
    left, right = _reach(x)
    columns, levels = torch.linspace(left, right, CELLS), torch.linspace(low, high, CELLS)
    extent = (left, right, low, high)
    contexts = columns.view(-1, *context.shape[1:])
    positions = levels.repeat_interleave(CELLS).view(-1, *energy.shape)
    panels = {"learned p(y | x)": -energy.given(contexts)(positions)}
    if data.log_density is not None:
        panels["the law itself"] = data.log_density(
            positions, contexts.repeat(CELLS, *(1,) * (contexts.ndim - 1))
        )
    figure, axes = _axes(2 + len(panels), caption)
    for axis, rows, under, title in (
        (axes[0], data.held_out[:2000], x[:2000], "held-out rows"),
        (axes[1], samples, context, "samples"),
    ):
        axis.scatter(under.flatten(), rows.flatten(), s=3, alpha=0.5)
        axis.set_title(title)
        axis.set_xlim(*extent[:2])
        axis.set_ylim(low, high)
    for axis, (title, logs) in zip(axes[2:], panels.items(), strict=True):
        # each column is a law of its own, scaled to its sum
        shares = logs.view(CELLS, CELLS).softmax(0)
        axis.imshow(shares.numpy(), origin="lower", extent=extent, aspect="auto")
        axis.set_title(title)
    for axis in axes:
        axis.set_xlabel("x")
    axes[0].set_ylabel("y")
    return figure


def _planes(
    energy: Energy, samples: Tensor, context: Tensor, data: DataSet, caption: str
) -> Figure:
    """Draws p(y | x) over the plane of y under a few contexts: the model, the truth where it is
    known, and the samples of those contexts, or where they are many of the nearest ones.
    """
    assert data.context is not None
    radius = 1.15 * float(data.held_out.abs().max()) or 1.0
    side = torch.linspace(-radius, radius, CELLS)
    points = torch.cartesian_prod(side, side)
    distinct = data.context.held_out.unique(dim=0)
    chosen = distinct[torch.linspace(0, len(distinct) - 1, min(SHOWN, len(distinct))).long()]
    rows = ["learned", *(["true"] if data.log_density is not None else []), "samples"]
    figure = Figure(
        figsize=(max(6.5, 2.6 * len(chosen)), 2.7 * len(rows) + 0.4), layout="constrained"
    )
    axes = figure.subplots(len(rows), len(chosen), squeeze=False, sharex=True, sharey=True)
    names = next(iter(data.labels.values()), None)
    distances = torch.cdist(context.view(len(context), -1), chosen.view(len(chosen), -1))
    for column, one in enumerate(chosen):
        told = ", ".join(f"{value:.3g}" for value in one.flatten()[:3].tolist())
        if names is not None and one.numel() == 1:
            told = str(names[int(one)])
        axes[0, column].set_title(f"x = {told}", fontsize=9)
        _density(axes[0, column], -energy.given(one[None])(points), radius)
        if data.log_density is not None:
            _density(
                axes[1, column],
                data.log_density(points, one.expand(len(points), *one.shape)),
                radius,
            )
        nearest = distances[:, column].argsort(stable=True)[: len(samples) // len(chosen) // 2]
        axes[-1, column].scatter(*samples[nearest].T, s=3, alpha=0.5)
        axes[-1, column].set_aspect("equal")
    for axis, name in zip(axes[:, 0], rows, strict=True):
        axis.set_ylabel(name)
    figure.suptitle(caption, fontsize=10)
    return figure


def _density(axis: Any, logs: Tensor, radius: float) -> None:
    """Returns exp(`logs`) [CELLS^2], scaled to a largest value of 1."""
    density = (logs - logs.max()).exp().view(CELLS, CELLS).T
    axis.imshow(density.numpy(), origin="lower", extent=(-radius, radius, -radius, radius))


def _levels(levels: int, samples: Tensor, data: DataSet, caption: str) -> Figure:
    """Draws rows of levels as strips of colour: the first held-out ones, samples under the same
    contexts, and where they differ.
    """
    count = min(SEQUENCES, len(samples))
    rows, drawn = data.held_out[:count].flatten(1).numpy(), samples[:count].flatten(1).numpy()
    panels: list[tuple[str, np.ndarray, str, int]] = [("samples", drawn, "viridis", levels)]
    if len(rows):
        # as many held-out rows as there are: samples are under their contexts, over and over
        same = rows[np.arange(count) % len(rows)]
        panels = [
            ("held-out rows", same, "viridis", levels),
            ("samples under the same contexts", drawn, "viridis", levels),
            ("where they differ (black)", same != drawn, "Greys", 2),
        ]
    figure, axes = _axes(len(panels), caption)
    for axis, (title, values, colours, number) in zip(axes, panels, strict=True):
        axis.imshow(
            values, cmap=colours, vmin=0, vmax=number - 1, aspect="auto", interpolation="nearest"
        )
        axis.set_title(title)
        axis.set_xlabel("component")
        axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes[0].set_ylabel("row")
    shades = mpl.colormaps["viridis"].resampled(levels)
    patches = [Patch(color=shades(level), label=str(level)) for level in range(levels)]
    figure.legend(handles=patches, title="level", loc="outside right center")
    return figure


def _marginals(samples: Tensor, data: DataSet, caption: str) -> Figure:
    """Draws marginals of the first components, samples over held-out rows."""
    figure, axes = _axes(min(4, samples[0].numel()), caption)
    for number, axis in enumerate(axes):
        for rows, label in ((data.held_out, "held-out"), (samples, "samples")):
            if not len(rows):
                continue
            axis.hist(
                rows.flatten(1)[:, number].numpy(), bins=30, density=True, alpha=0.5, label=label
            )
        axis.set_title(f"component {number}")
    axes[0].legend(fontsize=8)
    return figure


def _reach(values: Tensor) -> tuple[float, float]:
    """Returns the least and the largest value, apart by 1 where they are the same."""
    low, high = float(values.min()), float(values.max())
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _axes(columns: int, caption: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(3.2 * columns, 3.7), layout="constrained")
    figure.suptitle(caption, fontsize=10)
    return figure, figure.subplots(1, columns, squeeze=False)[0]
