"""Ratios of Z between two laws from samples of both, and log Z along a ladder of them."""

from __future__ import annotations

import math
from typing import NamedTuple

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


class BridgeEstimate(NamedTuple):
    """The sum over pairs of neighbouring laws of Bennett's log ratios, nats; the `influence` [N] of
    each of N independent systems on it; and how many of these are `counting`.
    """

    log_ratio: float
    influence: Tensor
    counting: float


@torch.no_grad()
def bridge(log_weights: Tensor) -> BridgeEstimate | None:
    """Bridges laws in a row by the `log_weights` [T, 2, R - 1, N] of T transitions of N systems,
    each of which is in every one of the R laws, forward and backward between neighbours
    (`pipeline.kernels.replica_exchange.swap`). None where a weight is not finite.

    Systems are independent, but not their transitions nor their pairs. So the variance is the
    sandwich's (Huber 1967) over systems: that of sum_i s_i, with

        s_i = sum_k (sum_t f(a_kti - c_k) - f(b_kti + c_k)) / H_k,   H_k = sum_ti f (1 - f) of both,

    the influence of system i, and c_k Bennett's log ratio of pair k. The systems that count are the
    effective number of the sums over t of f, of the pair and the direction where that is least.
    """
    if not bool(log_weights.isfinite().all()):
        return None
    forward, backward = log_weights.double().unbind(1)
    ratios = bennett(*(some.transpose(0, 1).flatten(1) for some in (forward, backward)))
    ahead = torch.sigmoid(forward - ratios[:, None])
    back = torch.sigmoid(backward + ratios[:, None])
    slopes = (ahead * (1 - ahead) + back * (1 - back)).sum((0, 2))
    influence = ((ahead - back).sum(0) / slopes[:, None]).sum(0)
    counts = torch.stack([ahead.sum(0), back.sum(0)])
    counting = counts.sum(-1).square() / counts.square().sum(-1)
    return BridgeEstimate(float(ratios.sum()), influence, float(counting.min()))


def along_ladder(log_weights: Tensor, base: float) -> Bridged | None:
    """log Z of a ladder's model from log Z_0 = `base` and the `log_weights` of a round (`bridge`).
    Chain i of a rung meets chain i of others alone: these are a system. None where a weight is not
    finite.
    """
    found = bridge(log_weights)
    if found is None:
        return None
    return Bridged(
        log_partition=base + found.log_ratio,
        variance=variance_of(found.influence),
        systems=len(found.influence),
        counting=found.counting,
    )


def variance_of(influence: Tensor) -> float:
    """The variance of the sum of independent systems' influences [N], whose sum is 0."""
    count = len(influence)
    return float(influence.square().sum()) * count / max(count - 1, 1)
