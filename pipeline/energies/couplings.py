"""Couplings of all pairs of sites, stored once, and the sums over sequences that they need.

`coupling` [L (L-1) / 2, q, q] has J_ij(a, b) of the pairs i < j in the order of
`torch.triu_indices`: (0, 1), (0, 2), ... A sequence has one letter a site, so that a sum over sites
of rows of J costs q times less than the product of J with a one-hot encoding. Sums are worked out
for some sites at a time: the square J [L q, L q] is never there as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.energies.letters import Letters, pair_counts, site_blocks


def pairs_behind(sites: int, site: int) -> slice:
    """The numbers of the pairs (site, j) of all j behind it, which follow one another."""
    first = site * (2 * sites - site - 1) // 2
    return slice(first, first + sites - site - 1)


def _numbers(sites: int, first: Tensor, second: Tensor) -> Tensor:
    """The numbers of the pairs (first, second), the `first` site of each before the `second`."""
    return first * (2 * sites - first - 1) // 2 + second - first - 1


def columns(coupling: Tensor, sites: int, first: int, last: int) -> Tensor:
    """The columns of J of the sites from `first` to `last` - 1, and a row of zeros below them,
    which letters that are missing point at: `[L q + 1, B q]`.
    """
    levels, own = coupling.shape[1], torch.arange(first, last, device=coupling.device)
    table = coupling.new_zeros(sites * levels + 1, (last - first) * levels)
    pieces = table[:-1].view(sites, levels, last - first, levels)
    before = torch.arange(first, device=own.device)[:, None]
    pieces[:first] = coupling[_numbers(sites, before, own)].permute(0, 2, 1, 3)
    _put_behind(pieces[first:], coupling, sites, first)
    within = pieces[first:last]
    within += within.permute(2, 3, 0, 1).clone()
    return table


def columns_behind(coupling: Tensor, sites: int, first: int, last: int) -> Tensor:
    """Of these columns J_ij(a, b) of the pairs with i among the sites and j behind i alone, in rows
    from site `first` on: `[(L - first) q + 1, B q]`.
    """
    levels = coupling.shape[1]
    table = coupling.new_zeros((sites - first) * levels + 1, (last - first) * levels)
    pieces = table[:-1].view(sites - first, levels, last - first, levels)
    _put_behind(pieces, coupling, sites, first)
    return table


def _put_behind(pieces: Tensor, coupling: Tensor, sites: int, first: int) -> None:
    """Fills the places of the pairs (i, j), i < j, in `pieces` [J, q, B, q] of j and i from `first`
    on.
    """
    for number in range(pieces.shape[2]):
        own = coupling[pairs_behind(sites, first + number)]
        pieces[number + 1 :, :, number] = own.transpose(1, 2)


def add_columns_(total: Tensor, part: Tensor, first: int, last: int) -> None:
    """Adds the `part` [L, q, B, q] of a sum over pairs (j, s) in both orders, s from `first` to
    `last` - 1, to the `total` [L (L-1) / 2, q, q].
    """
    sites = len(part)
    for site in range(first, last):
        own, before = part[:, :, site - first], torch.arange(site, device=total.device)
        numbers = _numbers(sites, before, before.new_tensor(site))
        total.index_add_(0, numbers, own[:site])
        total[pairs_behind(sites, site)] += own[site + 1 :].transpose(1, 2)


def pair_energies(letters: Letters, coupling: Tensor) -> Tensor:
    """sum_{i<j} J_ij(x_i, x_j), `[N]`."""
    sites, total = letters.x.shape[1], coupling.new_zeros(len(letters.x))
    for first, last in site_blocks(sites, letters.levels):
        sums = letters.sums(columns_behind(coupling, sites, first, last), first)
        pulls = sums.view(len(sums), last - first, letters.levels)
        total += chosen(pulls, letters.x[:, first:last]).sum(1)
    return total


def pulls_of(letters: Letters, coupling: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """sum_j J_ij(a, x_j) for all letters a of some sites i at a time, `[N, B, q]`, with the first
    of them and the one behind the last.
    """
    sites = letters.x.shape[1]
    for first, last in site_blocks(sites, letters.levels):
        sums = letters.sums(columns(coupling, sites, first, last))
        yield first, last, sums.view(len(sums), last - first, letters.levels)


def chosen(values: Tensor, letters: Tensor) -> Tensor:
    """Of `values` [N, B, q] those of the `letters` [N, B], 0 where one is missing; `[N, B]`."""
    picked = values.gather(2, letters.clamp(min=0).long()[..., None])[..., 0]
    return picked.masked_fill_(letters < 0, 0.0)


def add_counts_(single: Tensor, pairs: Tensor, letters: Letters, weights: Tensor) -> None:
    """Adds sum_n w_n [x_ni = a] to `single` [L, q], and sum_n w_n [x_ni = a][x_nj = b] to `pairs`,
    of the shape of a coupling.
    """
    sites = letters.x.shape[1]
    single += letters.by_letter(weights[:, None])[..., 0]
    for first, last, part in pair_counts(letters, weights):
        for site in range(first, last):
            own = part[site + 1 - first :, :, site - first]
            pairs[pairs_behind(sites, site)] += own.transpose(1, 2)
