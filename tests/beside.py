"""The settings that a choice needs beside it, from the capabilities that its section declares.

Tests that go over the registry take them from here, so that a new part is tested without a line of
its own in any of them. `BY_HAND` is for parts whose capabilities do not say it all.
"""

from __future__ import annotations

from pipeline.config import compose, parts
from pipeline.config.data import DataSection
from pipeline.config.energies import EnergySection, MixedRBMEnergy
from pipeline.config.fields import Part
from pipeline.config.kernels import KernelSection
from pipeline.config.objectives import ObjectiveSection

BINARY = ("experiment=digits_rbm",)
BY_HAND = {
    "images": ("data.path=x",),
    "mnist_rbm500": ("data.path=x",),
    "fasta": ("data.path=x", "energy=potts", "kernel=gibbs"),
    "protein_potts": ("data.path=x",),
    "protein_rbm": ("data.path=x",),
    "lattice_proteins": ("data.path=x",),
    "rna_potts": ("data.path=x",),
    "quadratic": (*BINARY, "kernel=single_site"),
    "none": ("experiment=maxent_moments",),
    "ising": ("experiment=maxent_ising",),
    "pairwise": ("experiment=conditional_structured",),
    "tags": ("experiment=conditional_structured",),
}


def beside(group: str, name: str) -> tuple[str, ...]:
    """Overrides that make a valid configuration together with `group=name`."""
    if name in BY_HAND:
        return BY_HAND[name]
    if group not in parts.PARTS:
        return ()
    section = parts.section_of(group, name)
    if issubclass(section, KernelSection):
        return BINARY if section.domain == "discrete" or section.needs_conditionals else ()
    if issubclass(section, ObjectiveSection):
        return _beside_objective(section)
    if issubclass(section, EnergySection):
        if section is MixedRBMEnergy:
            return ("kernel=gibbs", "data.noise=0")
        return _beside_energy(name, section)
    return ("data.path=x",) if issubclass(section, DataSection) and _has_path(section) else ()


def defaults(group: str, name: str) -> Part:
    """The section of a choice with the settings that it comes with."""
    section: Part = parts.Choice(group).resolve(compose.compose_raw([f"{group}={name}"])[group])
    return section


def _beside_objective(section: type[ObjectiveSection]) -> tuple[str, ...]:
    if section.needs_features:
        return ("experiment=maxent_moments",)
    if section.needs_labels:
        return ("energy=label_mlp",)
    if section.replays:
        return ("kernel=ula",)
    return BINARY if section.domain in ("discrete", "binary") else ()


def _beside_energy(name: str, section: type[EnergySection]) -> tuple[str, ...]:
    if section.has_features:
        return ("experiment=maxent_moments",)
    if section.takes_context and not section.has_labels:
        return ("experiment=conditional_regression",)
    made = defaults("energy", name)
    assert isinstance(made, EnergySection)
    if made.domain.levels is None:
        return ()
    kernel = "gibbs" if section.has_conditionals else "gibbs_with_gradients"
    if made.domain.levels == 2:
        return (*BINARY, f"kernel={kernel}")
    encoding = ("data.encoding=categorical", f"data.levels={made.domain.levels}", "data.noise=0")
    return (*encoding, f"kernel={kernel}")


def _has_path(section: type[Part]) -> bool:
    return "path" in section.model_fields
