"""Arguments of the library: taken where their meaning is plain, else refused by name."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.common.errors import ArgumentError
from pipeline.energies.arguments import positions
from pipeline.energies.base import Energy
from pipeline.energies.function import Function, FunctionEnergy


def on_domain(
    energy: Energy | Function,
    rows: Any,
    argument: str,
    levels: int | None = None,
    box: tuple[float, float] | None = None,
) -> tuple[Energy, Tensor]:
    """The energy as this project's parts take it, and the `rows`, an array or a tensor, as its
    positions `[N, *shape]`. A function is taken on R^d, unless `levels` or a `box` is given; an
    `Energy` has a domain of its own.

    Raises `ArgumentError` about `argument` where the rows are none, or not of the energy's domain,
    and about the energy, `levels` and `box` where one is not what it should be.
    """
    if isinstance(energy, Energy):
        if (levels, box) != (None, None):
            name, value = ("levels", levels) if box is None else ("box", box)
            remedy = f"leave it out: {type(energy).__name__} has a domain of its own"
            raise ArgumentError(name, value, remedy)
    else:
        _check_domain(levels, box)
        try:
            shape = tuple(np.shape(rows))
        except (TypeError, ValueError) as error:
            remedy = f"should be a tensor or an array of numbers ({error})"
            raise ArgumentError(argument, type(rows).__name__, remedy) from error
        if len(shape) < 2:
            remedy = "should be rows of positions, [N, *shape], such as [N, 1]"
            raise ArgumentError(argument, f"shape {list(shape)}", remedy)
        energy = FunctionEnergy(energy, shape[1:], levels=levels, box=box)
    x = positions(energy, rows, argument)
    if not len(x):
        raise ArgumentError(argument, "no rows", "should be one row at least")
    return energy, x


def _check_domain(levels: Any, box: Any) -> None:
    """Raises `ArgumentError` where these give no domain."""
    if levels is not None and box is not None:
        raise ArgumentError("box", box, "leave it out: positions over levels have no box")
    if levels is not None and not (isinstance(levels, int) and levels >= 2):
        remedy = "should be the number of levels q, 2 at least, of positions over {0, ..., q-1}"
        raise ArgumentError("levels", levels, remedy)
    if box is None:
        return
    ends = box if isinstance(box, tuple | list) and len(box) == 2 else (0, 0)
    numbers = all(isinstance(end, int | float) and math.isfinite(end) for end in ends)
    if not (numbers and ends[0] < ends[1]):
        raise ArgumentError("box", box, "should be (low, high), finite numbers with low < high")


def source_of(generator: Any, device: torch.device, seeds: bool = True) -> torch.Generator:
    """Returns a generator of random numbers on `device`: the one given, or, where `seeds` may be
    given, a new one of that seed. Raises `ArgumentError` where it is neither, or elsewhere.
    """
    if seeds and isinstance(generator, Integral) and not isinstance(generator, bool):
        return torch.Generator(device).manual_seed(int(generator))
    if not isinstance(generator, torch.Generator):
        remedy = f"should be a torch.Generator{' or a seed' if seeds else ''}"
        raise ArgumentError("generator", generator, remedy)
    if generator.device.type != device.type:
        remedy = f"should be on {device}, where the positions are"
        raise ArgumentError("generator", f"on {generator.device}", remedy)
    return generator


def check_whole(least: int = 1, **numbers: Any) -> None:
    """Raises `ArgumentError` where one of the `numbers`, by name, is no whole number, or is less
    than the `least`.
    """
    for name, value in numbers.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ArgumentError(name, value, f"should be a whole number, {least} at least")


def check_positive(**numbers: Any) -> None:
    """Raises `ArgumentError` where one of the `numbers`, by name, is not positive and finite."""
    for name, value in numbers.items():
        if not (isinstance(value, Real) and math.isfinite(value) and float(value) > 0):
            raise ArgumentError(name, value, "should be a positive number")


def check_finite(name: str, energies: Tensor, gradients: Tensor | None = None) -> None:
    """Raises `ArgumentError` about the argument `name`, rows of positions, where one of their
    `energies` [N], or of their `gradients` [N, *shape], is not finite.
    """
    for what, values in (("energy", energies), ("gradient", gradients)):
        if values is not None and not bool(values.isfinite().all()):
            place = (~values.isfinite()).nonzero()[0].tolist()
            value = f"{what} {float(values[tuple(place)])} at row {place[0]}"
            raise ArgumentError(name, value, f"should be where the {what} is finite")
