"""The work after training: samples from noise, and a held-out figure that means something."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.assembly.chains import make_plan
from pipeline.assembly.data import initialise, noisy_sample, sample_weights, typical_sample
from pipeline.assembly.energies import make_energy
from pipeline.common.errors import ConfigError
from pipeline.common.rng import torch_generator
from pipeline.common.types import Figures, Progress
from pipeline.config.data import LabelledToysData
from pipeline.config.energies import LabelledSection
from pipeline.config.objectives import terms_of
from pipeline.config.run import RunConfig
from pipeline.config.sections import Judgement
from pipeline.data.base import DataSet
from pipeline.data.row_weights import shuffled
from pipeline.energies.base import Energy
from pipeline.energies.label_mlp import LabelMLP
from pipeline.energies.potts import PottsModel
from pipeline.energies.rbm import PottsRBM
from pipeline.energies.weights import unflatten_
from pipeline.evaluation import compositions, likelihood
from pipeline.evaluation.conditional import conditional_figures, reach
from pipeline.evaluation.conditional_pictures import draw_conditional
from pipeline.evaluation.contacts import contact_figures
from pipeline.evaluation.discrete import discrete_figures
from pipeline.evaluation.energy_histograms import (
    HELD_OUT,
    MOST,
    NOISE,
    SAMPLES,
    TRAINING,
    draw_energies,
)
from pipeline.evaluation.filters import draw_filters, has_filters
from pipeline.evaluation.labels import label_figures, names_of, recognised
from pipeline.evaluation.moments import moment_figures
from pipeline.evaluation.motifs import draw_motifs
from pipeline.evaluation.pictures import draw_samples
from pipeline.evaluation.samples import Drawn, draw_from_noise
from pipeline.evaluation.sequences import likelihood_a_site, sequence_figures
from pipeline.evaluation.two_samples import copies, likeness
from pipeline.evaluation.words import in_words
from pipeline.objectives.moments import family_of


def evaluate(
    config: RunConfig, weights: np.ndarray, data: DataSet, output: str
) -> Iterator[Progress | Figures]:
    """Evaluates the energy with flat `weights`; writes its pictures, whose names but for
    `samples.png` are in `pictures`. Yields progress, and the figures last.

    On the CPU whatever the training's device: the data are there, and what is left is small.
    """
    energy, untrained = (
        make_energy(config, data.shape, data.context_shape).requires_grad_(False).eval()
        for _ in range(2)
    )
    unflatten_(energy, weights)
    initialise(config, untrained, data)
    data = data.whole()
    figures: Figures = {"transitions_from_noise": config.evaluation.transitions}
    if config.evaluation.samples:
        figures |= yield from _draw(config, energy, data, output)
    with torch.no_grad():
        if data.rows:
            more = yield from _figures(config, energy, untrained, data, output)
            figures = _joined(figures, more)
        terms = terms_of(config.objective) if config.energy.has_features else {}
        moments = terms.get("moments")
        if moments is not None and (data.rows or getattr(moments, "moments", None) is not None):
            more = yield from moment_figures(config, family_of(energy), data, output)
            figures = _joined(figures, more)
    if data.sequences is not None and energy.levels is not None and config.evaluation.samples:
        with torch.no_grad():
            more = yield from sequence_figures(config, energy, data, output)
        figures = _joined(figures, more)
    if data.sequences is not None and "log_z" in figures and "unreliable" not in figures:
        figures["log_likelihood_a_site"] = likelihood_a_site(figures, math.prod(data.shape))
    if data.sequences is not None and isinstance(energy, PottsRBM):
        caption = f"{config.name}: hidden units"
        rows = typical_sample(config, data)
        undrawn = draw_motifs(energy, data.sequences, rows, caption, output)
        figures = _joined(figures, undrawn or {"pictures": ["motifs.png"]})
    if data.sequences is not None and isinstance(energy, PottsModel):
        caption = f"{config.name}: how strongly sites are coupled"
        found = contact_figures(energy, data.sequences, caption, output)
        figures = _joined(figures, found)
    if data.scale is not None:
        figures |= {"scale": data.scale.kind, "log_determinant": data.scale.log_determinant}
    if config.evaluation.judged is not None:
        figures["judged"] = judge(config.evaluation.judged, figures)
    yield figures | {"words": in_words(figures)}


def _joined(figures: Figures, more: Figures) -> Figures:
    """Returns the figures of both, and the pictures of both."""
    pictures = [*figures.get("pictures", ()), *more.get("pictures", ())]
    return {**figures, **more, **({"pictures": pictures} if pictures else {})}


def judge(wanted: Judgement, figures: Figures) -> Figures:
    """Answers `evaluation.judged`: the figure, the reference that it is held against, and whether
    it passes.
    """
    value = _look_up(figures, wanted.figure)
    reference = (
        _look_up(figures, wanted.reference)
        if isinstance(wanted.reference, str)
        else wanted.reference
    )
    passes = value is not None and reference is not None
    if passes:
        passes = value >= reference if wanted.sense == "at_least" else value <= reference
    return {
        "name": wanted.figure,
        "value": value,
        "sense": wanted.sense,
        "reference": reference,
        "passes": passes,
    }


def _look_up(figures: Figures, name: str) -> Any:
    """Returns the figure called `name`, with dots between nested keys, or None."""
    value: Any = figures
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def samples_from_noise(
    config: RunConfig, energy: Energy, data: DataSet
) -> Generator[Progress, None, tuple[Drawn, Energy, Tensor | None]]:
    """Yields progress, and returns the samples that a run ends with: `evaluation.samples` chains
    from noise, the energy bound to their contexts, and these `[samples, *context_shape]`, where
    there are any. Raises `ConfigError` where the data are not there that have them.
    """
    context = sample_contexts(config, as_dealt(config, data))
    bound = (
        energy.of_class(context)
        if isinstance(energy, LabelMLP) and context is not None
        else energy.given(context)
    )
    count, transitions = config.evaluation.samples, config.evaluation.transitions
    drawn = yield from draw_from_noise(
        bound, make_plan(config), count, transitions, torch_generator(config.seed, "evaluation")
    )
    return drawn, bound, context


def _draw(
    config: RunConfig, energy: Energy, data: DataSet, output: str
) -> Generator[Progress, None, Figures]:
    """Draws samples, writes `samples.png` and what `_more_pictures` does, and returns how good the
    samples are.
    """
    shown = as_dealt(config, data)
    drawn, bound, context = yield from samples_from_noise(config, energy, data)
    count, transitions = config.evaluation.samples, config.evaluation.transitions
    samples = drawn.position
    figures: Figures = {"samples_r_hat": drawn.r_hat}
    if data.rows and context is None:
        figures["samples_likeness"] = _likeness(config, energy, energy.visible(samples), data)
    caption = (
        f"{config.name}: {count} samples, chains started at noise, {transitions:,}"
        f" {config.kernel.name} transitions each"
    )
    if config.conditional and len(data.shape) == 1:
        assert context is not None
        figures |= draw_conditional(energy, samples, context, shown, caption, output)
    else:
        labelled = config.energy.has_labels
        labels = names_of(context, shown) if labelled and context is not None else ()
        visible = energy.visible(samples)
        figures |= draw_samples(bound, visible, shown, caption, output, labels=labels)
    if config.energy.has_labels:
        assert context is not None
        figures["samples_recognised"] = recognised(samples, context, data)
    return figures | _more_pictures(config, energy, samples, shown, output)


def as_dealt(config: RunConfig, data: DataSet) -> DataSet:
    """Returns the data with held-out rows in proportion to their weights, as many, all of which
    then count alike, as pictures show them.
    """
    weights = data.row_weights.held_out
    if weights is None or not len(weights):
        return data
    generator = torch_generator(config.data.split_seed, "held-out-weights")
    numbers, context = shuffled(weights, len(weights), generator), data.context
    if context is not None:
        context = context._replace(held_out=context.held_out[numbers])
    return data._replace(
        held_out=data.held_out[numbers],
        context=context,
        row_weights=data.row_weights._replace(held_out=None),
    )


def _more_pictures(
    config: RunConfig, energy: Energy, samples: Tensor, data: DataSet, output: str
) -> Figures:
    """Draws `energies.png`, but of energies under contexts, whose levels are not the same; and
    `filters.png` of Boltzmann machines. Returns the names of those that were drawn as `pictures`,
    and of others why not (`draw_figure`).
    """
    undrawn: dict[str, dict[str, str]] = {}
    if not config.conditional:
        generator = torch_generator(config.seed, "energies")
        rows, held_out = typical_sample(config, data)[:MOST], data.held_out[:MOST]
        held_out = held_out + data.noise * torch.randn(held_out.shape, generator=generator)
        kinds = {
            TRAINING: energy.with_latents(energy.into_domain(rows)),
            HELD_OUT: energy.with_latents(energy.into_domain(held_out)),
            SAMPLES: samples,
            NOISE: energy.sample_base(MOST, generator),
        }
        caption = f"{config.name}: energies of data, of samples, and of noise from the base law"
        undrawn["energies.png"] = draw_energies(energy, kinds, caption, output)
    if has_filters(energy):
        caption = f"{config.name}: weights of hidden units, red where they are above 0"
        undrawn["filters.png"] = draw_filters(energy, caption, output)
    figures: Figures = {"pictures": [name for name, why in undrawn.items() if not why]}
    for why in undrawn.values():
        figures |= why
    return figures


def _likeness(config: RunConfig, energy: Energy, samples: Tensor, data: DataSet) -> Figures:
    """Returns how like rows the samples are, and whether held-out rows are training rows too."""
    rows = energy.into_domain(noisy_sample(config, data))
    held_out = energy.into_domain(_held_out(config, data))
    weights = data.row_weights._replace(sample=sample_weights(data))
    figures = likeness(samples, rows, held_out, weights)
    if energy.real:  # of few states many rows are the same
        figures["held_out_copies"] = copies(data.held_out, data.sample)
    return figures


def _held_out(config: RunConfig, data: DataSet) -> Tensor:
    """Returns the held-out rows with the data's noise, drawn once."""
    noise = torch_generator(config.data.split_seed, "held-out-noise")
    return data.held_out + data.noise * torch.randn(data.held_out.shape, generator=noise)


def sample_contexts(config: RunConfig, data: DataSet) -> Tensor | None:
    """Returns the contexts of the samples that are shown: as many of each label, or those of
    held-out rows; None without any. Raises `ConfigError` where no rows are there to take them from.
    """
    if data.context is None or not config.energy.takes_context:
        return None
    number = torch.arange(config.evaluation.samples)
    labels = labels_of(config, data)
    if labels is not None:
        return labels[number * len(labels) // config.evaluation.samples]
    if not len(data.context.held_out):
        remedy = "the data are not there, whose contexts would be taken; give some, or data.path"
        raise ConfigError("given", "null", remedy)
    return data.context.held_out[number % len(data.context.held_out)]


def labels_of(config: RunConfig, data: DataSet) -> Tensor | None:
    """Returns the labels of training rows, rising, or all that the energy knows where there are no
    rows, `[K]`; None of an energy without labels.
    """
    if not isinstance(config.energy, LabelledSection) or data.context is None:
        return None
    if not data.rows:
        return torch.arange(config.energy.classes).float()
    return data.context.sample.unique()


def _figures(
    config: RunConfig, energy: Energy, untrained: Energy, data: DataSet, output: str
) -> Generator[Progress, None, Figures]:
    """Returns the held-out figure of the trained energy, and what the untrained one and simple
    models score on it.
    """
    if config.conditional:
        figures = yield from conditional_figures(config, energy, untrained, data)
        if isinstance(config.data, LabelledToysData) and data.log_density is not None:
            figures |= _compositions(config.data, energy, data, output)
        return figures
    if isinstance(energy, LabelMLP):
        return label_figures(energy, data) | (
            yield from _continuous_figures(config, energy, untrained, data)
        )
    if energy.levels is not None:
        return (yield from discrete_figures(config, energy, untrained, data))
    return (yield from _continuous_figures(config, energy, untrained, data))


def _compositions(section: LabelledToysData, energy: Energy, data: DataSet, output: str) -> Figures:
    """Compares the compositions of the first two labels' laws; writes `compositions.png`."""
    points, names = compositions.grid(), section.laws
    assert data.log_density is not None
    first, second = (energy.given(torch.tensor([label])) for label in (0.0, 1.0))
    one, other = (
        data.log_density(points, torch.full((len(points),), label)) for label in (0.0, 1.0)
    )
    compared = compositions.compare(first, second, (one, other))
    figures = compositions.composition_figures(compared)
    return figures | compositions.draw_compositions(compared, (names[0], names[1]), output)


def _continuous_figures(
    config: RunConfig, energy: Energy, untrained: Energy, data: DataSet
) -> Generator[Progress, None, Figures]:
    test = energy.into_domain(_held_out(config, data))
    train = energy.into_domain(noisy_sample(config, data))
    weights = data.row_weights._replace(sample=sample_weights(data))
    baselines, left_out = (
        likelihood.continuous_baselines(data, test, energy.box)
        if energy.kinds is None
        else likelihood.baselines_of_kinds(data, energy.kinds)
    )
    log_z, log_z_before = energy.log_partition(), untrained.log_partition()
    if log_z is not None and log_z_before is not None:
        figures = likelihood.exact(energy, log_z, test, train, weights)
        before = likelihood.exact(untrained, log_z_before, test, train, weights)[
            "test_log_likelihood"
        ]
    elif data.shape == (2,) and energy.real:
        # far beyond the data and the base term; a trained network may move mass between, not past
        # them
        box = reach(energy, data)
        figures = likelihood.two_dimensional(energy, data, test, box)
        level = -float(energy(train).double().mean())
        figures["train_log_likelihood"] = level - figures["log_z"]
        before = likelihood.two_dimensional(untrained, data, test, box)["test_log_likelihood"]
    elif config.evaluation.ais_temperatures:
        train, of_test = energy.into_domain(typical_sample(config, data)), weights.held_out
        figures = yield from likelihood.by_annealing(energy, test, train, config, of_test)
        before = yield from likelihood.untrained(untrained, train, test, config.seed, of_test)
    else:
        return {}
    figures["baselines"] = {"untrained": before, **baselines}
    return figures | ({"constant_columns": left_out} if left_out else {})
