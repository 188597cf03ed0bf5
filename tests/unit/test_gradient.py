"""The gradient of a step by hand, where energy and objective know it, beside autograd's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from pipeline.common.types import EnergyMoments
from pipeline.energies.base import Energy
from pipeline.energies.mlp import MLPEnergy
from pipeline.energies.rbm import BernoulliRBM, GaussianRBM, PottsRBM
from pipeline.objectives.base import Batch, NegativeSide, PositiveSide, Term
from pipeline.objectives.chunking import Chunking
from pipeline.objectives.contrastive import ContrastiveDivergence
from pipeline.training.gradient import Gradient
from pipeline.training.intake import Weighed, Weighing
from pipeline.training.ranks import Alone

ENERGIES = {
    "perceptron": lambda: MLPEnergy((2, 3), (8, 5), 1.5, spectral_norm=False),
    "perceptron in a box": lambda: MLPEnergy((2, 3), (8,), 1.0, False, box=(-4.0, 4.0)),
    "linear": lambda: MLPEnergy((2, 3), (), 1.0, spectral_norm=False),
    "bernoulli": lambda: BernoulliRBM((2, 3), 4, 0.5),
    "potts": lambda: PottsRBM((2, 3), 3, 4, 0.5),
}
BY_AUTOGRAD = {
    "normalised": lambda: MLPEnergy((2, 3), (8,), 1.0, spectral_norm=True),
    "gaussian": lambda: GaussianRBM((2, 3), 4, 0.5),
}


def of_a_step(
    energy: Energy, rows: Tensor, l2: float, chunk: int | None
) -> tuple[list[Tensor], float, dict[str, float]]:
    """The gradient of a step from as many positives and negatives, its loss and its parts."""
    draws = torch.Generator().manual_seed(0)
    terms = [Term("", 0.7, ContrastiveDivergence(l2))]
    gradient = Gradient(energy, terms, Alone(energy), Chunking(chunk), draws)
    weights = torch.linspace(0.5, 1.5, len(rows) // 2, dtype=rows.dtype)
    weighing = Weighing(lambda _: Weighed(weights, (1.0,), (EnergyMoments(0, 0.0, 0.0, 1),)))
    positives, negatives = rows.chunk(2)
    gradient.add([Batch(PositiveSide(positives))], Weighing(None))
    gradient.add([Batch(negatives=NegativeSide(negatives))], weighing, scale=0.6)
    loss, parts = gradient.take()
    assert all(parameter.grad is not None for parameter in energy.parameters())
    return [p.grad for p in energy.parameters() if p.grad is not None], loss, parts


@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("kind", ENERGIES)
def test_by_hand_is_autograds(
    kind: str, l2: float, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, to rounding: one side after the other, weighed, in chunks and at once."""
    torch.manual_seed(1)
    energy = ENERGIES[kind]().double()
    for parameter in energy.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    rows = torch.randint(energy.levels or 9, (24, 2, 3)).double()
    other = copy.deepcopy(energy)
    assert energy.energies_and_pull(rows) is not None
    own = of_a_step(energy, rows, l2, chunk)
    monkeypatch.setattr(type(other), "energies_and_pull", Energy.energies_and_pull)
    theirs = of_a_step(other, rows, l2, chunk)
    torch.testing.assert_close(own, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", BY_AUTOGRAD)
def test_what_depends_on_more_is_left_to_autograd(kind: str) -> None:
    energy = BY_AUTOGRAD[kind]()
    assert energy.energies_and_pull(torch.zeros(4, 2, 3)) is None
