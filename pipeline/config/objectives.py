"""The sections of the configuration that `objective=NAME` decides. `pipeline.config.parts` names
them.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, SerializeAsAny

from pipeline.common.errors import ConfigError
from pipeline.config.energies import EnergySection
from pipeline.config.fields import (
    NonNegativeFloat,
    Numbers,
    Part,
    PositiveFloat,
    PositiveInt,
    Probability,
    about,
)
from pipeline.config.kernels import KernelSection
from pipeline.config.parts import Choice

Start = Literal["persistent", "data", "noise"]
Where = Literal["continuous", "discrete", "binary", "continuous or binary", "any"]
Levels = Annotated[tuple[PositiveFloat, ...], Field(strict=False, min_length=1)]
Probe = Annotated[
    Literal["rademacher", "gaussian", "sphere", "orthogonal", "hutch_pp"],
    Field(
        description="law of the directions that the curvature is taken along, drawn for every row"
    ),
]
# without hutch_pp, which needs second derivatives
PlainProbe = Annotated[
    Literal["rademacher", "gaussian", "sphere", "orthogonal"],
    Field(description="law of the directions that differences are taken along"),
]
Epsilon = Annotated[
    PositiveFloat, Field(description="differences are along epsilon v; bias O(epsilon^2)")
]


class AnyObjective(Part):
    """An objective, or a sum of several.

    `rows_optional`: it can be had without rows, where its `moments` are given.
    """

    rows_optional: ClassVar[bool] = False


class ObjectiveSection(AnyObjective):
    """The base of the section of every objective but a sum, and what is said of it there.

    `domain`: the kinds of domain that it is defined on. `in_box`: it is defined in a box as well,
    `of_kinds`: over components of several kinds, where its domain is any.
    `equilibrium_negatives`: the negatives are taken for draws of exp(-E), so that old ones may be
    reweighted. `needs_labels`, `needs_features`: of the energy. `needs_one_law`: why it cannot be
    had of a law for each context; None where it can. `latents`: positives may hold the means of
    latent units, as where they enter through E alone, and E is linear in those. `replays`: it
    learns through transitions of the kernel, replayed. `additive`: the loss is a sum of one for
    each row, so that ranks may have rows each of their own. `shardable`: its gradient is one
    backward pass through calls of the energy, without parameters beside: all that FSDP2 can do
    (double backward passes its hooks by, and is wrong in silence). `weighs_rows`: of all rows at
    once it takes each by its weight.
    """

    domain: ClassVar[Where] = "any"
    in_box: ClassVar[bool] = True
    of_kinds: ClassVar[bool] = True
    equilibrium_negatives: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    needs_features: ClassVar[bool] = False
    needs_one_law: ClassVar[str | None] = None
    latents: ClassVar[bool] = False
    replays: ClassVar[bool] = False
    additive: ClassVar[bool] = True
    shardable: ClassVar[bool] = False
    weighs_rows: ClassVar[bool] = False

    @property
    def deterministic(self) -> bool:
        """True where the loss of given rows is a function of the weights alone."""
        return False

    @property
    def start(self) -> Start | None:
        """The place where its chains begin a round; None where it consumes none."""
        return None

    def check(self, energy: EnergySection, kernel: KernelSection) -> None:
        """Raises `ConfigError` where its settings do not go with the energy or the kernel. The base
        refuses nothing.
        """


# -- the contrastive family ------------------------------------------------------------------------


class ContrastiveObjective(ObjectiveSection):
    weighs_rows: ClassVar[bool] = True
    energy_l2: NonNegativeFloat = about(
        "weight of the mean squared energy of positives and negatives"
    )


class PCDObjective(ContrastiveObjective):
    """Persistent contrastive divergence (Tieleman 2008).

    A replay buffer larger than a step's negatives: trainer.negatives below chains.pools x
    chains.per_pool; pools take turns.
    """

    equilibrium_negatives: ClassVar[bool] = True
    latents: ClassVar[bool] = True
    shardable: ClassVar[bool] = True

    @property
    def start(self) -> Start:
        return "persistent"


class CDObjective(ContrastiveObjective):
    """CD-k: chains start at the positives, k = kernel.transitions (Hinton 2002)."""

    shardable: ClassVar[bool] = True

    @property
    def start(self) -> Start:
        return "data"


class ShortRunObjective(ContrastiveObjective):
    """Non-convergent short runs: chains start at noise every round (Nijkamp et al. 2019)."""

    latents: ClassVar[bool] = True
    shardable: ClassVar[bool] = True

    @property
    def start(self) -> Start:
        return "noise"


class FastPCDObjective(ContrastiveObjective):
    """Persistent chains, driven on by fast weights (Tieleman & Hinton 2009)."""

    latents: ClassVar[bool] = True
    fast_rate: PositiveFloat = about("learning rate of the fast weights, which only the chains see")
    fast_decay: Probability = about(
        "what is left of the fast weights a step later (Tieleman & Hinton 2009: 0.95)"
    )

    @property
    def start(self) -> Start:
        return "persistent"


class ImprovedCDObjective(ContrastiveObjective):
    """Improved contrastive divergence: with the gradient through the sampler, and its entropy (Du
    et al. 2021).
    """

    needs_one_law: ClassVar[str | None] = "takes neighbours for draws of one law"
    replays: ClassVar[bool] = True
    domain: ClassVar[Where] = "continuous"
    additive: ClassVar[bool] = False
    kl: PositiveFloat = about("weight of the term for the sampler: its energy less its entropy")
    entropy: NonNegativeFloat = about("weight of the nearest-neighbour entropy within that term")
    replayed: PositiveInt = about(
        "L, the last transitions of a round that the gradient goes through"
    )

    @property
    def start(self) -> Start:
        return "persistent"

    def check(self, energy: EnergySection, kernel: KernelSection) -> None:  # noqa: ARG002
        """Raises `ConfigError` where more is replayed than a round has."""
        if self.replayed > kernel.transitions:
            remedy = f"a round has kernel.transitions={kernel.transitions}; replay at most that"
            raise ConfigError("objective.replayed", self.replayed, remedy)


class MaximumLikelihoodObjective(ObjectiveSection):
    """Exact maximum likelihood: log Z by enumeration, or by a midpoint rule in one or two
    dimensions.
    """

    latents: ClassVar[bool] = True
    grid: PositiveInt = about(
        "points a side of the midpoint rule for log Z in one or two real dimensions"
    )

    @property
    def deterministic(self) -> bool:
        return True


class LabelLikelihoodObjective(ObjectiveSection):
    """The log-likelihood of labels given positions, under a joint energy of both (Grathwohl et al.
    2020).
    """

    needs_labels: ClassVar[bool] = True


class MomentsObjective(ObjectiveSection):
    """Moment matching, the dual of maximum entropy: E[phi] = mu for the features phi of
    energy=maxent (Jaynes 1957), or for the frequencies of letters at one site and at two, by
    chains, of energy=potts (Boltzmann machine learning: Muntoni et al. 2021).
    """

    rows_optional: ClassVar[bool] = True
    needs_features: ClassVar[bool] = True
    equilibrium_negatives: ClassVar[bool] = True
    weighs_rows: ClassVar[bool] = True
    moments: Numbers | None = about(
        "mu, one number a feature; null: the means over (at most 20,000) training rows"
    )
    expectation: Literal["exact", "chains"] = about(
        "where E[phi] comes from: log Z by enumeration or quadrature, or chains"
    )
    l1: NonNegativeFloat = about(
        "how far each moment may miss its target, in its own units (Dudik, Phillips & Schapire"
        " 2004)"
    )
    l2: NonNegativeFloat = about(
        "ridge: moments miss theirs by l2 times the parameter (Chen & Rosenfeld 2000); of"
        " energy=potts those of couplings"
    )

    def check(self, energy: EnergySection, kernel: KernelSection) -> None:  # noqa: ARG002
        """Raises `ConfigError` for what there is not for couplings of all pairs."""
        if not energy.has_couplings:
            return
        remedies = {
            "moments": (self.moments is None, f"energy={energy.name} takes the rows'; use null"),
            "expectation": (
                self.expectation == "chains",
                f"energy={energy.name} has them by chains; use chains",
            ),
            "l1": (not self.l1, f"energy={energy.name} has none; use 0, or l2"),
        }
        for key, (fits, remedy) in remedies.items():
            if not fits:
                raise ConfigError(f"objective.{key}", getattr(self, key), remedy)

    @property
    def deterministic(self) -> bool:
        return self.expectation == "exact"

    @property
    def start(self) -> Start | None:
        return "persistent" if self.expectation == "chains" else None


# -- score matching --------------------------------------------------------------------------------


class ScoreMatchingSection(ObjectiveSection):
    domain: ClassVar[Where] = "continuous"
    in_box: ClassVar[bool] = False


class ExactScoreMatchingObjective(ScoreMatchingSection):
    """Score matching with the exact trace: as many directions as dimensions (Hyvarinen 2005)."""


class HutchinsonObjective(ScoreMatchingSection):
    """Score matching with Hutchinson's trace: sliced score matching with variance reduction (Song
    et al. 2019).
    """

    probe: Probe
    probes: PositiveInt = about("P, directions drawn for each row (hutch_pp: at least 3)")

    def check(self, energy: EnergySection, kernel: KernelSection) -> None:  # noqa: ARG002
        """Raises `ConfigError` where Hutch++ has too few probes to divide."""
        if self.probe == "hutch_pp" and self.probes < 3:
            remedy = "hutch_pp divides them among three uses; use at least 3"
            raise ConfigError("objective.probes", self.probes, remedy)


class SlicedObjective(HutchinsonObjective):
    """Sliced score matching (Song et al. 2019)."""


class FiniteDifferenceObjective(ScoreMatchingSection):
    """Sliced score matching from energies alone, three for each direction (Pang et al. 2020)."""

    shardable: ClassVar[bool] = True
    probe: PlainProbe
    probes: PositiveInt = about("P, directions drawn for each row")
    epsilon: Epsilon


class DenoisingObjective(ScoreMatchingSection):
    """Denoising score matching: learns the data's law with noise added (Vincent 2011)."""

    sigmas: Levels = about(
        "noise levels, in data units; several learn the mixture of the smoothed laws, weighted by"
        " sigma^2"
    )
    draws: PositiveInt = about("P, noises drawn for each row")


class FiniteDifferenceDenoisingObjective(DenoisingObjective):
    """Denoising score matching along directions, from two energies each (Pang et al. 2020)."""

    shardable: ClassVar[bool] = True
    probe: PlainProbe
    epsilon: Epsilon


# -- relatives -------------------------------------------------------------------------------------


class NCEObjective(ObjectiveSection):
    """Noise-contrastive estimation, with noise from a simple law fitted to the data (Gutmann &
    Hyvarinen 2012).
    """

    of_kinds: ClassVar[bool] = False
    needs_one_law: ClassVar[str | None] = "learns one log Z"
    draws: PositiveInt = about("P, noise samples for each row")


class ConditionalNCEObjective(ObjectiveSection):
    """Conditional noise-contrastive estimation, noise around each row (Ceylan & Gutmann 2018)."""

    domain: ClassVar[Where] = "continuous or binary"
    in_box: ClassVar[bool] = False
    shardable: ClassVar[bool] = True
    draws: PositiveInt = about("P, noise samples for each row")
    scale: PositiveFloat = about(
        "standard deviation of the noise around a row; over {0, 1}^d, the chance of a flip"
    )

    def check(self, energy: EnergySection, kernel: KernelSection) -> None:  # noqa: ARG002
        """Raises `ConfigError` for a chance of a flip that is none."""
        if energy.domain.levels and self.scale >= 1:
            remedy = f"{energy.where}, where it is the chance of a flip; use less than 1"
            raise ConfigError("objective.scale", self.scale, remedy)


class SitesObjective(ObjectiveSection):
    """Pseudo-likelihood: each component given the others (Besag 1975)."""

    domain: ClassVar[Where] = "discrete"
    shardable: ClassVar[bool] = True
    sites: PositiveInt | None = about("components drawn for each row; null: all of them")

    @property
    def deterministic(self) -> bool:
        return self.sites is None


class PseudoLikelihoodObjective(SitesObjective):
    """Pseudo-likelihood, with a penalty on the fields and couplings of energy=potts (Ekeberg et al.
    2013). It is stated for the sum over rows by their weights, as plmc's -lh and -le are: the loss,
    a mean over rows, has it over the sum of their weights.
    """

    weighs_rows: ClassVar[bool] = True

    l2_fields: NonNegativeFloat = about(
        "lambda_h of lambda_h sum_i |h_i|^2, added to the sum over rows; of energy=potts"
    )
    l2_couplings: NonNegativeFloat = about(
        "lambda_J of lambda_J sum_{i<j} |J_ij|^2, added to the sum over rows; of energy=potts"
    )

    def check(self, energy: EnergySection, kernel: KernelSection) -> None:  # noqa: ARG002
        """Raises `ConfigError` for a penalty on what the energy does not have."""
        for key in ("l2_fields", "l2_couplings"):
            if getattr(self, key) and not energy.has_couplings:
                remedy = f"energy={energy.name} has no fields and couplings; use 0, or energy=potts"
                raise ConfigError(f"objective.{key}", getattr(self, key), remedy)


class RatioMatchingObjective(SitesObjective):
    """Ratio matching: each component against its flip (Hyvarinen 2007)."""

    domain: ClassVar[Where] = "binary"


class MixtureObjective(AnyObjective):
    """A weighted sum of any of the others, of which at most one consumes chains.

    `terms` are filled in from `conf/objective/` where nothing else is given.
    """

    weights: dict[str, PositiveFloat] = about(
        "objectives by name, and the weight of each in the sum"
    )
    terms: dict[str, Annotated[SerializeAsAny[ObjectiveSection], Choice("objective")]] = about(
        "settings of the terms: objective.terms.NAME.KEY=..."
    )


ObjectiveConfig = Annotated[SerializeAsAny[AnyObjective], Choice("objective")]


def terms_of(objective: AnyObjective) -> dict[str, ObjectiveSection]:
    """The objectives that are summed, by name: one, or those of a mixture."""
    if isinstance(objective, MixtureObjective):
        return objective.terms
    assert isinstance(objective, ObjectiveSection)
    return {objective.name: objective}
