"""The sections of the configuration that `energy=NAME` decides: a class here, a YAML file in `conf/energy/`, a line in
`pipeline/build.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, PrivateAttr

from pipeline.fields import Box, Levels, NonNegativeFloat, Number, PositiveFloat, PositiveInt, Section, Sizes, about


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
