"""The picture of contacts: scores, the strongest pairs, and those of a known structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.data.fasta import Sequences


def contact_picture(
    scores: Tensor, strong: Tensor, sequences: Sequences, precise: Mapping[str, Any], caption: str
) -> Figure:
    """Draws all `scores` [L (L-1) / 2] above the diagonal, and below it the pairs `strong` [2, P].
    With a known structure its contacts are behind these, and beside them stands what share of the
    first n pairs touch, by n (`precise`, as `pipeline.evaluation.contacts.precision` has it).
    """
    numbers, known = torch.tensor(sequences.numbering), sequences.contacts
    sites = len(numbers)
    first, second = torch.triu_indices(sites, sites, 1)
    values = scores.new_full((sites, sites), torch.nan)
    values[first, second] = scores
    figure = Figure(figsize=(6.5 if known is None else 11.5, 6), layout="constrained")
    axes = figure.subplots(1, 1 if known is None else 2, squeeze=False)[0]
    low, high = float(numbers[0]) - 0.5, float(numbers[-1]) + 0.5
    shown = axes[0].imshow(
        values.numpy(),
        cmap="Blues",
        vmin=0,
        vmax=float(scores.max()),
        extent=(low, high, high, low),
    )
    figure.colorbar(shown, ax=axes[0], label="corrected norm of the coupling", shrink=0.8)
    if known is None:
        axes[0].plot(*numbers[strong].numpy(), ".", color="black")
    else:
        behind = known.touching[first, second]
        ends = numbers[first[behind]], numbers[second[behind]]
        axes[0].plot(*ends, "s", color="0.8", markersize=3, label="touch in the structure")
        there, touch = known.there[strong].all(0), known.touching[strong[0], strong[1]]
        for kept, colour, label in (
            (touch, "black", "strong, and touch"),
            (there & ~touch, "C3", "strong, and do not"),
            (~there, "C1", "strong, not in the structure"),
        ):
            if kept.any():
                ends = numbers[strong[0, kept]], numbers[strong[1, kept]]
                axes[0].plot(*ends, ".", color=colour, label=label)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=4)
        _curve(axes[1], sites, precise)
    axes[0].set_xlabel("site")
    axes[0].set_ylabel("site")
    figure.suptitle(caption, fontsize=10)
    return figure


def _curve(axis: Any, sites: int, precise: Mapping[str, Any]) -> None:
    """Draws the share of the strongest pairs that touch, by their number over that of sites."""
    curve = precise["curve"]
    axis.plot([(n + 1) / sites for n in range(len(curve))], curve, label="strongest pairs")
    if curve:
        axis.axhline(precise["by_chance"], color="0.5", linestyle=":", label="all pairs")
    axis.set_xscale("log")
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("number of pairs, over that of sites")
    axis.set_ylabel("share of them that touch")
    axis.legend(fontsize=8)
