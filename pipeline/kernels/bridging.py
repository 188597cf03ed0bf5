"""Ratios of Z between two laws from samples of both, and log Z along a ladder of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pipeline.common.types import Bridged

PRECISION = 1e-9


@torch.no_grad()
def bennett(forward: Tensor, backward: Tensor) -> Tensor:
    """log (Z_1 / Z_0), `[...]` float64, from the log weights `forward` a [..., N] of particles that
    went from law 0 to law 1, and `backward` b [..., M] of particles that began at draws of law 1
    (Bennett 1976; Crooks 2000, equation 12): the number c with

        sum_i f(a_i - c + log(M / N)) = sum_j f(b_j + c - log(M / N)),   f(x) = 1 / (1 + exp(-x)).

    Of all estimates from both sets it has the least variance where these are many (Shirts et al.
    2003). The left side less the right one falls as c rises, so that bisection finds it. It is nan
    where a weight is.
    """
    shift = math.log(backward.shape[-1] / forward.shape[-1])
    forward, backward = forward.double() + shift, backward.double() - shift
    low = torch.minimum(forward.amin(-1), -backward.amax(-1)) - 50.0
    high = torch.maximum(forward.amax(-1), -backward.amin(-1)) + 50.0
    finest = PRECISION * torch.maximum(low.abs(), high.abs()).clamp(min=1.0)
    while bool((high - low > finest).any()):
        middle = (low + high)[..., None] / 2
        # in logs: far from the root both sums are below the least float
        ahead = torch.logsumexp(logsigmoid(forward - middle), -1)
        back = torch.logsumexp(logsigmoid(backward + middle), -1)
        low = torch.where(ahead > back, middle[..., 0], low)
        high = torch.where(ahead > back, high, middle[..., 0])
    return (low + high) / 2


@torch.no_grad()
def along_ladder(log_weights: Tensor, base: float) -> Bridged | None:
    """log Z of a ladder's model from log Z_0 = `base` and the `log_weights` [T, 2, R - 1, N] of T
    transitions (`pipeline.kernels.replica_exchange.swap`): log Z_0 and Bennett's log ratios c_k of
    the R - 1 pairs of neighbours, added up. None where a weight is not finite.

    Chain i of a rung meets chain i of others alone. So the N systems are independent, but not their
    transitions nor their pairs. The variance is the sandwich's (Huber 1967) over systems: that of
    sum_i s_i, with

        s_i = sum_k (sum_t f(a_kti - c_k) - f(b_kti + c_k)) / H_k,   H_k = sum_ti f (1 - f) of both,

    what system i moves log Z by. The systems that count are the effective number of the sums over t
    of f, of the pair and the direction where that is least.
    """
    forward, backward = log_weights.double().unbind(1)
    if not bool(log_weights.isfinite().all()):
        return None
    pairs = [some.transpose(0, 1).flatten(1) for some in (forward, backward)]
    ratios = bennett(*pairs)
    ahead = torch.sigmoid(forward - ratios[:, None])
    back = torch.sigmoid(backward + ratios[:, None])
    slopes = (ahead * (1 - ahead) + back * (1 - back)).sum((0, 2))
    moved = ((ahead - back).sum(0) / slopes[:, None]).sum(0)
    counts = torch.stack([ahead.sum(0), back.sum(0)])
    counting = counts.sum(-1).square() / counts.square().sum(-1)
    systems = log_weights.shape[-1]
    return Bridged(
        log_partition=base + float(ratios.sum()),
        variance=float(moved.square().sum()) * systems / max(systems - 1, 1),
        systems=systems,
        counting=float(counting.min()),
    )
