"""Training energy-based models p(x) = exp(-E(x)) / Z from streams of persistent Markov chains.

Importing this package is cheap: neither torch nor ray is loaded until something asks for them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pipeline.common.version import VERSION

__version__ = VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from torch import Tensor, nn

    from pipeline import library as library
    from pipeline.energies.base import Energy
    from pipeline.evaluation.search import Found
    from pipeline.runs.results import Run


def __getattr__(name: str) -> Any:
    """Loads `pipeline.library`, the parts by themselves, when it is asked for."""
    if name == "library":
        return importlib.import_module("pipeline.library")
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")


def load(
    url: str | Path,
    energy: nn.Module | None = None,
    features: Sequence[Callable[[Tensor], Tensor]] | None = None,
) -> Energy:
    """The trained energy of a run, as an `nn.Module` mapping `[N, *shape] -> [N]` (nats), with its
    EMA weights.

    `url` is a run's output (its newest complete checkpoint is taken), one checkpoint, or a folder
    that `python -m pipeline.export` wrote weights to, on any fsspec file system; `energy` is the
    module, and `features` are the functions, that the run was given in code, where it was. Ray is
    not needed. Raises `CheckpointError` where there is no checkpoint, its checksums do not hold, or
    its parameters do not fit, `ConfigError` where no storage answers at the URL, and
    `ArgumentError` where an argument is of no type that it may have.

    The energy takes tensors and NumPy arrays of any real type: rows as the run learned from them.
    Of a run with data.scale, `energy.row_scale.scaled(x)` are those for rows `[N, *shape]` in
    their own units, and `energy.row_scale.in_own_units(x)` is the way back; else it is None. It
    raises `ArgumentError` for positions of another shape or outside its domain, and for values that
    are not finite.
    """
    from pipeline.assembly.load import load_energy

    return load_energy(url, energy, features)


def open_run(
    url: str | Path,
    energy: nn.Module | None = None,
    features: Sequence[Callable[[Tensor], Tensor]] | None = None,
) -> Run:
    """The run with its output at `url`, or one checkpoint of it, as `pipeline.train.run` returned
    it: its figures as a mapping, `curves`, `samples`, `energy`, `report` (see
    `pipeline.runs.results.Run`). It may be done, or go on.

    Arguments are those of `load`. Ray is not needed. Raises `CheckpointError` where there is no
    checkpoint or this version cannot take it up, `ConfigError` where no storage answers at the URL,
    and `ArgumentError` where an argument is of no type that it may have.
    """
    from pipeline.runs.results import run_at

    return run_at(url, energy, features)


def argmax_y(energy: Energy, context: Tensor | np.ndarray) -> Found:
    """The most probable y under each context x [N, *context_shape] of a conditional energy,
    argmax_y p(y | x): Z(x) cancels.

    `position` [N, *shape], its `energy` [N] in nats, and whether it is `exact`: along a chain by
    Viterbi's algorithm, of at most 2^20 states by enumeration, else the best that annealed chains
    with restarts met (see `pipeline.evaluation.search`). Raises `ArgumentError` where the energy
    conditions on nothing, or the contexts are none of its own.
    """
    from pipeline.common.errors import ArgumentError
    from pipeline.energies.arguments import check_energy, contexts
    from pipeline.evaluation.search import argmax

    check_energy(energy)
    bound = energy.given(contexts(energy, context))
    if bound is energy:
        raise ArgumentError("energy", type(energy).__name__, "conditions on no context")
    return argmax(bound)


def features(energy: Energy, x: Tensor | np.ndarray) -> Tensor:
    """The values of the hidden units under data rows x [N, *shape], `[N, units]`: of a Boltzmann
    machine their means (in a deep one those of mean field, layer after layer), of a network the
    last hidden layer.

    Raises `ArgumentError` where the energy has no hidden units, or x are no rows of its.
    """
    from pipeline.common.errors import ArgumentError
    from pipeline.energies.arguments import check_energy, data_rows
    from pipeline.energies.frozen import evaluating

    check_energy(energy)
    with evaluating(energy):
        found = energy.activations(data_rows(energy, x))
    if found is None:
        remedy = "has no hidden units; Boltzmann machines, mlp, label_mlp and conv have"
        raise ArgumentError("energy", type(energy).__name__, remedy)
    return found


def log_ratio(energy: Energy, x: Tensor | np.ndarray, other: Tensor | np.ndarray) -> Tensor:
    """log p(x) / p(x') = E(x') - E(x), by row, `[N]` nats: Z cancels, and need not be known.

    `x` and `other` are positions [N, *shape] in the energy's domain, tensors or NumPy arrays of any
    real type; one of them may be a single row. Raises `ArgumentError` where they are of another
    shape, outside that domain, or not finite.
    """
    from pipeline.common.errors import ArgumentError
    from pipeline.energies.arguments import check_energy, positions
    from pipeline.energies.frozen import evaluating

    check_energy(energy)
    x, other = positions(energy, x, "x"), positions(energy, other, "other")
    if len(x) != len(other) and 1 not in (len(x), len(other)):
        raise ArgumentError("other", f"{len(other)} rows", f"x has {len(x)}; give as many")
    with evaluating(energy):
        return energy(other) - energy(x)
