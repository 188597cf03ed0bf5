"""An energy whose network is a module of the user's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from pipeline.common.errors import ArgumentError
from pipeline.energies.deep import DeepEnergy
from pipeline.energies.discrete import enumerated
from pipeline.energies.frozen import frozen


class CustomEnergy(DeepEnergy):
    """E(x) = module(x) + |x|^2 / (2 `base_scale`^2) on R^d: a base term is added to the `module`,
    `[N, *shape] -> [N]`, which keeps Z finite where the module alone may have none. So exp(-module)
    is learned relative to N(0, `base_scale`^2). In a box, and over levels, E is the module as it
    stands; so it is everywhere in `pipeline.energies.function.FunctionEnergy`.

    Raises `ArgumentError` where the module is not of that form, or holds batch normalisation or
    dropout: an energy is one function of the position, whatever the batch around it.
    """

    def __init__(
        self,
        shape: Sequence[int],
        module: nn.Module,
        levels: int | None,
        base_scale: float,
        box: tuple[float, float] | None,
    ) -> None:
        super().__init__(shape, base_scale, box, levels)
        self.module, called = module, type(module).__name__
        if not isinstance(module, nn.Module):
            raise ArgumentError("module", called, "must be a torch.nn.Module")
        for part in module.modules():
            if isinstance(part, _NormBase | _DropoutNd):
                remedy = "refused in an energy: its value would depend on the batch or on chance"
                raise ArgumentError("module", type(part).__name__, remedy)
        odd = [
            f"{name} ({tensor.dtype})"
            for name, tensor in module.state_dict().items()
            if tensor.dtype != torch.float32
        ]
        if odd:
            raise ArgumentError(
                "module",
                ", ".join(odd),
                "weights travel as float32; register such buffers with persistent=False",
            )
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise ArgumentError("module", called, "has no parameter to learn")
        wanted = f"must map [2, {', '.join(map(str, shape))}] to [2]"
        try:
            with torch.no_grad():
                value = frozen(module)(self.sample_base(2, torch.Generator().manual_seed(0)))
        except Exception as error:
            raise ArgumentError("module", called, f"{wanted}; it failed ({error})") from error
        if not isinstance(value, Tensor) or value.shape != (2,):
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ArgumentError("module", called, f"{wanted}; it gave {given}")

    def network(self, x: Tensor) -> Tensor:
        value: Tensor = self.module(x)
        return value

    def log_sum(self) -> Tensor | None:
        return enumerated(self)
