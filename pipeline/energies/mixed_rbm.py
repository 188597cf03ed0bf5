"""A restricted Boltzmann machine whose visible units are of several kinds, side by side in one row:
real numbers, binary units and categories.

    E(v, h) = sum_real (v_i - b_i)^2 / (2 s_i^2) - sum_others b_k phi_k(v) - c.h - phi(v).W h

Given h, all visible units are independent, each of its own kind (Salakhutdinov, Mnih & Hinton 2007
for categories; Cho, Ilin & Raiko 2011 for real numbers; Tran, Phung & Venkatesh 2011 for units of
several kinds in one machine).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pipeline.common.errors import ArgumentError
from pipeline.energies.base import Energy, Pull
from pipeline.energies.conditionals import Bernoulli, Categorical, Conditional, Normal, Together
from pipeline.energies.rbm import RestrictedBoltzmannMachine


class MixedRBM(RestrictedBoltzmannMachine):
    """`kinds` has a number for each component of a row: 0 where it is real, 2 where it is 0 or 1,
    and q where it is one of 0, ..., q-1.

    phi(v) is v_i / s_i^2 of the real components, then v_i of the binary ones, then the one-hot
    encoding of each other one, in their order. Raises `ArgumentError` where `kinds` are not one for
    each component.
    """

    kinds: tuple[int, ...]
    _real: Tensor
    _binary: Tensor
    _categories: Tensor
    _slots: Tensor
    _spare: Tensor

    def __init__(
        self, shape: Sequence[int], kinds: Sequence[int], hidden: int, weight_scale: float
    ) -> None:
        super().__init__(shape)
        if len(kinds) != self.dimension:
            remedy = f"a row has {self.dimension} components; give the kind of each"
            raise ArgumentError("kinds", f"{len(kinds)} kinds", remedy)
        self.kinds = tuple(kinds)
        sizes = [kind for kind in kinds if kind > 2]
        each = torch.tensor(self.kinds)
        for name, chosen in (
            ("_real", each == 0),
            ("_binary", each == 2),
            ("_categories", each > 2),
        ):
            self.register_buffer(name, chosen.nonzero()[:, 0], persistent=False)
        self.reals = len(self._real)
        self._before_words = self.reals + len(self._binary)  # features before one-hot encodings
        self._add_parameters(self._before_words + sum(sizes), hidden, weight_scale)
        self.log_variance = nn.Parameter(torch.zeros(self.reals))
        # the feature of each level of each category, [C, largest q]; that of the last one again
        # where a category has fewer
        first = torch.tensor(list(accumulate(sizes, initial=0))[:-1], dtype=torch.long)
        level = torch.arange(max(sizes, default=0))
        last = torch.tensor(sizes, dtype=torch.long)[:, None] - 1
        self.register_buffer("_slots", first[:, None] + level.minimum(last), persistent=False)
        self.register_buffer("_spare", level > last, persistent=False)

    def features(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        pieces = [flat[:, self._real] * torch.exp(-self.log_variance), flat[:, self._binary]]
        if len(self._categories):
            chosen = flat[:, self._categories].long() + self._slots[:, 0]
            words = len(self.visible_bias) - self._before_words
            pieces.append(flat.new_zeros(flat.shape[0], words).scatter_(1, chosen, 1.0))
        return torch.cat(pieces, 1)

    def visible_energy(self, x: Tensor) -> Tensor:
        centred = x.flatten(1)[:, self._real] - self.visible_bias[: self.reals]
        bell = (centred.square() * torch.exp(-self.log_variance)).sum(1) / 2
        return bell - self.features(x)[:, self.reals :] @ self.visible_bias[self.reals :]

    def energies_and_pull(self, x: Tensor) -> tuple[Tensor, Pull] | None:
        """None: A and phi have parameters of their own, and autograd does it."""
        return Energy.energies_and_pull(self, x)

    def visible_law(self, field: Tensor) -> Conditional:
        mean, std = field[:, : self.reals], torch.exp(self.log_variance / 2)
        return self.law(mean, std, field[:, self.reals :])

    def law(self, mean: Tensor, std: Tensor, field: Tensor) -> Conditional:
        """Independent units: the real ones with `mean` [N, reals] and `std` [..., reals], the
        others with log odds and unnormalised log probabilities `field` [N, other features].
        """
        laws: list[tuple[Conditional, Tensor]] = [
            (Normal(mean, std), self._real),
            (Bernoulli(field[:, : len(self._binary)]), self._binary),
        ]
        if len(self._categories):
            laws.append((Categorical(self._by_level(field)), self._categories))
        return Together([each for each in laws if len(each[1])], self.shape)

    def visible_log_partition(self, field: Tensor) -> Tensor:
        """The sum of that of each unit: for a real one log(2 pi s^2) / 2 + (field^2 - b^2) / (2
        s^2), for a binary one log(1 + exp(field)), for a category the log of the sum over levels.
        """
        squares = field[:, : self.reals].square() - self.visible_bias[: self.reals].square()
        bells = squares * torch.exp(-self.log_variance) + math.log(2 * math.pi) + self.log_variance
        others = field[:, self.reals :]
        total = bells.sum(1) / 2 + softplus(others[:, : len(self._binary)]).sum(1)
        if len(self._categories):
            total = total + self._by_level(others).logsumexp(-1).sum(1)
        return total

    def _by_level(self, field: Tensor) -> Tensor:
        """The part of `field` [N, other features] of each category and level, [N, C, largest q];
        -inf beyond its levels.
        """
        words = field[:, len(self._binary) :]
        return words[:, self._slots].masked_fill(self._spare, -torch.inf)

    @torch.no_grad()
    def initialise(self, rows: Tensor) -> None:
        """Visible biases and variances start at the data's: means and variances (kept off 0), log
        odds of means kept off 0 and 1, log frequencies with one row more of each level.
        """
        flat, binary = rows.flatten(1), self._before_words
        self.visible_bias[: self.reals] = flat[:, self._real].mean(0)
        self.log_variance.copy_(flat[:, self._real].var(0).clamp(min=1e-3).log())
        means = flat[:, self._binary].mean(0).clamp(0.01, 0.99)
        self.visible_bias[self.reals : binary] = torch.logit(means)
        counts = self.features(rows)[:, binary:].sum(0) + 1
        self.visible_bias[binary:] = (counts / len(flat)).log()
