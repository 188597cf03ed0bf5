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


class Batch(NamedTuple):
    """What one step learns from, or one chunk of it; a chunk may hold one of the two sides alone.

    `positives` [N, *shape]; `drawn` is what the objective drew for them, `[P, N, ...]` each: P
    directions, noises or sites for every row; `context` [N, *context_shape] is theirs, where rows
    have one. `negatives` [M, *shape], under `negative_context` where the model is conditional;
    their weights, [M] of mean over the step 1, are `weights` where they are known beforehand, else
    `weigh` of their energies. Where the objective replays transitions, `previous` [M, *shape] is
    where the chains were before the last L of them, and `noise` [L, M, *shape] the standard normal
    draws that these used; `bank` [B, *shape] holds all negatives of the step, whatever the chunk.
    """

    positives: Tensor | None = None
    drawn: tuple[Tensor, ...] = ()
    negatives: Tensor | None = None
    weigh: Callable[[Tensor], Tensor] = torch.ones_like
    weights: Tensor | None = None
    previous: Tensor | None = None
    noise: Tensor | None = None
    bank: Tensor | None = None
    context: Tensor | None = None
    negative_context: Tensor | None = None

    def weights_of(self, energies: Tensor) -> Tensor:
        """The weights of the negatives, whose energies are `energies` [M]; without a graph."""
        return self.weigh(energies.detach()) if self.weights is None else self.weights

    def sides(self) -> list[Batch]:
        """The negatives and the positives apart, the positives last."""
        positives = Batch(self.positives, self.drawn, context=self.context)
        return (
            [self._replace(positives=None, drawn=(), context=None), positives]
            if self.negatives is not None
            else [positives]
        )


class Objective(nn.Module):
    """A loss. It draws nothing itself: `draw` makes the random inputs of a step, `parts` is a
    function of them.

    Most have no parameters; those that do (the log Z of noise-contrastive estimation) are learned
    beside the energy's. `consumes_chains` says whether it learns from negatives.
    """

    consumes_chains: ClassVar[bool] = False

    def initialise(self, energy: Energy, rows: Tensor, generator: torch.Generator) -> None:
        """Hook for what is best started from the data, `[S, *shape]`, and the untrained energy;
        none by default.
        """

    def check(self, energy: Energy, rows: Tensor) -> None:
        """Hook: raises `ArgumentError` where no parameters could have what would be learned from
        training rows `[S, *shape]`.
        """

    def draw(
        self,
        energy: Energy,  # noqa: ARG002
        positives: Tensor,  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> tuple[Tensor, ...]:
        """The random inputs for `positives` [N, *shape], `[P, N, ...]` each; none by default."""
        return ()

    def parts(self, energy: Energy, batch: Batch) -> Iterator[Part]:
        """The loss of the batch, or of the side of it that is there. Raises nothing: what is not
        finite stays so.
        """
        raise NotImplementedError


class Term(NamedTuple):
    """An objective in a weighted sum of several; `name` stands before those of its parts, empty
    where it is alone.
    """

    name: str
    weight: float
    objective: Objective
