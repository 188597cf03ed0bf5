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
from pipeline.data.row_weights import RowWeights, mean, standard_error
from pipeline.energies.base import Energy, site_log_likelihood
from pipeline.energies.frozen import frozen
from pipeline.energies.laws import (
    LOG_2PI,
    Gaussian,
    TruncatedGaussian,
    added_variance,
    mean_and_variance,
)
from pipeline.energies.maxent.exponential_family import ExponentialFamily
from pipeline.energies.potts import PottsModel
from pipeline.energies.quadrature import MidpointRule
from pipeline.evaluation.ais import forward_log_partition, is_near, place, there_and_back
from pipeline.evaluation.log_partition import LogPartition
from pipeline.evaluation.paths import Bridge, path_to

GRID = 1000
UNWEIGHTED = RowWeights()
UNTRAINED_TEMPERATURES = 50
TOGETHER = 1024
"""Rows whose components are worked out at once."""


def exact(
    energy: Energy, log_z: float, test: Tensor, train: Tensor, weights: RowWeights = UNWEIGHTED
) -> Figures:
    """Returns log p(x) = -E(x) - log Z with the energy's own `log_z`; means over held-out rows,
    where there are any, and training rows, nats.
    """
    energy = frozen(energy)
    quadrature = isinstance(energy, ExponentialFamily) and energy.levels is None
    figures: Figures = {"log_z": log_z}
    if len(test):
        level = float(mean(-energy(test).double() - log_z, weights.held_out))
        figures["test_log_likelihood"] = level
    return figures | {
        "train_log_likelihood": float(mean(-energy(train).double() - log_z, weights.sample)),
        "method": f"exact, log Z by {'quadrature' if quadrature else 'enumeration'}",
    }


def pseudo_likelihood(energy: Energy, data: DataSet, generator: torch.Generator) -> Figures:
    """Returns sum_i log p(x_i | x_-i) (Besag 1975), its mean, nats: over held-out rows, and
    training rows too, where the energy has all components at once; else d times the term of one
    random i a row, of held-out rows alone, from the energies of its q levels. `pseudo_of` says
    which.
    """
    energy, rows, weights = frozen(energy), data.held_out, data.row_weights.held_out
    of_training = _every_component(energy, data.sample)
    figures: Figures = {}
    if of_training is not None:
        every = "all components of every row"
        level = float(mean(of_training, data.row_weights.sample))
        figures = {"pseudo_of": every, "train_pseudo_log_likelihood": level}
    if not len(rows):
        return figures
    values = _every_component(energy, rows)
    if values is None:
        sites = torch.randint(energy.dimension, (len(rows),), generator=generator)
        values = energy.dimension * site_log_likelihood(energy, rows, sites)
        figures["pseudo_of"] = "one component a row"
    return figures | {
        "test_pseudo_log_likelihood": float(mean(values, weights)),
        "test_pseudo_log_likelihood_standard_error": standard_error(values, weights),
        "method": f"pseudo-likelihood, {figures['pseudo_of']}",
    }


def _every_component(energy: Energy, rows: Tensor) -> Tensor | None:
    """Returns `energy.pseudo_log_likelihood` of all `rows` [N, *shape], float64 [N], or None."""
    found = [energy.pseudo_log_likelihood(some) for some in rows.split(TOGETHER)]
    values = [value.double() for value in found if value is not None]
    return torch.cat(values) if len(values) == len(found) else None


def independent_levels(data: DataSet, levels: int) -> float:
    """Returns the mean held-out log-likelihood of independent components, p(x_i = k) = (n_ik + 1) /
    (n_i + q) from training rows, n_i of which have component i; nats.
    """
    train, test = data.sample.flatten(1), data.held_out.flatten(1)
    weights, total = data.row_weights, 0.0

    def counts(there: Tensor) -> Tensor:
        return len(train) * mean(there.double(), weights.sample)

    present = counts(train >= 0)
    for level in range(levels):
        logs = ((counts(train == level) + 1) / (present + levels)).log()
        total += float(mean(((test == level).double() * logs).sum(1), weights.held_out))
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
    energy, weights = frozen(energy), data.row_weights.held_out
    log_z = log_z_by_quadrature(energy, box)
    values = -energy(test).double() - log_z
    figures: Figures = {
        "log_z": log_z,
        "test_log_likelihood": float(mean(values, weights)),
        "method": f"quadrature on a {GRID} x {GRID} grid",
    }
    if data.log_density is not None:
        truth = data.log_density(test)
        gap = truth - values
        figures["true_log_likelihood"] = float(mean(truth, weights))
        figures["kl_from_truth"] = float(mean(gap, weights))
        figures["kl_from_truth_standard_error"] = standard_error(gap, weights)
    return figures


def by_annealing(
    energy: Energy,
    test: Tensor,
    train: Tensor,
    config: RunConfig,
    weights: Tensor | None = None,
) -> Generator[Progress, None, Figures]:
    """Works out the likelihood of `test` rows, which count by their `weights` [N], and of as many
    `train` rows [N, *shape], all of them without test rows, all with their noise, with log Z by AIS
    (`log_z_by_annealing`).
    """
    energy = frozen(energy)
    figures = yield from log_z_by_annealing(energy, train, config)
    if len(test):
        values = -energy(test).double()
        figures |= {"test_rows_standard_error": standard_error(values, weights)}
        figures |= around("test_log_likelihood", float(mean(values, weights)), figures)
        train = train[: len(test)]
    level = float(-energy(train).double().mean())
    return figures | around("train_log_likelihood", level, figures)


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
    of the model (`pipeline.evaluation.ais.log_partition`). A model that has hardly left its own
    base law is annealed from there, which is a short way; where that leaves a doubt, it is no
    answer.

    "unreliable" says why there is no standard error, where there is none.
    """
    path, found = path_to(energy, rows), None
    if isinstance(path, Bridge):
        generator = torch_generator(config.seed, "ais-own-base")
        if (yield from is_near(energy, generator)):
            found, temperatures = yield from _annealed(energy, rows, config, generator)
    if found is None or found.doubt is not None:
        generator = torch_generator(config.seed, "ais")
        found, temperatures = yield from _annealed(path, rows, config, generator)
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
        "method": (
            f"AIS there and back, {temperatures} temperatures,"
            f" {config.evaluation.ais_particles} particles"
        ),
    }
    return figures | ({} if found.doubt is None else {"unreliable": found.doubt})


def _annealed(
    path: Energy, rows: Tensor, config: RunConfig, generator: torch.Generator
) -> Generator[Progress, None, tuple[LogPartition, int]]:
    """log Z along the `path`, and the number of temperatures that it took."""
    asked, particles = config.evaluation.ais_temperatures, config.evaluation.ais_particles
    schedule = yield from place(path, asked, particles, generator)
    taken = schedule.temperatures
    found, _ = yield from there_and_back(path, schedule, particles, generator, rows, taken)
    return found, taken


def untrained(
    energy: Energy, rows: Tensor, test: Tensor, seed: int, weights: Tensor | None = None
) -> Generator[Progress, None, float]:
    """Returns the mean log-likelihood of `test` rows under the initial weights, nats. They are
    nearly the base law, from which AIS has a short way; those of a Potts model without couplings
    are that law.
    """
    energy, generator = frozen(energy), torch_generator(seed, "ais-untrained")
    level = float(mean(-energy(test).double(), weights))
    if isinstance(energy, PottsModel) and not energy.coupling.any():
        return level - energy.base_log_partition()
    path = path_to(energy, rows) if energy.blocks else energy
    found = yield from forward_log_partition(path, UNTRAINED_TEMPERATURES, 128, generator)
    return level - found.value


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
    train, weights = data.sample[:MOST_ROWS], data.row_weights
    if weights.sample is not None:
        weights = weights._replace(sample=weights.sample[:MOST_ROWS])
    if box is not None:
        law = TruncatedGaussian.fit(train, data.noise, box, weights.sample)
        level = mean(law.log_density(test).double(), weights.held_out)
        return {"independent_components": float(level)}, []
    train, test = train.flatten(1), test.flatten(1)
    constant = torch.zeros(train.shape[1], dtype=torch.bool)
    if not data.noise:
        constant = (train == train[:1]).all(0)
    left_out = constant.nonzero()[:, 0].tolist()
    train, test = train[:, ~constant], test[:, ~constant]
    if not train.numel():
        return {}, left_out
    gaussian = Gaussian.fit(train, data.noise, weights.sample)
    return {
        "gaussian": float(mean(gaussian.log_density(test).double(), weights.held_out)),
        "independent_components": _independent(train, test, data.noise, weights),
    }, left_out


def _independent(train: Tensor, test: Tensor, noise: float, weights: RowWeights) -> float:
    if not noise:
        flat = train.double()
        middle, variance = mean_and_variance(flat, weights.sample)
        variance = variance + added_variance(flat, noise, weights.sample)
        squares = (test.double() - middle).square() / variance
        logs = -(squares + variance.log() + LOG_2PI).sum(1)
        return float(mean(logs, weights.held_out) / 2)
    total = 0.0
    for column in range(train.shape[1]):
        levels, number, counts = train[:, column].unique(return_inverse=True, return_counts=True)
        if weights.sample is not None:
            counts = number.bincount(weights.sample).to(train)
        distances = (test[:, column, None] - levels) / noise
        logs = (
            -distances.square() / 2 + (counts / counts.sum()).log() - math.log(noise) - LOG_2PI / 2
        )
        total += float(mean(torch.logsumexp(logs, 1).double(), weights.held_out))
    return total
