"""The picture `order.png`: what chains pass on their way from noise to samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.data.base import DataSet
from pipeline.energies.base import Energy
from pipeline.evaluation.pictures import as_images
from pipeline.evaluation.samples import Way
from pipeline.storage.figures import draw_figure

CHAINS = 8  # that are shown one by one as images
STRIPS = 40  # that are shown one by one as rows of a heat map
PANELS = 5  # side by side
CELLS = 120  # on a side of the grid that contours come from


def draw_order(
    energy: Energy | None, way: Way, data: DataSet, caption: str, output: str
) -> dict[str, str]:
    """Draws where chains were at the instants of their `way`, positions as rows of data, from left
    to right, with the transitions made and the mean energy above. Images are one chain a row. In
    the plane there is a panel of all chains for each instant, over contours of exp(-E) where all
    chains have one `energy`. Other rows are strips of colour. Returns what `draw_figure` returns.
    """

    def figure() -> Figure:
        if len(data.shape) >= 2:
            return _images(way, data, caption)
        if data.shape == (2,) and (energy is None or energy.real):
            return _planes(energy, way, caption)
        return _strips(way, caption)

    return draw_figure(figure, output, "order.png")


def _headings(way: Way) -> list[str]:
    """Returns what stands above each instant."""
    means = way.energy.double().mean(1).tolist()
    return [
        f"{number:,}\nE {round(mean, 1) + 0.0:.1f}"  # no minus before 0.0
        for number, mean in zip(way.transitions, means, strict=True)
    ]


def _caption(figure: Figure, way: Way, caption: str) -> None:
    chains = way.position.shape[1]
    of_what = f"above: transitions made, mean energy of {chains:,} chains in nats"
    figure.suptitle(f"{caption}\n{of_what}", fontsize=10)


def _images(way: Way, data: DataSet, caption: str) -> Figure:
    """Draws a column for each instant, the first chains below each other."""
    # the data's own range, beyond which noise reaches; without rows, the samples'
    low, high = torch.aminmax(data.sample if data.rows else way.position[-1])
    shown = ((way.position[:, :CHAINS] - low) / ((high - low) or 1.0)).clamp(0, 1)
    columns = [_below(as_images(images)) for images in shown]
    height, width = columns[0].shape[:2]
    figure = Figure(
        figsize=(max(4.5, 0.9 * len(columns)), 0.9 * height / width + 0.8), layout="constrained"
    )
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for axis, column, heading in zip(axes, columns, _headings(way), strict=True):
        axis.imshow(column, interpolation="nearest")
        axis.set_axis_off()
        axis.set_title(heading, fontsize=8)
    _caption(figure, way, caption)
    return figure


def _below(images: np.ndarray) -> np.ndarray:
    """Returns images [N, height, width, 3] below each other, with white between."""
    gap = max(1, images.shape[1] // 8)
    spaced = np.pad(images, ((0, 0), (0, gap), (0, 0), (0, 0)), constant_values=1.0)
    return np.concatenate(list(spaced))[:-gap]


def _planes(energy: Energy | None, way: Way, caption: str) -> Figure:
    """Draws all chains at each instant that are within reach of the samples, over contours."""
    low, high = torch.aminmax(way.position[-1].flatten(0, -2), dim=0)
    center, radius = (low + high) / 2, 0.75 * float((high - low).max()) or 1.0
    sides = [torch.linspace(float(c) - radius, float(c) + radius, CELLS) for c in center]
    density = None if energy is None else _density(energy, sides)
    rows = -(-len(way.transitions) // PANELS)
    columns = min(PANELS, len(way.transitions))
    figure = Figure(figsize=(2.3 * columns, 2.7 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for axis in axes:
        axis.set_axis_off()
    for axis, positions, heading in zip(axes, way.position, _headings(way), strict=False):
        axis.set_axis_on()
        if density is not None:
            axis.contour(*sides, density, levels=5, linewidths=0.5)
        axis.scatter(*positions.T.numpy(), s=3, alpha=0.5, color="black", linewidths=0)
        axis.set_xlim(float(sides[0][0]), float(sides[0][-1]))
        axis.set_ylim(float(sides[1][0]), float(sides[1][-1]))
        axis.set_aspect("equal")
        axis.set_title(heading, fontsize=8)
        axis.tick_params(labelsize=7)
    _caption(figure, way, caption)
    return figure


@torch.no_grad()
def _density(energy: Energy, sides: Sequence[Tensor]) -> Tensor:
    """exp(-E) on the grid of two `sides` [CELLS], scaled to 1; the second side comes first."""
    values = -energy(torch.cartesian_prod(*sides)).view(CELLS, CELLS).T
    return (values - values.max()).exp()


def _strips(way: Way, caption: str) -> Figure:
    """Draws a heat map for each instant: a chain a row, a component a column."""
    values = way.position[:, :STRIPS].flatten(2)
    low, high = (float(end) for end in torch.aminmax(values[-1]))
    figure = Figure(figsize=(max(4.0, 1.5 * len(values)), 4.0), layout="constrained")
    axes = figure.subplots(1, len(values), squeeze=False, sharey=True)[0]
    for axis, strip, heading in zip(axes, values, _headings(way), strict=True):
        shown = axis.imshow(
            strip.numpy(), vmin=low, vmax=high, aspect="auto", interpolation="nearest"
        )
        axis.set_title(heading, fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0].set_ylabel("chain")
    axes[len(axes) // 2].set_xlabel("component")
    figure.colorbar(shown, ax=axes[-1])
    _caption(figure, way, caption)
    return figure
