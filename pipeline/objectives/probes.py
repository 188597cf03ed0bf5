"""Estimators of a trace: which directions the curvature is taken along.

    tr H = E[(1/P) sum_p v_p.H v_p]   for any law of the v with E[(1/P) sum_p v_p v_p'] = I

so that every estimator here is a law of directions, `[P, N, *shape]`, drawn for each row, and an
objective a function of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.energies.base import Energy

TraceEstimator = Callable[[Energy, Tensor, int, torch.Generator], Tensor]
"""`(energy, x [N, *shape], probes, generator) -> directions [P, N, *shape]`."""


def basis(
    energy: Energy,
    x: Tensor,
    probes: int,  # noqa: ARG001
    generator: torch.Generator,  # noqa: ARG001
) -> Tensor:
    """The exact trace: sqrt(d) e_i for i = 1, ..., d, whatever `probes` says."""
    d = energy.dimension
    return (
        (math.sqrt(d) * torch.eye(d, dtype=x.dtype, device=x.device))
        .view(d, 1, *energy.shape)
        .expand(d, *x.shape)
    )


def rademacher(
    energy: Energy,  # noqa: ARG001
    x: Tensor,
    probes: int,
    generator: torch.Generator,
) -> Tensor:
    """Signs (Hutchinson 1990). Var[v.H v] = 2 sum_{i != j} H_ij^2 for symmetric H: the least of
    independent components.
    """
    return (
        torch.empty((probes, *x.shape), dtype=x.dtype, device=x.device)
        .random_(2, generator=generator)
        .mul_(2)
        .sub_(1)
    )


def gaussian(
    energy: Energy,  # noqa: ARG001
    x: Tensor,
    probes: int,
    generator: torch.Generator,
) -> Tensor:
    """N(0, I): Var[v.H v] = 2 |H|_F^2."""
    return torch.empty((probes, *x.shape), dtype=x.dtype, device=x.device).normal_(
        generator=generator
    )


def sphere(energy: Energy, x: Tensor, probes: int, generator: torch.Generator) -> Tensor:
    """Uniform on the sphere of radius sqrt(d):

    Var[v.H v] = 2 d / (d + 2) (|H|_F^2 - (tr H)^2 / d)
    """
    v = gaussian(energy, x, probes, generator).flatten(2)
    return (v * (math.sqrt(energy.dimension) / v.norm(dim=2, keepdim=True))).view(probes, *x.shape)


def orthogonal(energy: Energy, x: Tensor, probes: int, generator: torch.Generator) -> Tensor:
    """`sphere`, each row's directions orthogonal to one another; at most d of them."""
    v = gaussian(energy, x, probes, generator).flatten(2).permute(1, 2, 0)
    q = torch.linalg.qr(v).Q
    # the sign of R's diagonal is the algorithm's choice: a sign of our own makes each column
    # uniform on the sphere
    sign = (
        torch.empty((len(x), 1, probes), dtype=x.dtype, device=x.device)
        .bernoulli_(0.5, generator=generator)
        .mul_(2)
        .sub_(1)
    )
    return (math.sqrt(energy.dimension) * q * sign).permute(2, 0, 1).reshape(probes, *x.shape)


def hutch_pp(energy: Energy, x: Tensor, probes: int, generator: torch.Generator) -> Tensor:
    """Hutch++ (Meyer, Musco, Musco & Woodruff 2021, algorithm 1), about a third of `probes` for
    each of its three uses:

        tr H = tr(Q'H Q) + tr((I - Q Q')H(I - Q Q')),
        Q an orthonormal basis of H S, S random signs

    with the first trace exact and the second by Hutchinson on projected signs. Q carries no graph:
    given Q the identity holds for every H, so that the gradient in the parameters is unbiased too.
    What is returned are the directions of both traces, scaled to be averaged; the products H S come
    on top of them, and cost a double backward each, without a graph.
    """
    sketched = probes // 3
    s = rademacher(energy, x, sketched, generator)
    products = torch.stack([_product(energy, x, v) for v in s]).flatten(2)  # [m, N, d]
    q = torch.linalg.qr(products.permute(1, 2, 0)).Q  # [N, d, m]
    g = (
        rademacher(energy, x, probes - 2 * sketched, generator).flatten(2).permute(1, 2, 0)
    )  # [N, d, k]
    g = g - q @ (q.transpose(1, 2) @ g)
    total = sketched + g.shape[2]
    directions = torch.cat([math.sqrt(total) * q, math.sqrt(total / g.shape[2]) * g], 2)
    return directions.permute(2, 0, 1).reshape(total, *x.shape)


def _product(energy: Energy, x: Tensor, v: Tensor) -> Tensor:
    """H v, `[N, *shape]`, without a graph."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (product,) = torch.autograd.grad((energy.differentiable_gradient(x) * v).sum(), x)
    return product.detach()


PROBES: dict[str, TraceEstimator] = {
    "basis": basis,
    "rademacher": rademacher,
    "gaussian": gaussian,
    "sphere": sphere,
    "orthogonal": orthogonal,
    "hutch_pp": hutch_pp,
}
