"""Persistent contrastive divergence, with a pull on the positives' energies alone."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pipeline.config.fields import NonNegativeFloat
from pipeline.config.objectives import ObjectiveSection
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.objectives.base import Batch, Objective, Part


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

    def parts(self, energy: Energy, batch: Batch) -> Iterator[Part]:
        """Parts named positive, pull and negative."""
        if batch.positives is not None:
            values = energy.given(batch.context)(batch.positives)
            yield Part("positive", values.sum(), len(values))
            yield Part("pull", values.square().sum(), len(values), self._pull)
        if batch.negatives is not None:
            values = energy.given(batch.negative_context)(batch.negatives)
            yield Part("negative", (batch.weights_of(values) * values).sum(), len(values), -1.0)


def make(section: PlainPCD, config: RunConfig) -> Objective:  # noqa: ARG001
    """An objective is made of its section and the whole configuration."""
    return Contrast(section.pull)
