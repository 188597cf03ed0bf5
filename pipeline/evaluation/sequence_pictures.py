"""The picture `sequences.png`: sequences drawn by a model beside those that it learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.energies.base import Energy
from pipeline.energies.letters import one_hot
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
        drawn = samples[:MOST].long().numpy()
        kinds = _dealt(data, generator), drawn
        places = principal_components(_some(data, generator), kinds, energy.levels or 2)
        whole = _whole(data)
        shown = _some(whole, generator)
        dealt = torch.from_numpy(_dealt(whole, generator))
        apart = shuffled(dealt, generator).numpy()
        ones = np.ones(MOST)
        of_kinds = {
            "natural": shown,
            "samples": Weighted(drawn, ones[: len(drawn)]),
            "natural, columns shuffled": Weighted(apart, ones),
        }
        values = {kind: (_energies(energy, rows), rows.weights) for kind, rows in of_kinds.items()}
        return _panels(found, places, values, caption)

    return draw_figure(figure, output, "sequences.png")


def _some(rows: Weighted, generator: torch.Generator) -> Weighted:
    """Returns at most `MOST` of the sequences, chosen alike, with their weights."""
    chosen = torch.randperm(len(rows.codes), generator=generator)[:MOST].numpy()
    return Weighted(rows.codes[chosen], rows.weights[chosen])


def _dealt(rows: Weighted, generator: torch.Generator) -> np.ndarray:
    """Returns `MOST` of the sequences, drawn by their weights."""
    weights = torch.from_numpy(rows.weights)
    codes: np.ndarray = rows.codes[torch.multinomial(weights, MOST, True, generator=generator)]
    return codes


def _whole(rows: Weighted) -> Weighted:
    """Returns the sequences that lack no letter, since energies of others are of fewer sites; all
    where there are few.
    """
    whole = (rows.codes >= 0).all(1)
    if whole.sum() < FEW:
        return rows
    return Weighted(rows.codes[whole], rows.weights[whole])


def principal_components(
    rows: Weighted, others: Sequence[np.ndarray], levels: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """The places of sequences along the first two principal components of `rows`, the leading
    eigenvectors of the weighted covariance of their one-hot letters: of each of the `others`
    [M, L], `[M, 2]`, and the shares of the variance that these have, `[2]`. A letter that is
    missing is taken for the site's mean.
    """
    from scipy.sparse.linalg import svds  # most runs do without

    shares = rows.weights[:, None, None] / rows.weights.sum()
    there = shares * (rows.codes >= 0)[..., None]
    mean = (shares * _one_hot(rows.codes, levels)).sum(0) / np.maximum(there.sum(0), 1e-30)

    def deviations(codes: np.ndarray) -> np.ndarray:
        off: np.ndarray = (_one_hot(codes, levels) - mean) * (codes >= 0)[..., None]
        return off.reshape(len(codes), -1)

    scaled = np.sqrt(shares[:, 0]) * deviations(rows.codes)
    _, scales, axes = svds(scaled, k=2, v0=np.ones(min(scaled.shape)))
    order = np.argsort(-scales)
    variances = scales[order] ** 2 / max(float((scaled**2).sum()), 1e-30)
    return [deviations(codes) @ axes[order].T for codes in others], variances


def _one_hot(codes: np.ndarray, levels: int) -> np.ndarray:
    encoded: np.ndarray = one_hot(torch.from_numpy(codes), levels, torch.float64).numpy()
    return encoded


@torch.no_grad()
def _energies(energy: Energy, rows: Weighted) -> np.ndarray:
    parts = torch.from_numpy(rows.codes).float().split(TOGETHER)
    return torch.cat([energy(some) for some in parts]).double().numpy()


def _panels(
    found: Comparison,
    places: tuple[list[np.ndarray], np.ndarray],
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
    (rows_at, samples_at), shares = places
    both = np.concatenate([rows_at, samples_at])
    low, high = both.min(0), both.max(0)
    margin = 0.05 * (high - low) + 1e-6
    for axis, rows, colour, kind in (
        (natural, rows_at, "C0", "training sequences, by weight"),
        (drawn, samples_at, "C2", "samples"),
    ):
        axis.plot(*rows.T, ".", markersize=3, color=colour, alpha=0.5)
        axis.set_xlim(low[0] - margin[0], high[0] + margin[0])
        axis.set_ylim(low[1] - margin[1], high[1] + margin[1])
        axis.set_xlabel(f"first principal component ({shares[0]:.1%} of the variance)")
        axis.set_ylabel(f"second ({shares[1]:.1%})")
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
