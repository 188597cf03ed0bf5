"""A pool: a sampler whose weights change, many Markov chains advanced together on one device."""

from __future__ import annotations

import copy
import time
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import pad

from pipeline.chains import batch as negatives
from pipeline.chains.kept import KeptChains
from pipeline.chains.motion import LOOK, motion_of
from pipeline.chains.sampler import Advance, ChainPlan, Sampler
from pipeline.common.process import used
from pipeline.common.rng import torch_generator
from pipeline.common.types import Bridged, Motion, RoundReport, Rows, Usage, Weights
from pipeline.energies.base import Energy
from pipeline.energies.weights import Adoption
from pipeline.kernels.base import per_chain
from pipeline.kernels.bridging import along_ladder


class Pool:
    """`count` persistent chains of pool number `pool`.

    The chains of a conditional model run under the contexts of the rows that a round is sent: taken
    up where they were left when the rows are numbered (`KeptChains`), else begun anew. Streams:
    `SeedSequence(seed, "chains", pool)`; a later incarnation, made after its process died, has its
    own.
    """

    def __init__(
        self, energy: Energy, plan: ChainPlan, count: int, *, pool: int, seed: int, device: str
    ) -> None:
        self.energy = copy.deepcopy(energy).to(device)  # whose weights change
        self._adoption = Adoption(self.energy)
        self.plan, self.count = plan, count
        self._pool, self._seed, self._device = pool, seed, torch.device(device)
        self.incarnation = 0
        self.round = 0  # the number of the next one
        self.generator = torch_generator(seed, "chains", pool, device=self._device)
        self.sampler = Sampler(self.energy, plan, count, self.generator)
        self._age = torch.zeros(count, dtype=torch.int64, device=self._device)
        self._kept = KeptChains(plan.per_context)
        # chains [N] bool that begin at the base law when weights come, on which it may depend
        self._unplaced: Tensor | None = torch.ones_like(self._age, dtype=torch.bool)

    def advance(
        self, weights: Weights, start: Rows | None = None
    ) -> tuple[pa.RecordBatch, RoundReport]:
        """One round: adopts `weights`, makes k transitions from where the chains are (or of and
        under the rows `start`), and encodes them.

        A chain that is no longer finite starts anew from noise and is counted; its row holds the
        fresh position.
        """
        clock, spent = time.perf_counter(), time.process_time()
        self.adopt(weights)
        seats, restarted = self.begin(start)
        done = self.sampler.advance(self.generator, self.plan.transitions)
        batch, report = self.finish(done, weights.version, restarted, seats)
        usage = used(spent, self.sampler.position.device)
        return batch, report._replace(seconds=time.perf_counter() - clock, usage=usage)

    def adopt(self, weights: Weights) -> None:
        """Takes the weights over, whatever their version: a parameter server that began again
        gives the numbers of its dead predecessor to other weights.
        """
        self._adoption(weights.flat)
        self.sampler.refresh()

    def join(self, other: Pool) -> None:
        """From now on both have one energy: what either adopts are both pools' weights."""
        self.energy, self._adoption = other.energy, other._adoption
        self.sampler.join(other.sampler)

    def begin(self, start: Rows | None = None) -> tuple[Rows | None, int]:
        """Puts the chains where a round starts from, under the weights of now. Returns the rows
        that they were sent, one for each chain, and how many started anew from noise.
        """
        if self._unplaced is not None:
            position = self.sampler.position
            self._place(self.energy.sample_base(len(position), self.generator))
        seats = None if start is None else self._seat(start)
        return seats, self._restart()

    def begin_at(self, rows: Rows) -> None:
        """Puts the chains that would begin at the base law at training `rows`, of which there is
        one for each chain of the pool.
        """
        if self._unplaced is not None:
            domain = self.energy.into_domain(rows.position.to(self._device))
            position = self.energy.with_latents(domain)
            self._place(position.repeat(self.plan.rungs, *(1,) * (position.ndim - 1)))

    def _place(self, fresh: Tensor) -> None:
        """Puts the chains that have no place yet at those of their seats in `fresh` [R N]."""
        assert self._unplaced is not None
        chosen = per_chain(self._unplaced.repeat(self.plan.rungs), fresh)
        self.sampler.position = torch.where(chosen, fresh, self.sampler.position)
        self._unplaced = None

    def finish(
        self, done: Advance, version: int, restarted: int, seats: Rows | None = None
    ) -> tuple[pa.RecordBatch, RoundReport]:
        """Ends a round under weights of `version` whose transitions are `done`, by the sampler
        itself or together with others; the report says nothing yet of time and memory.
        """
        sampler, plan = self.sampler, self.plan
        self._age += plan.transitions
        motion = None if self.round % LOOK else self._motion(done)
        energy, reseeded = self._reseed(done.energy, done.broken)
        previous, noise = done.previous, done.noise
        # a chain made anew has no past: it replays to where it is
        if previous is not None and noise is not None and reseeded:
            lost = per_chain(done.broken, previous)
            previous, noise = (
                torch.where(lost, sampler.position, previous),
                torch.where(lost, torch.nan, noise),
            )
        if seats is not None and seats.number is not None:
            self._kept.put(seats.number, sampler.position, self._age)
        acceptance = done.acceptance[-self.count :]
        batch = negatives.encode(
            sampler.position[-self.count :],
            energy[-self.count :],
            acceptance,
            self._age,
            pool=self._pool,
            incarnation=self.incarnation,
            round=self.round,
            version=version,
            previous=previous,
            noise=noise,
            context=None if seats is None else seats.context,
            number=None if seats is None else seats.number,
            start=seats.position if seats is not None and plan.batches_carry_rows else None,
        )
        report = RoundReport(
            pool=self._pool,
            incarnation=self.incarnation,
            round=self.round,
            version=version,
            transitions=plan.transitions * len(sampler.position),
            acceptance=float(acceptance.mean()),
            step_size=sampler.step_size,
            swaps=tuple(done.swaps.tolist()),
            reseeded=reseeded,
            restarted=restarted,
            seconds=0.0,
            usage=Usage(0.0, 0, 0),
            tuning=sampler.tuning() or None,
            motion=motion,
            bridged=self._bridged(done, version),
        )
        self.round += 1
        return batch, report

    def _motion(self, done: Advance) -> Motion:
        """The motion of the model's chains in a round, before any of them is replaced."""
        before = done.start_energy
        if before is None:
            before = self.sampler.energy(done.start)
        own = slice(-self.count, None)
        ends = self.sampler.position[own], done.energy[own]
        return motion_of(done.start[own], before[own], *ends, self.energy.levels)

    def _bridged(self, done: Advance, version: int) -> Bridged | None:
        """The ladder's log Z under weights of `version`, where it is its turn."""
        every = self.plan.bridge_every
        if done.log_weights is None or not every or version % every:
            return None
        return along_ladder(done.log_weights, self.energy.base_log_partition())

    def _seat(self, start: Rows) -> Rows:
        """Puts the chains at and under the rows sent, `per_context` one after the other for each;
        returns the rows, one for each chain.
        """
        copies = self.plan.per_context
        rows = start.map(lambda field: field.to(self._device).repeat_interleave(copies, 0))
        if self.plan.start_at_data:
            position, age = self.energy.with_latents(rows.position), torch.zeros_like(self._age)
        else:
            position, age = (
                self.energy.sample_base(self.count, self.generator),
                torch.zeros_like(self._age),
            )
            if rows.number is not None:
                position, age = self._kept.take(rows.number, position)
        self.sampler.position, self._age = position, age
        self.sampler.bind(rows.context)
        return rows

    def _restart(self) -> int:
        """Starts every chain (of a ladder's lowest rung) anew from noise with the plan's
        probability; returns how many did.
        """
        if not self.plan.restart:
            return 0
        uniform = torch.rand(self.count, generator=self.generator, device=self._device)
        chosen = uniform < self.plan.restart
        count = int(chosen.sum())
        self._replace(pad(chosen, (0, len(self.sampler.position) - len(chosen))), count)
        return count

    def _reseed(self, energy: Tensor, broken: Tensor) -> tuple[Tensor, int]:
        """Makes the chains anew that are `broken` [R N] bool; returns the energies [R N] of all,
        and how many were.
        """
        count = int(broken.sum())
        if count:
            self._replace(broken, count)
            energy = torch.where(broken, self.sampler.energy(self.sampler.position), energy)
        return energy, count

    def _replace(self, chosen: Tensor, count: int) -> None:
        """Puts noise for the positions of the rows `chosen` [R N] bool, so many."""
        position = self.sampler.position
        fresh = self.energy.sample_base(len(position), self.generator)  # though none be chosen
        if not count:
            return
        self.sampler.position = torch.where(per_chain(chosen, position), fresh, position)
        self._age = torch.where(chosen[-self.count :], 0, self._age)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed pool needs: positions, ages, what was adapted, the random
        stream, the round's number.
        """
        return {
            "position": self.sampler.position.cpu().clone(),  # no view of all pools' chains
            "unplaced": None if self._unplaced is None else self._unplaced.cpu(),
            "tuning": self.sampler.tuning(),
            "age": self._age.cpu(),
            "kept": self._kept.state_dict(),
            "generator": self.generator.get_state(),
            "device": self._device.type,
            "round": self.round,
            "incarnation": self.incarnation,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave, or `pipeline.chains.dealing.Dealing.state`; in a new
        random stream where that was made on another kind of device, or on none.
        """
        unplaced = state.get("unplaced")
        self._unplaced = None if unplaced is None else unplaced.to(self._device)
        self.sampler.position = state["position"].to(self._device)
        self.sampler.load_tuning(state["tuning"])
        self._age = state["age"].to(self._device)
        self._kept.load_state_dict(state["kept"], self._device)
        self.round, self.incarnation = state["round"], state["incarnation"]
        if state["device"] == self._device.type:
            self.generator.set_state(state["generator"])
        else:  # a stream cannot move from one kind of device to another: a new one begins
            self.incarnation += 1
            self.generator = torch_generator(
                self._seed, "chains", self._pool, self.incarnation, device=self._device
            )

    def revive(
        self,
        incarnation: int,
        round: int,
        last: pa.RecordBatch | None,
        rows: Rows | None = None,
        tuning: dict[str, Any] | None = None,
        stored: dict[str, Any] | None = None,
    ) -> None:
        """Takes up the chains of the `last` batch that an earlier incarnation, or another pool,
        sent, with the `tuning` of the report beside it. Without a batch it takes up those that are
        `stored`, an older `state_dict` of this pool's. Chains that are in neither start at the
        training `rows`, one each; without those, from noise.

        Of chains that are kept by training row, those that are stored serve for the rows that are
        not in the batch.
        """
        if last is None and stored is not None:
            # of no device: the stream of this incarnation begins
            own = {"round": round, "incarnation": incarnation - 1, "device": None}
            self.load_state_dict(stored | own)
            if rows is not None:
                self.begin_at(rows)
            return
        kept = stored["kept"] if stored is not None else None
        self.sampler.load_tuning(tuning or {})
        self._kept.load_state_dict(kept, self._device)
        self.incarnation, self.round = incarnation, round
        self.generator = torch_generator(
            self._seed, "chains", self._pool, incarnation, device=self._device
        )
        self._age.zero_()
        self._unplaced = torch.ones_like(self._age, dtype=torch.bool) if last is None else None
        if rows is not None:
            self.begin_at(rows)
        if last is not None:
            chains = negatives.decode(last)
            position = chains.position.to(self._device, copy=True).view(
                self.count, *self.energy.shape
            )
            # a batch holds the model's rung alone: every rung starts from it
            position = position.repeat(self.plan.rungs, *(1,) * len(self.energy.shape))
            self._age = chains.age.to(self._device, copy=True)
            self.sampler.position = position
            if chains.number is not None:
                self._kept.put(chains.number.to(self._device, copy=True), position, self._age)
