"""Persistent contrastive divergence, with a pull on the positives' energies alone."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from torch import Tensor

from pipeline.config.fields import NonNegativeFloat
from pipeline.config.objectives import ObjectiveSection
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.objectives.base import NegativeSide, Objective, Part, PositiveSide


class PlainPCD(ObjectiveSection):
    """Persistent contrastive divergence (Tieleman 2008)."""

    equilibrium_negatives: ClassVar[bool] = True
    shardable: ClassVar[bool] = True
    pull: NonNegativeFloat = 0.01

    @property
    def start(self) -> Literal["persistent"]:
        return "persistent"


class Contrast(Objective):
    """loss = mean E(x+) - sum_j w_j E(x_j-) + pull mean E(x+)^2."""

    consumes_chains = True

    def __init__(self, pull: float) -> None:
        super().__init__()
        self._pull = pull

    def of_positives(self, energy: Energy, positives: PositiveSide) -> Iterator[Part]:
        """Parts named positive and pull."""
        values = energy.given(positives.context)(positives.position)
        yield Part("positive", values.sum(), len(values))
        yield Part("pull", values.square().sum(), len(values), self._pull)

    def of_negatives(
        self,
        energy: Energy,  # noqa: ARG002
        negatives: NegativeSide,  # noqa: ARG002
        energies: Tensor,
        weights: Tensor,
    ) -> Iterator[Part]:
        """One part, negative, of the energies that are given with their weights."""
        yield Part("negative", (weights * energies).sum(), len(energies), -1.0)


def make(section: PlainPCD, config: RunConfig) -> Objective:  # noqa: ARG001
    """An objective is made of its section and the whole configuration."""
    return Contrast(section.pull)
