"""The sections of the configuration that a group's choice decides: energies, kernels, data; objectives are in
`pipeline.objective_sections`.

Light to import, as `pipeline.config` is. A new choice is a class here, a YAML file in `conf/` and a line in
`pipeline/build.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
OpenProbability = Annotated[float, Field(gt=0, lt=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Levels = Annotated[int, Field(ge=2)]
Box = Annotated[tuple[Number, Number], Field(strict=False)]
Masses = Annotated[tuple[PositiveFloat, ...], Field(strict=False, min_length=1)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Sizes = Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)]
Shape = Annotated[tuple[PositiveInt, ...], Field(strict=False)]


class Section(BaseModel):
    """One frozen part of the configuration; strict types, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def about(text: str) -> Any:
    return Field(description=text)


# -- energies ---------------------------------------------------------------------------------------------------------


class EnergySection(Section):
    has_conditionals: ClassVar[bool] = False

    @property
    def domain(self) -> Domain:
        return Domain(None, None)


class Domain(NamedTuple):
    """Where positions live: {0, ..., levels-1}^d, the box [low, high]^d, or R^d."""

    levels: int | None
    box: tuple[float, float] | None

    def __str__(self) -> str:
        if self.levels is not None:
            return "{0, 1}^d" if self.levels == 2 else f"{{0, ..., {self.levels - 1}}}^d"
        return "R^d" if self.box is None else f"[{self.box[0]:g}, {self.box[1]:g}]^d"


class DeepSection(EnergySection):
    base_scale: PositiveFloat = about(
        "standard deviation s of the Gaussian base term |x|^2 / (2 s^2), in data units; none is added in a box"
    )
    box: Box | None = about("[low, high]: the domain of every component; null: all of R, with the base term")

    @property
    def domain(self) -> Domain:
        return Domain(None, self.box)


class MLPEnergy(DeepSection):
    name: Literal["mlp"]
    hidden: Sizes = about("widths of the hidden layers")
    spectral_norm: bool = about("divide every layer's weight by its largest singular value (Miyato et al. 2018)")


class ConvEnergy(DeepSection):
    name: Literal["conv"]
    channels: Sizes = about("channels of the residual stages, each at half the size of the one before; the last is repeated")
    hidden: PositiveInt = about("width of the dense layer behind them")
    scales: PositiveInt = about("networks summed, each on an image of half the size of the one before (Du et al. 2021)")
    spectral_norm: bool = about("divide every layer's weight by its largest singular value (Miyato et al. 2018)")


class CustomEnergy(DeepSection):
    """A module of the user's own, from an installed package or (in `_module`, which no file holds) given in code."""

    name: Literal["custom"]
    entry_point: str | None = about("entry point in the group pipeline.energies: f(shape, **options); null: given in code")
    options: dict[str, Any] = about("keyword arguments of that function")
    levels: Levels | None = about("q for an energy over {0, ..., q-1}^d; null: over R^d or a box")
    given: str | None = about("class of the module given in code (not for people to set)")
    _module: Any = PrivateAttr(default=None)

    @property
    def domain(self) -> Domain:
        return Domain(self.levels, self.box)


class RBMSection(EnergySection):
    has_conditionals: ClassVar[bool] = True
    hidden: PositiveInt = about("number of hidden units")
    weight_scale: PositiveFloat = about("standard deviation of the initial weights (Hinton 2010: 0.01)")


class RBMEnergy(RBMSection):
    name: Literal["rbm", "gaussian_rbm"]

    @property
    def domain(self) -> Domain:
        return Domain(2 if self.name == "rbm" else None, None)


class PottsRBMEnergy(RBMSection):
    name: Literal["potts_rbm"]
    levels: Levels = about("q, the values 0, ..., q-1 of a component")

    @property
    def domain(self) -> Domain:
        return Domain(self.levels, None)


class LatticeEnergy(EnergySection):
    name: Literal["lattice"]
    levels: Levels = about("q, the values 0, ..., q-1 of a component; 2: the Ising model")
    coupling: Number = about("initial coupling of neighbours, nats")
    periodic: bool = about("whether opposite sides of the lattice are neighbours")

    @property
    def domain(self) -> Domain:
        return Domain(self.levels, None)


class QuadraticEnergy(EnergySection):
    name: Literal["quadratic"]
    weight_scale: NonNegativeFloat = about("standard deviation of the initial weights")

    @property
    def domain(self) -> Domain:
        return Domain(2, None)


EnergyConfig = Annotated[
    MLPEnergy | ConvEnergy | CustomEnergy | RBMEnergy | PottsRBMEnergy | LatticeEnergy | QuadraticEnergy,
    Field(discriminator="name"),
]


# -- kernels ----------------------------------------------------------------------------------------------------------


class Kernel(Section):
    """`domain`: the kind of domain it moves in; `invariance` and `at_walls`: for people, how true it is to exp(-E), and what
    it does at the walls of a box. `replays`: whether a transition can be replayed as a function of the weights.
    """

    domain: ClassVar[Literal["continuous", "discrete", "any"]] = "continuous"
    needs_conditionals: ClassVar[bool] = False
    invariance: ClassVar[str] = "exact"
    at_walls: ClassVar[str] = "-"
    replays: ClassVar[bool] = False
    transitions: PositiveInt = about("k, the transitions of a round")

    def leaves_invariant(self, energy: EnergySection) -> bool:  # noqa: ARG002 - ULA asks
        """Whether exp(-E) itself is invariant (untempered ULA on R^d: up to its discretisation error)."""
        return True

    @property
    def parameters(self) -> dict[str, Any]:
        """What `step` of this kernel takes beside generator, state and target."""
        apart = {"name", "transitions", "target_acceptance", "adapt_rounds", "force"}
        return {key: value for key, value in self.model_dump().items() if key not in apart}


class TunedKernel(Kernel):
    target_acceptance: OpenProbability | None = about("mean acceptance that step_size is adapted to; null: it stays")
    adapt_rounds: PositiveInt | None = about("rounds after which step_size stays what it has become; null: never")


Force = Annotated[
    Literal["float32", "bfloat16"],
    Field(description="precision of the gradient; the accept step uses float32 energies and stays exact"),
]


class RandomWalkKernel(TunedKernel):
    at_walls: ClassVar[str] = "reflects"
    name: Literal["random_walk"]
    step_size: PositiveFloat = about("epsilon, the proposal's standard deviation, in data units")


class MetropolisHastingsKernel(Kernel):
    """`_proposal`, which no file holds, is one given in code."""

    domain: ClassVar[Literal["any"]] = "any"
    invariance: ClassVar[str] = "exact, if the proposal's log ratio is right"
    at_walls: ClassVar[str] = "rejects"
    name: Literal["metropolis_hastings"]
    proposal: str | None = about("independence, or an entry point in the group pipeline.proposals; null: given in code")
    options: dict[str, Any] = about("keyword arguments of that function, which returns the proposal")
    given: str | None = about("what the proposal given in code is called (not for people to set)")
    _proposal: Any = PrivateAttr(default=None)

    @property
    def parameters(self) -> dict[str, Any]:
        return {}


class ULAKernel(Kernel):
    invariance: ClassVar[str] = "biased: by O(step_size) untempered; with `noise`, another temperature; in a box, by its walls"
    at_walls: ClassVar[str] = "clamps"
    replays: ClassVar[bool] = True
    name: Literal["ula"]
    step_size: PositiveFloat = about("epsilon, the drift's step, in squared data units per nat")
    noise: NonNegativeFloat | None = about("noise's standard deviation; null: sqrt(2 epsilon), the untempered chain")

    def leaves_invariant(self, energy: EnergySection) -> bool:
        return self.noise is None and energy.domain.box is None


class MALAKernel(TunedKernel):
    at_walls: ClassVar[str] = "rejects"
    name: Literal["mala"]
    step_size: PositiveFloat = about("epsilon, in squared data units per nat")
    force: Force


class HMCKernel(TunedKernel):
    at_walls: ClassVar[str] = "reflects"
    name: Literal["hmc"]
    step_size: PositiveFloat = about("epsilon of the leapfrog, in data units times the root of a mass")
    leapfrog_steps: PositiveInt = about("leapfrog steps of a transition")
    jitter: Annotated[float, Field(ge=0, lt=1)] = about("each chain's step is drawn from epsilon (1 +- jitter)")
    mass: PositiveFloat | Masses = about("diagonal of the mass matrix: one number, or one for each component")
    force: Force


class GibbsKernel(Kernel):
    domain: ClassVar[Literal["any"]] = "any"
    needs_conditionals: ClassVar[bool] = True
    name: Literal["gibbs"]


class DiscreteKernel(Kernel):
    domain: ClassVar[Literal["discrete"]] = "discrete"
    name: Literal["gibbs_with_gradients", "single_site"]


InnerKernel = Annotated[
    RandomWalkKernel | MetropolisHastingsKernel | ULAKernel | MALAKernel | HMCKernel | GibbsKernel | DiscreteKernel,
    Field(discriminator="name"),
]


class ReplicaExchangeKernel(Kernel):
    domain: ClassVar[Literal["any"]] = "any"
    invariance: ClassVar[str] = "exact, where the inner kernel is"
    at_walls: ClassVar[str] = "as the inner kernel"
    name: Literal["replica_exchange"]
    rungs: Annotated[int, Field(ge=2)] = about("R, replicas of each chain, from the base law to the model")
    adapt_rounds: NonNegativeInt = about("rounds in which the rungs move to where neighbours swap equally often")
    inner: InnerKernel = about("kernel within a rung; its `transitions` stand between two rounds of swaps")

    def leaves_invariant(self, energy: EnergySection) -> bool:
        return self.inner.leaves_invariant(energy)

    @property
    def parameters(self) -> dict[str, Any]:
        return self.inner.parameters


KernelConfig = Annotated[
    RandomWalkKernel
    | MetropolisHastingsKernel
    | ULAKernel
    | MALAKernel
    | HMCKernel
    | GibbsKernel
    | DiscreteKernel
    | ReplicaExchangeKernel,
    Field(discriminator="name"),
]


# -- data -------------------------------------------------------------------------------------------------------------


class Data(Section):
    held_out: PositiveInt = about("rows kept out of training")
    split_seed: NonNegativeInt = about("seed of the split, apart from `seed` so that runs compare")
    noise: NonNegativeFloat = about("standard deviation of the Gaussian noise added afresh to every row drawn")

    @property
    def discrete_levels(self) -> int | None:
        """q where a row's values are 0, ..., q-1; None where they are real numbers."""
        encoding = getattr(self, "encoding", "real")
        return {"real": None, "binary": 2, "sampled": 2}.get(encoding, getattr(self, "levels", None))


Encoding = Annotated[
    Literal["real", "binary", "sampled", "categorical"],
    Field(
        description="real: grey levels scaled to [-1, 1]; binary: 1 from the middle grey level up, else 0; "
        "sampled: 1 with probability grey / maximum, drawn once by split_seed; categorical: cut into `levels` equal parts"
    ),
]
CategoricalLevels = Annotated[int, Field(ge=2, description="values 0, ..., levels-1 under encoding=categorical")]


class DigitsData(Data):
    name: Literal["digits"]
    encoding: Encoding
    levels: CategoricalLevels


class IDXData(Data):
    name: Literal["idx"]
    encoding: Encoding
    levels: CategoricalLevels
    path: str = about("an IDX file of images, or a folder with train-images-idx3-ubyte[.gz] (and t10k-...)")


class ToyData(Data):
    name: Literal["toy"]
    law: Literal["8gaussians", "two_moons", "checkerboard"] = about("which 2-D law, each of known density")
    rows: PositiveInt = about("rows drawn from it, held-out ones included")


class ColumnsData(Data):
    name: Literal["columns"]
    path: str = about("Parquet or Arrow files: a path, an fsspec URL or a glob")
    columns: Names = about("one column of fixed-size lists, or numeric columns; empty: all there are")
    shape: Shape = about("shape of one row, such as [8,8]; empty: flat")
    encoding: Annotated[
        Literal["real", "binary", "categorical"],
        Field(description="real: numbers as they are; binary: every value 0 or 1; categorical: 0, ..., levels-1"),
    ]
    levels: CategoricalLevels
    memory_limit: PositiveInt = about("bytes; a larger data set is streamed instead of loaded")


DataConfig = Annotated[DigitsData | IDXData | ToyData | ColumnsData, Field(discriminator="name")]
