"""One pool's Markov chains: many of them on one device, advanced together."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from pipeline import negatives
from pipeline.energies.base import Energy, Target, unflatten_
from pipeline.kernels.base import Kernel, per_chain
from pipeline.rng import torch_generator
from pipeline.types import RoundReport, Weights


class ChainPlan(NamedTuple):
    """How a pool's chains run. `restart`: chance a round that a chain starts anew from noise."""

    kernel: Kernel
    parameters: dict[str, Any]
    transitions: int
    restart: float


class Chains:
    """`count` persistent chains of pool number `pool`.

    Streams: `SeedSequence(seed, "chains", pool)`; a later incarnation, made after its process died, has its own.
    """

    def __init__(self, energy: Energy, plan: ChainPlan, count: int, *, pool: int, seed: int, device: str) -> None:
        self._energy = energy.to(device)
        self._target = Target(self._energy)
        self._plan, self._count = plan, count
        self._pool, self._seed, self._device = pool, seed, torch.device(device)
        self._version = -1
        self.incarnation = 0
        self.round = 0  # the number of the next one
        self._generator = torch_generator(seed, "chains", pool, device=self._device)
        self._position = energy.noise(count, self._generator)
        self._age = torch.zeros(count, dtype=torch.int64, device=self._device)

    def advance(self, weights: Weights, start: Tensor | None = None) -> tuple[pa.RecordBatch, RoundReport]:
        """One round: adopt `weights`, k transitions from where the chains are (or from `start` [M, *shape]), encode.

        A chain that is no longer finite starts anew from noise and is counted; its row holds the fresh position.
        """
        clock = time.perf_counter()
        self._adopt(weights)
        if start is not None:
            self._position = start.to(self._device, torch.float32).view_as(self._position).clone()
            self._age.zero_()
        restarted = self._restart()
        plan = self._plan
        state = plan.kernel.init(self._position, self._target)
        acceptance = torch.zeros(self._count, device=self._device)
        for _ in range(plan.transitions):
            state, info = plan.kernel.step(self._generator, state, self._target, **plan.parameters)
            acceptance += info.acceptance
        acceptance /= plan.transitions
        self._position = state.position
        self._age += plan.transitions
        energy = state.energy if hasattr(state, "energy") else self._target.energy(self._position)
        energy, reseeded = self._reseed(energy)
        batch = negatives.encode(
            self._position,
            energy,
            acceptance,
            self._age,
            pool=self._pool,
            incarnation=self.incarnation,
            round=self.round,
            version=weights.version,
        )
        report = RoundReport(
            pool=self._pool,
            incarnation=self.incarnation,
            round=self.round,
            version=weights.version,
            transitions=plan.transitions * self._count,
            acceptance=float(acceptance.mean()),
            reseeded=reseeded,
            restarted=restarted,
            seconds=time.perf_counter() - clock,
        )
        self.round += 1
        return batch, report

    def _adopt(self, weights: Weights) -> None:
        if weights.version != self._version:
            unflatten_(self._energy, weights.flat)
            self._version = weights.version

    def _restart(self) -> int:
        """Every chain starts anew from noise with the plan's probability; how many did."""
        if not self._plan.restart:
            return 0
        uniform = torch.rand(self._count, generator=self._generator, device=self._device)
        chosen = uniform < self._plan.restart
        self._replace(chosen)
        return int(chosen.sum())

    def _reseed(self, energy: Tensor) -> tuple[Tensor, int]:
        """Chains whose position or energy is not finite, made anew; the energies [M] and how many were."""
        broken = ~(self._position.flatten(1).isfinite().all(1) & energy.isfinite())
        count = int(broken.sum())
        if count:
            self._replace(broken)
            energy = torch.where(broken, self._target.energy(self._position), energy)
        return energy, count

    def _replace(self, chosen: Tensor) -> None:
        fresh = self._energy.noise(self._count, self._generator)
        self._position = torch.where(per_chain(chosen, self._position), fresh, self._position)
        self._age = torch.where(chosen, 0, self._age)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed pool needs: positions, ages, the random stream, the round's number."""
        return {
            "position": self._position.cpu(),
            "age": self._age.cpu(),
            "generator": self._generator.get_state(),
            "device": self._device.type,
            "round": self.round,
            "incarnation": self.incarnation,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._position = state["position"].to(self._device)
        self._age = state["age"].to(self._device)
        self.round, self.incarnation = state["round"], state["incarnation"]
        if state["device"] == self._device.type:
            self._generator.set_state(state["generator"])
        else:  # a stream cannot move from one kind of device to another: a new one begins
            self.incarnation += 1
            self._generator = torch_generator(self._seed, "chains", self._pool, self.incarnation, device=self._device)

    def revive(self, incarnation: int, round: int, last: pa.RecordBatch | None) -> None:
        """Takes up the chains of the `last` batch an earlier incarnation sent; without one they start from noise."""
        self.incarnation, self.round = incarnation, round
        self._generator = torch_generator(self._seed, "chains", self._pool, incarnation, device=self._device)
        self._position = self._energy.noise(self._count, self._generator)
        self._age.zero_()
        if last is not None:
            chains = negatives.decode(last)
            self._position = chains.position.to(self._device, copy=True).view_as(self._position)
            self._age = chains.age.to(self._device, copy=True)
