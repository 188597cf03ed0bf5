"""The picture `filters.png`: the weights of a Boltzmann machine's hidden units."""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pipeline.data.base import channels_last
from pipeline.energies.base import Energy
from pipeline.energies.dbm import DeepBoltzmannMachine
from pipeline.energies.mixed_rbm import MixedRBM
from pipeline.energies.rbm import GaussianRBM, PottsRBM, RestrictedBoltzmannMachine
from pipeline.storage.figures import draw_figure

MOST = 100
"""Units of a layer: those whose weights have the largest norm."""
ASPECT = 3
"""Images in a row, for each that stands below another."""
MOST_CHANNELS = 16
OF_ALL = 0.995
"""The share of weights that are within the scale of colours; a few large ones are cut off."""


def has_filters(energy: Energy) -> bool:
    """Returns whether `energy` has hidden units whose weights are drawn."""
    return isinstance(energy, RestrictedBoltzmannMachine | DeepBoltzmannMachine)


def draw_filters(energy: Energy, caption: str, output: str) -> dict[str, str]:
    """Draws `filters.png`: an image for each unit where rows have two axes or more, else a map of
    units by columns. Returns what `draw_figure` returns.
    """
    return draw_figure(lambda: _filters(energy, caption), output, "filters.png")


def layers_of(energy: Energy) -> list[tuple[str, Tensor]]:
    """Returns each layer of hidden units, its name and its weights `[m, *row shape]`, the units
    with the largest norm first, `MOST` at most.

    Layers above a deep machine's first are seen through those below, as W_l ... W_1 (Lee,
    Ekanadham & Ng 2008). A Potts machine's have an axis of levels, first behind that of units;
    their mean over levels is 0, since adding a number to all levels of a column changes a bias
    alone. So is it in a mixed machine's, which are of features in their order.
    """
    if isinstance(energy, DeepBoltzmannMachine):
        seen, found = None, []
        for number, weight in enumerate(energy.weights, 1):
            seen = weight if seen is None else weight @ seen
            name = f"layer {number}" + (", seen through the layers below" if number > 1 else "")
            found.append((name, seen.view(-1, *energy.data_shape)))
    elif isinstance(energy, PottsRBM):
        weights = energy.weight.view(-1, *energy.shape, energy.levels).movedim(-1, 1)
        found = [("hidden units, an image a level", weights - weights.mean(1, keepdim=True))]
        if len(energy.shape) == 1:
            found = [("hidden units", found[0][1].movedim(1, -1).flatten(1))]
    elif isinstance(energy, MixedRBM):
        sizes = [kind for kind in energy.kinds if kind > 2]
        rest, *levels = energy.weight.split([energy.weight.shape[1] - sum(sizes), *sizes], 1)
        levels = [weights - weights.mean(1, keepdim=True) for weights in levels]
        found = [("hidden units", torch.cat([rest, *levels], 1))]
    else:
        assert isinstance(energy, RestrictedBoltzmannMachine)
        found = [("hidden units", energy.weight.view(-1, *energy.shape))]
    return [_largest(name, weights.detach().cpu()) for name, weights in found]


def _largest(name: str, weights: Tensor) -> tuple[str, Tensor]:
    order = weights.flatten(1).norm(dim=1).argsort(descending=True, stable=True)
    shown = f"all {len(order)}" if len(order) <= MOST else f"the {MOST} largest of {len(order)}"
    return f"{name}: {shown}", weights[order[:MOST]]


def _filters(energy: Energy, caption: str) -> Figure:
    layers = layers_of(energy)
    maps = [_canvas(weights) if weights.ndim > 2 else weights.numpy() for _, weights in layers]
    # of all panels the same width, and about square pixels
    heights = [
        float(np.clip(10 * values.shape[0] / values.shape[1], 1, 12 if weights.ndim > 2 else 4))
        for values, (_, weights) in zip(maps, layers, strict=True)
    ]
    figure = Figure(figsize=(11, sum(heights) + 0.6 * len(maps) + 0.5), layout="constrained")
    axes = figure.subplots(len(maps), 1, squeeze=False, height_ratios=heights)[:, 0]
    unit = "data units" if isinstance(energy, GaussianRBM) else "nats"
    for axis, (name, weights), values in zip(axes, layers, maps, strict=True):
        _draw_map(axis, values, weights.ndim > 2)
        axis.set_title(name, fontsize=9)
        figure.colorbar(axis.images[0], ax=axis, label=f"weight, {unit}", fraction=0.03, pad=0.01)
        if weights.ndim == 2:
            levels = f", {energy.levels} levels each" if isinstance(energy, PottsRBM) else ""
            axis.set_xlabel(
                "real columns, then binary ones, then the levels of each other column"
                if isinstance(energy, MixedRBM)
                else f"column of a row{levels}"
            )
            axis.set_ylabel("hidden unit")
    figure.suptitle(caption, fontsize=10)
    return figure


def _draw_map(axis: Any, values: np.ndarray, images: bool) -> None:
    """Draws weights from blue, below 0, to red; 0 is white."""
    largest = float(np.nanquantile(np.abs(values), OF_ALL)) or 1.0
    axis.imshow(
        values,
        cmap=mpl.colormaps["RdBu_r"].with_extremes(bad="0.9"),
        vmin=-largest,
        vmax=largest,
        interpolation="nearest",
        aspect="equal" if images else "auto",
    )
    if images:
        axis.set_axis_off()
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(MaxNLocator(integer=True))


def _canvas(weights: Tensor) -> np.ndarray:
    """Returns images `[m, ..., height, width]` beside and below one another, NaN between; the first
    16 channels, or levels, of a unit side by side.
    """
    if channels_last(tuple(weights.shape[1:])):
        weights = weights.movedim(-1, 1)
    images = weights.reshape(len(weights), -1, *weights.shape[-2:])[:, :MOST_CHANNELS]
    channels, height, width = images.shape[1:]
    columns = min(len(images), math.ceil(math.sqrt(ASPECT * len(images) / channels)))
    rows = -(-len(images) // columns)
    gap = max(1, width // 8)
    canvas = np.full((rows * (height + gap), columns * (channels * width + gap)), np.nan)
    for number, image in enumerate(images):
        top = number // columns * (height + gap)
        left = number % columns * (channels * width + gap)
        canvas[top : top + height, left : left + channels * width] = np.concatenate(
            image.numpy(), 1
        )
    return canvas[:-gap, :-gap]
