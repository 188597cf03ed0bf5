"""Block Gibbs sampling for models whose layers are conditionally independent."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from pipeline.common.rng import Source
from pipeline.energies.target import Target
from pipeline.kernels.base import Info, Kernel


class State(NamedTuple):
    position: Tensor


def init(
    position: Tensor,
    target: Target,  # noqa: ARG001 - every kernel has this signature
) -> State:
    return State(position)


def step(generator: Source, state: State, target: Target) -> tuple[State, Info]:
    """Each block in turn from its exact conditional given the one before (Geman & Geman 1984;
    Hinton 2002 for RBMs).
    """
    value = state.position
    for block in target.blocks:
        value = target.conditional(block, value).sample(generator)
    return State(value), Info(value.new_ones(len(value)))


kernel = Kernel(init, step, streams=True)
