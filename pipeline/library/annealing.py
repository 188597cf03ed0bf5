"""log Z of an energy of one's own, by annealed importance sampling there and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.common.errors import ArgumentError
from pipeline.common.types import Progress
from pipeline.common.work import result
from pipeline.energies.base import Energy
from pipeline.energies.function import Function
from pipeline.energies.target import Target
from pipeline.evaluation import ais
from pipeline.evaluation.log_partition import LogPartition
from pipeline.evaluation.paths import path_to
from pipeline.library.arguments import check_finite, check_whole, on_domain, source_of


@torch.no_grad()
def log_partition(
    energy: Energy | Function,
    rows: Tensor | np.ndarray,
    *,
    temperatures: int = 1000,
    particles: int = 200,
    levels: int | None = None,
    box: tuple[float, float] | None = None,
    generator: torch.Generator | int = 0,
    progress: Callable[[Progress], Any] | None = None,
) -> LogPartition:
    """Estimates log Z, Z the integral (over levels, the sum) of exp(-E), in nats: `value`, its
    `standard_error`, and the bounds `at_least` and `at_most`. `doubt` says why there is no standard
    error, where there is none.

    `energy` maps positions `[N, *shape]` to nats `[N]`. `rows` [S, *shape] are data of the model,
    or draws of it: annealing begins at a law that is fitted to them (over `levels`, at the uniform
    one), and half of the particles that are annealed back begin at them. See
    `pipeline.evaluation.ais.log_partition` (Neal 2001; Grosse, Ghahramani & Adams 2015).

    The domain is {0, ..., `levels` - 1}^d, the `box` (low, high), or else R^d, where exp(-E) must
    have an integral. Where the path is short, fewer than `temperatures` are taken, 200 at least; at
    most about 4 x `temperatures` x `particles` energies and gradients are worked out.
    `generator` is one, or a seed. `progress` is called with each `Progress` (stage, done, total).

    Raises `ArgumentError` where an argument is not what it should be, or an energy of the rows is
    not finite.
    """
    check_whole(temperatures=temperatures, particles=particles)
    model, x = on_domain(energy, rows, "rows", levels, box)
    if x.device.type != "cpu":
        remedy = "should be on the CPU; give copy.deepcopy(energy).cpu()"
        raise ArgumentError("energy", f"on {x.device}", remedy)
    if len(x) < 2:
        raise ArgumentError("rows", "1 row", "should be 2 rows at least, which a law is fitted to")
    check_finite("rows", Target(model).energy(x))
    source = source_of(generator, x.device)
    return result(
        ais.log_partition(path_to(model, x), temperatures, particles, source, x), progress
    )
