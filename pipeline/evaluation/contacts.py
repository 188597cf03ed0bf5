"""Contacts from couplings: how strongly two sites are coupled, what they share with all others
taken off.
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.common.types import Figures
from pipeline.config.data import GAP
from pipeline.data.fasta import Sequences
from pipeline.energies.gauges import zero_sum
from pipeline.energies.potts import PottsModel
from pipeline.storage.figures import draw_figure
from pipeline.storage.files import write_file

TABLE, PICTURE = "contacts.txt", "contacts.png"
APART, SHOWN = 5, 10
"""How far apart in the sequence sites are whose contact tells something, and how many are named."""


@torch.no_grad()
def coupling_norms(energy: PottsModel, gap: int | None = None) -> Tensor:
    """The Frobenius norms of J_ij in the zero-sum gauge, without the letter `gap` where that is a
    level, of the pairs i < j; float64 `[L (L-1) / 2]` (Ekeberg et al. 2013).
    """
    _, coupling = zero_sum(energy.field.double(), energy.coupling.double())
    if gap is not None:
        letters = [level for level in range(coupling.shape[1]) if level != gap]
        coupling = coupling[:, letters][:, :, letters]
    return torch.linalg.matrix_norm(coupling)


def average_product_corrected(norms: Tensor, sites: int) -> Tensor:
    """F_ij - F_i. F_.j / F_.. of the pairs i < j, `[L (L-1) / 2]`, with means over the other sites,
    and over all pairs (Dunn, Wahl & Gloor 2008).
    """
    first, second = torch.triu_indices(sites, sites, 1)
    sums = norms.new_zeros(sites).index_add_(0, first, norms).index_add_(0, second, norms)
    means = sums / (sites - 1)
    return norms - means[first] * means[second] / norms.mean()


def contact_scores(energy: PottsModel, gap: int | None = None) -> Tensor:
    """The corrected norms of all pairs i < j, `[L (L-1) / 2]`: large where sites are in contact."""
    return average_product_corrected(coupling_norms(energy, gap), energy.dimension)


def contact_figures(energy: PottsModel, sequences: Sequences, caption: str, output: str) -> Figures:
    """Writes the table of scores (`contacts.txt`), the weights of the sequences (`weights.txt`),
    one a line in the order of the alignment, and `contacts.png`. Returns the strongest pairs, and
    what `draw_figure` returns. Raises `StorageError`.
    """
    gap = sequences.alphabet.find(GAP)
    scores = contact_scores(energy, None if gap < 0 else gap)
    write_file(output, TABLE, table_of(scores, sequences).encode())
    weights = "".join(f"{weight:.12g}\n" for weight in sequences.weights)
    write_file(output, "weights.txt", weights.encode())
    undrawn = draw_figure(lambda: _map(scores, sequences, caption), output, PICTURE)
    return {
        "sequences": {
            "count": len(sequences.names),
            "effective": sequences.effective,
            "left_out": sequences.dropped,
        },
        "contacts": {
            "file": TABLE,
            "apart": APART,
            "strongest": strongest(scores, sequences, APART, SHOWN),
        },
        **({} if undrawn else {"pictures": [PICTURE]}),
        **undrawn,
    }


def table_of(scores: Tensor, sequences: Sequences) -> str:
    """The table of pairs i < j, a line `RES_I AA_I RES_J AA_J 0 SCORE` each, as plmc has it."""
    sites = [f"{at} {letter}" for at, letter in zip(*sequences[1:3], strict=True)]
    pairs = torch.triu_indices(len(sites), len(sites), 1).T.tolist()
    return "".join(
        f"{sites[i]} {sites[j]} 0 {score:.6f}\n"
        for (i, j), score in zip(pairs, scores.tolist(), strict=True)
    )


def strongest(scores: Tensor, sequences: Sequences, apart: int, count: int) -> list[str]:
    """The `count` pairs of the largest scores that are more than `apart` in number from each other,
    as I27-F31.
    """
    sites = len(sequences.numbering)
    pairs = torch.triu_indices(sites, sites, 1)
    numbers = torch.tensor(sequences.numbering)[pairs]
    far = numbers[1] - numbers[0] > apart
    scores, pairs, numbers = scores[far], pairs[:, far], numbers[:, far]
    order = scores.argsort(descending=True)[:count]
    return [
        "-".join(f"{sequences.focus[i]}{at}" for i, at in zip(*ends, strict=True))
        for ends in zip(pairs.T[order].tolist(), numbers.T[order].tolist(), strict=True)
    ]


def _map(scores: Tensor, sequences: Sequences, caption: str) -> Figure:
    """All scores above the diagonal, and below it as many of the strongest as there are sites."""
    sites, numbers = len(sequences.numbering), sequences.numbering
    first, second = torch.triu_indices(sites, sites, 1)
    values = scores.new_full((sites, sites), torch.nan)
    values[first, second] = scores
    figure = Figure(figsize=(6.5, 6), layout="constrained")
    axis = figure.subplots()
    low, high = numbers[0] - 0.5, numbers[-1] + 0.5
    shown = axis.imshow(
        values.numpy(),
        cmap="Blues",
        vmin=0,
        vmax=float(scores.max()),
        extent=(low, high, high, low),
    )
    figure.colorbar(shown, ax=axis, label="corrected norm of the coupling")
    far = torch.tensor(numbers)[second] - torch.tensor(numbers)[first] > APART
    best = scores.masked_fill(~far, -torch.inf).argsort(descending=True)[:sites]
    axis.plot(
        *(torch.tensor(numbers)[ends[best]].numpy() for ends in (first, second)), ".", color="black"
    )
    axis.set_xlabel("site")
    axis.set_ylabel("site")
    axis.set_title(f"{caption}\nbelow: the {sites} strongest, more than {APART} apart", fontsize=10)
    return figure
