"""Contacts from couplings: how strongly two sites are coupled, what they share with all others
taken off.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.common.types import Figures
from pipeline.config.data import GAP
from pipeline.data.contact_map import ContactMap
from pipeline.data.fasta import Sequences
from pipeline.energies.gauges import zero_sum
from pipeline.energies.potts import PottsModel
from pipeline.evaluation.contact_pictures import contact_picture
from pipeline.storage.figures import draw_figure
from pipeline.storage.files import write_file

TABLE, PICTURE = "contacts.txt", "contacts.png"
APART, SHOWN = 5, 10
"""How far apart in the sequence sites are whose contact tells something, and how many are named."""
LOWER = f"below: the strongest, as many as there are sites, more than {APART} apart"
DEPTHS = {"L/5": 1 / 5, "L/2": 1 / 2, "L": 1, "2L": 2}
"""Pairs that are looked at, in sites."""


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
    one a line in the order of the alignment, and `contacts.png`. Returns the strongest pairs, how
    many of them touch where a structure is known (`precision`), and what `draw_figure` returns.
    Raises `StorageError`.
    """
    gap = sequences.alphabet.find(GAP)
    norms = coupling_norms(energy, None if gap < 0 else gap)
    scores = average_product_corrected(norms, energy.dimension)
    write_file(output, TABLE, table_of(scores, sequences).encode())
    weights = "".join(f"{weight:.12g}\n" for weight in sequences.weights)
    write_file(output, "weights.txt", weights.encode())
    # on a sparse graph what is held at 0 comes last, whatever is taken off it
    order = strongest_pairs(scores.masked_fill(norms == 0, -torch.inf), sequences, APART)
    known = sequences.contacts
    precise = {} if known is None else precision(order, known)
    strong = order[:, : len(sequences.numbering)]
    undrawn = draw_figure(
        lambda: contact_picture(scores, strong, sequences, precise, f"{caption}\n{LOWER}"),
        output,
        PICTURE,
    )
    told = {name: value for name, value in precise.items() if name != "curve"}
    return {
        "sequences": {
            "count": len(sequences.names),
            "effective": sequences.effective,
            "left_out": sequences.dropped,
        },
        "contacts": {
            "file": TABLE,
            "apart": APART,
            "coupled": int(norms.count_nonzero()),
            "of": len(norms),
            "strongest": named(order[:, :SHOWN], sequences),
            **told,
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


def strongest_pairs(scores: Tensor, sequences: Sequences, apart: int) -> Tensor:
    """The pairs of sites that are more than `apart` in number from each other, the largest of their
    `scores` first, `[2, P]` int64.
    """
    sites = len(sequences.numbering)
    pairs = torch.triu_indices(sites, sites, 1)
    numbers = torch.tensor(sequences.numbering)[pairs]
    far = numbers[1] - numbers[0] > apart
    return pairs[:, far][:, scores[far].argsort(descending=True)]


def named(pairs: Tensor, sequences: Sequences) -> list[str]:
    """Pairs `[2, P]` of sites by their letters and numbers, as I27-F31."""
    return [
        "-".join(f"{sequences.focus[site]}{sequences.numbering[site]}" for site in ends)
        for ends in pairs.T.tolist()
    ]


def precision(order: Tensor, known: ContactMap) -> dict[str, Any]:
    """The positive predictive value of pairs `order` [2, P], the strongest first: the share of the
    first n whose sites touch, of those that the structure has (Morcos et al. 2011).

    `ppv` has it for n = L/5, L/2, L and 2L, or for all `pairs` where they are fewer, `curve` for
    every n, and `by_chance` is that of all. So many rows of the table are of residues `elsewhere`.
    """
    there = known.there[order].all(0)
    first, second = order[:, there]
    true = known.touching[first, second].double()
    curve = true.cumsum(0) / torch.arange(1, len(true) + 1)
    sites = len(known.there)
    found = {
        depth: float(curve[min(max(1, int(share * sites)), len(curve)) - 1])
        for depth, share in DEPTHS.items()
        if len(curve)
    }
    return {
        "ppv": found,
        "by_chance": float(curve[-1]) if len(curve) else None,
        "pairs": len(true),
        "elsewhere": known.elsewhere,
        "curve": curve.tolist(),
    }


def contact_words(found: Figures) -> list[str]:
    """Tells the `contacts` of a summary."""
    strong = ", ".join(found["strongest"])
    lines = [
        f"strongest couplings of sites more than {found['apart']} apart (all in {found['file']}):"
        f" {strong}"
    ]
    # summaries of before do not tell
    if found.get("coupled", 0) < found.get("of", 0):
        lines.append(f"  {found['coupled']:,} of {found['of']:,} pairs of sites are coupled")
    if found.get("ppv"):
        shares = (f"{share:.2f} of {depth}" for depth, share in found["ppv"].items())
        lines.append(
            f"  of the strongest so many pairs touch: {', '.join(shares)} (L sites); of all"
            f" {found['pairs']:,} {found['by_chance']:.2f}"
        )
    if found.get("elsewhere"):
        lines.append(
            f"  {found['elsewhere']:,} rows of data.contacts are of residues that are no sites"
        )
    return lines
