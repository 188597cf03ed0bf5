"""The law of maximum entropy itself, where the dual can be minimised exactly: what a trained model is held against."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch
from scipy import optimize, stats
from scipy.special import logsumexp
from torch import Tensor

from pipeline.data.base import LogDensity
from pipeline.energies.exponential_family import ExponentialFamily
from pipeline.types import Figures

KEPT = 2**25  # numbers: most that the features of all states may be, to be held at once
FALSE_ALARM = 1e-4
OPTIONS = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-16, "gtol": 1e-10, "maxcor": 30}


class Dual(NamedTuple):
    """The dual's minimum: `natural` [F], and `gap`, how far above it the energy's parameter is, in nats. With the sums for Z as
    arrays: `points` [S, *shape], `phi` [S, F], and `log_base` [S], log h with the log volume of each point.
    """

    natural: np.ndarray
    gap: float
    points: np.ndarray
    phi: np.ndarray
    log_base: np.ndarray

    def log_law(self, natural: np.ndarray) -> np.ndarray:
        """The log probability of each point under `natural` [F], `[S]`."""
        weights: np.ndarray = self.log_base + self.phi @ natural
        return weights - logsumexp(weights)


@torch.no_grad()
def maximum_entropy(energy: ExponentialFamily, mu: Tensor, l1: float, l2: float) -> Dual | None:
    """The minimum of L(lambda) = log Z - lambda.mu + l1 |lambda|_1 + l2 |lambda|^2 / 2, by L-BFGS-B in float64, with
    lambda = a - b, a, b >= 0, where there is l1. None where Z cannot be had, or its states are too many to be held.

    Without relaxation L(lambda) - L(lambda*) = KL(p_lambda* || p_lambda), the gap.
    """
    model = copy.deepcopy(energy).double()
    chunks = model.support()
    if chunks is None or model.states * len(model.names) > KEPT:
        return None
    points = torch.cat(list(chunks))
    phi, log_base = model.features(points).numpy(), (model.log_cell() - model.base(points)).numpy()
    target, scale = mu.double().numpy(), phi.std(0) + 1e-12
    size = len(target)

    def smooth(natural: np.ndarray) -> tuple[float, np.ndarray]:
        weights = log_base + phi @ natural
        log_z = float(logsumexp(weights))
        gradient = np.exp(weights - log_z) @ phi - target + l2 * natural
        return log_z - natural @ target + l2 * natural @ natural / 2, gradient

    def scaled(z: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = smooth(z / scale)
        return value, gradient / scale

    def split(halves: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = scaled(halves[:size] - halves[size:])
        price = np.tile(l1 / scale, 2)
        return value + price @ halves, np.concatenate([gradient, -gradient]) + price

    if l1:
        halves = optimize.minimize(
            split, np.zeros(2 * size), jac=True, method="L-BFGS-B", bounds=[(0, None)] * (2 * size), options=OPTIONS
        ).x
        best = (halves[:size] - halves[size:]) / scale
    else:
        best = optimize.minimize(scaled, np.zeros(size), jac=True, method="L-BFGS-B", options=OPTIONS).x / scale
    own = model.natural.numpy()
    gap = smooth(own)[0] + l1 * np.abs(own).sum() - smooth(best)[0] - l1 * np.abs(best).sum()
    return Dual(best, max(float(gap), 0.0), points.numpy(), phi, log_base)


def against_truth(energy: ExponentialFamily, dual: Dual, log_density: LogDensity, rows: int) -> Figures:
    """Where the data's law is of this family, its parameter lambda* (by least squares:
    log p = log h + lambda*.phi - log Z), and

        chi-square = rows (lambda - lambda*)' I (lambda - lambda*),   I = Cov[phi] under the truth,

    which for the maximum-likelihood estimate from `rows` draws has in the limit a chi-square law of rank I degrees of freedom
    (Wald). `chi_square_bound`: what it exceeds with probability 1e-4. `true` parameters and standard errors, [F] each.
    """
    log_truth = log_density(torch.from_numpy(dual.points)).double().numpy()
    centred = dual.phi - dual.phi.mean(0)
    offset = log_truth - dual.log_base
    true, *_ = np.linalg.lstsq(centred, offset - offset.mean(), rcond=None)
    if np.abs(centred @ true - (offset - offset.mean())).max() > 1e-6:
        return {}
    weights = np.exp(dual.log_law(true))
    spread = dual.phi - weights @ dual.phi
    information = spread.T @ (weights[:, None] * spread)
    off = energy.natural.detach().double().numpy() - true
    freedom = int(np.linalg.matrix_rank(information))
    variances = np.linalg.pinv(information, hermitian=True).diagonal() / rows
    return {
        "chi_square": float(rows * off @ information @ off),
        "chi_square_freedom": freedom,
        "chi_square_bound": float(stats.chi2.isf(FALSE_ALARM, freedom)),
        "true_parameters": true.tolist(),
        "parameter_standard_errors": np.sqrt(variances).tolist(),
    }
