"""An energy's weights as one flat array, and back."""

from __future__ import annotations

import warnings

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


@torch.no_grad()
def adopt(energy: nn.Module, flat: np.ndarray) -> None:
    """Lets the energy's tensors be `flat` (see `flatten`), from now on only to be read.

    On the CPU they are views of its memory, which behind Ray is the node's one copy; on a device
    they are copied to once, as are those that lie in memory in another order (channels_last).
    Raises `ValueError` where they are not as many.
    """
    state = energy.state_dict(keep_vars=True)
    sizes = [tensor.numel() for tensor in state.values()]
    if flat.size != sum(sizes):
        raise ValueError(f"weights of {flat.size} numbers do not fit an energy of {sum(sizes)}")
    for tensor, piece in zip(state.values(), read_only_tensor(flat).split(sizes), strict=True):
        view = piece.view(tensor.shape)
        if tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.dtype == view.dtype:
            tensor.data = view
        else:
            tensor.copy_(view)


def read_only_tensor(array: np.ndarray) -> Tensor:
    """`array` as a tensor over the same memory, which may be shared and read-only: not to be
    written through.

    torch has no read-only tensors and warns of that; the promise above makes the warning moot.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def signature(energy: nn.Module) -> list[list[object]]:
    """[[name, shape, dtype], ...] of the state dict: what a checkpoint must fit, stored in its
    manifest.
    """
    return [
        [name, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
        for name, tensor in energy.state_dict().items()
    ]
