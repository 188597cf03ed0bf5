"""The shape every objective has: a loss, in parts, as a pure function of an energy and a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.energies.base import Energy


class Part(NamedTuple):
    """One additive piece of a loss: `weight * total / rows`. `total` (a scalar) carries the graph.

    Totals and row counts, not means, so that a learner may split rows into chunks, or over ranks,
    and still take one mean.
    """

    name: str
    total: Tensor
    rows: int
    weight: float = 1.0


class PositiveSide(NamedTuple):
    """Rows of data, `position` [N, *shape], under `context` [N, *context_shape] where rows have
    one. `drawn` is what the objective drew for them, `[P, N, ...]` each: P directions, noises or
    sites for every row. `weights` [N], of mean 1 over the step, are there where rows do not count
    alike.
    """

    position: Tensor
    drawn: tuple[Tensor, ...] = ()
    context: Tensor | None = None
    weights: Tensor | None = None


class Replayed(NamedTuple):
    """The past of M negatives, for objectives that go back through their last L transitions:
    `previous` [M, *shape] is where the chains were before those, `noise` [L, M, *shape] the
    standard normal draws that they used, and `bank` [B, *shape] holds all negatives of the step,
    whatever the chunk.
    """

    previous: Tensor
    noise: Tensor
    bank: Tensor


class NegativeSide(NamedTuple):
    """Positions of chains, `position` [M, *shape], under `context` [M, *context_shape] where the
    model is conditional. `weights` [M], of mean 1 over the step, are there where they are known
    beforehand, and `past` where the objective replays transitions.
    """

    position: Tensor
    context: Tensor | None = None
    weights: Tensor | None = None
    past: Replayed | None = None


class Batch(NamedTuple):
    """The two sides that one step learns from, or one chunk of it; one may be missing."""

    positives: PositiveSide | None = None
    negatives: NegativeSide | None = None


class Objective(nn.Module):
    """A loss: a sum of parts, of the positives and, where it `consumes_chains`, of the negatives.
    It draws nothing itself: `draw` makes the random inputs of a step, and parts are functions of
    them.

    Most have no parameters; those that do (the log Z of noise-contrastive estimation) are learned
    beside the energy's.
    """

    consumes_chains: ClassVar[bool] = False
    # the sum of the weights of all training rows, their number where all count alike
    total_weight = 1.0
    # whether each side's parts are those that `of_energies` makes of its energies
    of_energies_alone: ClassVar[bool] = False

    def initialise(
        self,
        energy: Energy,
        rows: Tensor,
        generator: torch.Generator,
        weights: Tensor | None = None,
    ) -> None:
        """Hook for what is best started from the data, `[S, *shape]`, each row counting by its
        `weights` [S] where there are any, and the untrained energy; none by default.
        """

    def check(self, energy: Energy, rows: Tensor, weights: Tensor | None = None) -> None:
        """Hook: raises `ArgumentError` where no parameters could have what would be learned from
        training rows `[S, *shape]` of such `weights` [S].
        """

    def draw(
        self,
        energy: Energy,  # noqa: ARG002
        positives: Tensor,  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> tuple[Tensor, ...]:
        """The random inputs for `positives` [N, *shape], `[P, N, ...]` each; none by default."""
        return ()

    def of_positives(self, energy: Energy, positives: PositiveSide) -> Iterator[Part]:
        """The parts that are means over the rows of data. What is not finite stays so."""
        raise NotImplementedError

    def of_negatives(
        self, energy: Energy, negatives: NegativeSide, energies: Tensor, weights: Tensor
    ) -> Iterator[Part]:
        """The parts that are means over the negatives, whose `energies` [M] are given with a graph
        and whose `weights` [M] have none. Asked of objectives that consume chains alone.
        """
        raise NotImplementedError

    def of_energies(
        self, energies: Tensor, weights: Tensor | None, sign: float
    ) -> tuple[list[Part], Tensor]:
        """The parts of a side, of data (`sign` 1) or chains (-1), from its `energies` [N], and N
        times the derivative of their sum in these, [N]. Asked of objectives that learn
        `of_energies_alone`. Without `weights` [N] each row counts 1.
        """
        raise NotImplementedError

    def parts(
        self, energy: Energy, batch: Batch, weigh: Callable[[Tensor], Tensor] = torch.ones_like
    ) -> Iterator[Part]:
        """The loss of the sides of the batch that are there and that the objective learns from.

        Negatives without weights get them from `weigh`, a function of their energies [M].
        """
        if batch.positives is not None:
            yield from self.of_positives(energy, batch.positives)
        side = batch.negatives
        if side is not None and self.consumes_chains:
            energies = energy.given(side.context)(side.position)
            weights = weigh(energies.detach()) if side.weights is None else side.weights
            yield from self.of_negatives(energy, side, energies, weights)


class Term(NamedTuple):
    """An objective in a weighted sum of several; `name` stands before those of its parts, empty
    where it is alone.
    """

    name: str
    weight: float
    objective: Objective
