"""From a section to an energy with its initial weights."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from pipeline.assembly.refusals import refusing
from pipeline.common import plugins
from pipeline.common.errors import ConfigError
from pipeline.common.rng import torch_generator
from pipeline.config import parts
from pipeline.config.energies import CustomEnergy as CustomSection
from pipeline.config.energies import EnergySection
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.energies.custom import CustomEnergy
from pipeline.energies.maxent.exponential_family import family


def make_energy(
    config: RunConfig, shape: Sequence[int], context_shape: Sequence[int] | None = None
) -> Energy:
    """The energy with its initial weights, from the stream "weights"; torch's global one is left as
    it was.

    Raises `ConfigError` where it cannot be had of these shapes, or its module is a user's own and
    is not there.
    """
    return construct_energy(config.energy, shape, context_shape, config.seed)


def construct_energy(
    section: EnergySection,
    shape: Sequence[int],
    context_shape: Sequence[int] | None = None,
    seed: int = 0,
) -> Energy:
    """`make_energy` where only the energy's own section is known: what a checkpoint is loaded into.
    Raises `ConfigError`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_generator(seed, "weights").initial_seed())
        arguments = section.arguments
        if section.takes_context:
            arguments["context_shape"] = context_shape
        with refusing("energy", section):
            energy: Energy = parts.make_of("energy", section.name)(shape, **arguments)
        return energy


def maximum_entropy(
    shape: Sequence[int], features: Sequence[dict[str, Any]], **options: Any
) -> Energy:
    """The exponential family of the `features` that a configuration declares; those of installed
    packages are found by name.

    Raises `ConfigError` where one is not there.
    """
    return family(shape, [find_features(declared, shape) for declared in features], **options)


def custom(shape: Sequence[int], section: CustomSection, **domain: Any) -> Energy:
    """The energy of the user's own module, on its `domain` (levels, base_scale, box).

    Raises `ConfigError` where the module cannot be had.
    """
    return CustomEnergy(shape, find_module(section, shape), **domain)


def find_module(section: CustomSection, shape: Sequence[int]) -> nn.Module:
    """The user's module: a copy of the one given in code, or what the installed package's entry
    point makes.

    Raises `ConfigError` where none is named, there is none of that name, or its options do not fit.
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
