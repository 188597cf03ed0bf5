"""Rows of which some components are held, while samples of the others are drawn."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.common.errors import ConfigError
from pipeline.energies.base import Energy
from pipeline.energies.clamped import as_positions
from pipeline.runs.rows import column_names, read_flat, read_rows
from pipeline.runs.trained import Trained

if TYPE_CHECKING:
    from pipeline.config.sample import Settings


def clamped_rows(settings: Settings, run: Trained) -> Tensor | None:
    """Returns the rows of `clamp`, `[N, *data_shape]`, NaN where the file has no number; None
    without a clamp. Raises `ConfigError` where the keys do not go together.
    """
    chosen = [key for key in ("clamp_columns", "clamp_mask") if getattr(settings, key) is not None]
    if settings.clamp is None and chosen:
        remedy = "says what is held of the rows of clamp=data or clamp=FILE: give clamp too"
        raise ConfigError(chosen[0], getattr(settings, chosen[0]), remedy)
    if len(chosen) > 1:
        raise ConfigError("clamp_mask", settings.clamp_mask, "give clamp_columns or clamp_mask")
    if settings.clamp is None:
        return None
    if settings.clamp != "data":
        return read_rows("clamp", settings.clamp, settings.columns, run, holes=True)
    if not len(run.data.held_out):
        remedy = "the data are not there; give data.path, or a file"
        if run.data.rows:
            remedy = f"{run.url} held no rows out; give a file"
        raise ConfigError("clamp", "data", remedy)
    return run.data.held_out


def held_rows(settings: Settings, run: Trained, energy: Energy, rows: Tensor, count: int) -> Tensor:
    """Returns what each of `count` samples is given of the clamped `rows`, over again where they
    are fewer: `[count, *shape]`, NaN where it is drawn. The latent columns of a position always
    are. Raises `ConfigError` where nothing is to be drawn.
    """
    number = torch.arange(count)
    rows = rows[number % len(rows)]
    if settings.clamp_columns is not None:
        rows = rows.masked_fill(~_of_columns(settings.clamp_columns, run), torch.nan)
    elif settings.clamp_mask is not None:
        held = _mask(settings.clamp_mask, run)
        rows = rows.masked_fill(~held[number % len(held)], torch.nan)
    if not bool(rows.isnan().any()):
        remedy = "no row lacks a number: nothing is to be drawn"
        if settings.clamp_columns is None:
            remedy += "; clamp_columns or clamp_mask says what is held"
        raise ConfigError("clamp", settings.clamp, remedy)
    return as_positions(energy, rows)


def _of_columns(columns: Any, run: Trained) -> Tensor:
    """Returns which components are held, `[*data_shape]` bool. Raises `ConfigError`."""
    dimension = math.prod(run.data.shape)
    held = torch.zeros(dimension, dtype=torch.bool)
    for first, last in _ranges(columns, column_names(run)):
        if not first <= last < dimension:
            remedy = f"a row of {run.url} has columns 0-{dimension - 1}"
            raise ConfigError("clamp_columns", columns, remedy)
        held[first : last + 1] = True
    return held.view(run.data.shape)


def _ranges(columns: Any, names: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yields the first and the last number of each entry, such as 3, "0-31" or one of the `names`.
    Raises `ConfigError`.
    """
    entries = columns if isinstance(columns, list) else str(columns).split(",")
    for entry in (str(entry).strip() for entry in entries):
        found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", entry)
        if entry in names:
            yield names.index(entry), names.index(entry)
        elif found is not None:
            yield int(found[1]), int(found[2] or found[1])
        else:
            remedy = "give numbers of columns and ranges of them, such as [0,1,5] or 0-31"
            if names:
                remedy += f", or names: {', '.join(names)}"
            raise ConfigError("clamp_columns", columns, remedy)


def _mask(url: str, run: Trained) -> Tensor:
    """Returns the rows of a mask, `[M, *data_shape]` bool, true where a component is held: a file
    has one for all samples or one for each, over again. Raises `ConfigError`.
    """
    shape = run.data.shape
    flat = read_flat("clamp_mask", url, (), run)
    if flat.size % math.prod(shape) or not bool(((flat == 0) | (flat == 1)).all()):
        remedy = f"should be rows of shape {list(shape)}, 1 where a component is held and 0 else"
        raise ConfigError("clamp_mask", url, remedy)
    return torch.from_numpy(flat == 1).view(-1, *shape)
