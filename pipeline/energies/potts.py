"""The Potts model of sequences: q letters a site, all pairs of sites coupled."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.energies.base import Energy, Pull
from pipeline.energies.conditionals import Categorical
from pipeline.energies.couplings import (
    add_counts_,
    chosen,
    pair_energies,
    pulls_of,
)
from pipeline.energies.discrete import enumerated
from pipeline.energies.letters import Letters
from pipeline.energies.site_likelihood import SiteLikelihood
from pipeline.energies.sweeps import Sweep, Table, make_tables

PAIRS = 1 << 14
"""Pairs of sites whose gradients are turned at once."""


class PottsModel(Energy):
    """E(x) = -sum_i h_i(x_i) - sum_{i<j} J_ij(x_i, x_j),   x in {0, ..., q-1}^L

    (Weigt et al. 2009; Ekeberg et al. 2013). `field` [L, q] is h, `coupling` [L (L-1) / 2, q, q] is
    J of the pairs i < j in the order of `torch.triu_indices`, so that J is symmetric, and zero on
    its diagonal, by construction. Components below 0 are letters that are missing: they add
    nothing to E.

    The base law has the sites independent, E_0(x) = -sum_i h_i(x_i), and a ladder tempers J alone.
    The blocks are sweeps over all sites, in their order and back: two sweeps, and a kernel that is
    reversible.
    """

    blocks = ("ascending", "descending")
    undecayed = ("field",)
    levels: int
    shares: Tensor
    coupled: Tensor

    def __init__(self, shape: Sequence[int], levels: int) -> None:
        super().__init__(shape, levels=levels)
        sites = self.dimension
        self.field = nn.Parameter(torch.zeros(sites, levels))
        self.coupling = nn.Parameter(torch.zeros(sites * (sites - 1) // 2, levels, levels))
        self.register_buffer("shares", torch.full((sites, levels), 1 / levels), persistent=False)
        coupled = torch.ones(len(self.coupling), dtype=torch.bool)
        self.register_buffer("coupled", coupled, persistent=False)
        self._tables: tuple[Any, list[Table]] | None = None

    def letters(self, x: Tensor) -> Letters:
        """`[N, *shape]` as the sums over J need them."""
        return Letters(x.flatten(1), self.levels)

    def forward(self, x: Tensor) -> Tensor:
        energies: Tensor = _Energies.apply(self.letters(x), self.field, self.coupling)
        return energies

    def base(self, x: Tensor) -> Tensor:
        """-sum_i h_i(x_i), `[N]`."""
        letters = x.flatten(1).int()
        return -chosen(self.field.expand(len(x), -1, -1), letters).sum(1)

    def base_log_partition(self) -> float:
        return float(self.field.detach().double().logsumexp(1).sum())

    @torch.no_grad()
    def sample_base(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` draws of the base law, `[count, *shape]`."""
        drawn = Categorical(self.field.expand(count, -1, -1)).sample(generator)
        return drawn.view(count, *self.shape)

    def tempered(self, x: Tensor, beta: Tensor) -> Tensor:
        base = self.base(x)
        return base + beta * (self(x) - base)

    @torch.no_grad()
    def energy_and_gradient(self, x: Tensor, beta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """By hand: -(h_i + sum_j J_ij(., x_j)) in the one-hot encoding of x_i, in which E is
        linear: it tells exactly what a change of one site does. `[N, *shape, q]`; with two levels
        that in x, `[N, *shape]`.
        """
        letters = self.letters(x)
        pulls = torch.cat([pulls for *_, pulls in pulls_of(letters, self.coupling)], 1)
        if beta is not None:
            pulls *= beta[:, None, None]
        energy = -chosen(pulls / 2 + self.field, letters.x).sum(1)
        gradient = pulls.add_(self.field).neg_()
        if self.levels == 2:
            return energy, (gradient[..., 1] - gradient[..., 0]).view_as(x)
        return energy, gradient.view(*x.shape, self.levels)

    @torch.no_grad()
    def energies_and_pull(self, x: Tensor) -> tuple[Tensor, Pull] | None:
        """dE/dh_i(a) = -[x_i = a], dE/dJ_ij(a, b) = -[x_i = a][x_j = b]."""
        letters = self.letters(x)
        energies = self.base(x) - pair_energies(letters, self.coupling)

        @torch.no_grad()
        def pull(slopes: Tensor) -> None:
            for parameter in (self.field, self.coupling):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            assert self.field.grad is not None
            assert self.coupling.grad is not None
            add_counts_(self.field.grad, self.coupling.grad, letters, -slopes)

        return energies, pull

    @torch.no_grad()
    def pseudo_log_likelihood(self, x: Tensor) -> Tensor:
        """sum_i log p(x_i | the others), nats, [N], without letters that are missing."""
        letters, total = self.letters(x), self.field.new_zeros(len(x))
        for first, last, pulls in pulls_of(letters, self.coupling):
            logs = pulls.add_(self.field[first:last]).log_softmax(2)
            total += chosen(logs, letters.x[:, first:last]).sum(1)
        return total

    def site_log_likelihood(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """sum_n w_n sum_i log p(x_ni | the others), nats, [], with a graph: the weighted
        log-pseudo-likelihood of the sequences `[N, *shape]` (Besag 1975), without terms for letters
        that are missing. `weights` [N] are 1 where there are none.
        """
        total: Tensor = SiteLikelihood.apply(self.letters(x), weights, self.field, self.coupling)
        return total

    def given(self, context: Tensor | None) -> Energy:  # noqa: ARG002 - it conditions on nothing
        """Itself, with weights that may have changed."""
        self._tables = None
        return self

    def conditional(self, block: str, value: Tensor, beta: Tensor | None = None) -> Sweep:
        """The law of where one sweep over all sites leads from the positions `value`."""
        return self.sweep(block, value, beta)

    def sweep(
        self, block: str, value: Tensor, beta: Tensor | None = None, free: Tensor | None = None
    ) -> Sweep:
        """A sweep that leaves all sites as they are but those that are `free` [L] bool.

        Raises `NotImplementedError` for a block that there is not.
        """
        if block not in self.blocks:
            raise NotImplementedError(f"{type(self).__name__} has no block {block!r}")
        moved = None if free is None else free.tolist()
        return Sweep(self.tables(), self.field, value, block == "descending", beta, moved)

    @torch.no_grad()
    def tables(self) -> list[Table]:
        """J as a sweep reads it; where no gradient is asked for, kept until weights change."""
        if self.coupling.requires_grad:
            return make_tables(self.coupling, self.dimension)
        now = self.coupling.data_ptr(), self.coupling._version
        if self._tables is None or self._tables[0] != now:
            self._tables = now, make_tables(self.coupling, self.dimension)
        return self._tables[1]

    @torch.no_grad()
    def initialise(self, rows: Tensor, weights: Tensor | None = None) -> None:
        """h starts at the log of how often `rows` [S, *shape] have each letter, each counted once
        more than it is seen, less its mean over letters: with J = 0, independent sites. Rows count
        by their `weights` [S], and a site by those that have it.
        """
        single = torch.ones(len(rows)) if weights is None else weights
        counts = self.letters(rows).by_letter(single.to(self.field)[:, None])[..., 0]
        shares = counts / counts.sum(1, keepdim=True).clamp(min=1e-30)
        seen = shares.mul_(single.sum()).add_(1)
        self.shares.copy_(seen / seen.sum(1, keepdim=True))
        fields = seen.log_()
        self.field.copy_(fields - fields.mean(1, keepdim=True))

    def couple(self, pairs: Tensor) -> None:
        """From now on holds the couplings of all pairs at 0 but those that `pairs` [L (L-1) / 2]
        bool names.
        """
        self.coupled = pairs.to(self.coupling.device)
        self.hold()

    @torch.no_grad()
    def hold(self) -> None:
        if not self.coupled.all():
            held = (~self.coupled).nonzero()[:, 0]
            for values in (self.coupling, self.coupling.grad):
                if values is not None:
                    values.index_fill_(0, held, 0.0)

    @torch.no_grad()
    def to_natural_(self, damping: float) -> None:
        """Turns the gradient g in the parameters' `grad` into the natural one, F^-1 g (Amari 1998),
        with the Fisher information F of independent sites of the frequencies f that `initialise`
        saw:

            n_ij(a, b) = (g_ij(a, b) - f_i(a) g_j(b) - g_i(a) f_j(b)) / (f_i(a) f_j(b) + damping)
            n_i(a) = g_i(a) / (f_i(a) + sqrt(damping)) - sum_j sum_b n_ij(a, b) f_j(b)

        The numerator is the gradient in couplings of letters less their frequencies (Montavon &
        Mueller 2012, "Deep Boltzmann machines and the centering trick"). Without damping, rare
        letters are moved by the noise of few counts. Couplings that are held have none.
        """
        single, pairs, f = self.field.grad, self.coupling.grad, self.shares
        assert single is not None
        assert pairs is not None
        back, coupled = torch.zeros_like(single), self.coupled.to(pairs)[:, None, None]
        for (own, (i, j)), kept in zip(
            pieces_of_pairs(pairs, self.dimension), coupled.split(PAIRS), strict=True
        ):
            first, second = f[i, :, None], f[j, None]
            own -= first * single[j, None] + single[i, :, None] * second
            own /= (first * second).add_(damping)
            own *= kept
            back.index_add_(0, i, (own * second).sum(2))
            back.index_add_(0, j, (own * first).sum(1))
        single.div_(f + math.sqrt(damping)).sub_(back)

    @torch.no_grad()
    def gains(self, damping: float) -> Tensor:
        """Returns what couplings of each pair alone would add to the log-likelihood of a row,
        nats, [P]:

            1/2 sum_ab g~_ij(a, b)^2 / (f_i(a) f_j(b) + damping)

        for pairs without couplings, with g~ the numerator of `to_natural_`, from the gradient g
        that the parameters have. Without damping it is the maximum of the second-order expansion in
        J_ij and the fields of both sites, less that in the fields alone, with the Fisher
        information of independent sites of the frequencies f.
        """
        single, pairs, f = self.field.grad, self.coupling.grad, self.shares
        assert single is not None
        assert pairs is not None
        found = []
        for own, (i, j) in pieces_of_pairs(pairs, self.dimension):
            first, second = f[i, :, None], f[j, None]
            centred = own - first * single[j, None] - single[i, :, None] * second
            centred = centred.square_() / (first * second).add_(damping)
            found.append(centred.sum((1, 2)) / 2)
        return torch.cat(found)

    @torch.no_grad()
    def losses(self) -> Tensor:
        """Returns what the log-likelihood of a row would lose without the couplings of each pair,
        nats, [P]:

            1/2 sum_ab f_i(a) f_j(b) J~_ij(a, b)^2

        with J~ less its means under the frequencies f over the letters of either site. It is the
        second-order expansion in J_ij around independent sites, with fields that make up for it.
        """
        found, f = [], self.shares
        for own, (i, j) in pieces_of_pairs(self.coupling, self.dimension):
            first, second = f[i, :, None], f[j, None]
            centred = own - (own * second).sum(2, keepdim=True)
            centred -= (centred * first).sum(1, keepdim=True)
            found.append((centred.square_() * first * second).sum((1, 2)) / 2)
        return torch.cat(found)

    def log_sum(self) -> Tensor | None:
        return enumerated(self)


def pieces_of_pairs(pairs: Tensor, sites: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Some of the `pairs` [L (L-1) / 2, q, q] at a time, with the numbers [2, P] of their sites."""
    numbers = torch.triu_indices(sites, sites, 1, device=pairs.device)
    return zip(pairs.split(PAIRS), numbers.split(PAIRS, 1), strict=True)


class _Energies(torch.autograd.Function):
    """E of letters, with its derivatives in h and J."""

    @staticmethod
    def forward(ctx: Any, letters: Letters, field: Tensor, coupling: Tensor) -> Tensor:
        ctx.letters, ctx.fields = letters, field.shape
        ctx.save_for_backward(coupling)
        single = chosen(field.expand(len(letters.x), -1, -1), letters.x).sum(1)
        return -(single + pair_energies(letters, coupling))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[None, Tensor, Tensor]:
        (coupling,) = ctx.saved_tensors
        single, pairs = slopes.new_zeros(ctx.fields), torch.zeros_like(coupling)
        add_counts_(single, pairs, ctx.letters, -slopes)
        return None, single, pairs
