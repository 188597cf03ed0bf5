"""Held-out log-likelihoods, by the best means the energy allows, beside those of simple models on
the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Generator

import torch
from torch import Tensor

from pipeline.common.rng import torch_generator
from pipeline.common.types import Figures, Progress
from pipeline.config.run import RunConfig
from pipeline.data.base import MOST_ROWS, DataSet
from pipeline.energies.base import Energy
from pipeline.energies.frozen import frozen
from pipeline.energies.laws import Gaussian, TruncatedGaussian
from pipeline.energies.maxent.exponential_family import ExponentialFamily
from pipeline.energies.quadrature import MidpointRule
from pipeline.energies.rbm import BernoulliRBM, PottsRBM
from pipeline.evaluation.ais import (
    Bridge,
    RatesBridge,
    annealed_log_partition,
    gibbs_log_partition,
    reverse_log_partition,
)

GRID = 1000
UNTRAINED_TEMPERATURES = 50
FIRST_STEP = 0.01  # of AIS, in squared data units; it adapts


def standard_error(values: Tensor) -> float | None:
    """Returns the standard error of the mean of `values` [N]; None for a single one, which tells
    nothing of it.
    """
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else None


def exact(energy: Energy, log_z: float, test: Tensor, train: Tensor) -> Figures:
    """Returns log p(x) = -E(x) - log Z with the energy's own `log_z`; means over held-out and
    training rows, nats.
    """
    energy = frozen(energy)
    quadrature = isinstance(energy, ExponentialFamily) and energy.levels is None
    return {
        "log_z": log_z,
        "test_log_likelihood": float((-energy(test).double() - log_z).mean()),
        "train_log_likelihood": float((-energy(train).double() - log_z).mean()),
        "method": f"exact, log Z by {'quadrature' if quadrature else 'enumeration'}",
    }


def pseudo_likelihood(energy: Energy, data: DataSet, generator: torch.Generator) -> Figures:
    """Returns d log p(x_i | x_-i) at one random site i a row, from the energies of its q levels
    (Besag 1975); the mean, nats.
    """
    energy, rows = frozen(energy), data.held_out.flatten(1)
    assert energy.levels is not None
    chosen = torch.randint(rows.shape[1], (len(rows), 1), generator=generator)
    current = rows.gather(1, chosen)
    levels = [rows.scatter(1, chosen, (current + k) % energy.levels) for k in range(energy.levels)]
    energies = torch.stack(
        [energy(alternative.view_as(data.held_out)).double() for alternative in levels]
    )
    values = rows.shape[1] * torch.log_softmax(-energies, 0)[0]
    return {
        "test_pseudo_log_likelihood": float(values.mean()),
        "test_pseudo_log_likelihood_standard_error": standard_error(values),
        "method": "pseudo-likelihood, one component a row",
    }


def independent_levels(data: DataSet, levels: int) -> float:
    """Returns the mean held-out log-likelihood of independent components, p(x_i = k) = (n_ik + 1) /
    (n + q) from training rows; nats.
    """
    train, test = data.sample.flatten(1), data.held_out.flatten(1)
    total = 0.0
    for level in range(levels):
        share = ((train == level).double().sum(0) + 1) / (len(train) + levels)
        total += float(((test == level).double() * share.log()).sum(1).mean())
    return total


def log_z_by_quadrature(energy: Energy, box: tuple[float, float]) -> float:
    """Returns the log of the integral of exp(-E) over [low, high]^2, midpoint rule on 1000 x 1000
    points.
    """
    return float(MidpointRule(*box, GRID).precise_log_integral(energy))


def two_dimensional(
    energy: Energy, data: DataSet, test: Tensor, box: tuple[float, float]
) -> Figures:
    """Works out the likelihood with Z by quadrature and, where the data's law is known, that of the
    truth on the same rows.
    """
    energy = frozen(energy)
    log_z = log_z_by_quadrature(energy, box)
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
        figures["kl_from_truth_standard_error"] = standard_error(gap)
    return figures


def by_annealing(
    energy: Energy, data: DataSet, test: Tensor, config: RunConfig
) -> Generator[Progress, None, Figures]:
    """Works out the likelihood with log Z by AIS from a Gaussian fitted to the training rows (in a
    box: from truncated independent ones).
    """
    settings, energy = config.evaluation, frozen(energy)
    rows = data.sample[:MOST_ROWS]
    law = (
        Gaussian.fit(rows, data.noise)
        if energy.box is None
        else TruncatedGaussian.fit(rows, data.noise, energy.box)
    )
    generator = torch_generator(config.seed, "ais")
    result = yield from annealed_log_partition(
        Bridge(law, energy),
        settings.ais_temperatures,
        settings.ais_particles,
        generator,
        FIRST_STEP,
    )
    train = data.sample[: len(test)]
    train = energy.into_domain(train + data.noise * torch.randn(train.shape, generator=generator))
    return {
        "log_z": result.log_z,
        "log_z_standard_error": result.standard_error,
        "ais_ess": result.ess,
        "test_log_likelihood": float((-energy(test).double() - result.log_z).mean()),
        "train_log_likelihood": float((-energy(train).double() - result.log_z).mean()),
        "method": (
            f"AIS, {settings.ais_temperatures} temperatures, {settings.ais_particles} particles"
        ),
    }


def by_gibbs_annealing(
    energy: BernoulliRBM | PottsRBM, data: DataSet, config: RunConfig
) -> Generator[Progress, None, Figures]:
    """Works out the likelihood with log Z by AIS, see `log_z_both_ways`."""
    energy = frozen(energy)
    figures = yield from log_z_both_ways(energy, data.sample, config)
    test = -energy(data.held_out).double() - figures["log_z"]
    return figures | {
        "test_log_likelihood": float(test.mean()),
        "test_rows_standard_error": standard_error(test),
        "train_log_likelihood": float((-energy(data.sample).double() - figures["log_z"]).mean()),
    }


def log_z_both_ways(
    energy: BernoulliRBM | PottsRBM, rows: Tensor, config: RunConfig
) -> Generator[Progress, None, Figures]:
    """Estimates log Z by AIS from units at the rates of `rows` [S, *shape]; and by AIS back, from
    chains begun at rows.

    Forward log Z is too low on average and reverse log Z too high: the truth is between them, or
    near both.
    """
    temperatures, particles = config.evaluation.ais_temperatures, config.evaluation.ais_particles
    generator = torch_generator(config.seed, "ais")
    path = RatesBridge(energy, rows)
    result = yield from gibbs_log_partition(path, temperatures, particles, generator)
    starts = rows[torch.randint(len(rows), (particles,), generator=generator)]
    reverse = yield from reverse_log_partition(path, temperatures, starts, generator)
    return {
        "log_z": result.log_z,
        "log_z_standard_error": result.standard_error,
        "ais_ess": result.ess,
        "log_z_reverse": reverse.log_z,
        "log_z_reverse_standard_error": reverse.standard_error,
        "log_z_gap": reverse.log_z - result.log_z,
        "method": f"AIS, {temperatures} temperatures, {particles} particles",
    }


def untrained_rbm(
    energy: BernoulliRBM | PottsRBM, data: DataSet, seed: int
) -> Generator[Progress, None, float]:
    """Returns the same figure for the initial weights. They are nearly the base law, from which AIS
    has a short way.
    """
    energy, generator = frozen(energy), torch_generator(seed, "ais-untrained")
    result = yield from gibbs_log_partition(
        RatesBridge(energy, data.sample), UNTRAINED_TEMPERATURES, 128, generator
    )
    return float((-energy(data.held_out).double() - result.log_z).mean())


def untrained_continuous(
    energy: Energy, test: Tensor, seed: int
) -> Generator[Progress, None, float]:
    """Returns the same figure for the initial weights. They are nearly the energy's own base law,
    from which AIS has a short way.
    """
    energy, generator = frozen(energy), torch_generator(seed, "ais-untrained")
    scale = energy.base_scale if energy.box is None else (energy.box[1] - energy.box[0]) / 4
    result = yield from annealed_log_partition(
        energy, UNTRAINED_TEMPERATURES, 128, generator, 0.1 * scale**2
    )
    return float((-energy(test).double() - result.log_z).mean())


def continuous_baselines(
    data: DataSet, test: Tensor, box: tuple[float, float] | None
) -> dict[str, float]:
    """Returns the mean held-out log-likelihood, nats, of a full-covariance Gaussian and of
    independent components.

    A component's marginal is the training values' empirical law smoothed by the data's own noise
    (exact for independent components); without noise, a Gaussian. In a box there are independent
    truncated Gaussians alone.
    """
    train = data.sample[:MOST_ROWS]
    if box is not None:
        law = TruncatedGaussian.fit(train, data.noise, box)
        return {"independent_components": float(law.log_density(test).double().mean())}
    gaussian = Gaussian.fit(train, data.noise)
    return {
        "gaussian": float(gaussian.log_density(test).double().mean()),
        "independent_components": _independent(train.flatten(1), test.flatten(1), data.noise),
    }


def _independent(train: Tensor, test: Tensor, noise: float) -> float:
    if not noise:
        mean, std = train.mean(0), train.std(0) + 1e-6
        return (
            float((-((test - mean) / std).square() / 2 - std.log()).sum(1).double().mean())
            - train.shape[1] * _HALF_LOG_2PI
        )
    total = 0.0
    for column in range(train.shape[1]):
        levels, counts = train[:, column].unique(return_counts=True)
        distances = (test[:, column, None] - levels) / noise
        logs = (
            -distances.square() / 2
            + (counts / counts.sum()).log()
            - math.log(noise)
            - _HALF_LOG_2PI
        )
        total += float(torch.logsumexp(logs, 1).double().mean())
    return total


_HALF_LOG_2PI = math.log(2 * math.pi) / 2
