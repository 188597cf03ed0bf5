"""From a configuration to its data, checked against what it asks of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.common.errors import ConfigError, StorageError
from pipeline.common.rng import torch_generator
from pipeline.common.types import Rows
from pipeline.config import parts
from pipeline.config.energies import LabelledSection, MixedRBMEnergy
from pipeline.config.objectives import ObjectiveSection, terms_of
from pipeline.config.run import RunConfig
from pipeline.data.base import MOST_ROWS, DataSet, channels_last
from pipeline.data.row_weights import shuffled
from pipeline.energies.base import Energy
from pipeline.energies.potts import PottsModel
from pipeline.storage.probe import check_input

SHOWN = 12  # names that a line lists
COPIED = 1 << 24  # numbers that weighted rows are copied to, at most


def open_data(config: RunConfig) -> DataSet:
    """The data set, checked against what the configuration asks of it.

    Raises `ConfigError` where they do not fit, or where storage does not give them; `DataError`
    where they are not rows.
    """
    path = getattr(config.data, "path", None)
    for name in ("path", "held_out_path", "contacts"):
        if (url := getattr(config.data, name, None)) is not None:
            check_input(url, f"data.{name}")
    try:
        section = config.data
        if isinstance(config.energy, LabelledSection):
            section = section.telling(classes=config.energy.classes)
        data: DataSet = parts.make_of("data", config.data.name)(section)
    except StorageError as error:
        raise ConfigError("data.path", path, error.words) from error
    if config.energy.takes_context and data.context is None:
        remedy = (
            f"energy={config.energy.name} conditions on a context, and these rows have none; use"
            " data with contexts"
        )
        raise ConfigError("data", config.data.name, remedy)
    _check_kinds(config, data)
    if data.rows:
        _check_rows(config, data)
    _check_masses(config, math.prod(data.shape))
    for term in terms_of(config.objective).values():
        _check_directions(term, math.prod(data.shape))
    return data


def kinds_of(config: RunConfig, data: DataSet) -> tuple[int, ...]:
    """The kind of each number of a row: 0 where it is real, q where it is one of 0, ..., q-1."""
    same = (config.data.discrete_levels or 0,) * math.prod(data.shape)
    return data.kinds or same


def of_kinds(config: RunConfig, data: DataSet) -> RunConfig:
    """The configuration with `energy.kinds` as the data have them, where the energy has kinds and
    is not told. Raises `ConfigError` where it is told others.
    """
    energy = config.energy
    if not isinstance(energy, MixedRBMEnergy) or (energy.kinds and not data.rows):
        return config
    kinds = kinds_of(config, data)
    if energy.kinds and energy.kinds != kinds:
        remedy = f"the rows of data={config.data.name} are of {list(kinds)}; use [], which takes it"
        raise ConfigError("energy.kinds", list(energy.kinds), remedy)
    told = energy.model_copy(update={"kinds": kinds})
    return config.model_copy(update={"energy": told})


def _check_kinds(config: RunConfig, data: DataSet) -> None:
    """The energy takes the kinds of the columns, where each is of its own."""
    if not config.data.by_column or not data.rows or config.energy.domain.mixed:
        return
    kinds, levels = kinds_of(config, data), config.energy.domain.levels
    odd = [number for number, kind in enumerate(kinds) if kind != (levels or 0)]
    if not odd:
        return
    name = data.columns[odd[0]][0] if data.columns else f"number {odd[0]}"
    kind = f"has {kinds[odd[0]]} categories" if kinds[odd[0]] else "holds real numbers"
    remedy = f"{config.energy.where}, and column {name} {kind}; use energy=mixed_rbm kernel=gibbs"
    if len(set(kinds)) == 1 and kinds[0]:
        same = "energy=rbm" if kinds[0] == 2 else f"energy=potts_rbm energy.levels={kinds[0]}"
        remedy += f" or {same}"
    raise ConfigError("energy", config.energy.name, remedy)


def doubts(config: RunConfig, data: DataSet) -> list[str]:
    """Returns what is odd about the data, a line each, though it may be meant."""
    shapes = {"shape": data.shape, "context_shape": data.context_shape}
    found = [
        f"data.{key}={list(shape)} looks like height, width and channels, and is taken for"
        f" {shape[0]} channels of {shape[1]} by {shape[2]}; images are [channels,height,width]"
        for key, shape in shapes.items()
        if shape is not None
        and channels_last(shape)
        and (key == "shape" or config.energy.takes_context)
    ]
    if data.scale is not None and data.constant:
        found.append(
            f"constant in the training rows: {_listed(data.constant)}; data.scale={data.scale.kind}"
            " shifts such columns alone, and nothing can be learned of them"
        )
    return found


def told_columns(data: DataSet) -> list[str]:
    """Returns what numbers the labels of contexts and the categories of columns have, a line for
    each column of them; and how many values are missing.
    """
    lines = [f"labels of {name}: {_numbered(labels)}" for name, labels in data.labels.items()]
    lines += [
        f"categories of {name}: {_numbered(values)}" for name, values in data.columns if values
    ]
    if data.missing is not None:
        flat = data.missing.flatten(1)
        lines.append(
            f"missing: {int(flat.sum())} values of {int(flat.any(1).sum())} of the"
            f" {data.rows} training rows, which are imputed; held-out rows lack nothing"
        )
    return lines


def _numbered(values: Sequence[Any]) -> str:
    return _listed([f"{value} is {number}" for number, value in enumerate(values)])


def _listed(names: Sequence[str]) -> str:
    shown = list(names[:SHOWN])
    return ", ".join(shown) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _check_masses(config: RunConfig, dimension: int) -> None:
    """There is a mass for each component of a row."""
    mass = config.kernel.parameters.get("mass")
    if isinstance(mass, tuple) and len(mass) != dimension:
        key = "kernel.inner.mass" if config.kernel.ladder else "kernel.mass"
        raise ConfigError(
            key, list(mass), f"a row has {dimension} components; give one mass for each"
        )


def _check_directions(term: ObjectiveSection, dimension: int) -> None:
    """No more orthogonal directions are drawn than there are."""
    key = "draws" if hasattr(term, "draws") else "probes"
    most = {"orthogonal": dimension, "hutch_pp": 3 * dimension + 2}.get(getattr(term, "probe", ""))
    if most is not None and getattr(term, key) > most:
        remedy = f"a row has {dimension} orthogonal directions; use at most {most}"
        raise ConfigError(f"objective.{key}", getattr(term, key), remedy)


def _check_rows(config: RunConfig, data: DataSet) -> None:
    """There are enough of them, and a box holds them."""
    _check_enough(config, data)
    if (
        config.conditional
        and (config.reweight or config.refresh)
        and config.lag
        and not keeps_chains(config, data)
    ):
        remedy = (
            f"fewer than the {data.rows} training rows: chains start anew, and cannot be"
            " reweighted or moved; keep as many, or use lag 0"
        )
        raise ConfigError("chains.kept_contexts", config.chains.kept_contexts, remedy)
    if isinstance(config.energy, LabelledSection):
        _check_labels(config, config.energy.classes, data)
    if config.evaluation.live and config.data.discrete_levels:
        _check_complete(data)
    if config.trainer.batch_size is None:
        _check_all_rows(config, data)
    elif config.trainer.batch_size > data.rows:
        remedy = f"the data have {data.rows} training rows; use at most that"
        raise ConfigError("trainer.batch_size", config.trainer.batch_size, remedy)
    box = config.energy.domain.box
    ends = [torch.aminmax(rows) for rows in (data.sample, data.held_out) if len(rows)]
    low, high = float(min(end[0] for end in ends)), float(max(end[1] for end in ends))
    if box is not None and (low < box[0] or high > box[1]):
        raise ConfigError(
            "energy.box",
            list(box),
            f"the data reach from {low:g} to {high:g}; the box must hold them",
        )


def _check_complete(data: DataSet) -> None:
    """There are rows of which a likelihood can be told while a run goes on."""
    complete = data.complete()
    if not len(complete.held_out) or len(complete.sample) < 2:
        remedy = (
            f"a likelihood is of sequences that lack no letter: {len(complete.held_out)} held-out"
            f" ones do not, and {len(complete.sample)} training ones; use false, or data.gaps=state"
        )
        raise ConfigError("evaluation.live", True, remedy)


def _check_all_rows(config: RunConfig, data: DataSet) -> None:
    """All rows are in memory at once."""
    if data.streamed:
        remedy = "the data are larger than data.memory_limit, and streamed; give a number of rows"
        raise ConfigError("trainer.batch_size", "null", remedy)
    if data.missing is not None:
        remedy = "rows with holes are filled as they come, some at a time; give a number of rows"
        raise ConfigError("trainer.batch_size", "null", remedy)
    for name, term in terms_of(config.objective).items():
        if data.row_weights.sample is not None and not term.weighs_rows:
            remedy = f"objective={name} takes all rows alike, and they have weights; use a number"
            raise ConfigError("trainer.batch_size", "null", remedy)


def _check_enough(config: RunConfig, data: DataSet) -> None:
    """There are two training rows at least, since one has no spread, and one row held out, unless
    none is to be.
    """
    if config.data.held_out and not len(data.held_out):
        raise ConfigError(
            "data.held_out", config.data.held_out, "no row is left to score; keep out one or more"
        )
    if data.rows < 2:
        remedy = (
            f"leaves a single training row of {data.rows + len(data.held_out)}, which has no"
            " spread; keep out fewer, or give more rows"
        )
        raise ConfigError("data.held_out", config.data.held_out, remedy)
    if len(data.sample) < 2:
        limit = getattr(config.data, "memory_limit", None)
        remedy = "a single training row fits, which has no spread; give room for two at least"
        raise ConfigError("data.memory_limit", limit, remedy)


def _check_labels(config: RunConfig, classes: int, data: DataSet) -> None:
    """Contexts are labels, and the energy knows each."""
    assert data.context is not None
    known = (data.context.sample, data.context.held_out)
    labels, numbers = torch.cat([each.flatten() for each in known]), math.prod(data.context.shape)
    named = getattr(config.data, "context", None)
    key = "data" if named is None else "data.context"
    value = config.data.name if named is None else list(named)
    if numbers != 1:
        remedy = f"has {numbers} numbers a row; energy={config.energy.name} takes one label a row"
        raise ConfigError(key, value, remedy)
    odd = labels[(labels != labels.floor()) | (labels < 0)]
    if len(odd):
        remedy = f"a label is {float(odd[0]):g}; labels are whole numbers 0, ..., {classes - 1}"
        raise ConfigError(key, value, remedy)
    least, most = int(labels.min()), int(labels.max())
    if most >= classes and most - least < classes:
        remedy = (
            f"the labels are {least}, ..., {most}, and must be 0, ..., {classes - 1}: subtract"
            f" {least} from each"
        )
        raise ConfigError(key, value, remedy)
    if most >= classes:
        remedy = f"the labels reach to {most}; use {most + 1}"
        raise ConfigError("energy.classes", classes, remedy)


def first_contexts(data: DataSet, count: int) -> Tensor | None:
    """`count` contexts of training rows, over again where there are fewer; None where rows have
    none.
    """
    if data.context is None:
        return None
    return data.context.sample[torch.arange(count) % len(data.context.sample)]


def rows_for_pool(config: RunConfig, data: DataSet, pool: int, incarnation: int) -> Rows:
    """Training rows, drawn at random, as many as a pool has chains: the chains of one that joins
    may begin there.
    """
    generator = torch_generator(config.seed, "newcomers", pool, incarnation)
    count, weights = config.chains.per_pool, data.row_weights.sample
    if weights is None:
        return Rows(data.sample[torch.randint(len(data.sample), (count,), generator=generator)])
    return Rows(data.sample[torch.multinomial(weights, count, True, generator=generator)])


def noisy_sample(config: RunConfig, data: DataSet) -> Tensor:
    """At most `MOST_ROWS` training rows, each once, with the data's noise from a stream of its own.
    Their weights are `sample_weights`.
    """
    return _with_noise(config, data, data.sample[:MOST_ROWS])


def sample_weights(data: DataSet) -> Tensor | None:
    """The weights of `noisy_sample`'s rows, [S] float64; None where all count alike."""
    weights = data.row_weights.sample
    return None if weights is None else weights[:MOST_ROWS]


def typical_sample(config: RunConfig, data: DataSet) -> Tensor:
    """Training rows as training sees them, `noisy_sample`; where they have weights, in proportion,
    and several times as many of few rows, so that rounding does not matter.
    """
    weights = sample_weights(data)
    if weights is None:
        return noisy_sample(config, data)
    most = min(MOST_ROWS, COPIED // math.prod(data.shape))
    count = len(weights) * max(1, most // len(weights))
    generator = torch_generator(config.data.split_seed, "sample-weights")
    return _with_noise(config, data, data.sample[shuffled(weights, count, generator)])


def initialise(config: RunConfig, energy: Energy, data: DataSet) -> None:
    """Starts the energy from training rows as training sees them."""
    if isinstance(energy, PottsModel):
        energy.initialise(noisy_sample(config, data), sample_weights(data))
    else:
        energy.initialise(typical_sample(config, data))


def _with_noise(config: RunConfig, data: DataSet, rows: Tensor) -> Tensor:
    return rows + data.noise * torch.randn(
        rows.shape, generator=torch_generator(config.data.split_seed, "sample-noise")
    )


def keeps_chains(config: RunConfig, data: DataSet) -> bool:
    """Return whether pools keep chains for each training row of a conditional model: rows of a set
    in memory, which have numbers.
    """
    persistent = config.contrastive is not None and config.contrastive.start == "persistent"
    return (
        config.conditional
        and persistent
        and len(data.sample) == data.rows <= config.chains.kept_contexts
    )
