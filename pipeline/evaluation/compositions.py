"""Compositions of two laws in the plane that a model has learned, against those of the laws
themselves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.common.types import Figures
from pipeline.energies.base import Energy
from pipeline.energies.composition import Conjunction, Disjunction, Negation
from pipeline.energies.quadrature import MidpointRule
from pipeline.evaluation.likelihood import log_z_by_quadrature
from pipeline.storage.figures import draw_figure

REACH, SIDE = 12.0, 600  # the grid: midpoints of [-12, 12]^2, wider than a base term of scale 2
SHOWN = 4.5
WEIGHT = 0.8  # of what is negated


class Compared(NamedTuple):
    """A law and the model of it, as log shares of the grid's points, `[SIDE^2]` float64."""

    truth: Tensor
    model: Tensor

    @property
    def kl(self) -> float:
        """Returns KL(truth || model) = sum p (log p - log q), nats, by the midpoint rule."""
        return float((self.truth.exp() * (self.truth - self.model)).sum())


def grid() -> Tensor:
    """Returns the grid's points, `[SIDE^2, 2]`."""
    return MidpointRule(-REACH, REACH, SIDE).points((2,), torch.empty(0))


def composed(first: Energy, second: Energy) -> dict[str, Energy]:
    """Returns the compositions of two energies in the plane, by name."""
    log_z = [log_z_by_quadrature(energy, (-REACH, REACH)) for energy in (first, second)]
    return {
        "and": Conjunction([first, second]),
        "or": Disjunction([first, second], None, log_z),
        "not": Negation(first, second, WEIGHT),
    }


@torch.no_grad()
def compare(first: Energy, second: Energy, truths: tuple[Tensor, Tensor]) -> dict[str, Compared]:
    """Compares both parts and their compositions with what the laws with the log densities `truths`
    [SIDE^2], on the grid, make.
    """
    one, other = truths
    laws = {
        "first": one,
        "second": other,
        "and": one + other,
        "or": torch.logaddexp(one, other),
        "not": one - WEIGHT * other,
    }
    energies = {"first": first, "second": second, **composed(first, second)}
    points = grid().split(60_000)
    return {
        name: Compared(
            law.log_softmax(0),
            torch.cat([-energies[name](some).double() for some in points]).log_softmax(0),
        )
        for name, law in laws.items()
    }


def composition_figures(compared: dict[str, Compared]) -> Figures:
    """Returns the KL divergence of each, and the largest of the compositions', nats."""
    kl = {name: both.kl for name, both in compared.items()}
    worst = max(kl[name] for name in ("and", "or", "not"))
    return {"compositions": kl | {"worst": worst}}


def draw_compositions(
    compared: dict[str, Compared], names: tuple[str, str], output: str
) -> Figures:
    """Draws `compositions.png`: a column for each law, the truth above the model, to one scale
    each. Returns its name among `pictures`, or what `draw_figure` returns.
    """
    undrawn = draw_figure(lambda: _compositions(compared, names), output, "compositions.png")
    return undrawn or {"pictures": ["compositions.png"]}


def _compositions(compared: dict[str, Compared], names: tuple[str, str]) -> Figure:
    titles = {
        "first": names[0],
        "second": names[1],
        "and": "both",
        "or": "either",
        "not": f"{names[0]}, not {names[1]}",
    }
    inside = grid().view(SIDE, SIDE, 2)[:, 0, 0].abs() < SHOWN
    figure = Figure(figsize=(2.3 * len(compared), 5.2), layout="constrained")
    axes = figure.subplots(2, len(compared))
    for column, (name, both) in enumerate(compared.items()):
        for row, logs in enumerate(both):
            density = logs.exp().view(SIDE, SIDE)[inside][:, inside].T.numpy()
            axes[row, column].imshow(
                density, origin="lower", extent=(-SHOWN, SHOWN) * 2, cmap="magma", vmin=0
            )
            axes[row, column].set_xticks([])
            axes[row, column].set_yticks([])
        axes[0, column].set_title(titles[name], fontsize=10)
        axes[1, column].set_xlabel(f"KL {both.kl:.3f} nats", fontsize=9)
    axes[0, 0].set_ylabel("truth")
    axes[1, 0].set_ylabel("model")
    return figure
