"""From a section to an energy with its initial weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from pipeline.assembly.refusals import refusing
from pipeline.common import plugins
from pipeline.common.errors import ConfigError
from pipeline.common.rng import torch_generator
from pipeline.config import energies as energy_sections
from pipeline.config.energies import EnergyConfig
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.energies.conditional_mlp import ConditionalMLP
from pipeline.energies.conv import ConvEnergy
from pipeline.energies.custom import CustomEnergy
from pipeline.energies.dbm import DeepBoltzmannMachine
from pipeline.energies.label_mlp import LabelMLP
from pipeline.energies.lattice import PottsLattice
from pipeline.energies.maxent.exponential_family import family
from pipeline.energies.mlp import MLPEnergy
from pipeline.energies.pairwise import PairwiseEnergy
from pipeline.energies.quadratic import QuadraticBinary
from pipeline.energies.rbm import BernoulliRBM, GaussianRBM, PottsRBM

ENERGIES: dict[str, Callable[..., Energy]] = {
    "mlp": MLPEnergy,
    "conv": ConvEnergy,
    "rbm": BernoulliRBM,
    "gaussian_rbm": GaussianRBM,
    "potts_rbm": PottsRBM,
    "dbm": DeepBoltzmannMachine,
    "lattice": PottsLattice,
    "quadratic": QuadraticBinary,
    "conditional_mlp": ConditionalMLP,
    "label_mlp": LabelMLP,
    "pairwise": PairwiseEnergy,
    "maxent": family,
}


def make_energy(
    config: RunConfig, shape: Sequence[int], context_shape: Sequence[int] | None = None
) -> Energy:
    """The energy with its initial weights, from the stream "weights"; torch's global one is left as
    it was. Raises `ConfigError`.
    """
    return construct_energy(config.energy, shape, context_shape, config.seed)


def construct_energy(
    section: EnergyConfig,
    shape: Sequence[int],
    context_shape: Sequence[int] | None = None,
    seed: int = 0,
) -> Energy:
    """`make_energy` where only the energy's own section is known: what a checkpoint is loaded into.
    Raises `ConfigError`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_generator(seed, "weights").initial_seed())
        with refusing("energy", section):
            if isinstance(section, energy_sections.CustomEnergy):
                domain = section.model_dump(include={"levels", "base_scale", "box"})
                return CustomEnergy(shape, find_module(section, shape), **domain)
            options = section.model_dump(exclude={"name"})
            if isinstance(section, energy_sections.MaxentEnergy):
                options["given"] = section._features
                options["features"] = [find_features(some, shape) for some in options["features"]]
            if section.takes_context:
                options["context_shape"] = context_shape
            return ENERGIES[section.name](shape, **options)


def find_module(section: energy_sections.CustomEnergy, shape: Sequence[int]) -> nn.Module:
    """The user's module: a copy of the one given in code, or what the installed package's entry
    point makes.
    """
    if section._module is not None:
        return deepcopy(section._module)
    if section.entry_point is None:
        remedy = (
            "name an entry point of an installed package (group pipeline.energies), or give energy="
            " in code"
        )
        raise ConfigError("energy.entry_point", "null", remedy)
    make = plugins.find("pipeline.energies", section.entry_point, "energy.entry_point")
    module: nn.Module = plugins.call(make, "energy.options", section.options, tuple(shape))
    return module


def find_features(declared: dict[str, Any], shape: Sequence[int]) -> dict[str, Any]:
    """One entry of `energy.features`; of kind custom, with the function that the installed
    package's entry point makes. Raises `ConfigError`.
    """
    if declared["kind"] != "custom":
        return declared
    name, key = declared["entry_point"], "energy.features"
    make = plugins.find("pipeline.features", name, key)
    function = plugins.call(make, key, declared["options"], tuple(shape))
    return {"kind": "custom", "function": function, "name": name}
