"""The graph that an energy's couplings are restricted to."""

from __future__ import annotations

import math

from pipeline.common.errors import ConfigError
from pipeline.config.energies import PottsEnergy
from pipeline.config.run import RunConfig
from pipeline.data.base import DataSet
from pipeline.data.edges import read_edges
from pipeline.energies.base import Energy
from pipeline.energies.potts import PottsModel


def restrict(config: RunConfig, energy: Energy, data: DataSet) -> None:
    """Holds the couplings of all pairs of sites at 0 but those that energy.edges names, if it names
    some: by the numbers of an alignment's sites, or 1, ..., L. Raises `ConfigError`, `DataError`.
    """
    section = config.energy
    if not isinstance(section, PottsEnergy):
        return
    assert isinstance(energy, PottsModel)
    if section.edges is None:
        if section.edge_share < 1:
            remedy = "is a share of the pairs that energy.edges names; name some, or use 1"
            raise ConfigError("energy.edge_share", section.edge_share, remedy)
        return
    numbering = list(range(1, math.prod(data.shape) + 1))
    if data.sequences is not None:
        numbering = data.sequences.numbering
    energy.keep_pairs(read_edges(section.edges, section.edge_share, numbering))
