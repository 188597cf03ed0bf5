"""The picture `motifs.png`: what the hidden units of a machine of sequences look for."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D
from torch import Tensor

from pipeline.data.fasta import Sequences
from pipeline.energies.rbm import PottsRBM
from pipeline.evaluation.letter_pictures import KINDS
from pipeline.storage.figures import draw_figure

UNITS = 8
"""Units that are drawn: those whose means vary most from one training sequence to another."""
SMALL = 0.15
"""Letters lower than this share of a unit's highest pile are left out."""
ROWS = 2000
"""Training sequences whose means of a unit are drawn."""
NARROW = 0.5
"""Of a letter's width, in its size."""
COLOURS = {
    letter: colour
    for letters, colour in zip(
        KINDS.values(), ("#222222", "#2e8b57", "#2465a8", "#c0392b", "#b8860b"), strict=True
    )
    for letter in letters
}
"""Of amino acids: hydrophobic ones black, polar green, bases blue, acids red; G, P and Y ochre."""
OTHER = "#777777"


def draw_motifs(
    machine: PottsRBM, sequences: Sequences, rows: Tensor, caption: str, output: str
) -> dict[str, str]:
    """Draws `motifs.png`: of the units that vary most a logo, letters above the line where they
    raise the unit and below it where they lower it, as high as their weights (Tubiana, Cocco &
    Monasson 2019); and beside it the unit's means under training `rows` [S, L]. Returns what
    `draw_figure` returns.
    """
    return draw_figure(lambda: _motifs(machine, sequences, rows, caption), output, "motifs.png")


def zero_mean_weights(machine: PottsRBM) -> Tensor:
    """The weights of each unit, `[m, L, q]`, with the mean over letters 0: adding a number to all
    letters of a site changes biases alone.
    """
    weights = machine.weight.detach().cpu().view(-1, machine.dimension, machine.levels or 2)
    return weights - weights.mean(2, keepdim=True)


def _motifs(machine: PottsRBM, sequences: Sequences, rows: Tensor, caption: str) -> Figure:
    weights = zero_mean_weights(machine)
    means = machine.activations(rows[:ROWS]).detach().cpu()
    order = means.std(0).argsort(descending=True, stable=True)[:UNITS]
    sites = len(sequences.numbering)
    width = float(np.clip(0.28 * sites, 7, 28))
    figure = Figure(figsize=(width + 2.5, 1.35 * len(order) + 0.7), layout="constrained")
    axes = figure.subplots(len(order), 2, squeeze=False, width_ratios=[width, 2])
    for (logo, histogram), unit in zip(axes, order.tolist(), strict=True):
        _draw_logo(logo, weights[unit].numpy(), sequences)
        logo.set_ylabel(f"unit {unit}")
        histogram.hist(means[:, unit].numpy(), bins=40, color="0.6")
        histogram.set_yticks([])
    axes[-1, 0].set_xlabel("site")
    axes[-1, 1].set_xlabel("mean of the unit")
    axes[0, 1].set_title("training sequences", fontsize=9)
    shown = f"all {len(order)}" if len(order) == len(weights) else f"{len(order)} of {len(weights)}"
    title = f"{caption}: {shown}, those that vary most; weights in nats"
    figure.suptitle(title, fontsize=10)
    return figure


def _draw_logo(axis: Any, weights: np.ndarray, sequences: Sequences) -> None:
    """Draws the letters of a unit's `weights` [L, q], the largest farthest from the line."""
    above, below = (np.where(keep, weights, 0).sum(1) for keep in (weights > 0, weights < 0))
    least = SMALL * max(float(above.max()), float(-below.min()), 1e-12)
    for site, values in enumerate(weights):
        tops = {1: 0.0, -1: 0.0}
        for letter in np.abs(values).argsort():
            value = float(values[letter])
            if abs(value) >= least:
                side = 1 if value > 0 else -1
                bottom = min(tops[side], tops[side] + value)
                _draw_letter(axis, sequences.alphabet[letter], site, bottom, abs(value))
                tops[side] += value
    axis.axhline(0, color="0.5", linewidth=0.6)
    axis.set_xlim(-0.6, len(weights) - 0.4)
    axis.autoscale(axis="y")
    step = max(1, round(len(weights) / 30))
    ticks = list(range(0, len(weights), step))
    axis.set_xticks(ticks, [str(sequences.numbering[site]) for site in ticks], fontsize=7)
    axis.tick_params(axis="y", labelsize=7)


def _draw_letter(axis: Any, letter: str, site: int, bottom: float, height: float) -> None:
    """Draws a letter as high as its weight and 0.9 of a site wide; a narrow one is less wide."""
    outline = TextPath((0, 0), letter, size=1, prop=FontProperties(weight="bold"))
    box = outline.get_extents()
    place = (
        Affine2D()
        .translate(-(box.x0 + box.x1) / 2, -box.y0)
        .scale(0.9 / max(box.width, NARROW), height / max(box.height, 1e-6))
        .translate(site, bottom)
    )
    colour = COLOURS.get(letter, OTHER)
    axis.add_patch(PathPatch(place.transform_path(outline), facecolor=colour, linewidth=0))
