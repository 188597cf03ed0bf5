"""The learner's arithmetic: positives and negatives to a gradient, to an update, to weights with a
new version.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from pipeline.chains.sampler import ChainPlan
from pipeline.common.errors import CheckpointError
from pipeline.common.process import used
from pipeline.common.rng import torch_generator
from pipeline.common.types import Negatives, Rows, StepReport, Usage, Weights
from pipeline.config.run import RunConfig
from pipeline.data.base import Positives
from pipeline.energies.base import Energy
from pipeline.objectives.base import Batch, NegativeSide, PositiveSide, Term
from pipeline.objectives.chunking import Chunking
from pipeline.objectives.contrastive import FastWeights
from pipeline.storage.checkpoint import Checkpoint
from pipeline.storage.parts import Snapshot
from pipeline.training.gradient import Gradient
from pipeline.training.graph_schedule import GraphSchedule
from pipeline.training.intake import Intake, Weighing, weigh
from pipeline.training.positives import RowQueue
from pipeline.training.probe import Probe, due
from pipeline.training.ranks import (
    ALONE,
    Ranks,
    joined,
    lay_out,
)
from pipeline.training.reports import Stopwatch
from pipeline.training.stale_negatives import StaleNegatives
from pipeline.training.updates import Updates

NOTHING = np.empty(0, np.float32)


class Learner:
    """Owns the weights, their moving average, the optimizer and the positives. One `step` is one
    optimizer update of the weighted sum of the `terms`. The `energy` and the objectives that are
    given stay as they are: the learner has copies. With `fast` weights, those are what it publishes
    its own with, for chains. `keeps_chains`: pools keep chains for each training row. `moving`:
    the way that stale negatives are moved, where they may be. `probe`: what takes figures of the
    weights every few steps. `imputing`: what fills the holes of rows, under the energy as it is.
    `graph`: what changes the pairs of sites that are coupled.

    Of several `ranks` each has a learner, with positives and negatives of its own and the same
    weights. A report is of a rank's own rows (`pipeline.training.reports.merged` makes one of all
    of them), but for the loss, the gradient's norm and what follows from them. But for `starts`,
    every method is called on all ranks, in the same order.

    The version counts the steps; a step that was skipped (a loss or gradient that is not finite)
    counts as one that left the weights as they were. Raises `DivergenceError` after 20 of those in
    a row, and `ArgumentError` where the energy cannot be laid out on the ranks as asked.
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
        moving: ChainPlan | None = None,
        probe: Probe | None = None,
        imputing: Callable[[Positives, Energy], Positives] | None = None,
        graph: Callable[[Energy], GraphSchedule] | None = None,
    ) -> None:
        self._config, self._ranks, self._probe = config, ranks, probe
        self._device = torch.device(config.device)
        self.energy = copy.deepcopy(energy).to(self._device).eval()
        self._terms = [
            term._replace(objective=copy.deepcopy(term.objective).to(self._device))
            for term in terms
        ]
        self._objectives = nn.ModuleList(term.objective for term in self._terms)
        # number 1 is what objectives are started from
        self._stream = ranks.rank + 1 if ranks.rank else 0
        self._generator = torch_generator(
            config.seed, "objective", self._stream, device=self._device
        )
        self._layout = lay_out(self.energy, ranks, config.trainer.sharding)
        chunking = Chunking(config.trainer.chunk_rows, config.trainer.chunk_draws)
        self._gradient = Gradient(self.energy, self._terms, self._layout, chunking, self._generator)
        self._updates = Updates(
            config.optimizer,
            config.trainer.steps,
            self.energy,
            list(self._objectives.parameters()),
            self._layout,
            fast,
            graph,
        )
        dtype = self._updates.parameters[0].dtype
        self._intake = Intake(config, self.energy, self._device, dtype)
        if imputing is not None:
            positives = imputing(positives, self.energy)
        self._rows = RowQueue(config, self.energy, positives, keeps_chains, ranks)
        self._stale = StaleNegatives(config, self.energy, self._terms, moving, ranks)
        self._usage = Usage(0.0, 0, 0)
        # the state of the stream of draws before the positives that are prepared, where they are
        self._before: Tensor | None = None
        self._ahead = (0.0, 0.0)  # seconds, and of processor time, that preparing them took
        self.version = 0

    def publish(self) -> Weights:
        """The weights that chains are to run under; on other ranks than the first, none."""
        if self._ranks.rank and not self._layout.split:
            return Weights(self.version, NOTHING)
        flat = self._flat_with(self._updates.published())
        return Weights(self.version, flat if self._ranks.rank == 0 else NOTHING)

    def starts(self, step: int) -> Rows:
        """This rank's data rows of step `step` (this one or a later one), drawn ahead: what chains
        start at, or run under. They are numbered where pools are to keep chains for each.
        """
        return self._rows.ahead(step - self.version)

    def deal(self) -> Rows:
        """This rank's next rows for one round that whichever step may consume: its batch brings
        them back.
        """
        return self._rows.deal()

    def prepare(self) -> None:
        """Works out the gradient of the next step's positives, which needs no negatives: it may be
        called while chains run under the same version. `step` does it where it was not called.

        Where batches bring the positives along, and where a model is split among ranks, nothing
        can be done before the negatives are there.
        """
        waits = self._config.batches_carry_rows or self._layout.split
        if waits or self._before is not None:
            return
        clock, spent = time.perf_counter(), time.process_time()
        self._before = self._generator.get_state()
        if not self._updates.stands(self._gradient):
            self._evaluate()
        self._ahead = time.perf_counter() - clock, time.process_time() - spent

    def _evaluate(self) -> None:
        """Works out the gradient of the next step's positives anew."""
        self._updates.optimizer.zero_grad(set_to_none=True)
        self._gradient.add([self._positives([])], Weighing(None))

    def _evaluate_held(self) -> None:
        """The same, without gradients of parameters that the energy holds."""
        self._evaluate()
        self.energy.hold()

    def _positives(self, received: Sequence[Negatives]) -> Batch:
        """The positives of the next step, which stay in the queue until it is made."""
        rows = self._rows.of_step(received).map(self._intake.here)
        position = self.energy.with_latents(rows.position)
        return Batch(PositiveSide(position, context=rows.context, weights=rows.weight))

    def step(self, batches: Sequence[pa.RecordBatch]) -> tuple[StepReport, Weights]:
        """One update from this rank's batches of the step, in the order given; from none where no
        objective consumes chains, or where other ranks have them all.
        """
        clock, spent = Stopwatch(), time.process_time()
        ahead, spent_ahead = self._ahead
        self.prepare()
        clock.lap("positives")
        clock.seconds["positives"] += ahead
        side, received = self._intake.receive(batches)
        self._stale.move(side, received, self.version)
        lags = tuple(self.version - batch.version for batch in received)
        assert min(lags, default=0) >= 0, (
            f"negatives of version {self.version - min(lags)} cannot reach {self.version}"
        )
        clock.lap("staging")
        weighing, own, parts = self._add_negatives(side, received)
        ess, moments = weighing.result[1:] if weighing.result is not None else ((), ())
        total, all_ess, batches_of_all = self._layout.reduce(
            self._updates.learned, (own, sum(ess), len(ess))
        )
        loss = total / self._ranks.size
        self._stale.look(side, received, self.version)
        chains = self._chains_of_all(side)
        clock.lap("gradient")
        # of a model that is whole on each rank none needs another from here on: what is begun is
        # done
        self._updates.hold(self.version)
        norm, skipped = self._updates.step(loss, self.version, self._evaluate_held, self._gradient)
        self._before, self._ahead = None, (0.0, 0.0)
        self._rows.next_step()
        self.version += 1
        self._stale.observe(self.version, all_ess / max(batches_of_all, 1))
        clock.lap("update")
        weights = self.publish()
        clock.lap("publish")
        report = StepReport(
            version=self.version,
            loss=loss,
            parts=parts,
            gradient_norm=norm,
            learning_rate=self._updates.rate(self.version - 1),
            negatives=0 if side is None else len(side.position),
            lags=lags,
            ess=ess,
            lag_bound=self._stale.bound,
            skipped=skipped,
            seconds=clock.seconds,
            energy_moments=moments,
            usage=(self._usage,),
            lag_choice=self._stale.choice,
            rate_factor=self._updates.rate_factor,
            figures=self._figures(chains),
        )
        self._usage = used(spent - spent_ahead, self._device)
        self._stale.end(ahead, sum(clock.seconds.values()) - ahead)
        return report, weights

    def _chains_of_all(self, side: NegativeSide | None) -> Rows | None:
        """The chains of all ranks' negatives, where figures are taken after this step."""
        if not due(self._config, self.version + 1):
            return None
        own = None if side is None else Rows(side.position, side.context)
        of_all = [some for some in self._ranks.gather(own) if some is not None]
        return joined(of_all) if of_all else None

    def _figures(self, chains: Rows | None) -> dict[str, float]:
        """Figures of a graph that changes, and the probe's where it is its turn."""
        graph = self._updates.graph
        found = {} if graph is None else graph.figures()
        if self._probe is not None and due(self._config, self.version):
            found |= self._probe.figures(self.energy, chains)
        return found

    def _add_negatives(
        self, side: NegativeSide | None, received: Sequence[Negatives]
    ) -> tuple[Weighing, float, dict[str, float]]:
        """Adds the gradient of the negatives, and of the positives where that was not there yet:
        the weights of the negatives, this rank's value of the objective, and the mean of each of
        its parts.
        """
        # of its negatives, or, where positives come with them and are as uneven, of all that this
        # rank learns from
        share, scale = self._ranks.share(0 if side is None else len(side.position)), 1.0
        if self._config.batches_carry_rows:
            share, scale = 1.0, share
        sides = [] if side is None else [Batch(negatives=side)]
        if self._before is None:
            self._updates.optimizer.zero_grad(set_to_none=True)
            # positives last: the last pass of a model that is split is to be one of them
            sides.append(self._positives(received))
        reweight = self._stale.reweight
        weighing = Weighing(partial(weigh, self._config, received, self.version, share, reweight))
        self._gradient.add(sides, weighing, scale)
        return weighing, *self._gradient.take()

    def averaged(self) -> np.ndarray:
        """Flat weights (see `flatten`) with the moving average of the parameters, for
        evaluation.
        """
        return self._flat_with(self._updates.average)

    def _flat_with(self, values: Sequence[Tensor]) -> np.ndarray:
        """Flat weights with these `values` of the parameters."""
        learned = dict(zip(map(id, self._updates.parameters), values, strict=True))
        # a parameter that has two names stands there twice
        state = self.energy.state_dict(keep_vars=True).values()
        return self._layout.flat(learned.get(id(tensor), tensor).detach() for tensor in state)

    def start(
        self,
        checkpoint: Checkpoint | None,
        warm_start: Checkpoint | None,
        rate_factor: float | None = None,
    ) -> None:
        """Takes up a checkpoint; or another run's averaged weights, but not its optimizer or steps;
        or neither. From then on the learning rate is multiplied by `rate_factor`; where that is
        None, by the checkpoint's. Raises `CheckpointError` where it does not fit.
        """
        if checkpoint is not None:
            others = [checkpoint.read(f"rank-{rank}") for rank in range(1, checkpoint.ranks)]
            self.load_state_dict(checkpoint.read("learner"), others)
        elif warm_start is not None:
            warm_start.check_signature(self.energy, "init_from")
            self._fill(warm_start.averaged())
            self.energy.hold()
            self._updates.begin_average()
        if rate_factor is not None:
            self._updates.rate_factor = rate_factor

    def _fill(self, flat: np.ndarray) -> None:
        """Takes up flat weights of a checkpoint."""
        try:
            self._layout.fill(flat)
        except ValueError as error:
            raise CheckpointError(str(error)) from error

    def snapshots(self) -> list[Snapshot]:
        """Copies of the learner's parts of a checkpoint: everything, and the averaged weights alone
        for those who only load. Of other ranks than the first, what is theirs alone.
        """
        state, averaged = self.state_dict(), {"weights": torch.from_numpy(self.averaged())}
        if self._ranks.rank:
            return [Snapshot(f"rank-{self._ranks.rank}", self._own_state())]
        return [Snapshot("learner", state), Snapshot("energy", averaged)]

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed learner needs, tensors and plain numbers only; the same however the
        model lies on its ranks.
        """
        return {
            "version": self.version,
            "weights": torch.from_numpy(self._flat_with(self._updates.parameters)),
            "objectives": self._objectives.state_dict(),
            "controller": self._stale.state_dict(),
            **self._updates.state_dict(),
            **self._own_state(),
        }

    def _own_state(self) -> dict[str, Any]:
        """The state that this rank shares with no other."""
        return {
            "generator": self._generator.get_state() if self._before is None else self._before,
            "device": self._device.type,
            "refresh": self._stale.own_state(),
            **self._rows.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], others: Sequence[dict[str, Any]] = ()) -> None:
        """Takes up the `state` of a first rank, and what those of the `others` shared with none, in
        their order.

        There may have been more ranks then, or fewer, where positives are in memory: their stream
        goes on at the same row, and what was drawn ahead is dealt anew. A rank that was not there,
        or was on another kind of device, begins new random streams. Raises `CheckpointError` where
        positives are streamed, whose ranks have rows of their own.
        """
        self._load_shared(state)
        ranks, own = [state, *others], self._ranks.rank
        # a stream cannot move from one kind of device to another
        if own < len(ranks) and ranks[own]["device"] == self._device.type:
            self._generator.set_state(ranks[own]["generator"])
            self._stale.load_own_state(ranks[own].get("refresh"))
        else:
            self._begin_streams(ranks[own if own < len(ranks) else 0].get("refresh"))
        self._rows.load_state_dict(ranks)

    def _begin_streams(self, refresh: dict[str, Any] | None) -> None:
        """Begins this rank's random streams anew, with numbers that they never had before this
        version; what `refresh`, another rank's state, has learned is taken over.
        """
        new = torch_generator(
            self._config.seed, "objective", self._stream, self.version + 1, device=self._device
        )
        self._generator.set_state(new.get_state())
        self._stale.take_over(refresh, self.version)

    def _load_shared(self, state: dict[str, Any]) -> None:
        """Takes up what all ranks have alike."""
        self.version = state["version"]
        self._fill(state["weights"].numpy())
        self._updates.load_state_dict(state, self._device)
        self._objectives.load_state_dict(state["objectives"])
        self._stale.load_state_dict(state["controller"])

    def living_state(self) -> dict[str, Any]:
        """Everything that this rank, or another one, needs to go on from here without a checkpoint:
        as before the step that it may be at, which is to be made again. Of a model that is whole on
        every rank, no other rank is needed.
        """
        return {**self.state_dict(), **self._rows.living_state()}

    def go_on(self, state: dict[str, Any], own: bool) -> None:
        """Takes up a `living_state`: this rank's `own`, exactly; or that of another rank. Then its
        rows are those that the rank which it replaces would have had, and the random streams that
        are a rank's own begin anew.

        Raises `CheckpointError` where positives are streamed, whose ranks have rows of their own.
        """
        self._load_shared(state)
        if own:
            self._generator.set_state(state["generator"])
            self._stale.load_own_state(state["refresh"])
            self._rows.go_on(state)
            return
        self._begin_streams(state["refresh"])
        self._rows.go_on_from(state)
