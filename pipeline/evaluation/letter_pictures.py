"""Pictures of sequences letter by letter: samples as an alignment, and effects of mutations."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from pipeline.config.data import GAP
from pipeline.data.base import DataSet
from pipeline.data.fasta import Sequences
from pipeline.data.similarity import nearest
from pipeline.energies.base import Energy
from pipeline.energies.potts import PottsModel
from pipeline.evaluation.energy_histograms import TOGETHER

KINDS = {
    "hydrophobic": "AVLIMFWC",
    "polar": "STNQ",
    "basic": "KRH",
    "acidic": "DE",
    "G, P and Y": "GPY",
}
"""Amino acids that have one colour."""
MOST_LETTERS = 200
"""Sites up to which letters are written into their cells."""
PROTEIN = 20
"""Letters of an alphabet from which on they are taken for amino acids."""
COLOURS = matplotlib.colormaps["Set3"]
LINES, NATURAL = 24, 300
"""Samples shown as letters, and natural sequences that samples are compared with."""
STRIP, STRIPS = 80, 8
"""Sites in a row of a map of mutations, at least, and how many rows there are, at most."""


def sample_panels(energy: Energy, samples: Tensor, data: DataSet, caption: str) -> Figure:
    """Draws `samples` [M, L] as an alignment, and below it how near they and natural sequences are
    to the nearest other natural one, against their energies.
    """
    sequences = data.sequences
    codes, natural = (rows.flatten(1).to(torch.int8).numpy() for rows in (samples, data.sample))
    count, sites = min(LINES, len(codes)), codes.shape[1]
    figure = Figure(figsize=(13, 4.5 + 0.2 * count), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(count + 3, 20))
    _alignment(above, codes[:count], sequences)
    whole = np.flatnonzero((natural >= 0).all(1))  # energies of others are of fewer sites
    chosen = np.random.RandomState(0).permutation(whole)[:NATURAL]
    _, own = nearest(natural[chosen], natural, chosen)
    _, identity = nearest(codes, natural)
    for rows, shares, colour, label in (
        (natural[chosen], own, "C0", "training sequences, to the nearest other one"),
        (codes, identity, "C1", "samples, to the nearest training sequence"),
    ):
        if not len(rows):
            continue
        energies = _energies(energy, torch.from_numpy(rows).float())
        told = f"{label}: mean {shares.mean():.2f}"
        below.plot(shares, energies, ".", color=colour, alpha=0.5, label=told)
    below.set_xlabel(f"share of the {sites} sites with the same letter")
    below.set_ylabel("energy, nats")
    below.legend(fontsize=9)
    figure.suptitle(caption, fontsize=10)
    return figure


def mutation_panels(
    energy: Energy,
    wild_type: Tensor,
    sequences: Sequences,
    measured: tuple[np.ndarray, np.ndarray],
    caption: str,
) -> Figure:
    """Draws delta E of all single mutants of the `wild_type` [L], a map of letters by sites; and of
    the `measured` mutants -delta E against the scores, `[M]` each, where there are any.
    """
    changes, letters = single_changes(energy, wild_type), list(sequences.alphabet)
    sites, levels = changes.shape
    width = max(min(STRIP, sites), -(-sites // STRIPS))
    strips = range(0, sites, width)
    scores, falls = measured
    parts = len(strips) + (len(scores) > 1)
    figure = Figure(figsize=(13, 1 + parts * (1.2 + 0.13 * levels)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(parts, 1))
    reach = np.nanpercentile(np.abs(changes), 99) or 1.0
    for axis, first in zip(axes, strips, strict=False):
        part = changes[first : first + width]
        shown = axis.imshow(part.T, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto")
        own = wild_type[first : first + width].long().numpy()
        there = np.flatnonzero(own >= 0)
        axis.plot(there, own[there], ".", color="black", markersize=3)
        axis.set_yticks(range(levels), letters, fontsize=6)
        _number(axis, sequences.numbering[first : first + width])
        axis.set_xlim(-0.5, width - 0.5)
        axis.set_ylabel("letter put in")
    axes[len(strips) - 1].set_xlabel("site (dots: the wild type's letters)")
    figure.colorbar(shown, ax=axes[: len(strips)], label="delta E, nats: red is less probable")
    if len(scores) > 1:
        axes[-1].plot(scores, falls, ".", alpha=0.6)
        axes[-1].set_xlabel("score measured")
        axes[-1].set_ylabel("-delta E, nats")
    figure.suptitle(caption, fontsize=10)
    return figure


@torch.no_grad()
def single_changes(energy: Energy, wild_type: Tensor) -> np.ndarray:
    """delta E of each letter at each site of the `wild_type` [L], nats, `[L, q]` float64; NaN at
    sites where the wild type has none.
    """
    levels, sites = energy.levels or 2, torch.arange(len(wild_type))
    if isinstance(energy, PottsModel) and levels > 2:  # linear in each letter's one-hot encoding
        _, gradient = energy.energy_and_gradient(wild_type.view(1, *energy.shape))
        energies = gradient.view(-1, levels).double()
    else:
        mutants = wild_type.repeat(len(sites), levels, 1)
        mutants[sites, :, sites] = torch.arange(levels).to(mutants)
        energies = torch.from_numpy(_energies(energy, mutants)).view(-1, levels)
    own = energies.gather(1, wild_type.clamp(min=0).long()[:, None])
    there = (wild_type >= 0)[:, None]
    changes: np.ndarray = (energies - own).where(there, torch.nan).numpy()
    return changes


@torch.no_grad()
def _energies(energy: Energy, rows: Tensor) -> np.ndarray:
    parts = rows.view(-1, *energy.shape).split(TOGETHER)
    values: np.ndarray = torch.cat([energy(some).double() for some in parts]).numpy()
    return values


def _alignment(axis: Any, codes: np.ndarray, sequences: Sequences) -> None:
    """Draws sequences [M, L], a cell for each letter in the colour of its kind."""
    colours = _colours(sequences.alphabet)
    axis.imshow(colours[codes], aspect="auto", interpolation="nearest")
    count, sites = codes.shape
    if len(sequences.alphabet) >= PROTEIN:
        patches = [Patch(color=COLOURS(n), label=kind) for n, kind in enumerate(KINDS)]
        axis.legend(handles=patches, ncols=len(KINDS), loc="lower right", bbox_to_anchor=(1, 1))
    if sites <= MOST_LETTERS:
        size = min(7.0, 850 / sites)
        for row, column in np.ndindex(count, sites):
            letter = sequences.alphabet[codes[row, column]]
            axis.text(column, row, letter, ha="center", va="center", fontsize=size)
    axis.set_yticks(range(4, count, 5), [str(row + 1) for row in range(4, count, 5)])
    _number(axis, sequences.numbering)
    axis.set_ylabel("sample")
    axis.set_xlabel("site")


def _number(axis: Any, numbering: list[int]) -> None:
    """Marks each tenth site by its number."""
    tens = [place for place, number in enumerate(numbering) if number % 10 == 0]
    axis.set_xticks(tens, [str(numbering[place]) for place in tens])


def _colours(alphabet: str) -> np.ndarray:
    """A light colour for each letter, `[q, 3]`: of a protein's that of its kind; a gap is white."""
    found = []
    for number, letter in enumerate(alphabet):
        kinds = [place for place, kind in enumerate(KINDS.values()) if letter in kind]
        place = (kinds or [len(KINDS)])[0] if len(alphabet) >= PROTEIN else number % COLOURS.N
        found.append((1.0, 1.0, 1.0) if letter == GAP else COLOURS(place)[:3])
    return np.array(found)
