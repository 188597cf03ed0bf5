"""The fit of rows to an energy's base law, which chains come from."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import Tensor

from pipeline.assembly.data import typical_sample
from pipeline.common.rng import torch_generator
from pipeline.common.types import Verdict
from pipeline.config.run import RunConfig
from pipeline.data.base import DataSet
from pipeline.data.row_weights import shuffled
from pipeline.energies.base import Energy

DRAWS = 1000
"""Rows, and draws of the base law, that are looked at: time and memory of a start are bounded."""
FAR, NARROW = 10.0, 1 / 50
"""Standard deviations of the base law that rows may be from its middle, on average, and the least
that they spread over."""
AT_WALLS, WALL = 0.2, 1e-3
"""The share of values that may be at a box's walls, and how near that is, in widths of the box."""


@torch.no_grad()
def misfits(config: RunConfig, energy: Energy, data: DataSet) -> list[Verdict]:
    """Returns what does not fit, of rows of real numbers: their `scale`, held against the base law
    of the energy as it begins, or a `box` at whose walls many of them lie.
    """
    if not data.rows or energy.levels is not None or energy.shape != data.shape:
        return []
    energy, rows = deepcopy(energy), typical_sample(config, data)
    energy.initialise(rows)
    base = energy.sample_base(DRAWS, torch_generator(config.seed, "fit"))
    scalable = getattr(config.data, "scale", None) == "none"
    seen = _some(rows)
    found = [_misfit(energy, scalable, seen, base.flatten(1).double())]
    if energy.box is not None:
        found.append(_piled_up(energy.box, energy.into_domain(seen)))
    return [each for each in found if each is not None]


def row_spread(data: DataSet) -> float:
    """The root mean variance of the components of some training rows; NaN without rows."""
    if not data.rows:
        return math.nan
    rows, weights = data.sample, data.row_weights.sample
    if weights is not None:
        rows = rows[shuffled(weights, DRAWS, torch_generator(0, "row-spread"))]
    return float(_some(rows).var(0, correction=0).mean().sqrt())


def _some(rows: Tensor) -> Tensor:
    """At most about `DRAWS` of the rows [N, *shape], evenly spaced, `[n, d]` float64."""
    return rows[:: max(1, len(rows) // DRAWS)].flatten(1).double()


def _misfit(energy: Energy, scalable: bool, rows: Tensor, base: Tensor) -> Verdict | None:
    middle, spread = base.mean(0), float(base.var(0).mean().sqrt())
    away = float((rows - middle).square().mean().sqrt()) / spread
    wide = float(rows.var(0, correction=0).mean().sqrt())
    if away <= FAR and wide >= NARROW * spread:
        return None
    law = (
        f"spreads with standard deviation {spread:.3g} around {float(middle.mean()):.3g}"
        if energy.box is None
        else f"is uniform from {energy.box[0]:g} to {energy.box[1]:g}"
    )
    off = float((rows.mean(0) - middle).square().mean().sqrt()) > 3 * max(wide, spread)
    remedy = "take the mean of the rows away" if off else "scale the rows"
    if scalable:
        remedy = "set data.scale=" + ("standard" if energy.box is None else "unit")
    if not off and energy.box is None and hasattr(energy, "base_scale"):
        remedy += f", or set energy.base_scale={wide:.2g}"
    remedy += ", or narrow energy.box" if energy.box is not None else ""
    return Verdict(
        "scale",
        f"the data span {float(rows.min()):.4g} to {float(rows.max()):.4g} (standard deviation"
        f" {wide:.3g}), and the base law, where chains come from, {law}: {remedy}",
    )


def _piled_up(box: tuple[float, float], rows: Tensor) -> Verdict | None:
    low, high = box
    near = WALL * (high - low)
    share = float(((rows < low + near) | (rows > high - near)).double().mean())
    if share <= AT_WALLS:
        return None
    return Verdict(
        "box",
        f"{share:.0%} of the data's values lie at the walls of energy.box={list(box)}, where no"
        " density can pile up: widen the box, or smooth the data by data.noise",
    )
