"""The picture `sequences.png`: sequences drawn by a model beside those that it learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from scipy.sparse.linalg import svds
from torch import Tensor

from pipeline.energies.base import Energy
from pipeline.energies.couplings import one_hot
from pipeline.evaluation.alignments import Agreement, Comparison, Weighted
from pipeline.evaluation.energy_histograms import BINS, TOGETHER
from pipeline.evaluation.outliers import shuffled
from pipeline.storage.figures import draw_figure

MOST = 1000
"""Sequences of a kind whose places and energies are drawn."""
FEW = 50
"""Sequences without gaps, from which on those with some are left out of the energies."""


def draw_sequences(
    energy: Energy,
    found: Comparison,
    data: Weighted,
    samples: Tensor,
    generator: torch.Generator,
    caption: str,
    output: str,
) -> dict[str, str]:
    """Draws `sequences.png`: how the statistics `found` of `samples` [M, L] and `data` agree,
    principal components, and energies. `generator` shuffles. Returns what `draw_figure` returns.
    """

    def figure() -> Figure:
        natural, drawn = _some(data, generator), samples[:MOST].long().numpy()
        places = principal_components(natural, drawn, energy.levels or 2)
        whole = _whole(data)
        shown = _some(whole, generator)
        dealt = torch.multinomial(torch.from_numpy(whole.weights), MOST, True, generator=generator)
        apart = shuffled(torch.from_numpy(whole.codes)[dealt], generator).numpy()
        ones = np.ones(MOST)
        kinds = {
            "natural": shown,
            "samples": Weighted(drawn, ones[: len(drawn)]),
            "natural, columns shuffled": Weighted(apart, ones),
        }
        values = {kind: (_energies(energy, rows), rows.weights) for kind, rows in kinds.items()}
        return _panels(found, places, values, caption)

    return draw_figure(figure, output, "sequences.png")


def _some(rows: Weighted, generator: torch.Generator) -> Weighted:
    """Returns at most `MOST` of the sequences, chosen alike, with their weights."""
    chosen = torch.randperm(len(rows.codes), generator=generator)[:MOST].numpy()
    return Weighted(rows.codes[chosen], rows.weights[chosen])


def _whole(rows: Weighted) -> Weighted:
    """Returns the sequences that lack no letter, since energies of others are of fewer sites; all
    where there are few.
    """
    whole = (rows.codes >= 0).all(1)
    if whole.sum() < FEW:
        return rows
    return Weighted(rows.codes[whole], rows.weights[whole])


def principal_components(
    natural: Weighted, samples: np.ndarray, levels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The places of the sequences `natural` and of `samples` [M, L] along the first two principal
    components, the leading eigenvectors of the weighted covariance of the one-hot letters of the
    former: `[N, 2]` and `[M, 2]`, and the shares of the variance that these have, `[2]`. A letter
    that is missing is taken for the site's mean.
    """
    encoded, other = (
        one_hot(torch.from_numpy(rows), levels, torch.float64).numpy()
        for rows in (natural.codes, samples)
    )
    there = natural.codes[..., None] >= 0
    shares = natural.weights[:, None, None] / natural.weights.sum()
    mean = (shares * encoded).sum(0) / np.maximum((shares * there).sum(0), 1e-30)
    encoded = ((encoded - mean) * there).reshape(len(encoded), -1)
    other = (other - mean).reshape(len(other), -1)
    scaled = np.sqrt(shares[:, 0]) * encoded
    _, scales, axes = svds(scaled, k=2, v0=np.ones(min(scaled.shape)))
    order = np.argsort(-scales)
    variances = scales[order] ** 2 / max(float((scaled**2).sum()), 1e-30)
    return encoded @ axes[order].T, other @ axes[order].T, variances


@torch.no_grad()
def _energies(energy: Energy, rows: Weighted) -> np.ndarray:
    parts = torch.from_numpy(rows.codes).float().split(TOGETHER)
    return torch.cat([energy(some) for some in parts]).double().numpy()


def _panels(
    found: Comparison,
    places: tuple[np.ndarray, np.ndarray, np.ndarray],
    energies: dict[str, tuple[np.ndarray, np.ndarray]],
    caption: str,
) -> Figure:
    figure = Figure(figsize=(13, 8.6), layout="constrained")
    (one, two, three), (natural, drawn, histogram) = figure.subplots(2, 3)
    figures = found.figures()
    one.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    one.plot(found.data.ravel(), found.samples.ravel(), ".", markersize=3)
    _entitle(one, "one-site frequencies", figures["one_site"])
    _cells(two, found.two_site)
    _entitle(two, "two-site covariances", figures["two_site"], figures["two_site_slope"])
    _cells(three, found.three_site)
    words = f"three-site correlations, {found.triples} triples"
    _entitle(three, words, figures["three_site"])
    for axis in (one, two, three):
        axis.set_xlabel("training sequences")
        axis.set_ylabel("samples")
    both = np.concatenate(places[:2])
    low, high = both.min(0), both.max(0)
    margin = 0.05 * (high - low) + 1e-6
    for axis, rows, colour, kind in (
        (natural, places[0], "C0", "training sequences"),
        (drawn, places[1], "C2", "samples"),
    ):
        axis.plot(*rows.T, ".", markersize=3, color=colour, alpha=0.5)
        axis.set_xlim(low[0] - margin[0], high[0] + margin[0])
        axis.set_ylim(low[1] - margin[1], high[1] + margin[1])
        axis.set_xlabel(f"first principal component ({places[2][0]:.1%} of the variance)")
        axis.set_ylabel(f"second ({places[2][1]:.1%})")
        axis.set_title(kind, fontsize=10)
    edges = np.histogram_bin_edges(
        np.concatenate([values for values, _ in energies.values()]), BINS
    ).tolist()
    for (kind, (values, weights)), colour in zip(
        energies.items(), ("C0", "C2", "0.5"), strict=True
    ):
        histogram.hist(
            values,
            edges,
            histtype="stepfilled",
            facecolor=(colour, 0.2),
            edgecolor=colour,
            weights=weights,
            density=True,
            label=f"{kind}, mean {np.average(values, weights=weights):,.1f}",
        )
    histogram.set_xlabel("energy, nats")
    histogram.set_ylabel("density")
    histogram.set_ylim(top=1.25 * histogram.get_ylim()[1])
    histogram.legend(fontsize=8)
    histogram.set_title("energies", fontsize=10)
    figure.suptitle(caption, fontsize=10)
    return figure


def _entitle(axis: Any, words: str, pearson: float | None, slope: float | None = None) -> None:
    told = "" if pearson is None else f": Pearson {pearson:.2f}"
    axis.set_title(words + told + ("" if slope is None else f", slope {slope:.2f}"), fontsize=10)


def _cells(axis: Any, agreement: Agreement) -> None:
    """Draws how many pairs are in each cell, as far as there are any."""
    cells = agreement.cells
    filled = np.flatnonzero(cells.any(0) | cells.any(1))
    middle = len(cells) // 2
    reach = int(np.abs(filled - middle).max(initial=1)) + 1
    own = cells[middle - reach : middle + reach + 1, middle - reach : middle + reach + 1]
    width = agreement.reach * reach / middle
    axis.plot([-width, width], [-width, width], color="0.7", linewidth=1)
    if own.any():
        axis.imshow(
            np.ma.masked_equal(own.T, 0),
            origin="lower",
            extent=(-width, width, -width, width),
            norm=LogNorm(),
            cmap="viridis",
            interpolation="nearest",
            zorder=2,
        )
