"""From a configuration to its data, checked against what it asks of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.common.errors import ConfigError, StorageError
from pipeline.common.rng import torch_generator
from pipeline.common.types import Rows
from pipeline.config import parts
from pipeline.config.energies import LabelledSection
from pipeline.config.objectives import ObjectiveSection, terms_of
from pipeline.config.run import RunConfig
from pipeline.data.base import MOST_ROWS, DataSet
from pipeline.storage.probe import check_input


def open_data(config: RunConfig) -> DataSet:
    """The data set, checked against what the configuration asks of it.

    Raises `ConfigError` where they do not fit, or where storage does not give them; `DataError`
    where they are not rows.
    """
    path = getattr(config.data, "path", None)
    if path is not None:
        check_input(path, "data.path")
    try:
        data: DataSet = parts.make_of("data", config.data.name)(config.data)
    except StorageError as error:
        raise ConfigError("data.path", path, error.words) from error
    if config.energy.takes_context and data.context is None:
        remedy = (
            f"energy={config.energy.name} conditions on a context, and these rows have none; use"
            " data with contexts"
        )
        raise ConfigError("data", config.data.name, remedy)
    if data.rows:
        _check_rows(config, data)
    _check_masses(config, math.prod(data.shape))
    for term in terms_of(config.objective).values():
        _check_directions(term, math.prod(data.shape))
    return data


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
        _check_labels(config.energy.classes, data)
    if config.trainer.batch_size > data.rows:
        remedy = f"the data have {data.rows} training rows; use at most that"
        raise ConfigError("trainer.batch_size", config.trainer.batch_size, remedy)
    box = config.energy.domain.box
    low = float(min(data.sample.min(), data.held_out.min()))
    high = float(max(data.sample.max(), data.held_out.max()))
    if box is not None and (low < box[0] or high > box[1]):
        raise ConfigError(
            "energy.box",
            list(box),
            f"the data reach from {low:g} to {high:g}; the box must hold them",
        )


def _check_labels(classes: int, data: DataSet) -> None:
    """Contexts are labels, and the energy knows each."""
    assert data.context is not None
    labels = data.context.sample
    known = ((labels == labels.floor()) & (labels >= 0) & (labels < classes)).all()
    if math.prod(data.context.shape) != 1 or not bool(known):
        remedy = (
            f"the rows' contexts are not all labels 0, ..., {classes - 1}; set it to how many"
            " there are"
        )
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
    return Rows(
        data.sample[torch.randint(len(data.sample), (config.chains.per_pool,), generator=generator)]
    )


def noisy_sample(config: RunConfig, data: DataSet) -> Tensor:
    """At most `MOST_ROWS` training rows as training sees them: with the data's noise, from a
    stream of its own.
    """
    rows = data.sample[:MOST_ROWS]
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
