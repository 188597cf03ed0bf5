"""An energy and its gradient as graphs of plain tensor operations, for any number of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx

from pipeline.energies.base import Energy
from pipeline.energies.given import ConditionalEnergy
from pipeline.energies.potts import PottsModel
from pipeline.energies.square_potts import SquarePotts

aten = torch.ops.aten
CHECKED = 7
"""Rows that a graph is checked with."""
NAMES = ("position", "context")
OUTPUTS = ("energy", "gradient")


def takes_context(energy: Energy) -> bool:
    """Returns whether E is of a position under a context. A classifier that sums its label out has
    an energy of positions alone.
    """
    return isinstance(energy, ConditionalEnergy) and getattr(energy, "class_conditional", True)


def inputs(energy: Energy, rows: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Positions `[rows, *shape]` of the base law, and under a conditional energy contexts `[rows,
    *context_shape]`: labels, or standard normal numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    position = energy.sample_base(rows, generator)
    if not takes_context(energy):
        return (position,)
    assert energy.context_shape is not None
    size, classes = (rows, *energy.context_shape), getattr(energy, "classes", None)
    if classes is not None:
        return position, torch.randint(classes, size, generator=generator).float()
    return position, torch.randn(size, generator=generator)


def values(energy: Energy, gradient: bool) -> Callable[..., tuple[Tensor, ...]]:
    """The function from a position, and a context where the energy takes one, to E [N] in nats, and
    with `gradient` also to what `Energy.energy_and_gradient` has.
    """

    def of(x: Tensor, *context: Tensor) -> tuple[Tensor, ...]:
        if not context:
            return energy.energy_and_gradient(x) if gradient else (energy(x),)
        assert isinstance(energy, ConditionalEnergy)
        encoding = energy.encode(*context)
        return energy.gradient_of(x, encoding) if gradient else (energy.of(x, encoding),)

    return of


def traced(energy: Energy, gradient: bool) -> ExportedProgram:
    """The graph of `values`; the first axis of what goes in and comes out is any number of rows.

    Raises whatever PyTorch raises where the energy decides by the values that it is given.
    """
    if isinstance(energy, PottsModel):
        energy = SquarePotts(energy)
    given = inputs(energy, _unlike_all_sizes(energy))
    table = {
        **core_aten_decompositions(),
        aten.convolution_backward.default: _convolution_backward,
        aten.avg_pool2d_backward.default: _avg_pool2d_backward,
    }
    with torch.no_grad():
        graph = make_fx(
            values(energy, gradient),
            decomposition_table=table,
            tracing_mode="symbolic",
            _allow_non_fake_inputs=True,
        )(*given)
        rows = Dim("rows")
        return torch.export.export(graph, given, dynamic_shapes=tuple({0: rows} for _ in given))


def _unlike_all_sizes(energy: Energy) -> int:
    """Returns a number of rows that no axis of the energy has: sizes that are alike would be taken
    for one and the same.
    """
    shapes = [energy.shape, energy.context_shape or (), (CHECKED, energy.dimension)]
    shapes += [tuple(tensor.shape) for tensor in energy.state_dict().values()]
    sizes = {size for shape in shapes for size in shape}
    return next(rows for rows in count(5) if rows not in sizes)


def _convolution_backward(
    pulled: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,  # noqa: ARG001
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Any,  # noqa: ARG001
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, None, None]:
    """The gradient of a convolution in its input: the transposed convolution, as large as that."""
    assert list(wanted) == [True, False, False]
    assert not transposed
    missing = [
        x.shape[2 + n]
        - ((pulled.shape[2 + n] - 1) * stride[n] - 2 * padding[n])
        - dilation[n] * (weight.shape[2 + n] - 1)
        - 1
        for n in range(len(stride))
    ]
    found = aten.convolution(pulled, weight, None, stride, padding, dilation, True, missing, groups)
    return found, None, None


def _avg_pool2d_backward(
    pulled: Tensor,
    x: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,  # noqa: ARG001
    count_include_pad: bool,  # noqa: ARG001
    divisor: int | None,
) -> Tensor:
    """The gradient of an average over windows that do not overlap: each value's share is one over
    the number in its window, which is smaller at an odd side's end.
    """
    assert list(stride or window) == list(window)
    assert not any(padding)
    assert divisor is None
    for n, size in enumerate(window):
        side, axis = x.shape[2 + n], 2 + n
        pulled = pulled.repeat_interleave(size, axis).narrow(axis, 0, side)
        whole = side // size * size
        shares = torch.full((side,), 1 / size, dtype=x.dtype, device=x.device)
        if whole < side:
            shares = torch.cat(
                [shares[:whole], torch.full_like(shares[whole:], 1 / (side - whole))]
            )
        pulled = pulled * shares.view(-1, *(1,) * (3 - axis))
    return pulled
