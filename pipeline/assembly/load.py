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
from pipeline.config.groups import choices, fields_of, settings_of
from pipeline.config.parts import Choice
from pipeline.data.content import recorded_of
from pipeline.energies.arguments import guarded
from pipeline.energies.base import Energy
from pipeline.storage.checkpoint import Checkpoint
from pipeline.storage.exported import read_exported
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
    check_arguments(url, module, features)
    check_run(str(url), "url")
    exported = read_exported(str(url))
    if exported is None:
        return guarded(open_energy(str(url), module, features)[1])
    where = (exported.folder, exported.facts["config"]["energy"])
    energy = _constructed(*where, exported.shape, exported.context_shape, module, features)
    exported.fill(energy)
    energy.row_scale = recorded_of(exported.facts.get("data"))["scale"]
    return guarded(energy.eval().requires_grad_(False))


def open_energy(
    url: str,
    module: nn.Module | None = None,
    features: Sequence[Callable[[Tensor], Tensor]] | None = None,
    key: str = "url",
) -> tuple[Checkpoint, Energy]:
    """Returns the newest checkpoint at `url`, which the setting `key` gave, and its energy with the
    averaged weights, frozen.

    Raises `CheckpointError` where it is not what this version or this call can take.
    """
    checkpoint, weights = find_averaged(url, key)
    where = (checkpoint.folder, checkpoint.manifest.config["energy"])
    energy = _constructed(*where, checkpoint.shape, checkpoint.context_shape, module, features)
    checkpoint.check_signature(energy)
    checkpoint.fill(energy, weights)
    energy.row_scale = recorded_of(checkpoint.manifest.data)["scale"]
    return checkpoint, energy.eval().requires_grad_(False)


def _constructed(
    folder: str,
    stored: Any,
    shape: tuple[int, ...],
    context_shape: tuple[int, ...] | None,
    module: nn.Module | None,
    features: Sequence[Callable[[Tensor], Tensor]] | None,
) -> Energy:
    """Makes the energy of a `stored` section, with what was given in code. Raises
    `CheckpointError`.
    """
    from pipeline.assembly.energies import construct_energy

    # the energy's section alone, for the rest of an older configuration need not be valid any more;
    # settings that came later are as their defaults have them
    name = stored.get("name") if isinstance(stored, dict) else None
    if name in choices("energy"):
        stored = fields_of(settings_of("energy", name)) | stored
    try:
        section: EnergySection = Choice("energy").resolve(stored)
    except (ValidationError, PydanticCustomError) as error:
        raise CheckpointError(f"{folder}: this version knows no such energy ({error})") from error
    if module is not None and not isinstance(section, CustomEnergy):
        raise CheckpointError(f"{folder}: its energy is {section.name}, which needs no module")
    if isinstance(section, CustomEnergy):
        section._module = module
        if module is None and section.entry_point is None:
            raise CheckpointError(
                f"{folder}: its module was given in code; give it again, load(url, energy=module)"
            )
    if isinstance(section, MaxentEnergy):
        section._features = features
        if features is None and section.given is not None:
            raise CheckpointError(
                f"{folder}: its features {section.given} were given in code; give them again"
            )
    return construct_energy(section, shape, context_shape)


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
