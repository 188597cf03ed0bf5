"""The registry of parts: one line for each kernel, energy, objective and data set.

An `Entry` holds names only, and what they name is imported when the part is chosen. So importing
this module loads nothing, and a part may have its section in its own file, beside its code. The
types of the configuration's fields (`Choice`), the reference pages and the parametrization of the
tests are derived from these tables.

An installed package adds kernels, objectives and data sets: entry points in the groups
`pipeline.kernels`, `pipeline.objectives` and `pipeline.data`, each an `Entry`. A module of energies
goes through energy=custom (group `pipeline.energies`).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from pipeline.common import plugins
from pipeline.common.errors import ConfigError
from pipeline.config.fields import Part


class Entry(NamedTuple):
    """A registered part.

    `section`, "module:Class", is the subclass of `pipeline.config.fields.Part` that holds its
    settings. `make`, "module:attribute", makes it:

    - a kernel: `make(section) -> Kernel`, or the `Kernel` itself;
    - an energy: `make(shape, **section.arguments) -> Energy`, with `context_shape` where it takes
      one;
    - an objective: `make(section, config) -> Objective`;
    - a data set: `make(section) -> DataSet`.

    It is None where others do the work (a mixture is its terms). `laws` are those of
    `tests/statistics/laws.py` on which a kernel is proven.
    """

    section: str
    make: str | None
    laws: tuple[str, ...] = ()


_KERNEL, _ENERGY = "pipeline.config.kernels:", "pipeline.config.energies:"
_OBJECTIVE, _DATA = "pipeline.config.objectives:", "pipeline.config.data:"
_MADE = "pipeline.assembly.objectives:"
CONTINUOUS = ("gaussian", "mixture", "box")
DISCRETE = ("rbm", "potts_rbm", "lattice")

KERNELS = {
    "random_walk": Entry(
        _KERNEL + "RandomWalkKernel", "pipeline.kernels.random_walk:kernel", (*CONTINUOUS, "rings")
    ),
    "metropolis_hastings": Entry(
        _KERNEL + "MetropolisHastingsKernel",
        "pipeline.assembly.kernels:metropolis_hastings_of",
        CONTINUOUS,
    ),
    "ula": Entry(_KERNEL + "ULAKernel", "pipeline.kernels.ula:kernel", ("gaussian", "box")),
    "mala": Entry(_KERNEL + "MALAKernel", "pipeline.kernels.mala:kernel", (*CONTINUOUS, "rings")),
    "hmc": Entry(_KERNEL + "HMCKernel", "pipeline.kernels.hmc:kernel", (*CONTINUOUS, "funnel")),
    "underdamped": Entry(
        "pipeline.kernels.underdamped:UnderdampedKernel",
        "pipeline.kernels.underdamped:kernel",
        (*CONTINUOUS, "rings"),
    ),
    "gibbs": Entry(
        _KERNEL + "GibbsKernel",
        "pipeline.kernels.gibbs:kernel",
        ("rbm", "gaussian_rbm", "potts_rbm", "potts"),
    ),
    "gibbs_with_gradients": Entry(
        _KERNEL + "DiscreteKernel",
        "pipeline.kernels.gibbs_with_gradients:kernel",
        (*DISCRETE, "potts"),
    ),
    "single_site": Entry(
        _KERNEL + "DiscreteKernel", "pipeline.kernels.single_site:kernel", DISCRETE
    ),
    "replica_exchange": Entry(
        _KERNEL + "ReplicaExchangeKernel",
        "pipeline.assembly.kernels:replica_exchange_of",
        ("mixture", "gaussian", "rbm"),
    ),
}
ENERGIES = {
    "mlp": Entry(_ENERGY + "MLPEnergy", "pipeline.energies.mlp:MLPEnergy"),
    "conv": Entry(_ENERGY + "ConvEnergy", "pipeline.energies.conv:ConvEnergy"),
    "custom": Entry(_ENERGY + "CustomEnergy", "pipeline.assembly.energies:custom"),
    "rbm": Entry(_ENERGY + "RBMEnergy", "pipeline.energies.rbm:BernoulliRBM"),
    "gaussian_rbm": Entry(_ENERGY + "RBMEnergy", "pipeline.energies.rbm:GaussianRBM"),
    "potts_rbm": Entry(_ENERGY + "PottsRBMEnergy", "pipeline.energies.rbm:PottsRBM"),
    "mixed_rbm": Entry(_ENERGY + "MixedRBMEnergy", "pipeline.energies.mixed_rbm:MixedRBM"),
    "dbm": Entry(_ENERGY + "DBMEnergy", "pipeline.energies.dbm:DeepBoltzmannMachine"),
    "lattice": Entry(_ENERGY + "LatticeEnergy", "pipeline.energies.lattice:PottsLattice"),
    "potts": Entry(_ENERGY + "PottsEnergy", "pipeline.energies.potts:PottsModel"),
    "quadratic": Entry(_ENERGY + "QuadraticEnergy", "pipeline.energies.quadratic:QuadraticBinary"),
    "conditional_mlp": Entry(
        _ENERGY + "ConditionalMLPEnergy", "pipeline.energies.conditional_mlp:ConditionalMLP"
    ),
    "label_mlp": Entry(_ENERGY + "LabelMLPEnergy", "pipeline.energies.label_mlp:LabelMLP"),
    "pairwise": Entry(_ENERGY + "PairwiseEnergy", "pipeline.energies.pairwise:PairwiseEnergy"),
    "maxent": Entry(_ENERGY + "MaxentEnergy", "pipeline.assembly.energies:maximum_entropy"),
}
OBJECTIVES = {
    "pcd": Entry(_OBJECTIVE + "PCDObjective", _MADE + "contrastive"),
    "cd": Entry(_OBJECTIVE + "CDObjective", _MADE + "contrastive"),
    "short_run": Entry(_OBJECTIVE + "ShortRunObjective", _MADE + "contrastive"),
    "fast_pcd": Entry(_OBJECTIVE + "FastPCDObjective", _MADE + "contrastive"),
    "improved_cd": Entry(_OBJECTIVE + "ImprovedCDObjective", _MADE + "improved_contrastive"),
    "maximum_likelihood": Entry(
        _OBJECTIVE + "MaximumLikelihoodObjective", _MADE + "maximum_likelihood"
    ),
    "label_likelihood": Entry(_OBJECTIVE + "LabelLikelihoodObjective", _MADE + "label_likelihood"),
    "score_matching": Entry(
        _OBJECTIVE + "ExactScoreMatchingObjective", _MADE + "exact_score_matching"
    ),
    "hutchinson": Entry(_OBJECTIVE + "HutchinsonObjective", _MADE + "hutchinson"),
    "sliced": Entry(_OBJECTIVE + "SlicedObjective", _MADE + "sliced"),
    "finite_difference": Entry(
        _OBJECTIVE + "FiniteDifferenceObjective", _MADE + "finite_difference"
    ),
    "denoising": Entry(_OBJECTIVE + "DenoisingObjective", _MADE + "denoising"),
    "denoising_finite_difference": Entry(
        _OBJECTIVE + "FiniteDifferenceDenoisingObjective", _MADE + "denoising_finite_difference"
    ),
    "nce": Entry(_OBJECTIVE + "NCEObjective", _MADE + "nce"),
    "conditional_nce": Entry(_OBJECTIVE + "ConditionalNCEObjective", _MADE + "conditional_nce"),
    "pseudo_likelihood": Entry(
        _OBJECTIVE + "PseudoLikelihoodObjective", _MADE + "pseudo_likelihood"
    ),
    "ratio_matching": Entry(_OBJECTIVE + "RatioMatchingObjective", _MADE + "ratio_matching"),
    "moments": Entry(_OBJECTIVE + "MomentsObjective", _MADE + "moments"),
    "mixture": Entry(_OBJECTIVE + "MixtureObjective", None),
}
DATA = {
    "digits": Entry(_DATA + "DigitsData", "pipeline.data.images:digits"),
    "idx": Entry(_DATA + "IDXData", "pipeline.data.images:idx"),
    "images": Entry(_DATA + "ImagesData", "pipeline.data.image_folders:images"),
    "toy": Entry(_DATA + "ToyData", "pipeline.data.toys:toy"),
    "labelled_toys": Entry(_DATA + "LabelledToysData", "pipeline.data.toys:labelled_toys"),
    "conditional_toy": Entry(
        _DATA + "ConditionalToyData", "pipeline.data.conditional_toys:conditional_toy"
    ),
    "tags": Entry(_DATA + "TagsData", "pipeline.data.tags:tags"),
    "columns": Entry(_DATA + "ColumnsData", "pipeline.data.columns:columns"),
    "fasta": Entry(_DATA + "FastaData", "pipeline.data.fasta:fasta"),
    "rows": Entry(_DATA + "RowsData", "pipeline.data.given:rows"),
    "ising": Entry(_DATA + "IsingData", "pipeline.data.ising:ising"),
    "none": Entry(_DATA + "NoData", "pipeline.data.nothing:nothing"),
}
PARTS = {"energy": ENERGIES, "kernel": KERNELS, "objective": OBJECTIVES, "data": DATA}
# groups of the configuration that installed packages add choices to, and the entry points' groups
INSTALLED = {
    "kernel": "pipeline.kernels",
    "objective": "pipeline.objectives",
    "data": "pipeline.data",
}


def installed(group: str) -> list[str]:
    """Names of the parts of `group` that installed packages bring. Nothing of them is imported.

    Raises `ConfigError` where one has the name of a part of this project.
    """
    names = sorted(plugins.installed(INSTALLED[group])) if group in INSTALLED else []
    for name in names:
        if name in PARTS[group]:
            remedy = (
                f"an installed package has an entry point of that name in {INSTALLED[group]}, and"
                f" this project has a part of it; rename or uninstall that one"
            )
            raise ConfigError(group, name, remedy)
    return names


def names(group: str) -> list[str]:
    """Names of all parts of `group`: this project's, then those of installed packages."""
    return [*PARTS[group], *installed(group)]


def entry_of(group: str, name: str) -> Entry:
    """The entry of a part that there is. Raises `ConfigError` where its package is at fault."""
    if name in PARTS[group]:
        return PARTS[group][name]
    entry = plugins.find(INSTALLED[group], name, group)
    if not isinstance(entry, Entry):
        remedy = f"its entry point in {INSTALLED[group]} is no pipeline.config.parts.Entry"
        raise ConfigError(group, name, remedy)
    return entry


def section_of(group: str, name: str) -> type[Part]:
    """The class of a part's section. Raises `ConfigError` where it cannot be imported."""
    section: type[Part] = _imported(entry_of(group, name).section, group, name)
    return section


def make_of(group: str, name: str) -> Any:
    """The `make` of a part's entry. Raises `ConfigError` where it cannot be imported."""
    make = entry_of(group, name).make
    assert make is not None, f"{group}={name} is made of others"
    return _imported(make, group, name)


def _imported(path: str, group: str, name: str) -> Any:
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        if name in PARTS[group]:
            raise
        raise ConfigError(group, name, f"{path} cannot be imported ({error})") from error


def defaults_of(group: str, name: str) -> dict[str, Any]:
    """The settings of a part of an installed package, which has no file in `conf/`: the defaults of
    its section. Raises `ConfigError` for a field without one.
    """
    section = section_of(group, name)
    for key, field in section.model_fields.items():
        if key != "name" and field.is_required():
            remedy = f"the package's section {section.__name__} has no default for {key}"
            raise ConfigError(group, name, remedy)
    return section(name=name).model_dump(mode="json")


def refusal(group: str, name: object, but: Sequence[str] = ()) -> PydanticCustomError:
    """The error of a choice that there is not; those in `but` cannot be chosen here."""
    there = ", ".join(sorted(set(names(group)) - set(but)))
    return PydanticCustomError(
        "no_such_choice", "no such choice; there are {choices}", {"choices": there, "name": name}
    )


@dataclass(frozen=True)
class Choice:
    """Annotates a field that holds the section of a part: the class that validates a dictionary is
    the registry's for its `name`. A section that is one already is taken as it is.
    """

    group: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.resolve, handler(source))

    def resolve(self, value: Any) -> Any:
        """The section of a dictionary. Raises pydantic's errors, for a validation to locate."""
        if not isinstance(value, dict):
            return value
        name = value.get("name")
        if name not in names(self.group):
            raise refusal(self.group, name)
        return section_of(self.group, name).model_validate(value)
