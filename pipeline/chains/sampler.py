"""Markov chains of one law on one device, with what they learn about their own kernel."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.common.rng import Source
from pipeline.energies.base import Energy
from pipeline.energies.target import Target
from pipeline.kernels.adaptation import Ladder, StepSizes
from pipeline.kernels.base import Kernel, broken


class ChainPlan(NamedTuple):
    """The way that chains run. `restart`: chance a round that a chain starts anew from noise;
    `rungs`: of the ladder, 1 where there is none, moved in the first `ladder_rounds` rounds;
    `target_acceptance`: what the step size is adapted to in the first `adapt_rounds` rounds (None:
    all); `gradient_dtype`: the precision of gradients where it is not the energy's; `replayed`: of
    how many last transitions a round is to tell where they began and what noise they drew.
    `start_at_data`: chains begin a round at the rows they are sent; `batches_carry_rows`: a round's
    batch brings those along; `per_context`: how many chains each row that is sent has, where the
    model is conditional. `bridge_every`: versions between two of which a round has the ladder's log
    Z, 0 where none has.
    """

    kernel: Kernel
    parameters: dict[str, Any]
    transitions: int
    restart: float
    rungs: int = 1
    ladder_rounds: int = 0
    target_acceptance: float | None = None
    adapt_rounds: int | None = None
    gradient_dtype: torch.dtype | None = None
    replayed: int = 0
    start_at_data: bool = False
    batches_carry_rows: bool = False
    per_context: int = 1
    bridge_every: int = 0


class Advance(NamedTuple):
    """The report of a round on the chains, by row [R N]: their energies now (each rung's own),
    which of them are not finite, their mean acceptance; and `swaps` [R - 1], mean probabilities,
    empty without a ladder. Where transitions are to be replayed, `previous` [N, *shape], the
    positions before the last L of them, and their `noise` [L, N, *shape]. `log_weights` [T, 2, R -
    1, N] are a ladder's, of each of the T transitions (`pipeline.kernels.replica_exchange.swap`).
    `start` [R N, *shape] is where the round began, and `start_energy` [R N] what its kernel found
    there, None where it asks for no energies.
    """

    energy: Tensor
    broken: Tensor
    acceptance: Tensor
    start: Tensor
    start_energy: Tensor | None
    swaps: Tensor
    previous: Tensor | None = None
    noise: Tensor | None = None
    log_weights: Tensor | None = None

    def chunk(self, pieces: int) -> list[Advance]:
        """Returns so many `pieces`, each of the next of equal blocks of chains, which are on no
        ladder.
        """
        by_row = [field.chunk(pieces) for field in self[:4]]
        at_start = self.start_energy
        energies = [None] * pieces if at_start is None else at_start.chunk(pieces)
        previous, noise = self.previous, self.noise
        past = (
            [[None] * pieces] * 2
            if previous is None or noise is None
            else [previous.chunk(pieces), noise.chunk(pieces, 1)]
        )
        swaps = [self.swaps] * pieces
        return [Advance(*piece) for piece in zip(*by_row, energies, swaps, *past, strict=True)]


class Sampler:
    """`count` chains, replicated on every rung where there is a ladder: `position` [R N, *shape],
    the model's rung last.
    """

    def __init__(
        self, energy: Energy, plan: ChainPlan, count: int, generator: torch.Generator
    ) -> None:
        self._plan, self._count = plan, count
        self._ladder = Ladder(plan.rungs, plan.ladder_rounds) if plan.rungs > 1 else None
        self._steps = (
            StepSizes(
                plan.parameters["step_size"],
                plan.rungs,
                plan.target_acceptance,
                plan.adapt_rounds,
                largest=math.inf if energy.box is None else energy.box[1] - energy.box[0],
            )
            if plan.target_acceptance is not None
            else None
        )
        self.position = energy.sample_base(plan.rungs * count, generator)
        self._target = Target(energy, gradient_dtype=plan.gradient_dtype)
        self._place_rungs()

    def _place_rungs(self) -> None:
        if self._ladder is not None:
            self._target.beta = self._ladder.betas.to(self.position).repeat_interleave(self._count)

    @property
    def step_size(self) -> float | None:
        """Of the model's rung, where the kernel has one."""
        return (
            self._plan.parameters.get("step_size")
            if self._steps is None
            else self._steps.values[-1]
        )

    def join(self, other: Sampler) -> None:
        """From now on both sample from the other's target: its energy, contexts and rungs."""
        self._target = other._target

    def bind(self, context: Tensor | None) -> None:
        """From now on under `context` [N, *context_shape], one a chain, on every rung the same."""
        self._target.bind(context)

    def refresh(self) -> None:
        """To be called when the energy's weights have changed."""
        self._target.refresh()

    def energy(self, position: Tensor) -> Tensor:
        """`[R N]`, each rung's own."""
        return self._target.energy(position)

    def advance(self, generator: Source, transitions: int) -> Advance:
        """`transitions` of the kernel; then step sizes and rungs are adapted."""
        kernel, parameters = self._plan.kernel, self._parameters()
        start = self.position
        state = kernel.init(start, self._target)
        start_energy = getattr(state, "energy", None)
        acceptance = torch.zeros(len(self.position), device=self.position.device)
        swaps = torch.zeros(self._plan.rungs - 1, device=self.position.device)
        previous, noise, log_weights = None, [], []
        for left in range(transitions, 0, -1):
            if left == self._plan.replayed:
                previous = state.position
            state, info = kernel.step(generator, state, self._target, **parameters)
            if left <= self._plan.replayed and info.noise is not None:
                noise.append(info.noise)
            acceptance += info.acceptance
            if info.swaps is not None:
                swaps += info.swaps
            if info.log_weights is not None:
                log_weights.append(info.log_weights)
        self.position = state.position
        energy = state.energy if hasattr(state, "energy") else self._target.energy(self.position)
        lost = broken((*state, energy))
        drawn = torch.stack(noise) if noise else None
        report = Advance(
            energy,
            lost,
            acceptance / transitions,
            start,
            start_energy,
            swaps / transitions,
            previous,
            drawn,
            torch.stack(log_weights) if log_weights else None,
        )
        if self._steps is not None:
            self._steps.update(report.acceptance.view(self._plan.rungs, -1).mean(1))
        if self._ladder is not None:
            self._ladder.update(report.swaps)
            self._place_rungs()
        return report

    def _parameters(self) -> dict[str, Any]:
        if self._steps is None:
            return self._plan.parameters
        values = self._steps.values
        if len(values) == 1:
            return self._plan.parameters | {"step_size": values[0]}
        by_rung = torch.tensor(values, dtype=self.position.dtype, device=self.position.device)
        return self._plan.parameters | {"step_size": by_rung.repeat_interleave(self._count)}

    def tuning(self) -> dict[str, Any]:
        """Returns what the chains have learned, for a checkpoint."""
        parts = {"steps": self._steps, "ladder": self._ladder}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_tuning(self, state: dict[str, Any]) -> None:
        """Takes up what `tuning` gave, as far as the plan still adapts it."""
        if self._steps is not None and "steps" in state:
            self._steps.load_state_dict(state["steps"])
        if self._ladder is not None and "ladder" in state:
            self._ladder.load_state_dict(state["ladder"])
            self._place_rungs()
