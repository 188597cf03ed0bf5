"""Deep energies: E(x) = f_theta(x) + E_0(x), with f_theta a network.

On R^d the Gaussian base term E_0 = |x|^2 / (2 s^2) keeps Z finite where the network alone may have
none; in a box E_0 = 0. Networks use SiLU, which is smooth: Langevin dynamics needs a gradient that
is Lipschitz, and ReLU energies are piecewise flat (Du & Mordatch 2019, appendix; Du et al. 2021 use
Swish = SiLU). Spectral normalisation (Miyato et al. 2018) bounds the slope of f and so the drift.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as spectrally_normalised

from pipeline.energies.base import Energy, squared_norm


class DeepEnergy(Energy):
    """A network `[N, *shape] -> [N]` on R^d with a Gaussian base term of scale `base_scale`, in a
    box, or over levels.
    """

    def __init__(
        self,
        shape: Sequence[int],
        base_scale: float,
        box: tuple[float, float] | None,
        levels: int | None = None,
    ) -> None:
        super().__init__(shape, levels=levels, box=box, base_scale=base_scale)

    def network(self, x: Tensor) -> Tensor:
        """f_theta(x), `[N, *shape] -> [N]`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.with_base(self.network(x), x)

    def tempered(self, x: Tensor, beta: Tensor) -> Tensor:
        """(1 - beta) E_0 + beta (f + E_0) = beta f + E_0."""
        return self.with_base(beta * self.network(x), x)

    def with_base(self, values: Tensor, x: Tensor) -> Tensor:
        """`values` [N] + E_0(x)."""
        if self.levels is not None or self.box is not None:
            return values
        return torch.add(values, squared_norm(x), alpha=0.5 / self.base_scale**2)

    def with_base_gradient(self, gradient: Tensor, x: Tensor) -> Tensor:
        """`gradient` [N, d], which it overwrites, + grad E_0(x), as [N, *shape]."""
        if self.levels is None and self.box is None:
            gradient.add_(x.flatten(1), alpha=1 / self.base_scale**2)
        return gradient.view_as(x)


@torch.no_grad()
def small(layer: nn.Linear) -> nn.Linear:
    """The last layer, started small, so that E starts near its base."""
    layer.weight.mul_(0.1)
    layer.bias.zero_()
    return layer


def maybe_normalised(layer: nn.Module, spectral_norm: bool) -> nn.Module:
    return spectrally_normalised(layer) if spectral_norm else layer


@torch.no_grad()
def iterate_spectral_norms(energy: nn.Module) -> None:
    """One power iteration per spectrally normalised layer (Miyato et al. 2018, algorithm 1).

    The learner calls it once a step, after the update: forward passes leave the buffers alone, so
    that every copy of one version is the same function.
    """
    for layer in energy.modules():
        if nn.utils.parametrize.is_parametrized(layer):
            training = layer.training
            layer.train()
            for name in layer.parametrizations:  # type: ignore[union-attr]
                getattr(layer, name)
            layer.train(training)
