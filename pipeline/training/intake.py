"""Negatives on their way from pools to objectives: staged on the learner's device, and weighed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from pipeline.chains.batch import decode
from pipeline.common.types import EnergyMoments, Negatives
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.objectives.base import NegativeSide, Replayed
from pipeline.training.staleness import batch_weights


class Weighed(NamedTuple):
    """The `weights` [M] of a step's negatives, and by batch the `ess` (a ratio) and the moments of
    the energies that they were worked out of.
    """

    weights: Tensor
    ess: tuple[float, ...]
    energy_moments: tuple[EnergyMoments, ...]


def weigh(
    config: RunConfig,
    received: Sequence[Negatives],
    version: int,
    share: float,
    reweight: bool,
    energy_now: Tensor,
) -> Weighed:
    """From the energies [M] of the batches' negatives, end to end and as many in each, under the
    weights of `version` to their weights, of mean `share` (1 over all ranks), normalised within
    each pool, version and context; uniform unless stale ones are to be `reweight`ed. See
    `pipeline.training.staleness`.
    """
    by_batch = energy_now.view(len(received), -1)
    chains = by_batch.shape[1]
    contexts = chains // config.chains.per_context if config.conditional else 1
    weights = torch.full_like(energy_now, share)
    ess = []
    for batch, now, piece in zip(received, by_batch, weights.view_as(by_batch), strict=True):
        lag, ratio = version - batch.version, 1.0
        if config.chains.burn_in or (lag and reweight):  # else all count, and evenly
            counts = batch.age.to(now.device) >= config.chains.burn_in
            then = batch.energy.to(now.device)
            shares, ratio = batch_weights(then, now, counts, lag, reweight, contexts)
            piece.copy_(shares * (share * chains))
        ess.append(ratio)
    spreads = torch.stack(torch.var_mean(by_batch.double(), 1, correction=0))
    moments = tuple(
        EnergyMoments(batch.pool, mean, variance, chains)
        for batch, variance, mean in zip(received, *spreads.tolist(), strict=True)
    )
    return Weighed(weights, tuple(ess), moments)


class Weighing:
    """A step's `weigh`, done once: of the energies that are there first, whichever objective had
    them worked out. `result` is None until then. Positives alone need no `weigh`.
    """

    def __init__(self, weigh: Callable[[Tensor], Weighed] | None) -> None:
        self._weigh = weigh
        self.result: Weighed | None = None

    def __call__(self, energy_now: Tensor) -> Tensor:
        if self.result is None:
            assert self._weigh is not None, "only negatives are weighed"
            self.result = self._weigh(energy_now)
        return self.result.weights


class Intake:
    """Makes of pools' batches the side of negatives that objectives learn from, on the `device` and
    in the `dtype` of the weights.
    """

    def __init__(
        self, config: RunConfig, energy: Energy, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._shape, self._context_shape = energy.shape, energy.context_shape or ()
        self._conditional = config.conditional
        size = (config.negatives, energy.dimension)
        self._staging = torch.empty(size, dtype=dtype, device=device)

    def receive(
        self, batches: Sequence[pa.RecordBatch]
    ) -> tuple[NegativeSide | None, list[Negatives]]:
        """The side, None of no batches, and the batches decoded. Positions are copied once, in
        order, into aligned memory that the next call overwrites.
        """
        received, row = [decode(batch) for batch in batches], 0
        if not received:
            return None, []
        for negatives in received:
            self._staging[row : row + len(negatives.position)].copy_(negatives.position)
            row += len(negatives.position)
        position = self._staging[:row].view(row, *self._shape)
        return NegativeSide(position, self._contexts(received), past=self._past(received)), received

    def here(self, values: Tensor) -> Tensor:
        """On the learner's device, and in the precision of the weights where they are no whole
        numbers.
        """
        dtype = self._staging.dtype if values.is_floating_point() else values.dtype
        return values.to(self._staging.device, dtype)

    def _contexts(self, received: Sequence[Negatives]) -> Tensor | None:
        """The negatives' contexts `[M, *context_shape]`, where they have any."""
        contexts = [negatives.context for negatives in received if negatives.context is not None]
        if not contexts or not self._conditional:
            return None
        return self.here(torch.cat(contexts)).view(-1, *self._context_shape)

    def _past(self, received: Sequence[Negatives]) -> Replayed | None:
        """The past that a replay of the last transitions needs, where the pools sent it."""
        previous = [negatives.previous for negatives in received if negatives.previous is not None]
        noise = [negatives.noise for negatives in received if negatives.noise is not None]
        if not previous:
            return None
        rows = sum(len(some) for some in previous)
        return Replayed(
            self.here(torch.cat(previous)).view(rows, *self._shape),
            self.here(torch.cat(noise, 1)).view(-1, rows, *self._shape),
            self._staging[:rows].view(rows, *self._shape),
        )
