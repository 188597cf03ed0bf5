"""The sections that `kernel=NAME` decides. `pipeline.config.parts` names them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, PrivateAttr, SerializeAsAny

from pipeline.common.errors import ConfigError
from pipeline.config.energies import EnergySection
from pipeline.config.fields import (
    Masses,
    NonNegativeFloat,
    NonNegativeInt,
    OpenProbability,
    Part,
    PositiveFloat,
    PositiveInt,
    Repeats,
    about,
)
from pipeline.config.parts import Choice, refusal


class KernelSection(Part):
    """The base of every kernel's section, and what is said of the kernel there.

    `domain`: the kind of domain that it moves in. `needs_conditionals`: it draws from the energy's
    conditionals. `invariance` and `at_walls`, for people: how true it is to exp(-E), and what it
    does at the walls of a box. `replays`: a transition can be replayed as a function of the
    weights. `ladder`: it runs replicas of each chain, all under one law.
    """

    domain: ClassVar[Literal["continuous", "discrete", "any"]] = "continuous"
    needs_conditionals: ClassVar[bool] = False
    invariance: ClassVar[str] = "exact"
    at_walls: ClassVar[str] = "-"
    replays: ClassVar[bool] = False
    ladder: ClassVar[bool] = False
    transitions: PositiveInt = about("k, the transitions of a round")

    def leaves_invariant(self, energy: EnergySection) -> bool:  # noqa: ARG002 - ULA asks
        """Return whether exp(-E) itself is invariant (untempered ULA on R^d: up to its
        discretisation error).
        """
        return True

    @property
    def parameters(self) -> dict[str, Any]:
        """The keyword arguments of this kernel's `step`."""
        apart = {"name", "transitions", "target_acceptance", "adapt_rounds", "force"}
        return {key: value for key, value in self.model_dump().items() if key not in apart}

    @property
    def within(self) -> KernelSection:
        """The kernel that moves the chains: on a ladder that of its rungs, else this one."""
        return self

    def check(self, energy: EnergySection, key: str) -> None:
        """Raises `ConfigError` where its settings do not go with the energy; `key` is what the
        configuration calls this kernel. The base refuses nothing.
        """


class TunedKernel(KernelSection):
    """A kernel whose field `step_size` may be adapted to a mean acceptance."""

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
    step_size: PositiveFloat = about("epsilon, the proposal's standard deviation, in data units")


class MetropolisHastingsKernel(KernelSection):
    """The proposal is found by name, or given in code (`_proposal`, which no file holds)."""

    domain: ClassVar[Literal["any"]] = "any"
    invariance: ClassVar[str] = "exact, if the proposal's log ratio is right"
    at_walls: ClassVar[str] = "rejects"
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

    def check(self, energy: EnergySection, key: str) -> None:
        """Raises `ConfigError` for the Gaussian proposal over levels."""
        if energy.domain.levels and self.proposal == "independence":
            remedy = f"{energy.where}; bring your own"
            raise ConfigError(f"{key}.proposal", self.proposal, remedy)


class ULAKernel(KernelSection):
    invariance: ClassVar[str] = (
        "biased: by O(step_size) untempered; with `noise`, another temperature; in a box, by its"
        " walls"
    )
    at_walls: ClassVar[str] = "clamps"
    replays: ClassVar[bool] = True
    step_size: PositiveFloat = about("epsilon, the drift's step, in squared data units per nat")
    noise: NonNegativeFloat | None = about(
        "noise's standard deviation; null: sqrt(2 epsilon), the untempered chain"
    )

    def leaves_invariant(self, energy: EnergySection) -> bool:
        return self.noise is None and energy.domain.box is None


class MALAKernel(TunedKernel):
    at_walls: ClassVar[str] = "rejects"
    step_size: PositiveFloat = about("epsilon, in squared data units per nat")
    force: Force


class HMCKernel(TunedKernel):
    at_walls: ClassVar[str] = "reflects"
    step_size: PositiveFloat = about(
        "epsilon of the leapfrog, in data units times the root of a mass"
    )
    leapfrog_steps: Repeats = about("leapfrog steps of a transition")
    jitter: Annotated[float, Field(ge=0, lt=1)] = about(
        "each chain's step is drawn from epsilon (1 +- jitter)"
    )
    mass: PositiveFloat | Masses = about(
        "diagonal of the mass matrix: one number, or one for each component"
    )
    force: Force


class GibbsKernel(KernelSection):
    domain: ClassVar[Literal["any"]] = "any"
    needs_conditionals: ClassVar[bool] = True


class DiscreteKernel(KernelSection):
    """A kernel over levels without parameters of its own."""

    domain: ClassVar[Literal["discrete"]] = "discrete"


KernelConfig = Annotated[SerializeAsAny[KernelSection], Choice("kernel")]


def _no_ladder(section: KernelSection) -> KernelSection:
    if section.ladder:
        raise refusal("kernel", section.name, but=(section.name,))
    return section


class ReplicaExchangeKernel(KernelSection):
    domain: ClassVar[Literal["any"]] = "any"
    invariance: ClassVar[str] = "exact, where the inner kernel is"
    at_walls: ClassVar[str] = "as the inner kernel"
    ladder: ClassVar[bool] = True
    rungs: Annotated[int, Field(ge=2, le=10_000)] = about(
        "R, replicas of each chain, from the base law to the model"
    )
    adapt_rounds: NonNegativeInt = about(
        "rounds in which the rungs move to where neighbours swap equally often"
    )
    inner: Annotated[KernelConfig, AfterValidator(_no_ladder)] = about(
        "kernel within a rung; its `transitions` stand between two rounds of swaps"
    )

    def leaves_invariant(self, energy: EnergySection) -> bool:
        return self.inner.leaves_invariant(energy)

    @property
    def parameters(self) -> dict[str, Any]:
        return self.inner.parameters

    @property
    def within(self) -> KernelSection:
        return self.inner
