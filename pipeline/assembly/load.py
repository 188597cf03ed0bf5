"""A trained energy from a checkpoint, without its run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import ValidationError
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from pipeline.common.errors import CheckpointError
from pipeline.config.energies import CustomEnergy, EnergySection, MaxentEnergy
from pipeline.config.parts import Choice
from pipeline.energies.base import Energy
from pipeline.storage.store import find_averaged


def load_energy(
    url: str, module: nn.Module | None, features: Sequence[Callable[[Tensor], Tensor]] | None = None
) -> Energy:
    """The trained energy of a checkpoint; see `pipeline.load`.

    Raises `CheckpointError` where the checkpoint is not what this version or this call can take.
    """
    from pipeline.assembly.energies import construct_energy

    checkpoint, weights = find_averaged(url)
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
    return energy.eval().requires_grad_(False)
