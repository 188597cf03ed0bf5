"""Held-out log-likelihoods, by the best means the energy allows, beside those of simple models on
the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from pipeline.common.rng import torch_generator
from pipeline.common.types import Figures, Progress
from pipeline.config.run import RunConfig
from pipeline.data.base import MOST_ROWS, DataSet
from pipeline.energies.base import Energy, site_log_likelihood
from pipeline.energies.frozen import frozen
from pipeline.energies.laws import LOG_2PI, Gaussian, TruncatedGaussian, added_variance
from pipeline.energies.maxent.exponential_family import ExponentialFamily
from pipeline.energies.quadrature import MidpointRule
from pipeline.evaluation.ais import forward_log_partition, log_partition
from pipeline.evaluation.paths import path_to

GRID = 1000
UNTRAINED_TEMPERATURES = 50


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
    energy, rows = frozen(energy), data.held_out
    sites = torch.randint(energy.dimension, (len(rows),), generator=generator)
    values = energy.dimension * site_log_likelihood(energy, rows, sites)
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
    energy: Energy, test: Tensor, train: Tensor, config: RunConfig
) -> Generator[Progress, None, Figures]:
    """Works out the likelihood of `test` rows and of as many `train` rows [N, *shape], which have
    their noise, with log Z by AIS (`log_z_by_annealing`).
    """
    energy = frozen(energy)
    figures = yield from log_z_by_annealing(energy, train, config)
    values = -energy(test).double()
    figures |= {"test_rows_standard_error": standard_error(values)}
    figures |= around("test_log_likelihood", float(values.mean()), figures)
    level = float(-energy(train[: len(test)]).double().mean())
    figures["train_log_likelihood"] = level - figures["log_z"]
    return figures


def around(name: str, level: float, figures: Figures) -> Figures:
    """Returns `level` less log Z, called `name`, and the bounds of it that those of log Z give."""
    found = {name: level - figures["log_z"]}
    for side, other in (("at_least", "at_most"), ("at_most", "at_least")):
        bound = figures[f"log_z_{other}"]
        found[f"{name}_{side}"] = None if bound is None else level - bound
    return found


def log_z_by_annealing(
    energy: Energy, rows: Tensor, config: RunConfig
) -> Generator[Progress, None, Figures]:
    """Estimates log Z by AIS from a law fitted to training `rows` [S, *shape], and back from draws
    of the model (`pipeline.evaluation.ais.log_partition`).

    "unreliable" says why there is no standard error, where there is none.
    """
    temperatures, particles = config.evaluation.ais_temperatures, config.evaluation.ais_particles
    generator = torch_generator(config.seed, "ais")
    path = path_to(energy, rows)
    found = yield from log_partition(path, temperatures, particles, generator, rows)
    assert found.backward is not None
    figures: Figures = {
        "log_z": found.value,
        "log_z_standard_error": found.standard_error,
        "log_z_interval": found.interval,
        "log_z_at_least": found.at_least,
        "log_z_at_most": found.at_most,
        "log_z_forward": found.forward,
        "log_z_reverse": found.backward,
        "ais_effective_particles": found.counting,
        "ais_effective_particles_reverse": found.counting_backward,
        "method": f"AIS there and back, {temperatures} temperatures, {particles} particles",
    }
    return figures | ({} if found.doubt is None else {"unreliable": found.doubt})


def untrained(
    energy: Energy, rows: Tensor, test: Tensor, seed: int
) -> Generator[Progress, None, float]:
    """Returns the mean log-likelihood of `test` rows under the initial weights, nats. They are
    nearly the base law, from which AIS has a short way.
    """
    energy, generator = frozen(energy), torch_generator(seed, "ais-untrained")
    path = path_to(energy, rows) if energy.blocks else energy
    found = yield from forward_log_partition(path, UNTRAINED_TEMPERATURES, 128, generator)
    return float(-energy(test).double().mean()) - found.value


def baselines_of_kinds(data: DataSet, kinds: Sequence[int]) -> tuple[dict[str, float], list[int]]:
    """Returns the mean held-out log-likelihood of independent components of these `kinds`, nats:
    Gaussians, as `continuous_baselines` has them, and levels, as `independent_levels` does; and the
    components that are left out, which are constant in the training rows.
    """
    train, test = data.sample.flatten(1), data.held_out.flatten(1)
    real = [number for number, kind in enumerate(kinds) if not kind]
    gaussian, left_out = continuous_baselines(
        data._replace(sample=train[:, real]), test[:, real], None
    )
    total = gaussian.get("independent_components", 0.0)
    for number, kind in enumerate(kinds):
        if kind:
            column = data._replace(sample=train[:, [number]], held_out=test[:, [number]])
            total += independent_levels(column, kind)
    return {"independent_components": total}, [real[number] for number in left_out]


def continuous_baselines(
    data: DataSet, test: Tensor, box: tuple[float, float] | None
) -> tuple[dict[str, float], list[int]]:
    """Returns the mean held-out log-likelihood, nats, of a full-covariance Gaussian and of
    independent components; and the components that are left out, which are constant in the training
    rows and have no noise: their density has no bound.

    An independent component's marginal is the training values' empirical law smoothed by the data's
    own noise (exact for independent components); without noise, a Gaussian, of the variance that
    the full one has. In a box there are independent truncated Gaussians alone.
    """
    train = data.sample[:MOST_ROWS]
    if box is not None:
        law = TruncatedGaussian.fit(train, data.noise, box)
        return {"independent_components": float(law.log_density(test).double().mean())}, []
    train, test = train.flatten(1), test.flatten(1)
    constant = torch.zeros(train.shape[1], dtype=torch.bool)
    if not data.noise:
        constant = (train == train[:1]).all(0)
    left_out = constant.nonzero()[:, 0].tolist()
    train, test = train[:, ~constant], test[:, ~constant]
    if not train.numel():
        return {}, left_out
    gaussian = Gaussian.fit(train, data.noise)
    return {
        "gaussian": float(gaussian.log_density(test).double().mean()),
        "independent_components": _independent(train, test, data.noise),
    }, left_out


def _independent(train: Tensor, test: Tensor, noise: float) -> float:
    if not noise:
        flat = train.double()
        variance = flat.var(0) + added_variance(flat, noise)
        squares = (test.double() - flat.mean(0)).square() / variance
        return float(-(squares + variance.log() + LOG_2PI).sum(1).mean() / 2)
    total = 0.0
    for column in range(train.shape[1]):
        levels, counts = train[:, column].unique(return_counts=True)
        distances = (test[:, column, None] - levels) / noise
        logs = (
            -distances.square() / 2 + (counts / counts.sum()).log() - math.log(noise) - LOG_2PI / 2
        )
        total += float(torch.logsumexp(logs, 1).double().mean())
    return total
