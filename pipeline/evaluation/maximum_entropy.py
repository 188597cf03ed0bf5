"""The law of maximum entropy itself, where the dual can be minimised exactly: what a trained model
is held against.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch
from scipy import optimize, stats
from scipy.special import logsumexp, softmax
from torch import Tensor

from pipeline.common.types import Figures
from pipeline.data.base import LogDensity
from pipeline.energies.maxent.exponential_family import ExponentialFamily

KEPT = 2**25  # numbers: most that the features of all states may be, to be held at once
FALSE_ALARM = 1e-4
OPTIONS = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-16, "gtol": 1e-10, "maxcor": 30}


class Dual(NamedTuple):
    """The dual's minimum `natural` [F], and `gap`, how far above it the energy's parameter is,
    nats.

    The sums for Z are there as arrays: `points` [S, *shape], `phi` [S, F], and `log_base` [S], log
    h with the log volume of each point.
    """

    natural: np.ndarray
    gap: float
    points: np.ndarray
    phi: np.ndarray
    log_base: np.ndarray

    def log_law(self, natural: np.ndarray) -> np.ndarray:
        """Returns the log probability of each point under `natural` [F], `[S]`."""
        weights: np.ndarray = self.log_base + self.phi @ natural
        return weights - logsumexp(weights)


class Smooth(NamedTuple):
    """The dual without l1: L = log sum_s exp(log_base_s + lambda.phi_s) - lambda.target + l2
    |lambda|^2 / 2.
    """

    phi: np.ndarray
    log_base: np.ndarray
    target: np.ndarray
    l2: float

    def value(self, natural: np.ndarray) -> float:
        """Returns L at `natural` [F], nats."""
        log_z = logsumexp(self.log_base + self.phi @ natural)
        return float(log_z - natural @ self.target + self.l2 * natural @ natural / 2)

    def gradient(self, natural: np.ndarray) -> np.ndarray:
        """Returns dL / dlambda = E[phi] - target + l2 lambda, `[F]`."""
        moments: np.ndarray = softmax(self.log_base + self.phi @ natural) @ self.phi
        return moments - self.target + self.l2 * natural

    def hessian(self, natural: np.ndarray) -> np.ndarray:
        """Returns the second derivatives, Cov[phi] + l2 I, `[F, F]`."""
        weights = softmax(self.log_base + self.phi @ natural)
        centred = self.phi - weights @ self.phi
        covariance: np.ndarray = centred.T @ (weights[:, None] * centred)
        return covariance + self.l2 * np.eye(len(natural))


@torch.no_grad()
def maximum_entropy(energy: ExponentialFamily, mu: Tensor, l1: float, l2: float) -> Dual | None:
    """Finds the minimum of L(lambda) = log Z - lambda.mu + l1 |lambda|_1 + l2 |lambda|^2 / 2 in
    float64. None where Z cannot be had, or its states are too many to be held.

    Without relaxation L(lambda) - L(lambda*) = KL(p_lambda* || p_lambda), the gap.
    """
    model = copy.deepcopy(energy).double()
    chunks = model.support()
    if chunks is None or model.states * len(model.names) > KEPT:
        return None
    points = torch.cat(list(chunks))
    phi, log_base = model.features(points).numpy(), (model.log_cell() - model.base(points)).numpy()
    smooth = Smooth(phi, log_base, mu.double().numpy(), l2)
    best = _by_halves(smooth, l1) if l1 else _by_newton(smooth)
    own = model.natural.numpy()
    gap = smooth.value(own) + l1 * np.abs(own).sum() - smooth.value(best) - l1 * np.abs(best).sum()
    return Dual(best, max(float(gap), 0.0), points.numpy(), phi, log_base)


def _by_newton(smooth: Smooth) -> np.ndarray:
    """Newton's method from 0 within a region of trust (scipy's trust-exact; Conn, Gould & Toint
    2000), which also goes where the Hessian is singular: of features that obey linear equations.
    """
    found: np.ndarray = optimize.minimize(
        smooth.value,
        np.zeros(len(smooth.target)),
        jac=smooth.gradient,
        hess=smooth.hessian,
        method="trust-exact",
        options={"gtol": 1e-11, "maxiter": 500},
    ).x
    return found


def _by_halves(smooth: Smooth, l1: float) -> np.ndarray:
    """Minimises L with l1: lambda = a - b with a, b >= 0, so that |lambda|_1 is linear, by
    L-BFGS-B; in units of the features' spread.
    """
    scale, size = smooth.phi.std(0) + 1e-12, len(smooth.target)
    price = np.tile(l1 / scale, 2)

    def split(halves: np.ndarray) -> tuple[float, np.ndarray]:
        natural = (halves[:size] - halves[size:]) / scale
        gradient = smooth.gradient(natural) / scale
        return (
            smooth.value(natural) + float(price @ halves),
            np.concatenate([gradient, -gradient]) + price,
        )

    bounds = [(0, None)] * (2 * size)
    halves = optimize.minimize(
        split, np.zeros(2 * size), jac=True, method="L-BFGS-B", bounds=bounds, options=OPTIONS
    ).x
    found: np.ndarray = (halves[:size] - halves[size:]) / scale
    return found


def against_truth(
    energy: ExponentialFamily, dual: Dual, log_density: LogDensity, rows: int
) -> Figures:
    """Returns, where the data's law is of this family, its parameter lambda* (by least squares:
    log p = log h + lambda*.phi - log Z), and

        chi-square = rows (lambda - lambda*)' I (lambda - lambda*),   I = Cov[phi] under the truth,

    which for the maximum-likelihood estimate from `rows` draws has in the limit a chi-square law of
    rank I degrees of freedom (Wald). `chi_square_bound`: what it exceeds with probability 1e-4.
    `true` parameters and standard errors, [F] each.
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
