"""An Ising model small enough to be drawn from exactly, and for its law to be known."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pipeline.common.errors import ConfigError
from pipeline.config.data import IsingData
from pipeline.data.base import DataSet, held_out_of, in_memory, split

SITES = 20


def ising(config: IsingData) -> DataSet:
    """Draws `rows` of p(x) = exp(sum_<ij> J_ij s_i s_j + sum_i B_i s_i) / Z, s = 2x - 1 in {-1, 1},
    on the grid `shape` with free edges (Ising 1925), the last `held_out` kept out; J ~ N(0,
    coupling^2), B ~ N(0, field^2). By enumeration.

    Raises `ConfigError` where the grid is too large, or no training row is left.
    """
    sites = math.prod(config.shape)
    if not config.shape or sites > SITES:
        raise ConfigError(
            "data.shape",
            list(config.shape),
            f"the sides of a grid of at most {SITES} sites, such as [4,4]",
        )
    held_out_of(config.held_out, config.rows)
    random = np.random.RandomState(config.split_seed)
    field = config.field * random.randn(*config.shape)
    couplings = [
        config.coupling * random.randn(*(n - (k == axis) for k, n in enumerate(config.shape)))
        for axis in _axes(config)
    ]
    x = (np.arange(2**sites)[:, None] >> np.arange(sites) & 1).reshape(-1, *config.shape)
    log_weights = _log_weights(2.0 * x - 1, field, couplings)
    log_z = np.logaddexp.reduce(log_weights)
    chosen = random.choice(len(x), config.rows, p=np.exp(log_weights - log_z))
    train, held_out = split(x[chosen], config.held_out, config.split_seed)

    def log_density(rows: Tensor) -> Tensor:
        spins = 2 * rows.double().numpy() - 1
        return torch.from_numpy(_log_weights(spins, field, couplings) - log_z)

    return in_memory(train, held_out, config.noise, log_density)


def _axes(config: IsingData) -> range:
    return range(len(config.shape))


def _log_weights(s: np.ndarray, field: np.ndarray, couplings: list[np.ndarray]) -> np.ndarray:
    """sum_<ij> J_ij s_i s_j + sum_i B_i s_i of spins `[N, *shape]`, `[N]`; `couplings` of
    neighbours along each axis.
    """
    total: np.ndarray = (s * field).reshape(len(s), -1).sum(1)
    for axis, coupling in enumerate(couplings):
        length = s.shape[axis + 1]
        ahead, behind = s.take(range(1, length), axis + 1), s.take(range(length - 1), axis + 1)
        total = total + (ahead * behind * coupling).reshape(len(s), -1).sum(1)
    return total
