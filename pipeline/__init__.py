"""Training energy-based models p(x) = exp(-E(x)) / Z from streams of persistent Markov chains.

Importing this package is cheap: neither torch nor ray is loaded until something asks for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.common.version import VERSION

__version__ = VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from pipeline.energies.base import Energy
    from pipeline.evaluation.search import Found


def load(
    url: str,
    energy: nn.Module | None = None,
    features: Sequence[Callable[[Tensor], Tensor]] | None = None,
) -> Energy:
    """The trained energy of a run, as an `nn.Module` mapping `[N, *shape] -> [N]` (nats), with its
    EMA weights.

    `url` is a run's output (its newest complete checkpoint is taken) or one checkpoint, on any
    fsspec file system; `energy` is the module, and `features` are the functions, that the run was
    given in code, where it was. Ray is not needed. Raises `CheckpointError` where there is no
    checkpoint, its checksums do not hold, or its parameters do not fit.
    """
    from pipeline.assembly.load import load_energy

    return load_energy(url, energy, features)


def argmax_y(energy: Energy, context: Tensor) -> Found:
    """The most probable y under each context x [N, *context_shape] of a conditional energy,
    argmax_y p(y | x): Z(x) cancels.

    `position` [N, *shape], its `energy` [N] in nats, and whether it is `exact`: along a chain by
    Viterbi's algorithm, of at most 2^20 states by enumeration, else the best that annealed chains
    with restarts met (see `pipeline.evaluation.search`).
    """
    from pipeline.evaluation.search import argmax

    return argmax(energy.given(context))


def log_ratio(energy: Energy, x: Tensor, other: Tensor) -> Tensor:
    """log p(x) / p(x') = E(x') - E(x), by row, `[N]` nats: Z cancels, and need not be known.

    `x` and `other` are positions [N, *shape] in the energy's domain. Raises `ValueError` where they
    are of another shape.
    """
    for rows in (x, other):
        if tuple(rows.shape[1:]) != energy.shape:
            raise ValueError(
                f"positions are [N, {', '.join(map(str, energy.shape))}], not {list(rows.shape)}"
            )
    from pipeline.energies.frozen import evaluating

    with evaluating(energy):
        return energy(other) - energy(x)
