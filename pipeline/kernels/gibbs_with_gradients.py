"""Gibbs-with-gradients: a Metropolis-Hastings kernel that looks for sites worth changing."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.common.rng import Source
from pipeline.energies.conditionals import draw
from pipeline.energies.target import Target
from pipeline.kernels.base import GradientState, Info, Kernel, init_gradient, levels_of, metropolis


def step(generator: Source, state: GradientState, target: Target) -> tuple[GradientState, Info]:
    """One site to another level, chosen by the energy's first-order change (Grathwohl et al. 2021,
    algorithms 1 and 2):

        q(move | x) = softmax over moves of -D(x, move) / 2,
        D(x, move) the linear estimate of E(x') - E(x),
        accepted with probability min(1, exp(E(x) - E(x')) q(move back | x') / q(move | x)).

    exp(-E) is invariant exactly, however poor the estimate. A move sets one site to one other
    level; with two levels it flips.
    """
    forward = log_proposals(state, target)
    moved, log_ratio = propose(state, forward, draw(forward.exp(), generator), target)
    state, acceptance = metropolis(generator, log_ratio, moved, state)
    return state, Info(acceptance)


def propose(
    state: GradientState, forward: Tensor, move: Tensor, target: Target
) -> tuple[GradientState, Tensor]:
    """The states that `move` [N], proposed with the log probabilities `forward`, leads to; and the
    log of Hastings' ratio, [N].
    """
    moved = init_gradient(apply(state.position, move, target), target)
    back = log_proposals(moved, target).gather(1, reverse(state.position, move, target)[:, None])
    return moved, state.energy - moved.energy + (back - forward.gather(1, move[:, None]))[:, 0]


def log_proposals(state: GradientState, target: Target) -> Tensor:
    """log q(move | x) for every move: `[N, d]` with two levels (flip site i), else `[N, d q]` (site
    i to level k).

    Where the gradient is not in the one-hot encoding, the estimate for level k is gradient_i (k -
    x_i).
    """
    flat = state.position.flatten(1)
    if target.levels == 2:
        return ((flat - 0.5) * state.gradient.flatten(1)).log_softmax(1)
    gradient = state.gradient.reshape(*flat.shape, -1)
    levels = torch.arange(levels_of(target), dtype=flat.dtype, device=flat.device)
    by_level: Tensor = gradient * levels if gradient.shape[-1] == 1 else gradient
    current = flat.long()[..., None]
    change = by_level - by_level.gather(-1, current)
    return (
        (-change / 2).scatter(-1, current, -torch.inf).flatten(1).log_softmax(1)
    )  # staying is no move


def apply(position: Tensor, move: Tensor, target: Target) -> Tensor:
    """The positions `[N, *shape]` after `move` [N] int64."""
    flat, (site, level) = position.flatten(1), _site_and_level(position, move, target)
    return flat.scatter(1, site, level).view_as(position)


def reverse(position: Tensor, move: Tensor, target: Target) -> Tensor:
    """The move that undoes `move` [N] made at `position`."""
    if target.levels == 2:
        return move
    site, _ = _site_and_level(position, move, target)
    return (site * levels_of(target) + position.flatten(1).gather(1, site).long())[:, 0]


def _site_and_level(position: Tensor, move: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """The site that each move changes, and its new level: [N, 1] each."""
    move = move[:, None]
    if target.levels == 2:
        return move, 1 - position.flatten(1).gather(1, move)
    levels = levels_of(target)
    return move // levels, (move % levels).to(position.dtype)


kernel = Kernel(init_gradient, step, streams=True)
