"""The trainer's arithmetic: positives and negatives to a gradient, to an update, to weights with a
new version.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from pipeline.chains.batch import decode
from pipeline.common.errors import DivergenceError
from pipeline.common.process import used
from pipeline.common.rng import torch_generator
from pipeline.common.types import EnergyMoments, Negatives, Part, Rows, StepReport, Usage, Weights
from pipeline.config.run import RunConfig
from pipeline.data.base import Positives
from pipeline.energies.base import Energy
from pipeline.energies.deep import iterate_spectral_norms
from pipeline.objectives.base import Batch, Objective, Term
from pipeline.objectives.chunking import Chunking
from pipeline.objectives.contrastive import FastWeights
from pipeline.storage.checkpoint import Checkpoint, write_part
from pipeline.training.optimizer import learning_rate, make_optimizer
from pipeline.training.ranks import (
    ALONE,
    Ranks,
    lay_out,
    load_moments,
    mean_parts,
    optimizer_state,
    share_of,
    split_as,
    stored,
    whole,
)
from pipeline.training.staleness import LagController, batch_weights

MAX_SKIPPED_IN_A_ROW = 20
NOTHING = np.empty(0, np.float32)


class Learner:
    """Owns the weights, their moving average, the optimizer and the positives. One `step` is one
    optimizer update of the weighted sum of the `terms`. With `fast` weights, those are what it
    publishes its own with, for chains. `keeps_chains`: pools keep chains for each training row.

    Of several `ranks` each has a learner, with positives and negatives of its own and the same
    weights: what is said of a step is of all ranks' rows, and the same on each. But for `starts`,
    every method is called on all ranks, in the same order.

    The version counts the steps; a step that was skipped (a loss or gradient that is not finite)
    counts as one that left the weights as they were. Raises `DivergenceError` after 20 of those in
    a row.
    """

    def __init__(
        self,
        config: RunConfig,
        energy: Energy,
        terms: Sequence[Term],
        positives: Positives,
        fast: Callable[[Sequence[Tensor]], FastWeights] | None = None,
        keeps_chains: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        self._config, self._keeps_chains, self._ranks = config, keeps_chains, ranks
        self._device = torch.device(config.device)
        self.energy = energy.to(self._device).eval()
        self._positives = positives
        self._terms = [term._replace(objective=term.objective.to(self._device)) for term in terms]
        self._objectives = nn.ModuleList(term.objective for term in self._terms)
        self._chunking = Chunking(config.trainer.chunk_rows, config.trainer.chunk_draws)
        stream = ranks.rank + 1 if ranks.rank else 0  # number 1 is what objectives are started from
        self._generator = torch_generator(config.seed, "objective", stream, device=self._device)
        self._layout = lay_out(
            self.energy, list(self._objectives.parameters()), ranks, config.trainer.sharding
        )
        self._parameters = [p for p in energy.parameters() if p.requires_grad]
        self._dtype = self._parameters[0].dtype
        self._average = [parameter.detach().clone() for parameter in self._parameters]
        self._fast = None if fast is None else fast(self._parameters)
        self._optimizer = make_optimizer(
            config.optimizer, energy, list(self._objectives.parameters())
        )
        self._staging = torch.empty(
            (config.negatives, energy.dimension), dtype=self._dtype, device=self._device
        )
        self._drawn: deque[Rows] = deque()
        trainer = config.trainer
        # what is not reweighted has no ESS to steer by
        steered = config.reweight and trainer.lag_mode == "bound" and not config.assigned_rounds
        self._controller = LagController(trainer.lag, trainer.min_ess, steered)
        self._skipped_in_a_row = 0
        self._usage = Usage(0.0, 0, 0)
        self.version = 0

    def publish(self) -> Weights:
        """The weights that chains are to run under; on other ranks than the first, none."""
        values: Sequence[Tensor] = self._parameters
        if self._fast is not None:
            values = [own + fast for own, fast in zip(values, self._fast.values, strict=True)]
        flat = self._flat_with(values) if self._ranks.rank == 0 or self._layout.split else NOTHING
        return Weights(self.version, flat if self._ranks.rank == 0 else NOTHING)

    def starts(self, step: int) -> Rows:
        """This rank's data rows of step `step` (this one or a later one), drawn ahead: what chains
        start at, or run under. They are numbered where pools are to keep chains for each.
        """
        while len(self._drawn) <= step - self.version:
            self._drawn.append(self._draw())
        return self._drawn[step - self.version]

    def _draw(self) -> Rows:
        rows = self._positives.next(self._config.trainer.batch_size // self._ranks.size)
        number = rows.number if self._keeps_chains else None
        return rows._replace(position=self.energy.into_domain(rows.position), number=number)

    def deal(self) -> Rows:
        """This rank's next rows for one round that whichever step may consume: its batch brings
        them back.
        """
        while not self._drawn:
            self._drawn.extend(
                self._draw().chunk(self._config.batches_per_step // self._ranks.size)
            )
        return self._drawn.popleft()

    def step(self, batches: Sequence[pa.RecordBatch]) -> tuple[StepReport, Weights]:
        """One update from this rank's batches of the step, in the order given; from none where no
        objective consumes chains, or where other ranks have them all.
        """
        clock, spent = _Stopwatch(), time.process_time()
        negatives, received = self._stage(batches) if batches else (None, [])
        count = 0 if negatives is None else len(negatives)
        # of its negatives, or, where positives come with them and are as uneven, of all that this
        # rank learns from
        share, scale = self._ranks.share(count), 1.0
        if self._config.batches_carry_rows:
            share, scale = 1.0, share
        clock.lap("staging")
        rows = self._positives_of(received).map(self._here)
        clock.lap("data")
        lags = tuple(self.version - batch.version for batch in received)
        assert min(lags, default=0) >= 0, (
            f"negatives of version {self.version - min(lags)} cannot reach {self.version}"
        )
        ess: list[float] = []
        energy_moments: dict[int, EnergyMoments] = {}
        batch = Batch(
            self.energy.with_latents(rows.position),
            context=rows.context,
            negatives=negatives,
            negative_context=self._contexts(received),
            weigh=self._weigher(received, lags, share, ess, energy_moments),
            bank=negatives,
        )
        own = self._backward(self._with_past(batch, received), scale)
        said = self._ranks.gather(
            (*own, count, lags, ess, list(energy_moments.values()), self._usage)
        )
        losses, parts, counts, all_lags, all_ess, all_spreads, usage = zip(*said, strict=True)
        loss = sum(losses) / self._ranks.size
        ess = list(chain(*all_ess))
        clock.lap("gradient")
        rate = learning_rate(self._config.optimizer, self.version, self._config.trainer.steps)
        norm, skipped = self._update(loss, rate)
        if ess:
            self._controller.observe(sum(ess) / len(ess))
        self.version += 1
        clock.lap("update")
        weights = self.publish()
        clock.lap("publish")
        report = StepReport(
            version=self.version,
            loss=loss,
            parts=mean_parts(parts),
            gradient_norm=norm,
            learning_rate=rate,
            negatives=sum(counts),
            lags=tuple(chain(*all_lags)),
            ess=tuple(ess),
            lag_bound=self._controller.bound,
            skipped=skipped,
            seconds=clock.seconds,
            energy_moments=tuple(chain(*all_spreads)),
            usage=usage,
        )
        self._usage = used(spent, self._device)
        return report, weights

    def _stage(self, batches: Sequence[pa.RecordBatch]) -> tuple[Tensor, list[Negatives]]:
        """The batches' positions copied once, in order, into aligned memory of the trainer's
        device.
        """
        received, row = [decode(batch) for batch in batches], 0
        for negatives in received:
            self._staging[row : row + len(negatives.position)].copy_(negatives.position)
            row += len(negatives.position)
        return self._staging[:row].view(row, *self.energy.shape), received

    def _contexts(self, received: Sequence[Negatives]) -> Tensor | None:
        """The negatives' contexts `[M, *context_shape]`, where they have any."""
        contexts = [negatives.context for negatives in received if negatives.context is not None]
        if not contexts or not self._config.conditional:
            return None
        return self._here(torch.cat(contexts)).view(-1, *(self.energy.context_shape or ()))

    def _positives_of(self, received: Sequence[Negatives]) -> Rows:
        """The rows of this step: those that its batches bring along, or the next ones."""
        if not self._config.batches_carry_rows:
            rows = self.starts(self.version)
            self._drawn.popleft()
            return rows
        if not received:
            return self.deal()
        each = self._config.chains.per_context
        position = torch.cat([batch.start[::each] for batch in received if batch.start is not None])
        contexts = [batch.context[::each] for batch in received if batch.context is not None]
        return Rows(
            position.view(-1, *self.energy.data_shape),
            torch.cat(contexts).view(-1, *(self.energy.context_shape or ())) if contexts else None,
        )

    def _with_past(self, batch: Batch, received: Sequence[Negatives]) -> Batch:
        """The batch with what a replay of the negatives' last transitions needs, where the pools
        sent it.
        """
        previous = [negatives.previous for negatives in received if negatives.previous is not None]
        noise = [negatives.noise for negatives in received if negatives.noise is not None]
        if not previous or batch.negatives is None:
            return batch
        return batch._replace(
            previous=self._here(torch.cat(previous)).view_as(batch.negatives),
            noise=self._here(torch.cat(noise, 1)).view(-1, *batch.negatives.shape),
        )

    def _here(self, values: Tensor) -> Tensor:
        """On the trainer's device, and in the precision of the weights."""
        return values.to(self._device, self._dtype if values.is_floating_point() else values.dtype)

    def _weigher(
        self,
        received: Sequence[Negatives],
        lags: Sequence[int],
        share: float,
        ess: list[float],
        energy_moments: dict[int, EnergyMoments],
    ) -> Callable[[Tensor], Tensor]:
        """E_now [M] to weights [M] of mean `share` (1 over all ranks), normalised within each pool,
        version and context; fills `ess`, a ratio each, and `energy_moments`, by batch.
        """

        def weigh(energy_now: Tensor) -> Tensor:
            pieces = energy_now.split([len(batch.energy) for batch in received])
            weights = []
            for number, (batch, lag, now) in enumerate(zip(received, lags, pieces, strict=True)):
                counts = batch.age.to(now.device) >= self._config.chains.burn_in
                contexts = (
                    len(now) // self._config.chains.per_context if self._config.conditional else 1
                )
                then, reweight = batch.energy.to(now.device), self._config.reweight
                piece, ratio = batch_weights(then, now, counts, lag, reweight, contexts)
                weights.append(piece * (share * len(now)))
                ess.append(ratio)
                variance, mean = torch.stack(torch.var_mean(now.double(), correction=0)).tolist()
                energy_moments[number] = EnergyMoments(batch.pool, mean, variance, len(now))
            return torch.cat(weights).to(energy_now.dtype)

        return weigh

    def _backward(self, batch: Batch, scale: float = 1.0) -> tuple[float, dict[str, float]]:
        """Gradient of the objective into the parameters, chunk by chunk, a mean over ranks; this
        rank's value of the objective, and mean of each of its parts.
        """
        assert batch.positives is not None
        self._optimizer.zero_grad(set_to_none=True)
        means: dict[str, Tensor] = {}

        def work(term: Term, chunk: Batch, share: float) -> Tensor:
            losses = []
            for part in term.objective.parts(self.energy, chunk):
                mean = share * part.total / part.rows
                losses.append(term.weight * part.weight * mean)
                means[term.name + part.name] = means.get(term.name + part.name, 0) + mean.detach()
            return torch.stack(losses).sum()

        pieces = (
            (term, *piece) for term in self._terms for piece in self._chunks(term.objective, batch)
        )
        values = self._layout.backward(
            partial(work, term, chunk, scale * share) for term, chunk, share in pieces
        )
        value, *rest = torch.stack([torch.stack(values).sum(), *means.values()]).tolist()
        return value, dict(zip(means, rest, strict=True))

    def _chunks(self, objective: Objective, batch: Batch) -> Iterator[tuple[Batch, float]]:
        """What the objective learns from, with what it draws for the rows, in chunks with their
        shares.
        """
        if not objective.consumes_chains:
            batch = Batch(batch.positives, context=batch.context)
        elif self._chunking.rows is not None and batch.negatives is not None:
            chunks = self._chunking.split(
                Batch(negatives=batch.negatives, negative_context=batch.negative_context)
            )
            with torch.no_grad():
                energies = [
                    self.energy.given(some.negative_context)(some.negatives) for some, _ in chunks
                ]
            batch = batch._replace(weights=batch.weigh(torch.cat(energies)))

        def draw(some: Batch) -> tuple[Tensor, ...]:
            assert some.positives is not None
            return objective.draw(self.energy.given(some.context), some.positives, self._generator)

        for side in batch.sides() if self._layout.split else [batch]:
            yield from self._chunking.split(side, draw)

    def _update(self, loss: float, rate: float) -> tuple[float, bool]:
        """Clips and applies the gradient, unless it or the loss is not finite; its norm before,
        whether skipped.
        """
        limit = self._config.optimizer.clip_norm
        # the norm is taken of every gradient, so that a NaN in one is seen behind a loss that is
        # finite
        learned = [*self._parameters, *self._objectives.parameters()]
        norm = float(whole(nn.utils.clip_grad_norm_(learned, math.inf if limit is None else limit)))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                raise DivergenceError(
                    f"{MAX_SKIPPED_IN_A_ROW} steps in a row had a loss or gradient that is not"
                    f" finite (step {self.version}); lower optimizer.learning_rate or"
                    " kernel.step_size, set optimizer.clip_norm, or raise objective.energy_l2"
                )
            return norm, True
        self._skipped_in_a_row = 0
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        if self._fast is not None:
            self._fast.update([p.grad for p in self._parameters if p.grad is not None])
        self._optimizer.step()
        with self._layout.whole():
            iterate_spectral_norms(self.energy)
        # a short run's average would be all start: warm the decay up (as TensorFlow's
        # ExponentialMovingAverage does)
        decay = min(self._config.optimizer.ema, (1 + self.version) / (10 + self.version))
        with torch.no_grad():
            torch._foreach_lerp_(self._average, [p.detach() for p in self._parameters], 1 - decay)
        return norm, False

    def averaged(self) -> np.ndarray:
        """Flat weights (see `flatten`) with the moving average of the parameters, for evaluation."""
        return self._flat_with(self._average)

    def _flat_with(self, values: Sequence[Tensor]) -> np.ndarray:
        """Flat weights with these `values` of the parameters."""
        learned = dict(zip(map(id, self._parameters), values, strict=True))
        state = self.energy.state_dict(
            keep_vars=True
        ).values()  # a parameter that has two names stands there twice
        return self._layout.flat(learned.get(id(tensor), tensor).detach() for tensor in state)

    def start(self, checkpoint: Checkpoint | None, warm_start: Checkpoint | None) -> None:
        """Takes up a checkpoint; or another run's averaged weights, but not its optimizer or steps;
        or neither.
        """
        if checkpoint is not None:
            ranks = checkpoint.manifest["config"]["trainer"].get("replicas", 1)
            others = [checkpoint.read(f"rank-{rank}.pt") for rank in range(1, ranks)]
            self.load_state_dict(checkpoint.read("learner.pt"), others)
        elif warm_start is not None:
            warm_start.check_signature(self.energy, "init_from")
            self._layout.fill(warm_start.read("energy.pt")["weights"].numpy())
            self._average = [parameter.detach().clone() for parameter in self._parameters]

    def write(self, folder: str) -> list[Part]:
        """The learner's parts of a checkpoint: everything, and the averaged weights alone for those
        who only load. Of other ranks than the first, what is theirs alone.
        """
        state, averaged = self.state_dict(), {"weights": torch.from_numpy(self.averaged())}
        if self._ranks.rank:
            return [write_part(folder, f"rank-{self._ranks.rank}.pt", self._own_state())]
        return [write_part(folder, "learner.pt", state), write_part(folder, "energy.pt", averaged)]

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed learner needs, tensors and plain numbers only; the same however the
        model lies on its ranks.
        """
        return {
            "version": self.version,
            "weights": torch.from_numpy(self._flat_with(self._parameters)),
            "average": [stored(tensor) for tensor in self._average],
            "optimizer": optimizer_state(self._optimizer),
            "objectives": self._objectives.state_dict(),
            "fast": None if self._fast is None else self._fast.values,
            "controller": self._controller.state_dict(),
            **self._own_state(),
        }

    def _own_state(self) -> dict[str, Any]:
        """What this rank shares with no other."""
        return {
            "generator": self._generator.get_state(),
            "device": self._device.type,
            "positives": self._positives.state_dict(),
            "drawn": [tuple(rows) for rows in self._drawn],
        }

    def load_state_dict(self, state: dict[str, Any], others: Sequence[dict[str, Any]] = ()) -> None:
        """Takes up the `state` of a first rank, and what those of the `others` shared with none, in
        their order.

        There may have been more ranks then, or fewer, where positives are in memory: their stream
        goes on at the same row, and what was drawn ahead is dealt anew. A rank that was not there
        begins its random stream. Raises `CheckpointError` where positives are streamed, whose ranks
        have rows of their own.
        """
        self.version = state["version"]
        self._layout.fill(state["weights"].numpy())
        pairs = zip(state["average"], self._parameters, strict=True)
        self._average = [
            split_as(tensor.to(self._device), parameter.detach()) for tensor, parameter in pairs
        ]
        load_moments(self._optimizer, state["optimizer"])
        self._objectives.load_state_dict(state["objectives"])
        if self._fast is not None:
            self._fast.values = [tensor.to(self._device) for tensor in state["fast"]]
        self._controller.load_state_dict(state["controller"])
        ranks, own = [state, *others], self._ranks.rank
        # a stream cannot move from one kind of device to another
        if own < len(ranks) and ranks[own]["device"] == self._device.type:
            self._generator.set_state(ranks[own]["generator"])
        self._positives.load_state_dict(ranks[own if own < len(ranks) else 0]["positives"])
        dealt = zip(*(rank["drawn"] for rank in ranks), strict=True)
        self._drawn = deque(
            share_of([Rows(*rows) for rows in pieces], own, self._ranks.size) for pieces in dealt
        )


class _Stopwatch:
    """Seconds by stage, one lap after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self._last = now - self._last, now
