"""Sweeps of a Potts model: every site in turn is drawn given all the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.common.rng import Source, uniform_like
from pipeline.energies.couplings import columns
from pipeline.energies.letters import Letters, site_blocks

GROUP = 32
"""Letters of the sites whose pulls on each other are summed for one site at a time."""


class Table(NamedTuple):
    """Of the sites from `first` to `last` - 1: the columns of J without the rows of those sites,
    [L q + 1, B q]; what they pull each other by, but for the sites of a group among themselves,
    [B q, B q]; and what a site's group pulls it by, [q, G q] of each.

    The last two are for letters as they are written in a sweep (see `Sweep`).
    """

    first: int
    last: int
    others: Tensor
    across: Tensor
    within: list[Tensor]


def groups(sites: int, levels: int) -> list[slice]:
    """The sites of a table in groups, which follow one another."""
    size = max(1, GROUP // levels)
    return [slice(first, min(first + size, sites)) for first in range(0, sites, size)]


def make_tables(coupling: Tensor, sites: int) -> list[Table]:
    """The tables of all sites, from `coupling` [L (L-1) / 2, q, q]."""
    levels, tables = coupling.shape[1], []
    for first, last in site_blocks(sites, levels):
        others = columns(coupling, sites, first, last)
        own = others[first * levels : last * levels]
        # J(., b) - J(., b + 1), whose sum from a letter on is J of the letter
        pulls = own.T.reshape(-1, last - first, levels)
        across = pulls.clone()
        across[..., :-1] -= pulls[..., 1:]
        across = across.flatten(1)
        own.zero_()
        within = []
        for group in groups(last - first, levels):
            rows = slice(group.start * levels, group.stop * levels)
            within += across[rows, rows].clone().split(levels)
            across[rows, rows] = 0.0
        tables.append(Table(first, last, others, across, within))
    return tables


class Sweep(NamedTuple):
    """The law of where a sweep from `position` [N, *shape] leads: each site in turn is drawn from
    its conditional given all the others, those that have been drawn already among them (Geman &
    Geman 1984). By component it is the law of site i given the new sites before it and the old ones
    behind it.

    Before the sites of a table, the pulls of all others are summed for them at once, and before
    each group of these those of the table's other sites. Letters of a site stand in rows there, and
    chains in columns, so that few operations pass all chains. A letter x is written as [x <= a],
    zeros where it is missing: so a comparison of sums of probabilities with a uniform number writes
    the letter that is drawn.
    """

    tables: list[Table]
    field: Tensor
    position: Tensor
    descending: bool
    beta: Tensor | None
    free: list[bool] | None

    def sample(self, generator: Source) -> Tensor:
        """By inversion of the sums of the probabilities, with a uniform number a site."""
        uniform = uniform_like(self.position.flatten(1), generator).T.contiguous()

        def draw(site: int, logits: Tensor, letters: Tensor) -> None:
            sums = logits.sub_(logits.amax(0)).exp_().cumsum_(0)
            # less than the last sum, whatever that has been rounded to
            torch.gt(sums, uniform[site].mul_(sums[-1]), out=letters)

        return self._go(draw)

    def log_prob(self, value: Tensor) -> Tensor:
        to, logs = value.flatten(1).T.long(), torch.zeros_like(value.flatten(1))
        every = torch.arange(self.field.shape[1], device=value.device)[:, None]

        def follow(site: int, logits: Tensor, letters: Tensor) -> None:
            letters.copy_(to[site] <= every)
            logs[:, site] = logits.log_softmax(0).gather(0, to[site][None])[0]

        self._go(follow)
        return logs.view_as(value)

    @torch.no_grad()
    def _go(self, choose: Callable[[int, Tensor, Tensor], None]) -> Tensor:
        """Passes all sites that are free. Of each `choose` gets the log probabilities [q, N],
        unnormalised, and overwrites the letters [q, N]. Returns the positions it leads to.
        """
        levels, moved = self.field.shape[1], Letters(self.position.flatten(1), self.field.shape[1])
        count, step = len(moved.x), -1 if self.descending else 1
        every = torch.arange(levels, device=self.field.device, dtype=torch.int32)[:, None]
        for first, last, others, across, within in self.tables[::step]:
            pulls = moved.sums(others).T.contiguous()
            old = moved.x[:, first:last].T.contiguous()[:, None]
            letters = ((old <= every) & (old >= 0)).to(pulls.dtype)
            flat = letters.view(-1, count)
            for group in groups(last - first, levels)[::step]:
                rows = slice(group.start * levels, group.stop * levels)
                own = pulls[rows].addmm_(across[rows], flat).split(levels)
                for k in range(group.start, group.stop)[::step]:
                    site = first + k
                    if self.free is not None and not self.free[site]:
                        continue
                    pull = own[k - group.start]
                    if len(own) > 1:
                        pull.addmm_(within[k], flat[rows])
                    if self.beta is not None:
                        pull *= self.beta
                    choose(site, pull.add_(self.field[site][:, None]), letters[k])
            # the number of letters from x on; none where it is missing
            behind = letters.sum(1).T.int()
            moved.replace(first, torch.where(behind == 0, -1, levels - behind))
        return moved.x.to(self.position.dtype).view_as(self.position)
