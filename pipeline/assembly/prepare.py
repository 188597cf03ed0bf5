"""A run is prepared: its data are opened and its energy is made, and both are tried out."""

from __future__ import annotations

from pipeline.assembly.data import of_kinds, open_data
from pipeline.assembly.devices import check_device
from pipeline.assembly.energies import make_energy
from pipeline.assembly.graph import restrict
from pipeline.assembly.memory import (
    check_chains,
    check_evaluation,
    refusing_excess,
    within_memory,
)
from pipeline.assembly.rehearsal import rehearse
from pipeline.config.cores import on_this_machine
from pipeline.config.run import RunConfig
from pipeline.data.base import DataSet
from pipeline.energies.base import Energy


def prepare(config: RunConfig) -> tuple[RunConfig, DataSet, Energy]:
    """Returns the configuration, which now says what follows from the data (`of_kinds`), the data
    and the untrained energy of a run, after a rehearsal. Nothing is written.

    Raises `ConfigError` where the configuration cannot be carried out, on this device or in this
    machine's memory among others, and `DataError` where rows cannot be read.
    """
    if on_this_machine(config):
        check_device(config.device)
    with within_memory():
        with refusing_excess("data", config.data):
            data = open_data(config)
            config = of_kinds(config, data)
        with refusing_excess("energy", config.energy):
            energy = make_energy(config, data.shape, data.context_shape)
            restrict(config, energy, data)
        check_chains(config, energy.dimension)
        check_evaluation(config, energy.dimension)
        rehearse(config, energy, data)
    return config, data, energy
