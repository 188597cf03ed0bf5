"""The Metropolis-adjusted Langevin algorithm."""

from __future__ import annotations

from pipeline.common.rng import Source
from pipeline.energies.base import squared_norm
from pipeline.energies.target import Target
from pipeline.kernels.base import (
    GradientState,
    Info,
    Kernel,
    Scale,
    add_scaled,
    init_gradient,
    metropolis,
    normal_like,
)


def step(
    generator: Source, state: GradientState, target: Target, *, step_size: Scale
) -> tuple[GradientState, Info]:
    """Langevin proposal, then Metropolis-Hastings (Besag 1994; Roberts & Tweedie 1996):

        x' = x - epsilon F(x) + sqrt(2 epsilon) xi,   accepted with probability min(1, r),
        log r = E(x) - E(x') + log q(x | x') - log q(x' | x),
        log q(b | a) = -|b - a + epsilon F(a)|^2 / (4 epsilon) + const.

    F = grad E. exp(-E) is invariant exactly, at any epsilon and for any other fixed F too, such as
    the gradient in bfloat16. What falls outside a box, where the energy is inf, is rejected.
    """
    xi = normal_like(state.position, generator)
    proposal = add_scaled(
        add_scaled(state.position, state.gradient, -step_size), xi, (2 * step_size) ** 0.5
    )
    moved = init_gradient(proposal, target)
    # forward: b - a + epsilon F(a) is sqrt(2 epsilon) xi, so -log q(x'|x) = |xi|^2 / 2
    backward = add_scaled(state.position - proposal, moved.gradient, step_size)
    log_ratio = (
        state.energy
        - moved.energy
        + squared_norm(xi) / 2
        - squared_norm(backward) / (4 * step_size)
    )
    state, acceptance = metropolis(generator, log_ratio, moved, state)
    return state, Info(acceptance)


kernel = Kernel(init_gradient, step, streams=True)
