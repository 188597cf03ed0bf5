"""The sections of the configuration that `kernel=NAME` decides; see `pipeline.config.energies`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from pipeline.config.energies import EnergySection
from pipeline.config.fields import (
    Masses,
    NonNegativeFloat,
    NonNegativeInt,
    OpenProbability,
    PositiveFloat,
    PositiveInt,
    Section,
    about,
)


class Kernel(Section):
    """`domain`: the kind of domain it moves in; `invariance` and `at_walls`: for people, how true
    it is to exp(-E), and what it does at the walls of a box. `replays`: whether a transition can be
    replayed as a function of the weights.
    """

    domain: ClassVar[Literal["continuous", "discrete", "any"]] = "continuous"
    needs_conditionals: ClassVar[bool] = False
    invariance: ClassVar[str] = "exact"
    at_walls: ClassVar[str] = "-"
    replays: ClassVar[bool] = False
    transitions: PositiveInt = about("k, the transitions of a round")

    def leaves_invariant(self, energy: EnergySection) -> bool:  # noqa: ARG002 - ULA asks
        """Whether exp(-E) itself is invariant (untempered ULA on R^d: up to its discretisation
        error).
        """
        return True

    @property
    def parameters(self) -> dict[str, Any]:
        """What `step` of this kernel takes beside generator, state and target."""
        apart = {"name", "transitions", "target_acceptance", "adapt_rounds", "force"}
        return {key: value for key, value in self.model_dump().items() if key not in apart}


class TunedKernel(Kernel):
    target_acceptance: OpenProbability | None = about(
        "mean acceptance that step_size is adapted to; null: it stays"
    )
    adapt_rounds: PositiveInt | None = about(
        "rounds after which step_size stays what it has become; null: never"
    )


Force = Annotated[
    Literal["float32", "bfloat16"],
    Field(
        description=(
            "precision of the gradient; the accept step uses float32 energies and stays exact"
        )
    ),
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
    proposal: str | None = about(
        "independence, or an entry point in the group pipeline.proposals; null: given in code"
    )
    options: dict[str, Any] = about(
        "keyword arguments of that function, which returns the proposal"
    )
    given: str | None = about("what the proposal given in code is called (not for people to set)")
    _proposal: Any = PrivateAttr(default=None)

    @property
    def parameters(self) -> dict[str, Any]:
        return {}


class ULAKernel(Kernel):
    invariance: ClassVar[str] = (
        "biased: by O(step_size) untempered; with `noise`, another temperature; in a box, by its"
        " walls"
    )
    at_walls: ClassVar[str] = "clamps"
    replays: ClassVar[bool] = True
    name: Literal["ula"]
    step_size: PositiveFloat = about("epsilon, the drift's step, in squared data units per nat")
    noise: NonNegativeFloat | None = about(
        "noise's standard deviation; null: sqrt(2 epsilon), the untempered chain"
    )

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
    step_size: PositiveFloat = about(
        "epsilon of the leapfrog, in data units times the root of a mass"
    )
    leapfrog_steps: PositiveInt = about("leapfrog steps of a transition")
    jitter: Annotated[float, Field(ge=0, lt=1)] = about(
        "each chain's step is drawn from epsilon (1 +- jitter)"
    )
    mass: PositiveFloat | Masses = about(
        "diagonal of the mass matrix: one number, or one for each component"
    )
    force: Force


class GibbsKernel(Kernel):
    domain: ClassVar[Literal["any"]] = "any"
    needs_conditionals: ClassVar[bool] = True
    name: Literal["gibbs"]


class DiscreteKernel(Kernel):
    domain: ClassVar[Literal["discrete"]] = "discrete"
    name: Literal["gibbs_with_gradients", "single_site"]


InnerKernel = Annotated[
    RandomWalkKernel
    | MetropolisHastingsKernel
    | ULAKernel
    | MALAKernel
    | HMCKernel
    | GibbsKernel
    | DiscreteKernel,
    Field(discriminator="name"),
]


class ReplicaExchangeKernel(Kernel):
    domain: ClassVar[Literal["any"]] = "any"
    invariance: ClassVar[str] = "exact, where the inner kernel is"
    at_walls: ClassVar[str] = "as the inner kernel"
    name: Literal["replica_exchange"]
    rungs: Annotated[int, Field(ge=2)] = about(
        "R, replicas of each chain, from the base law to the model"
    )
    adapt_rounds: NonNegativeInt = about(
        "rounds in which the rungs move to where neighbours swap equally often"
    )
    inner: InnerKernel = about(
        "kernel within a rung; its `transitions` stand between two rounds of swaps"
    )

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
