"""Contacts from couplings: how strongly two sites are coupled, what they share with all others
taken off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.data.fasta import Sequences
from pipeline.energies.gauges import zero_sum
from pipeline.energies.potts import PottsModel
from pipeline.storage.files import write_file


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


def write_contacts(scores: Tensor, sequences: Sequences, output: str, name: str) -> None:
    """Writes a line for each pair i < j, `RES_I AA_I RES_J AA_J 0 SCORE`, as plmc does. Raises
    `StorageError`.
    """
    sites = len(sequences.numbering)
    lines = [
        f"{sequences.numbering[i]} {sequences.focus[i]}"
        f" {sequences.numbering[j]} {sequences.focus[j]} 0 {score:.6f}\n"
        for (i, j), score in zip(
            torch.triu_indices(sites, sites, 1).T.tolist(), scores.tolist(), strict=True
        )
    ]
    write_file(output, name, "".join(lines).encode())


def strongest(scores: Tensor, sequences: Sequences, apart: int, count: int) -> list[str]:
    """The `count` pairs with the largest scores that are more than `apart` residues from one
    another, each as I27-F31.
    """
    pairs = torch.triu_indices(*[len(sequences.numbering)] * 2, 1)
    numbers = torch.tensor(sequences.numbering)[pairs]
    far = (numbers[1] - numbers[0]) > apart
    order = scores.masked_fill(~far, -torch.inf).argsort(descending=True)[: min(count, int(far.sum()))]
    return [
        "-".join(f"{sequences.focus[i]}{sequences.numbering[i]}" for i in pair)
        for pair in pairs.T[order].tolist()
    ]
