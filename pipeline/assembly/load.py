"""A trained energy from a checkpoint, without its run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from pipeline.common.errors import ArgumentError, CheckpointError
from pipeline.config.energies import CustomEnergy, EnergySection, MaxentEnergy
from pipeline.config.parts import Choice
from pipeline.data.content import recorded_of
from pipeline.energies.arguments import guarded
from pipeline.energies.base import Energy
from pipeline.storage.probe import check_run
from pipeline.storage.store import find_averaged


def load_energy(
    url: str | Path,
    module: nn.Module | None,
    features: Sequence[Callable[[Tensor], Tensor]] | None = None,
) -> Energy:
    """The trained energy of a checkpoint; see `pipeline.load`.

    Raises `CheckpointError` where the checkpoint is not what this version or this call can take,
    `ConfigError` where storage does not give it, and `ArgumentError` where an argument is of no
    type that it may have.
    """
    from pipeline.assembly.energies import construct_energy

    check_arguments(url, module, features)
    check_run(str(url), "url")
    checkpoint, weights = find_averaged(str(url))
    # the energy's section alone: the rest of an older configuration need not be valid any more
    try:
        section: EnergySection = Choice("energy").resolve(checkpoint.manifest.config["energy"])
    except (ValidationError, PydanticCustomError) as error:
        raise CheckpointError(
            f"{checkpoint.folder}: this version knows no such energy ({error})"
        ) from error
    if module is not None and not isinstance(section, CustomEnergy):
        raise CheckpointError(
            f"{checkpoint.folder}: its energy is {section.name}, which needs no module"
        )
    if isinstance(section, CustomEnergy):
        section._module = module
        if module is None and section.entry_point is None:
            raise CheckpointError(
                f"{checkpoint.folder}: its module was given in code; give it again, load(url,"
                " energy=module)"
            )
    if isinstance(section, MaxentEnergy):
        section._features = features
        if features is None and section.given is not None:
            raise CheckpointError(
                f"{checkpoint.folder}: its features {section.given} were given in code; give them"
                " again"
            )
    energy = construct_energy(section, checkpoint.shape, checkpoint.context_shape)
    checkpoint.check_signature(energy)
    checkpoint.fill(energy, weights)
    energy.row_scale = recorded_of(checkpoint.manifest.data)["scale"]
    return guarded(energy.eval().requires_grad_(False))


def check_arguments(url: Any, module: Any, features: Any) -> None:
    """Raises `ArgumentError` where one of `pipeline.load` is of no type that it may have."""
    if not isinstance(url, str | Path) or not str(url):
        raise ArgumentError("url", repr(url), "should be a run's output, a path or a URL")
    if module is not None and not isinstance(module, nn.Module):
        remedy = "should be the torch.nn.Module that the run was given"
        raise ArgumentError("energy", type(module).__name__, remedy)
    if features is not None and not (
        isinstance(features, Sequence) and all(callable(function) for function in features)
    ):
        remedy = "should be the list of functions that the run was given"
        raise ArgumentError("features", type(features).__name__, remedy)
