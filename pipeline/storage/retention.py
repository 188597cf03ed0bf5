"""The choice of the checkpoints of a run that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.storage.manifest import Figure


class Kept(NamedTuple):
    """The checkpoints that are kept: the `newest` few, each whose step is a multiple of
    `every`, and the one that was best by the figure that `best` names: the lowest, or the highest
    after `max:`.
    """

    newest: int
    every: int | None = None
    best: str | None = None

    @property
    def figure(self) -> str | None:
        """The name of the figure that `best` is about."""
        return None if self.best is None else self.best.removeprefix("max:")


def kept_steps(kept: Kept, whole: Sequence[tuple[int, Figure | None]]) -> set[int]:
    """Returns the steps of the checkpoints that are kept, of those that are `whole`: their steps,
    rising, each with the figure in its manifest.
    """
    steps = [step for step, _ in whole]
    chosen = set(steps[-kept.newest :])
    if kept.every is not None:
        chosen |= {step for step in steps if step % kept.every == 0}
    sign = -1.0 if kept.best is not None and kept.best.startswith("max:") else 1.0
    judged = [
        (sign * figure.value, -step)  # of equals the newest
        for step, figure in whole
        if figure is not None and figure.name == kept.figure
    ]
    if judged:
        chosen.add(-min(judged)[1])
    return chosen
