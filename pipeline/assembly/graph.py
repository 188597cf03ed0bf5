"""The graph that an energy's couplings are restricted to."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from pipeline.config.energies import PottsEnergy
from pipeline.config.run import RunConfig
from pipeline.data.base import DataSet
from pipeline.data.edges import read_edges
from pipeline.energies.base import Energy
from pipeline.energies.potts import PottsModel
from pipeline.training.graph_schedule import GraphSchedule


def restrict(config: RunConfig, energy: Energy, data: DataSet) -> None:
    """Holds the couplings of all pairs of sites at 0 but those that energy.edges names, if it names
    some: by the numbers of an alignment's sites, or 1, ..., L. Raises `ConfigError`, `DataError`.
    """
    section = config.energy
    if not isinstance(section, PottsEnergy):
        return
    assert isinstance(energy, PottsModel)
    if section.edges is None:
        return
    numbering = list(range(1, math.prod(data.shape) + 1))
    if data.sequences is not None:
        numbering = data.sequences.numbering
    share = section.edge_share if section.graph == "fixed" else 1.0
    energy.couple(read_edges(section.edges, share, numbering))


def schedule(config: RunConfig) -> Callable[[Energy], GraphSchedule] | None:
    """Returns what makes an energy's graph change as a model learns; None where it is fixed."""
    section = config.energy
    if not isinstance(section, PottsEnergy) or section.graph == "fixed":
        return None
    return partial(
        GraphSchedule,
        grows=section.graph == "grown",
        share=section.edge_share,
        steps=section.edge_steps,
    )
