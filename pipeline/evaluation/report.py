"""What is worked out when training is over: samples from noise, and a held-out figure that means something."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.build import KERNELS, make_energy
from pipeline.config import RunConfig
from pipeline.data.base import DataSet
from pipeline.energies.base import Energy, Target, unflatten_
from pipeline.evaluation import likelihood
from pipeline.evaluation.pictures import draw_samples
from pipeline.rng import torch_generator
from pipeline.types import Figures, Progress


def evaluate(config: RunConfig, weights: np.ndarray, data: DataSet, output: str) -> Iterator[Progress | Figures]:
    """Samples and figures of the energy with flat `weights`; writes `samples.png`. Yields progress, the figures last.

    On the CPU whatever the training's device: the data are there, and what is left is small.
    """
    energy = make_energy(config, data.shape)
    unflatten_(energy, weights)
    target = Target(energy)
    if config.evaluation.samples:
        samples = yield from sample_from_noise(config, energy, target)
        caption = (
            f"{config.name}: {len(samples)} samples, chains started at noise, "
            f"{config.evaluation.transitions:,} {config.kernel.name} transitions each"
        )
        draw_samples(energy, samples, data, caption, output)
    with torch.no_grad():
        figures = {"transitions_from_noise": config.evaluation.transitions}
        figures |= yield from _figures(config, energy, data)
    yield figures | {"words": _in_words(figures)}


def sample_from_noise(config: RunConfig, energy: Energy, target: Target) -> Generator[Progress, None, Tensor]:
    """`[M, *shape]`, returned after the progress: chains from noise, advanced by the run's own kernel."""
    kernel, parameters = KERNELS[config.kernel.name], config.kernel.parameters
    generator = torch_generator(config.seed, "evaluation")
    state = kernel.init(energy.noise(config.evaluation.samples, generator), target)
    total = config.evaluation.transitions
    for done in range(1, total + 1):
        state, _ = kernel.step(generator, state, target, **parameters)
        if done % 50 == 0 or done == total:
            yield Progress("sampling from noise", done, total)
    return state.position


def _figures(config: RunConfig, energy: Energy, data: DataSet) -> Generator[Progress, None, Figures]:
    """The held-out figure of the trained energy, and what the untrained one and simple models score on it."""
    untrained = make_energy(config, data.shape)
    untrained.initialise(data.sample.mean(0))
    if energy.binary:
        return _binary_figures(config, energy, untrained, data)
    noise = torch_generator(config.data.split_seed, "held-out-noise")
    test = data.held_out + data.noise * torch.randn(data.held_out.shape, generator=noise)
    scale: float = config.energy.base_scale  # type: ignore[union-attr]
    if data.shape == (2,):
        # far beyond the data and the base term; a trained network may move mass between, not past them
        radius = max(6 * scale, 1.5 * float(data.sample.abs().max()))
        figures = likelihood.two_dimensional(energy, data, test, radius)
        before = likelihood.two_dimensional(untrained, data, test, radius)["test_log_likelihood"]
    elif config.evaluation.ais_temperatures:
        figures = yield from likelihood.by_annealing(energy, data, test, config)
        before = yield from likelihood.untrained_continuous(untrained, scale, test, config.seed)
    else:
        return {}
    return figures | {"baselines": {"untrained": before, **likelihood.continuous_baselines(data, test)}}


def _binary_figures(config: RunConfig, energy: Energy, untrained: Energy, data: DataSet) -> Figures:
    baselines = {"independent_components": likelihood.independent_bernoulli(data)}
    log_z, log_z_before = energy.log_partition(), untrained.log_partition()
    if log_z is None or log_z_before is None:
        figures = likelihood.pseudo_likelihood(energy, data, torch_generator(config.seed, "pseudo-likelihood"))
    else:
        figures = likelihood.exact_binary(energy, log_z, data)
        baselines["untrained"] = likelihood.exact_binary(untrained, log_z_before, data)["test_log_likelihood"]
    return figures | {"baselines": baselines}


def _in_words(figures: Figures) -> list[str]:
    """The figures for a person."""
    lines = []
    if "test_log_likelihood" in figures:
        error = figures.get("log_z_standard_error")
        text = f"held-out log-likelihood {figures['test_log_likelihood']:.2f}"
        text += f" ± {error:.2f}" if error is not None else ""
        lines.append(f"{text} nats a row ({figures['method']})")
        if "true_log_likelihood" in figures:
            lines.append(f"  the law itself scores {figures['true_log_likelihood']:.2f} on the same rows")
    elif "test_pseudo_log_likelihood" in figures:
        lines.append(f"held-out pseudo-log-likelihood {figures['test_pseudo_log_likelihood']:.2f} nats a row")
    names = {
        "untrained": "this model untrained",
        "gaussian": "a Gaussian with full covariance",
        "independent_components": "independent components",
    }
    baselines = [f"{names[name]} {value:.2f}" for name, value in figures.get("baselines", {}).items()]
    return [*lines, f"  on the same rows: {', '.join(baselines)}"] if baselines else lines
