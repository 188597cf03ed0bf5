"""Held-out figures of a deep Boltzmann machine: a lower bound of its log-likelihood, which is out
of reach itself.
"""

from __future__ import annotations

from collections.abc import Generator

from torch import Tensor

from pipeline.common.rng import torch_generator
from pipeline.common.types import Figures, Progress
from pipeline.config.run import RunConfig
from pipeline.data.base import DataSet
from pipeline.data.row_weights import mean, standard_error
from pipeline.energies.dbm import DeepBoltzmannMachine
from pipeline.evaluation.ais import forward_log_partition
from pipeline.evaluation.likelihood import (
    UNTRAINED_TEMPERATURES,
    around,
    log_z_by_annealing,
)
from pipeline.evaluation.paths import path_to


def by_bound(
    energy: DeepBoltzmannMachine, data: DataSet, config: RunConfig
) -> Generator[Progress, None, Figures]:
    """Returns log p(v) >= `energy.bound`(v) - log Z, means over held-out and training rows, nats.

    log Z is exact where half of the layers can be enumerated; else by AIS over the even layers, the
    odd ones summed out (Salakhutdinov & Hinton 2009), forward, which is too low on average, and
    back. Without temperatures there are no figures.
    """
    log_z = energy.log_partition()
    if log_z is not None:
        figures: Figures = {"log_z": log_z, "method": "variational bound, log Z by enumeration"}
    elif config.evaluation.ais_temperatures:
        rows = _even_rows(energy, data.sample)
        figures = yield from log_z_by_annealing(energy.as_rbm(), rows, config)
        figures["method"] = f"variational bound, log Z by {figures['method']}"
    else:
        return {}
    of_test, of_train = data.row_weights
    test, name = energy.bound(data.held_out).double(), "test_log_likelihood_bound"
    figures["test_rows_standard_error"] = standard_error(test, of_test)
    if "log_z_at_least" in figures:
        figures |= around(name, float(mean(test, of_test)), figures)
    else:
        figures[name] = float(mean(test, of_test)) - figures["log_z"]
    level = float(mean(energy.bound(data.sample).double(), of_train))
    return figures | {"train_log_likelihood_bound": level - figures["log_z"]}


def untrained(
    energy: DeepBoltzmannMachine, data: DataSet, seed: int
) -> Generator[Progress, None, float]:
    """Returns the held-out bound of the initial weights. They are nearly the base law, from which
    AIS has a short way.
    """
    generator = torch_generator(seed, "ais-untrained")
    path = path_to(energy.as_rbm(), _even_rows(energy, data.sample))
    found = yield from forward_log_partition(path, UNTRAINED_TEMPERATURES, 128, generator)
    bound = energy.bound(data.held_out).double()
    return float(mean(bound - found.value, data.row_weights.held_out))


def _even_rows(energy: DeepBoltzmannMachine, rows: Tensor) -> Tensor:
    """Returns rows as the energy's RBM sees them, hidden units among its visible ones at means."""
    return energy.even_layers(energy.with_latents(rows))
