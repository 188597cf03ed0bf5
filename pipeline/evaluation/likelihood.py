"""Held-out log-likelihoods, by the best means the energy allows, beside those of simple models on the same rows."""

from __future__ import annotations

import math
from collections.abc import Generator

import torch
from torch import Tensor

from pipeline.config import RunConfig
from pipeline.data.base import DataSet
from pipeline.energies.base import Energy
from pipeline.evaluation.ais import GaussianBase, annealed_log_partition
from pipeline.rng import torch_generator
from pipeline.types import Figures, Progress

GRID = 1000
UNTRAINED_TEMPERATURES = 50


def exact_binary(energy: Energy, log_z: float, data: DataSet) -> Figures:
    """log p(v) = -E(v) - log Z with Z by enumeration; means over held-out and training rows, nats."""
    return {
        "log_z": log_z,
        "test_log_likelihood": float((-energy(data.held_out).double() - log_z).mean()),
        "train_log_likelihood": float((-energy(data.sample).double() - log_z).mean()),
        "method": "exact, log Z by enumeration",
    }


def pseudo_likelihood(energy: Energy, data: DataSet, generator: torch.Generator) -> Figures:
    """d log p(v_i | v_-i) = d log sigmoid(E(v with v_i flipped) - E(v)) at one random i a row (Besag 1975); its mean, nats."""
    rows = data.held_out.flatten(1)
    chosen = torch.randint(rows.shape[1], (len(rows), 1), generator=generator)
    flipped = rows.scatter(1, chosen, 1 - rows.gather(1, chosen)).view_as(data.held_out)
    values = rows.shape[1] * torch.nn.functional.logsigmoid(energy(flipped) - energy(data.held_out)).double()
    return {
        "test_pseudo_log_likelihood": float(values.mean()),
        "test_pseudo_log_likelihood_standard_error": float(values.std() / math.sqrt(len(values))),
        "method": "pseudo-likelihood, one pixel a row",
    }


def independent_bernoulli(data: DataSet) -> float:
    """Mean held-out log-likelihood of independent pixels, their means (k + 1) / (n + 2) from the training rows; nats."""
    train, test = data.sample.flatten(1).double(), data.held_out.flatten(1).double()
    mean = (train.sum(0) + 1) / (len(train) + 2)
    return float((test * mean.log() + (1 - test) * (1 - mean).log()).sum(1).mean())


def log_z_by_quadrature(energy: Energy, radius: float) -> float:
    """log of the integral of exp(-E) over [-radius, radius]^2, midpoint rule on 1000 x 1000 points."""
    side = (torch.arange(GRID) + 0.5) * (2 * radius / GRID) - radius
    rows = [torch.stack([side, value.expand_as(side)], 1) for value in side]
    sums = [torch.logsumexp(-energy(torch.cat(rows[i : i + 50])).double(), 0) for i in range(0, GRID, 50)]
    return float(torch.logsumexp(torch.stack(sums), 0)) + 2 * math.log(2 * radius / GRID)


def two_dimensional(energy: Energy, data: DataSet, test: Tensor, radius: float) -> Figures:
    """Likelihood with Z by quadrature and, where the data's law is known, that of the truth on the same rows."""
    log_z = log_z_by_quadrature(energy, radius)
    values = -energy(test).double() - log_z
    figures: Figures = {
        "log_z": log_z,
        "test_log_likelihood": float(values.mean()),
        "method": f"quadrature on a {GRID} x {GRID} grid",
    }
    if data.log_density is not None:
        gap = data.log_density(test) - values
        figures["true_log_likelihood"] = float(data.log_density(test).mean())
        figures["kl_from_truth"] = float(gap.mean())
        figures["kl_from_truth_standard_error"] = float(gap.std() / math.sqrt(len(gap)))
    return figures


def by_annealing(energy: Energy, data: DataSet, test: Tensor, config: RunConfig) -> Generator[Progress, None, Figures]:
    """Likelihood with log Z by AIS from a Gaussian fitted to the training rows."""
    settings = config.evaluation
    base = GaussianBase.fit(data.sample[:20000], data.noise)
    generator = torch_generator(config.seed, "ais")
    result = yield from annealed_log_partition(
        energy, base, settings.ais_temperatures, settings.ais_particles, generator, config.kernel.parameters["step_size"]
    )
    train = data.sample[: len(test)]
    train = train + data.noise * torch.randn(train.shape, generator=generator)
    return {
        "log_z": result.log_z,
        "log_z_standard_error": result.standard_error,
        "ais_ess": result.ess,
        "test_log_likelihood": float((-energy(test).double() - result.log_z).mean()),
        "train_log_likelihood": float((-energy(train).double() - result.log_z).mean()),
        "method": f"AIS, {settings.ais_temperatures} temperatures, {settings.ais_particles} particles",
    }


def untrained_continuous(energy: Energy, base_scale: float, test: Tensor, seed: int) -> Generator[Progress, None, float]:
    """The same figure for the initial weights: nearly the Gaussian base term, from which AIS has a short way."""
    d = energy.dimension
    base = GaussianBase(energy.shape, torch.zeros(d), base_scale**2 * torch.eye(d))
    generator = torch_generator(seed, "ais-untrained")
    result = yield from annealed_log_partition(energy, base, UNTRAINED_TEMPERATURES, 128, generator, 0.1 * base_scale**2)
    return float((-energy(test).double() - result.log_z).mean())


def continuous_baselines(data: DataSet, test: Tensor) -> dict[str, float]:
    """Mean held-out log-likelihood, nats, of a full-covariance Gaussian and of independent components.

    A component's marginal is the training values' empirical law smoothed by the data's own noise (exact for independent
    components); without noise, a Gaussian.
    """
    train = data.sample[:20000]
    gaussian = GaussianBase.fit(train, data.noise)
    return {
        "gaussian": float(gaussian.log_density(test).double().mean()),
        "independent_components": _independent(train.flatten(1), test.flatten(1), data.noise),
    }


def _independent(train: Tensor, test: Tensor, noise: float) -> float:
    if not noise:
        mean, std = train.mean(0), train.std(0) + 1e-6
        return float((-((test - mean) / std).square() / 2 - std.log()).sum(1).double().mean()) - train.shape[1] * _HALF_LOG_2PI
    total = 0.0
    for column in range(train.shape[1]):
        levels, counts = train[:, column].unique(return_counts=True)
        distances = (test[:, column, None] - levels) / noise
        logs = -distances.square() / 2 + (counts / counts.sum()).log() - math.log(noise) - _HALF_LOG_2PI
        total += float(torch.logsumexp(logs, 1).double().mean())
    return total


_HALF_LOG_2PI = math.log(2 * math.pi) / 2
