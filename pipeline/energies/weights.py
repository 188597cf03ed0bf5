"""An energy's weights as one flat array, and back."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn


def flatten(energy: nn.Module) -> np.ndarray:
    """All tensors of the state dict end to end, `[P]`: one object to publish."""
    return (
        torch.cat([tensor.detach().reshape(-1) for tensor in energy.state_dict().values()])
        .cpu()
        .numpy()
    )


@torch.no_grad()
def unflatten_(energy: nn.Module, flat: np.ndarray) -> None:
    """Copies `flat` (see `flatten`) into the energy's own tensors. Raises `ValueError` where they
    are not as many.
    """
    state = energy.state_dict()
    total = sum(tensor.numel() for tensor in state.values())
    if flat.size != total:
        raise ValueError(f"weights of {flat.size} numbers do not fit an energy of {total}")
    source, offset = read_only_tensor(flat), 0
    for tensor in state.values():
        tensor.copy_(source[offset : offset + tensor.numel()].view_as(tensor))
        offset += tensor.numel()


class Adoption:
    """Lets an energy's tensors be flat weights (see `flatten`), from then on only to be read."""

    def __init__(self, energy: nn.Module) -> None:
        self._tensors = list(energy.state_dict(keep_vars=True).values())
        self._sizes = [tensor.numel() for tensor in self._tensors]

    @torch.no_grad()
    def __call__(self, flat: np.ndarray) -> None:
        """On the CPU the tensors are then views of the memory of `flat`, which behind Ray may be
        the node's one copy; on a device they are copied to once, as are those that lie in memory
        in another order (channels_last). Raises `ValueError` where they are not as many.
        """
        if flat.size != sum(self._sizes):
            raise ValueError(
                f"weights of {flat.size} numbers do not fit an energy of {sum(self._sizes)}"
            )
        pieces = read_only_tensor(flat).split(self._sizes)
        for tensor, piece in zip(self._tensors, pieces, strict=True):
            view = piece.view(tensor.shape)
            here = tensor.device.type == "cpu" and tensor.dtype == view.dtype
            if here and tensor.is_contiguous():
                tensor.data = view
            else:
                tensor.copy_(view)


def read_only_tensor(array: np.ndarray) -> Tensor:
    """`array` as a tensor over the same memory, which may be shared and read-only: not to be
    written through.
    """
    _have_torch_warned()
    return torch.from_numpy(array)


@cache
def _have_torch_warned() -> None:
    """torch has no read-only tensors, and warns of that once a process; the promise above makes the
    warning moot.
    """
    array = np.zeros(1)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        torch.from_numpy(array)


def signature(energy: nn.Module) -> list[list[object]]:
    """[[name, shape, dtype], ...] of the state dict: what a checkpoint must fit, stored in its
    manifest.
    """
    return [
        [name, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
        for name, tensor in energy.state_dict().items()
    ]
