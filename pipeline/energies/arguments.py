"""Arguments of a trained energy: converted where their meaning is plain, else refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.common.errors import ArgumentError
from pipeline.energies.base import Energy

E = TypeVar("E", bound=Energy)


def numbers(energy: Energy, value: Any, argument: str) -> Tensor:
    """Returns `value`, a tensor, a NumPy array or nested lists of real numbers of any type, as a
    tensor of the energy's precision and on its device. A graph is kept.

    Raises `ArgumentError` about `argument` where it is no such thing, or where a value is missing
    or not finite, or is beyond that precision.
    """
    if np.ma.is_masked(value):
        raise ArgumentError(argument, type(value).__name__, "has masked values; fill them in")
    if not isinstance(value, Tensor):
        try:
            array = np.array(value, order="C")
            wide = array.dtype == np.longdouble  # which PyTorch does not have
            kind = np.dtype(np.float64) if wide else array.dtype.newbyteorder("=")
            value = torch.as_tensor(array.astype(kind, copy=False))
        except (TypeError, ValueError, RuntimeError) as error:
            remedy = f"should be a tensor or an array of numbers ({error})"
            raise ArgumentError(argument, type(value).__name__, remedy) from error
    odd = value.layout != torch.strided or value.is_quantized or value.is_nested or value.is_meta
    if odd:
        remedy = "is sparse, quantized, nested or without values; should be a plain tensor"
        raise ArgumentError(argument, type(value).__name__, remedy)
    if value.is_complex():
        raise ArgumentError(argument, value.dtype, "should be real numbers")
    made: Tensor = value.to(_like(energy, value))
    if _visible() and not bool(torch.isfinite(made.detach()).all()):
        raise ArgumentError(argument, _first(made, ~torch.isfinite(made)), "should be finite")
    return made


def positions(energy: Energy, value: Any, argument: str = "x") -> Tensor:
    """Returns `value` as positions `[N, *shape]` of the energy.

    Raises `ArgumentError` about `argument` where it has another shape, or lies outside the
    energy's domain; latent columns may hold means.
    """
    x = _rows(numbers(energy, value, argument), energy.shape, argument)
    if energy.contexts > 1 and len(x) % energy.contexts:
        remedy = f"give one position, or as many, for each of {energy.contexts} contexts"
        raise ArgumentError(argument, f"{len(x)} positions", remedy)
    if not _visible() or (energy.real and energy.box is None):
        return x
    if energy.kinds is not None:
        _check_kinds(energy.kinds, x, argument)
        return x
    if energy.box is not None:
        low, high = (x.new_tensor(end) for end in energy.box)
        remedy = f"lies outside the box [{energy.box[0]:g}, {energy.box[1]:g}]"
        values, outside = x, (x < low) | (x > high)
    else:
        assert energy.levels is not None
        values = energy.visible(x)
        outside = (values != values.floor()) | (values < 0) | (values >= energy.levels)
        remedy = f"should be one of 0, ..., {energy.levels - 1}"
    if bool(outside.any()):
        raise ArgumentError(argument, _first(values, outside), remedy)
    return x


def _check_kinds(kinds: Sequence[int], x: Tensor, argument: str) -> None:
    """Raises `ArgumentError` about `argument` where a component of positions `x` is no level of its
    kind.
    """
    flat, most = x.flatten(1), x.new_tensor(kinds)
    outside = ((flat != flat.floor()) | (flat < 0) | (flat >= most)) & (most > 0)
    if bool(outside.any()):
        row, number = outside.nonzero()[0].tolist()
        value = f"{float(flat[row, number]):g} in row {row}, component {number}"
        remedy = f"should be one of 0, ..., {kinds[number] - 1}"
        raise ArgumentError(argument, value, remedy)


def data_rows(energy: Energy, value: Any, argument: str = "x") -> Tensor:
    """Returns `value` as rows of data `[N, *data_shape]`: positions without latent columns.

    Raises `ArgumentError` about `argument` where it has another shape, or lies outside the
    energy's domain.
    """
    if energy.data_shape == energy.shape:
        return positions(energy, value, argument)
    x = _rows(numbers(energy, value, argument), energy.data_shape, argument)
    wrong = (x != x.floor()) | (x < 0) | (x >= (energy.levels or 2))
    if _visible() and bool(wrong.any()):
        remedy = f"should be one of 0, ..., {(energy.levels or 2) - 1}"
        raise ArgumentError(argument, _first(x, wrong), remedy)
    return x


def contexts(energy: Energy, value: Any, argument: str = "context") -> Tensor:
    """Returns `value` as contexts `[N, *context_shape]` of the energy.

    Raises `ArgumentError` where it conditions on none, and about `argument` where it has another
    shape, or a label is none of the energy's.
    """
    if energy.context_shape is None:
        raise ArgumentError("energy", type(energy).__name__, "conditions on no context")
    c = _rows(numbers(energy, value, argument), energy.context_shape, argument)
    if not len(c):
        raise ArgumentError(argument, "no rows", "should be one context at least")
    classes = getattr(energy, "classes", None)
    if classes is not None and _visible():
        wrong = (c != c.floor()) | (c < 0) | (c >= classes)
        if bool(wrong.any()):
            raise ArgumentError(
                argument, _first(c, wrong), f"should be a label of 0, ..., {classes - 1}"
            )
    return c


def check_energy(energy: Any) -> None:
    """Raises `ArgumentError` where `energy` is no `Energy`."""
    if not isinstance(energy, Energy):
        remedy = "should be an energy, as pipeline.load returns"
        raise ArgumentError("energy", type(energy).__name__, remedy)


def guarded(energy: E) -> E:
    """Returns the energy itself, which from now on checks and converts what it is called with, and
    the contexts that it is bound to. Replicas that kernels make of it (`frozen`) do not.
    """
    energy.guarded = True
    energy.register_forward_pre_hook(_checked, with_kwargs=True)
    return energy


def _checked(
    energy: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Checks and converts the one argument that an energy is called with, by place or as `x`."""
    assert isinstance(energy, Energy)
    if not energy.guarded:
        return arguments, named
    given = (*arguments, *named.values())
    if len(given) != 1 or not set(named) <= {"x"}:
        called = ", ".join([*(type(one).__name__ for one in arguments), *named]) or "nothing"
        raise ArgumentError("arguments", called, "give x alone, positions [N, *shape]")
    return (positions(energy, given[0]),), {}


def _rows(value: Tensor, shape: tuple[int, ...], argument: str) -> Tensor:
    """Returns `value` where it is rows `[N, *shape]` with N at least 1. Raises `ArgumentError`."""
    wanted = f"should be [{', '.join(map(str, ('N', *shape)))}]"
    if tuple(value.shape) == shape:
        remedy = f"{wanted}; of a single one make a batch, {argument}[None]"
        raise ArgumentError(argument, f"shape {list(value.shape)}", remedy)
    if tuple(value.shape[1:]) != shape:
        raise ArgumentError(argument, f"shape {list(value.shape)}", wanted)
    return value


def _first(values: Tensor, wrong: Tensor) -> str:
    """Returns the first value that is wrong, and its place."""
    place = wrong.nonzero()[0].tolist()
    return f"{float(values[tuple(place)]):g} at {place}"


def _like(energy: Energy, value: Tensor) -> Tensor:
    """Returns a tensor of the energy's precision, on its device: of an energy without numbers of
    its own, of the precision of `value`, where that is one.
    """
    tensors = chain(energy.parameters(), energy.buffers())
    own = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    if own is None:
        return value if value.is_floating_point() else torch.zeros(())
    return own


def _visible() -> bool:
    """Returns whether values can be looked at: not within torch.func's transforms."""
    return torch._C._functorch.peek_interpreter_stack() is None
