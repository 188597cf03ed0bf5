"""The picture `samples.png`: samples of the model beside rows of its data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.data.base import DataSet, channels_last
from pipeline.energies.base import Energy
from pipeline.evaluation.letter_pictures import sample_panels
from pipeline.storage.figures import draw_figure

COLUMNS = 5
MOST_CHANNELS = 16
HOLE = (0.55, 0.7, 0.95)  # the colour of what is missing
CELLS = 200
"""To a side, of a density in the plane."""
MOST_TICKS = 8
"""Categories that stand below a histogram, at most."""


def draw_samples(
    energy: Energy,
    samples: Tensor,
    data: DataSet,
    caption: str,
    output: str,
    given: Tensor | None = None,
    labels: Sequence[str] = (),
) -> dict[str, str]:
    """Draws letters for sequences, images for rows of two axes or more, the plane for rows of two
    numbers, else each component's histogram. Images are beside what they were drawn `given`,
    [M, *shape] with NaN in the holes, and beside their `labels`, one a sample. Returns what
    `draw_figure` returns.
    """

    def figure() -> Figure:
        if data.sequences is not None:
            return sample_panels(energy, samples, data, caption)
        if len(data.shape) >= 2:
            return _images(energy, samples, data, caption, given, labels)
        if data.shape == (2,) and energy.real and data.rows:
            return _plane(energy, samples, data, caption)
        return _histograms(samples, data, caption)

    return draw_figure(figure, output, "samples.png")


def as_images(rows: Tensor) -> np.ndarray:
    """Returns rows `[N, *shape]` of two axes or more as images `[N, height, width, 3]`.

    A single channel is grey and three are colours: those of (C, H, W), or of (H, W, C) where the
    axes look so (`channels_last`). Of any other number the first 16 stand side by side, each grey;
    axes before the last two all count as channels.
    """
    if channels_last(tuple(rows.shape[1:])):
        rows = rows.movedim(-1, 1)
    images = rows.reshape(len(rows), -1, *rows.shape[-2:]).cpu()  # [N, C, H, W]
    if images.shape[1] not in (1, 3):
        images = torch.cat(images[:, :MOST_CHANNELS].unbind(1), -1)[:, None]
    return images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def nearest_rows(samples: Tensor, rows: Tensor) -> Tensor:
    """Returns for each sample [M, *shape] the row [N, *shape] nearest in Euclidean distance."""
    return rows[torch.cdist(samples.flatten(1), rows.flatten(1)).argmin(1)]


def _images(
    energy: Energy,
    samples: Tensor,
    data: DataSet,
    caption: str,
    given: Tensor | None,
    labels: Sequence[str],
) -> Figure:
    """Draws cells of what a sample was given, the sample, the same denoised where the data are
    noisy, and its nearest training image.
    """
    panels = {"sample": samples} if given is None else {"given": given, "sample": samples}
    shown = samples
    if data.noise:
        # the posterior mean of the clean image under the smoothed law (Robbins 1956; Miyasawa
        # 1961): x + sigma^2 score(x)
        shown = samples - data.noise**2 * energy.energy_and_gradient(samples)[1]
        panels["denoised"] = shown
        caption += "\ndenoised: x - sigma² grad E; nearest: of the training images"
    if data.rows:
        panels["nearest"] = nearest_rows(shown, data.sample)
    # without rows, the samples' own range
    low, high = (float(end) for end in torch.aminmax(data.sample if data.rows else samples))
    scale = high - low or 1.0
    images = [as_images(((panel - low) / scale).clamp(0, 1)) for panel in panels.values()]
    images = [np.where(np.isnan(image), HOLE, image) for image in images]
    height, width = images[0].shape[1:3]
    gap = max(1, width // 8)
    columns, rows = min(COLUMNS, len(samples)), -(-len(samples) // COLUMNS)
    cell_height, cell_width = height + gap, len(panels) * (width + gap) + 2 * gap
    canvas = np.full((rows * cell_height - gap, columns * cell_width - 3 * gap, 3), 1.0)
    for index in range(len(samples)):
        top, left = index // COLUMNS * cell_height, index % COLUMNS * cell_width
        for number, image in enumerate(images):
            start = left + number * (width + gap)
            canvas[top : top + height, start : start + width] = image[index]
    starts = np.arange(columns)[:, None] * cell_width + np.arange(len(panels)) * (width + gap)
    figure, axis = _canvas(canvas, caption, bool(labels))
    names = [name for _ in range(columns) for name in panels]
    axis.set_xticks((starts + (width - 1) / 2).ravel(), names, fontsize=8)
    axis.set_yticks([])
    for index, label in enumerate(labels):
        row, column = divmod(index, COLUMNS)
        alike = len(set(labels[row * COLUMNS : (row + 1) * COLUMNS])) == 1
        if column == 0 or not alike:  # one for a whole row of cells that have the same
            left, middle = column * cell_width - gap, row * cell_height + (height - 1) / 2
            axis.text(left, middle, label, ha="right", va="center", fontsize=9)
    return figure


def _canvas(canvas: np.ndarray, caption: str, labelled: bool) -> tuple[Figure, Any]:
    """Returns a figure that a canvas `[height, width, 3]` fills, below its caption and the names of
    its columns and, where it is `labelled`, to the right of its labels; and its axis.
    """
    across, above, beside = 11.0, 0.6 + 0.17 * caption.count("\n"), 0.7 if labelled else 0.1
    down = (across - beside) * canvas.shape[0] / canvas.shape[1]
    figure = Figure(figsize=(across, down + above))
    bottom = 0.1 / (down + above)
    axis = figure.add_axes(
        (beside / across, bottom, (across - beside - 0.1) / across, down / (down + above) - bottom)
    )
    axis.imshow(canvas, interpolation="nearest", aspect="auto")
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.set_frame_on(False)
    figure.suptitle(caption, fontsize=10, y=1 - 0.08 / (down + above), va="top")
    return figure, axis


def _plane(energy: Energy, samples: Tensor, data: DataSet, caption: str) -> Figure:
    """Draws held-out rows (training rows where there are none), samples, the learned density, and
    beside it the true one where it is known: both to one scale of colours, each adding up to 1 over
    what is shown.
    """
    shown, of = data.held_out, "held-out data"
    if not len(shown):
        shown, of = data.sample, "training data"
    radius = 1.15 * float(shown.abs().max()) or 1.0
    side = torch.linspace(-radius, radius, CELLS)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        logs = {"learned density": -energy(grid)}
    if data.log_density is not None and data.context is None:  # else there is one a context
        logs["true density"] = data.log_density(grid)
    area = (2 * radius / (CELLS - 1)) ** 2
    densities = {
        title: (values.double().softmax(0) / area).view(CELLS, CELLS).T.numpy()
        for title, values in logs.items()
    }
    panels = 2 + len(densities)
    figure = Figure(figsize=(3.6 * panels + 0.6, 4.4), layout="constrained")
    axes = figure.subplots(1, panels, sharex=True, sharey=True)
    for axis, rows, title in (
        (axes[0], shown[:1000], of),
        (axes[1], samples, "samples"),
    ):
        axis.scatter(*rows[:, :2].T.cpu().numpy(), s=3, alpha=0.5)
        axis.set_title(title)
    highest = max(float(density.max()) for density in densities.values())
    for axis, (title, density) in zip(axes[2:], densities.items(), strict=True):
        axis.imshow(
            density,
            origin="lower",
            extent=(-radius, radius, -radius, radius),
            vmin=0,
            vmax=highest,
        )
        axis.set_title(title)
    figure.colorbar(axes[2].images[0], ax=axes[2:], label="per unit of area", shrink=0.7)
    for axis in axes:
        axis.set_aspect("equal")
    figure.suptitle(caption, fontsize=10)
    return figure


def _histograms(samples: Tensor, data: DataSet, caption: str) -> Figure:
    """Draws marginals of the first 16 components, samples over held-out rows if there are any."""
    shown = min(16, samples.flatten(1).shape[1])
    figure = Figure(figsize=(10, 2.2 * -(-shown // 4)), layout="constrained")
    for number, axis in enumerate(figure.subplots(-(-shown // 4), 4, squeeze=False).flat):
        if number >= shown:
            axis.set_axis_off()
            continue
        for rows, label in ((data.held_out, "held-out"), (samples, "samples")):
            if not len(rows):
                continue
            axis.hist(
                rows.flatten(1)[:, number].cpu().numpy(),
                bins=30,
                density=True,
                alpha=0.5,
                label=label,
            )
        name, values = data.columns[number] if data.columns else (f"component {number}", None)
        axis.set_title(name, fontsize=8)
        if values is not None and len(values) <= MOST_TICKS:
            axis.set_xticks(range(len(values)), [str(value)[:12] for value in values], fontsize=8)
    figure.axes[0].legend(fontsize=8)
    figure.suptitle(caption, fontsize=10)
    return figure
