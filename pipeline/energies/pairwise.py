"""Conditional energies of several discrete variables with factors of one and of two: tags along a
sequence, several labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.energies.discrete import log_frequencies
from pipeline.energies.given import ConditionalEnergy


class PairwiseEnergy(ConditionalEnergy):
    """E(y | c) = -sum_i u_i(c)[y_i] - sum_{(i, j)} T_ij[y_i, y_j],   y in {0, ..., q-1}^L, L = d.

    `pairs` are "chain", neighbours (i, i+1) with one T [q, q] for all of them: the linear-chain
    conditional random field (Lafferty, McCallum & Pereira 2001); or "all" i < j, each with a T_ij
    of its own. u is a SiLU perceptron of layers `hidden` (linear without any) plus a bias [L, q].
    Of contexts of shape (L, f) each site sees its own f features, through one network for all
    sites; contexts of any other shape go whole into one network with L q outputs.

    One T is the parameter `coupling` [q, q]; many T_ij are the blocks of its symmetric part [L q, L
    q], those on the diagonal left out. The encoding of a context is u(c), [N, L, q].
    """

    undecayed = ("bias",)
    between: Tensor
    levels: int

    def __init__(
        self,
        shape: Sequence[int],
        context_shape: Sequence[int],
        levels: int,
        pairs: Literal["chain", "all"],
        hidden: Sequence[int],
    ) -> None:
        super().__init__(shape, context_shape, levels=levels)
        self.chain = pairs == "chain"
        sites = self.dimension
        by_site = len(self.context_shape) == 2 and self.context_shape[0] == sites
        self._inputs = self.context_shape[1] if by_site else math.prod(self.context_shape)
        widths = [self._inputs, *hidden]
        layers = [module for pair in pairwise(widths) for module in (nn.Linear(*pair), nn.SiLU())]
        last = nn.Linear(widths[-1], levels if by_site else sites * levels, bias=False)
        self.unary = nn.Sequential(*layers, last)
        self.bias = nn.Parameter(torch.zeros(sites, levels))
        size = levels if self.chain else sites * levels
        self.coupling = nn.Parameter(torch.zeros(size, size))
        if not self.chain:
            within = torch.block_diag(*[torch.ones(levels, levels)] * sites)
            self.register_buffer("between", 1 - within, persistent=False)

    def encode(self, context: Tensor) -> Tensor:
        """u(c), `[N, *context_shape] -> [N, L, q]`."""
        values = self.unary(context.reshape(context.shape[0], -1, self._inputs))
        return values.view(context.shape[0], self.dimension, self.levels) + self.bias

    def one_hot(self, x: Tensor) -> Tensor:
        """e, `[N, *shape] -> [N, L, q]`."""
        return (x.flatten(1)[..., None] == torch.arange(self.levels, device=x.device)).to(x.dtype)

    def pull(self, e: Tensor) -> Tensor:
        """sum_j T_ij e_j of one-hot `e` [N, L, q], [N, L, q]: what the pairs add to each u_i(c)."""
        if not self.chain:
            matrix = (self.coupling + self.coupling.T) / 2 * self.between
            return (e.flatten(1) @ matrix).view_as(e)
        pull = torch.zeros_like(e)
        pull[:, :-1] = e[:, 1:] @ self.coupling.T
        pull[:, 1:] += e[:, :-1] @ self.coupling
        return pull

    def of(self, x: Tensor, encoding: Tensor) -> Tensor:
        e = self.one_hot(x)
        return -(e * (encoding + self.pull(e) / 2)).sum((1, 2))

    def of_all(self, states: Tensor, encoding: Tensor) -> Tensor:
        """The pairs once for each state, and one product with all encodings."""
        e = self.one_hot(states)
        return -torch.addmm(
            (e * self.pull(e)).sum((1, 2))[:, None], e.flatten(1), encoding.flatten(1).T, beta=0.5
        )

    @torch.no_grad()
    def gradient_of(self, x: Tensor, encoding: Tensor) -> tuple[Tensor, Tensor]:
        """By hand: -(u_i(c) + sum_j T_ij e_j) in each e_i, in which E is linear: it tells what a
        change of one site does.
        """
        e = self.one_hot(x)
        pull = self.pull(e)
        energy = -(e * (encoding + pull / 2)).sum((1, 2))
        gradient = pull.add_(encoding).neg_()
        if self.levels == 2:
            return energy, (gradient[..., 1] - gradient[..., 0]).view_as(x)
        return energy, gradient.view(*x.shape, self.levels)

    def log_sum_of(self, encoding: Tensor) -> Tensor | None:
        """log Z(c) `[N]`: along a chain by the forward algorithm (Rabiner 1989), a_i the log of the
        sum over sites before i,

            a_1 = u_1,   a_{i+1}[k] = u_{i+1}[k] + logsumexp_j(a_i[j] + T[j, k]),
            log Z = logsumexp_k a_L[k]

        with all pairs by enumeration of at most 2^20 states.
        """
        if not self.chain:
            return super().log_sum_of(encoding)
        total = encoding[:, 0]
        for site in range(1, self.dimension):
            total = encoding[:, site] + torch.logsumexp(total[:, :, None] + self.coupling, 1)
        return total.logsumexp(1)

    @torch.no_grad()
    def argmax_of(self, encoding: Tensor) -> Tensor | None:
        """The most probable y `[N, *shape]`: along a chain by the Viterbi algorithm (Viterbi 1967),
        the forward algorithm with max for logsumexp and the way back remembered; with all pairs by
        enumeration of at most 2^20 states.
        """
        if not self.chain:
            return super().argmax_of(encoding)
        best, origins = encoding[:, 0], []
        for site in range(1, self.dimension):
            best, origin = (best[:, :, None] + self.coupling).max(1)
            best = encoding[:, site] + best
            origins.append(origin)
        path = [best.argmax(1)]
        for origin in reversed(origins):
            path.append(origin.gather(1, path[-1][:, None])[:, 0])
        return torch.stack(path[::-1], 1).to(encoding.dtype).view(-1, *self.shape)

    @torch.no_grad()
    def initialise(self, rows: Tensor) -> None:
        """The bias starts at the data's log frequencies: without the rest, independent sites."""
        self.bias.copy_(log_frequencies(rows, self.levels))
