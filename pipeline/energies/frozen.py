"""A module as a fixed function, whatever its owner does with the module itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def frozen(module: Module) -> Module:
    """A replica of `module` over the same memory: in evaluation mode, with parameters that ask for
    no gradient. The module itself stays as it is, and what is written into its tensors (by an
    optimizer, say) is seen in the replica. Tensors that are given other memory are seen once
    `follow` was called.
    """
    shared: dict[int, Tensor] = {id(tensor): tensor for tensor in module.buffers()}
    for parameter in module.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    replica = copy.deepcopy(module, dict(shared)).eval()
    follow(replica, module)
    for part in replica.modules():
        if getattr(part, "guarded", False):  # kernels know what they call it with
            part.guarded = False  # type: ignore[assignment]
    return replica


def follow(replica: nn.Module, module: nn.Module) -> None:
    """Lets the replica that `frozen` made of `module` have the memory that its tensors have now."""
    for own, theirs in pairs(replica, module):
        own.data = theirs.data
    replica.requires_grad_(False)  # an energy that is bound to contexts encodes them anew


def pairs(replica: nn.Module, module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The tensors of a replica that `frozen` made, each with that of `module` that it stands
    for.
    """
    return list(zip(_tensors(replica), _tensors(module), strict=True))


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """`module` and its parts in evaluation mode for as long as the context lasts, then in the modes
    that they were in.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
