"""`samples.png` of conditional models: the law of positions under a few contexts, learned and true."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.data.base import DataSet
from pipeline.energies.base import Energy
from pipeline.evaluation.curves import write_figure

CELLS = 160
SHOWN = 4  # contexts whose law is drawn
SEQUENCES = 24


@torch.no_grad()
def draw_conditional(energy: Energy, samples: Tensor, context: Tensor, data: DataSet, caption: str, output: str) -> None:
    """Of real positions in one dimension under a context of one number the whole law, in two dimensions the law under a few
    contexts; of levels the rows themselves. Samples `[M, *shape]` are those under `context` [M, *context_shape].
    """
    if energy.levels is not None:
        figure = _levels(energy.levels, samples, data, caption)
    elif energy.dimension == 1 and context[0].numel() == 1:
        figure = _line(energy, samples, context, data, caption)
    elif energy.dimension == 2:
        figure = _planes(energy, data, caption)
    else:
        figure = _marginals(samples, data, caption)
    write_figure(figure, output, "samples.png")


def _line(energy: Energy, samples: Tensor, context: Tensor, data: DataSet, caption: str) -> Figure:
    """p(y | x) over the plane of x and y: held-out rows, samples, the model, and the truth where it is known."""
    assert data.context is not None
    x, low, high = data.context.held_out, float(data.held_out.min()), float(data.held_out.max())
    columns, levels = torch.linspace(float(x.min()), float(x.max()), CELLS), torch.linspace(low, high, CELLS)
    extent = (float(x.min()), float(x.max()), low, high)
    contexts = columns.view(-1, *context.shape[1:])
    positions = levels.repeat_interleave(CELLS).view(-1, *energy.shape)
    panels = {"learned p(y | x)": -energy.given(contexts)(positions)}
    if data.log_density is not None:
        panels["the law itself"] = data.log_density(positions, contexts.repeat(CELLS, *(1,) * (contexts.ndim - 1)))
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


def _planes(energy: Energy, data: DataSet, caption: str) -> Figure:
    """p(y | x) over the plane of y, under contexts of a few held-out rows: the model above, the truth below."""
    assert data.context is not None
    radius = 1.15 * float(data.held_out.abs().max())
    side = torch.linspace(-radius, radius, CELLS)
    points = torch.cartesian_prod(side, side)
    order = data.context.held_out.flatten(1)[:, 0].argsort()
    chosen = data.context.held_out[order[torch.linspace(0, len(order) - 1, SHOWN).long()]]
    rows = 1 if data.log_density is None else 2
    figure = Figure(figsize=(2.6 * SHOWN, 2.7 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, SHOWN, squeeze=False)
    for column, context in enumerate(chosen):
        laws = {"learned": -energy.given(context[None])(points)}
        if data.log_density is not None:
            laws["true"] = data.log_density(points, context.expand(len(points), *context.shape))
        for row, (name, logs) in enumerate(laws.items()):
            axis = axes[row, column]
            density = (logs - logs.max()).exp().view(CELLS, CELLS).T
            axis.imshow(density.numpy(), origin="lower", extent=(-radius, radius, -radius, radius))
            axis.set_title(f"{name}, x = {', '.join(f'{value:.2f}' for value in context.flatten()[:3].tolist())}", fontsize=9)
    figure.suptitle(caption, fontsize=10)
    return figure


def _levels(levels: int, samples: Tensor, data: DataSet, caption: str) -> Figure:
    """Rows of levels as strips of colour: the first held-out ones, samples under the same contexts, and where they differ."""
    count = min(SEQUENCES, len(samples))
    rows, drawn = data.held_out[:count].flatten(1).numpy(), samples[:count].flatten(1).numpy()
    figure, axes = _axes(3, caption)
    panels: tuple[tuple[str, np.ndarray, str, int], ...] = (
        ("held-out rows", rows, "viridis", levels),
        ("samples under the same contexts", drawn, "viridis", levels),
        ("where they differ", rows != drawn, "Greys", 2),
    )
    for axis, (title, values, colours, number) in zip(axes, panels, strict=True):
        axis.imshow(values, cmap=colours, vmin=0, vmax=number - 1, aspect="auto", interpolation="nearest")
        axis.set_title(title)
        axis.set_xlabel("component")
    axes[0].set_ylabel("row")
    return figure


def _marginals(samples: Tensor, data: DataSet, caption: str) -> Figure:
    """Marginals of the first components, samples over held-out rows."""
    figure, axes = _axes(min(4, samples[0].numel()), caption)
    for number, axis in enumerate(axes):
        for rows, label in ((data.held_out, "held-out"), (samples, "samples")):
            axis.hist(rows.flatten(1)[:, number].numpy(), bins=30, density=True, alpha=0.5, label=label)
        axis.set_title(f"component {number}")
    axes[0].legend(fontsize=8)
    return figure


def _axes(columns: int, caption: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(3.2 * columns, 3.7), layout="constrained")
    figure.suptitle(caption, fontsize=10)
    return figure, figure.subplots(1, columns, squeeze=False)[0]
