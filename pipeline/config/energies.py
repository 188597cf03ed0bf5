"""The sections that `energy=NAME` decides. `pipeline.config.parts` names them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, PrivateAttr, SerializeAsAny

from pipeline.config.fields import (
    Box,
    Kinds,
    Levels,
    Masses,
    NonNegativeFloat,
    Number,
    Part,
    PositiveFloat,
    PositiveInt,
    Repeats,
    Section,
    Sizes,
    Url,
    Widths,
    about,
)
from pipeline.config.parts import Choice


class EnergySection(Part):
    """The base of every energy's section, and the capabilities that others ask for.

    `has_conditionals`: the laws of its blocks are known, as Gibbs sampling needs them.
    `takes_context`: the rows' contexts are part of the model. `has_labels`: these are labels, and
    their law given a position is known (`LabelledSection`). `has_features`: it is linear in
    features that it declares. `latents`: a position has latent columns beside the data's.
    `has_couplings`: it has fields and couplings, which an objective may hold small.
    `by_site`: its conditionals pass the components one by one, each given all the others.
    `needs_images`: a row must be an image. `shardable`: it reads its parameters in `forward` alone,
    where FSDP2 has gathered them.
    """

    has_conditionals: ClassVar[bool] = False
    takes_context: ClassVar[bool] = False
    has_labels: ClassVar[bool] = False
    has_features: ClassVar[bool] = False
    latents: ClassVar[bool] = False
    has_couplings: ClassVar[bool] = False
    by_site: ClassVar[bool] = False
    needs_images: ClassVar[bool] = False
    shardable: ClassVar[bool] = False

    @property
    def conditional(self) -> bool:
        """True where positions have a law, and a Z, for each context."""
        return self.takes_context

    @property
    def domain(self) -> Domain:
        """The domain of its positions."""
        return Domain(None, None)

    @property
    def where(self) -> str:
        """Its name and domain, as refusals say them."""
        levels = getattr(self, "levels", None)
        said = "" if levels is None else f" (energy.levels={levels})"
        return f"energy={self.name} is over {self.domain}{said}"

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments that the energy is made with, beside its shapes."""
        return self.model_dump(exclude={"name"})


class Domain(NamedTuple):
    """The domain of positions: {0, ..., levels-1}^d, the box [low, high]^d, R^d, or `mixed`, real
    numbers beside levels.
    """

    levels: int | None
    box: tuple[float, float] | None
    mixed: bool = False

    def __str__(self) -> str:
        if self.mixed:
            return "components of several kinds"
        if self.levels is not None:
            return "{0, 1}^d" if self.levels == 2 else f"{{0, ..., {self.levels - 1}}}^d"
        return "R^d" if self.box is None else f"[{self.box[0]:g}, {self.box[1]:g}]^d"


class DeepSection(EnergySection):
    base_scale: PositiveFloat = about(
        "standard deviation s of the Gaussian base term |x|^2 / (2 s^2), in data units; none is"
        " added in a box"
    )
    box: Box | None = about(
        "[low, high]: the domain of every component; null: all of R, with the base term"
    )

    @property
    def domain(self) -> Domain:
        return Domain(None, self.box)


class MLPEnergy(DeepSection):
    shardable: ClassVar[bool] = True
    hidden: Sizes = about("widths of the hidden layers")
    spectral_norm: bool = about(
        "divide every layer's weight by its largest singular value (Miyato et al. 2018)"
    )


class ConvEnergy(DeepSection):
    needs_images: ClassVar[bool] = True
    shardable: ClassVar[bool] = True
    channels: Sizes = about(
        "channels of the residual stages, each at half the size of the one before; the last is"
        " repeated"
    )
    hidden: PositiveInt = about("width of the dense layer behind them")
    scales: PositiveInt = about(
        "networks summed, each on an image of half the size of the one before (Du et al. 2021)"
    )
    spectral_norm: bool = about(
        "divide every layer's weight by its largest singular value (Miyato et al. 2018)"
    )


class CustomEnergy(DeepSection):
    """A module of the user's own, from an installed package or (in `_module`, which no file holds)
    given in code. On R^d the base term |x|^2 / (2 base_scale^2) is added to it.
    """

    shardable: ClassVar[bool] = True
    entry_point: str | None = about(
        "entry point in the group pipeline.energies: f(shape, **options) makes the module, to which"
        " the base term of energy.base_scale is added on R^d; null: given in code"
    )
    options: dict[str, Any] = about("keyword arguments of that function")
    levels: Levels | None = about("q for an energy over {0, ..., q-1}^d; null: over R^d or a box")
    given: str | None = about("class of the module given in code (not for people to set)")
    _module: Any = PrivateAttr(default=None)

    @property
    def domain(self) -> Domain:
        return Domain(self.levels, self.box)

    @property
    def arguments(self) -> dict[str, Any]:
        """The section itself, whose module is found when the energy is made, and the domain."""
        return {"section": self, **self.model_dump(include={"levels", "base_scale", "box"})}


class ConditionalMLPEnergy(DeepSection):
    takes_context: ClassVar[bool] = True
    hidden: Sizes = about("widths of the hidden layers, of position and context together")


class LabelledSection(DeepSection):
    """An energy of positions and their labels."""

    takes_context: ClassVar[bool] = True
    has_labels: ClassVar[bool] = True
    classes: Levels = about("K, the labels 0, ..., K-1")


class LabelMLPEnergy(LabelledSection):
    hidden: Sizes = about("widths of the hidden layers")
    class_conditional: bool = about(
        "true: learn p(x | y) from rows and their labels; false: p(x), the label summed out"
    )

    @property
    def conditional(self) -> bool:
        return self.class_conditional


class PairwiseEnergy(EnergySection):
    takes_context: ClassVar[bool] = True
    levels: Levels = about("q, the values 0, ..., q-1 of a component")
    pairs: Literal["chain", "all"] = about(
        "which components share a factor: neighbours, one factor for all; or every pair, each"
        " its own"
    )
    hidden: Widths = about(
        "hidden layers of the function from context to each component's own factor; empty: linear"
    )

    @property
    def domain(self) -> Domain:
        return Domain(self.levels, None)


class RBMSection(EnergySection):
    shardable: ClassVar[bool] = True
    has_conditionals: ClassVar[bool] = True
    hidden: PositiveInt = about("number of hidden units")
    weight_scale: PositiveFloat = about(
        "standard deviation of the initial weights (Hinton 2010: 0.01)"
    )


class RBMEnergy(RBMSection):
    @property
    def domain(self) -> Domain:
        return Domain(2 if self.name == "rbm" else None, None)


class PottsRBMEnergy(RBMSection):
    levels: Levels = about("q, the values 0, ..., q-1 of a component")
    units: Literal["bernoulli", "gaussian", "drelu"] = about(
        "the hidden units: bernoulli: 0 or 1; gaussian: real, as in a Hopfield-Potts model; drelu:"
        " double rectified linear (Tubiana, Cocco & Monasson 2019)"
    )

    @property
    def domain(self) -> Domain:
        return Domain(self.levels, None)


class MixedRBMEnergy(RBMSection):
    kinds: Kinds = about(
        "of each number of a row: 0: real, 2: 0 or 1, q: 0, ..., q-1; empty: as the data have them"
    )

    @property
    def domain(self) -> Domain:
        return Domain(None, None, mixed=True)


class DBMEnergy(EnergySection):
    has_conditionals: ClassVar[bool] = True
    latents: ClassVar[bool] = True
    hidden: Sizes = about("units of the hidden layers, from the data up")
    weight_scale: PositiveFloat = about("standard deviation of the initial weights")
    mean_field_steps: Repeats = about(
        "sweeps of mean field over the hidden layers of each data row"
    )

    @property
    def domain(self) -> Domain:
        return Domain(2, None)


class LatticeEnergy(EnergySection):
    shardable: ClassVar[bool] = True
    levels: Levels = about("q, the values 0, ..., q-1 of a component; 2: the Ising model")
    coupling: Number = about("initial coupling of neighbours, nats")
    periodic: bool = about("whether opposite sides of the lattice are neighbours")

    @property
    def domain(self) -> Domain:
        return Domain(self.levels, None)


class PottsEnergy(EnergySection):
    """The fully connected Potts model of sequences, with q letters at each site."""

    has_couplings: ClassVar[bool] = True
    by_site: ClassVar[bool] = True
    has_conditionals: ClassVar[bool] = True
    levels: Levels = about("q, the values 0, ..., q-1 of a component")
    edges: Url | None = about(
        "table of pairs of sites, such as a contacts.txt; couplings of all others are held at 0;"
        " null: all pairs are coupled"
    )
    edge_share: Annotated[float, Field(gt=0, le=1)] = about(
        "share of the pairs in energy.edges, or of all, that are coupled in the end; with a graph"
        " that is fixed those of the largest scores in energy.edges"
    )
    graph: Literal["fixed", "grown", "decimated"] = about(
        "fixed: the pairs that are coupled stay; grown: none is at first, and those are added whose"
        " frequencies fit worst; decimated: those are let go whose couplings matter least"
    )
    edge_steps: Annotated[int, Field(gt=0, multiple_of=10)] = about(
        "steps in which energy.graph=grown or decimated comes to energy.edge_share, by a few pairs"
        " every 10 steps"
    )

    @property
    def domain(self) -> Domain:
        return Domain(self.levels, None)

    @property
    def arguments(self) -> dict[str, Any]:
        return {"levels": self.levels}


class QuadraticEnergy(EnergySection):
    shardable: ClassVar[bool] = True
    weight_scale: NonNegativeFloat = about("standard deviation of the initial weights")

    @property
    def domain(self) -> Domain:
        return Domain(2, None)


class MeanFeatures(Section):
    kind: Literal["means"]


class PairFeatures(Section):
    kind: Literal["pairs"]
    neighbours: bool = Field(default=False, description="of nearest neighbours on the grid alone")


class HistogramFeatures(Section):
    kind: Literal["histogram"]
    low: Number = about("left end of the first bin")
    high: Number = about("right end of the last bin")
    bins: PositiveInt = about("bins of equal width for each component")


class PolynomialFeatures(Section):
    kind: Literal["polynomial"]
    degree: PositiveInt = about("powers 1, ..., degree of each component")


class EntryPointFeatures(Section):
    kind: Literal["custom"]
    entry_point: str = about(
        "entry point in the group pipeline.features: f(shape, **options) -> phi, [N, *shape] to"
        " [N, F]"
    )
    options: dict[str, Any] = Field(default={}, description="keyword arguments of that function")


FeatureConfig = Annotated[
    MeanFeatures | PairFeatures | HistogramFeatures | PolynomialFeatures | EntryPointFeatures,
    Field(discriminator="kind"),
]


class MaxentEnergy(EnergySection):
    """Features declared here, and (in `_features`, which no file holds) given in code."""

    has_features: ClassVar[bool] = True
    features: Annotated[
        tuple[FeatureConfig, ...],
        Field(
            strict=False,
            description=(
                "phi, in this order: {kind:means}, {kind:pairs,neighbours:true},"
                " {kind:polynomial,degree:4}, {kind:histogram,low:0,high:1,bins:8},"
                " {kind:custom,entry_point:NAME,options:{}}"
            ),
        ),
    ]
    levels: Levels | None = about("q for a law over {0, ..., q-1}^d; null: over R^d or a box")
    box: Box | None = about(
        "[low, high]: the domain of every component; null: all of R, under a Gaussian base measure"
    )
    base_scale: PositiveFloat = about("standard deviation of that Gaussian, in data units")
    base_rates: Masses | None = about(
        "base measure over levels: a weight for each of them; null: uniform"
    )
    given: str | None = about("names of functions given in code (not for people to set)")
    _features: Any = PrivateAttr(default=None)

    @property
    def domain(self) -> Domain:
        return Domain(self.levels, self.box)

    @property
    def arguments(self) -> dict[str, Any]:
        return {**super().arguments, "given": self._features}


EnergyConfig = Annotated[SerializeAsAny[EnergySection], Choice("energy")]
