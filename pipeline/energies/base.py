"""What an energy is, and a target: an energy as a kernel sees it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import CheckpointError


class Energy(nn.Module):
    """`forward(x)`: `[N, *shape] -> [N]`, in nats; p(x) = exp(-E(x)) / Z.

    `binary` tells the domain: {0, 1}^d, or R^d, on which a Gaussian base term must make Z finite. `blocks` names the
    conditionals a Gibbs kernel sweeps over, in order; empty where there are none.
    """

    binary: bool = False
    blocks: Sequence[str] = ()

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.dimension = math.prod(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`E(x)` [N] and `grad_x E(x)` [N, *shape], by autograd; a model may bring its own faster way."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self(x)
            (gradient,) = torch.autograd.grad(energy.sum(), x)
        return energy.detach(), gradient

    def conditional(self, block: str, value: Tensor) -> Tensor:
        """The block's Bernoulli means given the value of the block before it."""
        raise NotImplementedError(f"{type(self).__name__} has no block {block!r}")

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` positions that know nothing of the data, `[count, *shape]`: where chains start."""
        raise NotImplementedError

    def initialise(self, mean: Tensor) -> None:
        """Hook for parameters that are best started from the data's mean, `[*shape]`; none by default."""

    def log_partition(self) -> float | None:
        """log Z in nats where it can be had exactly, else None."""
        return None


class Target:
    """An energy bound to the weights it has now: what a kernel samples from.

    Energies and gradients cached in a kernel's State hold only under the weights that made them; after `adopt`, call the
    kernel's `init` again.
    """

    def __init__(self, energy: Energy) -> None:
        self._energy = energy.eval()
        for parameter in energy.parameters():
            parameter.requires_grad_(False)
        self.blocks = energy.blocks

    def energy(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self._energy(x)

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._energy.energy_and_gradient(x)

    def conditional(self, block: str, value: Tensor) -> Tensor:
        with torch.no_grad():
            return self._energy.conditional(block, value)


def flatten(energy: nn.Module) -> np.ndarray:
    """All tensors of the state dict end to end, `[P]`: one object to publish."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in energy.state_dict().values()]).cpu().numpy()


@torch.no_grad()
def unflatten_(energy: nn.Module, flat: np.ndarray) -> None:
    """Copies `flat` (see `flatten`) into the energy's own tensors."""
    state = energy.state_dict()
    total = sum(tensor.numel() for tensor in state.values())
    if flat.size != total:
        raise CheckpointError(f"weights of {flat.size} numbers do not fit an energy of {total}")
    source, offset = read_only_tensor(flat), 0
    for tensor in state.values():
        tensor.copy_(source[offset : offset + tensor.numel()].view_as(tensor))
        offset += tensor.numel()


def read_only_tensor(array: np.ndarray) -> Tensor:
    """`array` as a tensor over the same memory, which may be shared and read-only: not to be written through.

    torch has no read-only tensors and warns of that; the promise above makes the warning moot.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def signature(energy: nn.Module) -> list[list[object]]:
    """[[name, shape, dtype], ...] of the state dict: what a checkpoint must fit, stored in its manifest."""
    return [
        [name, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] for name, tensor in energy.state_dict().items()
    ]
