"""The held-out figure of an energy over levels."""

from __future__ import annotations

from collections.abc import Generator

from pipeline.assembly.data import typical_sample
from pipeline.common.rng import torch_generator
from pipeline.common.types import Figures, Progress
from pipeline.config.run import RunConfig
from pipeline.data.base import DataSet
from pipeline.energies.base import Energy
from pipeline.energies.dbm import DeepBoltzmannMachine
from pipeline.evaluation import deep_boltzmann, likelihood


def discrete_figures(
    config: RunConfig, energy: Energy, untrained: Energy, data: DataSet
) -> Generator[Progress, None, Figures]:
    """Returns the held-out figure of the trained energy, and what the untrained one and independent
    components score on it: the likelihood where log Z is exact, or estimated by AIS, and the
    pseudo-likelihood where it is not exact.

    A likelihood is that of rows that lack nothing: where some lack letters it is theirs alone, and
    `without_gaps` says how many `held_out` and `training` ones there are. There is no likelihood
    where no held-out row lacks nothing, or fewer than two training rows. Where no row is held out,
    figures are those of training rows alone, and there is none to compare them with.
    """
    apart = len(data.held_out) > 0
    if isinstance(energy, DeepBoltzmannMachine):
        assert isinstance(untrained, DeepBoltzmannMachine)
        if not apart:
            return {"none_held_out": True}
        figures = yield from deep_boltzmann.by_bound(energy, data, config)
        before = yield from deep_boltzmann.untrained(untrained, data, config.seed)
        return figures | {"baselines": _baselines(energy, data, before)}
    complete = data.complete()
    told: Figures = {} if apart else {"none_held_out": True}
    if complete is not data:
        counts = {"held_out": len(complete.held_out), "training": len(complete.sample)}
        told["without_gaps"] = counts
    scored = len(complete.held_out) > 0 or not apart
    scored = scored and len(complete.sample) > 1
    log_z, log_z_before = energy.log_partition(), untrained.log_partition()
    if scored and log_z is not None and log_z_before is not None:
        rows = complete.held_out, complete.sample, complete.row_weights
        figures = told | likelihood.exact(energy, log_z, *rows)
        if not apart:
            return figures
        before = likelihood.exact(untrained, log_z_before, *rows)["test_log_likelihood"]
        return figures | {"baselines": _baselines(energy, complete, before)}
    stream = (config.seed, "pseudo-likelihood")
    figures = likelihood.pseudo_likelihood(energy, data, torch_generator(*stream))
    if scored and config.evaluation.ais_temperatures:
        test, (weights, of_train) = complete.held_out, complete.row_weights
        train = complete.sample if of_train is None else typical_sample(config, complete)
        figures |= yield from likelihood.by_annealing(energy, test, train, config, weights)
        figures |= told
        if not apart:
            return figures
        before = yield from likelihood.untrained(untrained, train, test, config.seed, weights)
        return figures | {"baselines": _baselines(energy, complete, before)}
    if not apart:
        return told | figures
    before = likelihood.pseudo_likelihood(untrained, data, torch_generator(*stream))[
        "test_pseudo_log_likelihood"
    ]
    return figures | {"baselines": _baselines(energy, data, before)}


def _baselines(energy: Energy, data: DataSet, untrained: float) -> dict[str, float]:
    alone = likelihood.independent_levels(data, energy.levels or 2)
    return {"independent_components": alone, "untrained": untrained}
