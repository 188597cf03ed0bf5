"""Trained runs opened again, bound to contexts, and composed."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.assembly.data import open_data
from pipeline.assembly.energies import make_energy
from pipeline.common.errors import ArgumentError, CheckpointError, ConfigError, DataError
from pipeline.common.masking import masked
from pipeline.config.arguments import reconfigured
from pipeline.config.data import RowsData
from pipeline.config.run import RunConfig
from pipeline.data.base import DataSet
from pipeline.data.content import recorded_of
from pipeline.data.given import GivenRows
from pipeline.data.labels import in_words
from pipeline.data.nothing import without_rows
from pipeline.energies.base import Energy
from pipeline.energies.composition import Conjunction, Disjunction, Negation, check_alike
from pipeline.evaluation.conditional import log_z_on_grid, reach
from pipeline.evaluation.likelihood import log_z_by_quadrature
from pipeline.evaluation.report import labels_of
from pipeline.storage.checkpoint import Checkpoint
from pipeline.storage.files import names
from pipeline.storage.folders import refuse_folder_of_a_run
from pipeline.storage.lease import LEASE_FOLDER
from pipeline.storage.paths import resolve_output
from pipeline.storage.probe import check_output, check_run
from pipeline.storage.store import find_averaged

log = logging.getLogger(__name__)
NEGATED = 0.5  # weight of what is negated, where none is given


class Trained(NamedTuple):
    """A run as its newest checkpoint has it: its configuration (with what it is told now), its
    data, its averaged weights, flat, and their energy.
    """

    url: str
    checkpoint: Checkpoint
    config: RunConfig
    data: DataSet
    weights: np.ndarray
    energy: Energy


def open_run(
    url: str, overrides: Sequence[str], needs_data: bool = True, rows: GivenRows | None = None
) -> Trained:
    """Opens the run at `url`, or one checkpoint of it, its configuration under `overrides`; on the
    CPU. Of the checkpoint the averaged weights alone are read. `rows` are the data of one that was
    trained on rows given in code, which are not there again.

    Raises `CheckpointError` where there is none or it does not fit. Where its data are gone, raises
    `DataError` if they are needed; else the run's data are of the right shape and have no rows.
    """
    if not url:
        raise ConfigError("run", url, "give a run's output or one of its checkpoints")
    check_run(url, "run")
    checkpoint, weights = find_averaged(url, "run")
    try:
        config = reconfigured(checkpoint.manifest.config, overrides)
        config = _with_recorded(config, checkpoint).carrying(rows=rows)
    except ConfigError as error:
        if overrides or rows is not None:
            raise
        raise CheckpointError(
            f"{checkpoint.folder}: this version cannot take its configuration up ({error})"
        ) from error
    try:
        data = open_data(config)
    except (ConfigError, DataError) as error:
        gone = isinstance(config.data, RowsData) and rows is None
        if (needs_data and not gone) or any(text.startswith("data.") for text in overrides):
            raise
        log.warning("%s: its data are not there (%s); it does without", masked(url), error)
        data = without_rows(checkpoint.shape, checkpoint.context_shape)._replace(
            **recorded_of(checkpoint.manifest.data)
        )
    if rows is not None and data.shape != checkpoint.shape:
        remedy = f"a row of {url} has shape {list(checkpoint.shape)}"
        raise ConfigError("rows", f"shape {list(data.shape)}", remedy)
    energy = make_energy(config, data.shape, data.context_shape)
    checkpoint.check_signature(energy, "run")
    checkpoint.fill(energy, weights)
    return Trained(url, checkpoint, config, data, weights, energy.eval().requires_grad_(False))


def _with_recorded(config: RunConfig, checkpoint: Checkpoint) -> RunConfig:
    """Returns the configuration with the scale and the labels of the run's data: those of other
    data at data.path would not be what its energy has learned.
    """
    section = config.data.telling(recorded=checkpoint.manifest.data or {})
    return config.model_copy(update={"data": section})


def output_of(run: Trained, wanted: str | None, name: str) -> str:
    """Returns where files go: `wanted`, else a folder `name` in the run's own. Raises `ConfigError`
    for a URL that nothing serves, where no file can be written, and where a run has its files: it
    alone writes there.
    """
    default = (
        f"{run.checkpoint.folder.rpartition('/checkpoints/')[0] or run.checkpoint.folder}/{name}"
    )
    output = resolve_output(run.config.model_copy(update={"output": wanted or default}))
    check_output(output)
    refuse_folder_of_a_run(output)
    if not {"checkpoints", LEASE_FOLDER}.isdisjoint(names(output)):
        raise ConfigError("output", output, "a run has its files there; give a folder of its own")
    return output


def contexts_of(run: Trained, given: Any) -> Tensor:
    """Returns `given`, one context or a list of them, as `[N, *context_shape]`. Raises
    `ConfigError` where it is not of that shape.
    """
    shape = run.energy.context_shape
    if shape is None:
        raise ConfigError(
            "given", given, f"{run.url} is a model of rows alone, which conditions on nothing"
        )
    shown, given = given, _places(run, given)
    try:
        values = torch.tensor(given, dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "given", shown, "must be a number, or a list (of lists) of numbers"
        ) from error
    if values.dim() < 2 and shape and names_of_labels(run) is not None:
        values = values.view(-1, *shape)
    if values.shape == shape:
        values = values[None]
    known = labels_of(run.config, run.data)
    if known is None and run.data.context is not None and run.data.rows:
        known = run.data.context.sample
    if values.shape[1:] != shape or not len(values):
        raise ConfigError(
            "given",
            given,
            f"a context of {run.url} has shape {list(shape)}; give one, or a list of them",
        )
    if not shape and known is not None and not torch.isin(values, known).all():
        raise ConfigError("given", given, f"no such label among the training rows of {run.url}")
    return values


def names_of_labels(run: Trained) -> Sequence[Any] | None:
    """Returns the labels of the run's data in order, where a context is one; else None."""
    shape = run.energy.context_shape
    if shape is None or math.prod(shape) != 1:
        return None
    return next(iter(run.data.labels.values()), None)


def _places(run: Trained, given: Any) -> Any:
    """Returns labels as their places, where the run's contexts are a column of labels. Raises
    `ConfigError` for one that it does not have.
    """
    labels = names_of_labels(run)
    if labels is None:
        return given
    if isinstance(given, (list, tuple)):
        return [_places(run, each) for each in given]
    if given not in labels:
        raise ConfigError("given", given, f"{run.url} has the labels {in_words(labels)}")
    return labels.index(given)


def bound(run: Trained, context: Tensor | None) -> Energy:
    """Returns the run's energy of positions alone, given `context` [N, *context_shape] where it is
    not None; of a classifier, that of positions of the labels given.
    """
    if context is None:
        return run.energy
    of_class = getattr(run.energy, "of_class", run.energy.given)
    energy: Energy = of_class(context)
    return energy


def log_partition(energy: Energy, data: DataSet) -> float | None:
    """Returns log Z in nats: exactly where the energy has it, by quadrature in at most two real
    dimensions. It is None elsewhere, and where the energy is bound to several contexts. Raises
    `ConfigError` where quadrature wants rows, and there are none.
    """
    if energy.contexts > 1:
        return None
    log_z = energy.log_partition()
    if log_z is not None or energy.levels is not None or energy.dimension > 2:
        return log_z
    if energy.box is None and not data.rows:
        remedy = "the data are not there, which say how far to integrate; give them"
        raise ConfigError("log_partitions", "null", remedy)
    box = reach(energy, data)
    return (
        log_z_by_quadrature(energy, box)
        if energy.shape == (2,)
        else float(log_z_on_grid(energy, box))
    )


@torch.no_grad()
def composed(
    how: str,
    runs: Sequence[Trained],
    parts: Sequence[Energy],
    weights: Sequence[float] | None,
    log_z: Sequence[float] | None,
) -> tuple[Energy, list[float] | None]:
    """Composes `parts`, energies of the `runs`, by "and", "or" or "not", and returns the energy;
    for "or" with it the log Z of each that were used.

    For "or" they are `log_z`, else `log_partition` of each; None where one of them has none, and
    all are taken to be equal. Raises `ConfigError` where they cannot be composed so.
    """
    urls = [run.url for run in runs]
    try:
        check_alike(parts, urls)
        return _composed(how, runs, parts, weights, log_z)
    except ArgumentError as error:
        if error.argument in ("weight", "weights"):  # a negation knows the last one alone
            asked = list(weights or (1.0, NEGATED))
            raise ConfigError("weights", asked, error.remedy) from error
        key = "runs" if error.argument == "energies" else error.argument
        raise ConfigError(key, error.value, error.remedy) from error


def _composed(
    how: str,
    runs: Sequence[Trained],
    parts: Sequence[Energy],
    weights: Sequence[float] | None,
    log_z: Sequence[float] | None,
) -> tuple[Energy, list[float] | None]:
    if log_z is not None and how != "or":
        raise ConfigError(
            "log_partitions", list(log_z), f"compose={how} needs none; they go with compose=or"
        )
    if how == "and":
        return Conjunction(parts, weights), None
    if how == "or":
        found = (
            [log_partition(part, run.data) for part, run in zip(parts, runs, strict=True)]
            if log_z is None
            else log_z
        )
        known = [value for value in found if value is not None]
        used = known if len(known) == len(parts) else None
        return Disjunction(parts, weights, used), used
    if len(parts) != 2:
        urls = [run.url for run in runs]
        raise ConfigError("runs", urls, "compose=not takes two, the first and what it is not")
    if weights is None:
        weights = (1.0, NEGATED)
    if len(weights) != 2 or weights[0] != 1:
        raise ConfigError(
            "weights",
            list(weights),
            "for compose=not should be [1,w], the exponent of what is negated last",
        )
    positive, negative = parts
    return Negation(positive, negative, weights[1]), None
