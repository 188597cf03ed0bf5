"""The contrastive gradient against the exact one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.energies.rbm import BernoulliRBM
from pipeline.objectives.contrastive import ContrastiveDivergence
from tests.conftest import states
from tests.statistics.trainable import sides


def gradient(rbm: BernoulliRBM, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(rbm.parameters()))])


def loss_of(
    objective: ContrastiveDivergence, rbm: BernoulliRBM, positives: Tensor, weights: Tensor
) -> Tensor:
    """The objective with all 32 states as negatives, weighted by `weights` [32] of sum 1."""
    batch = sides(positives, negatives=states(5))
    parts = objective.parts(rbm, batch, lambda _: 32 * weights)
    return torch.stack([part.weight * part.total / part.rows for part in parts]).sum()


def test_with_the_models_own_law_it_is_the_likelihoods_gradient(tiny_rbm: BernoulliRBM) -> None:
    """Negatives weighted by p(x): the gradient of -mean log p(x+), with log Z enumerated and
    differentiated by autograd.
    """
    positives = states(5)[[3, 7, 7, 21]]
    log_z = torch.logsumexp(-tiny_rbm(states(5)), 0)
    truth = gradient(tiny_rbm, (tiny_rbm(positives) + log_z).mean())
    law = torch.softmax(-tiny_rbm(states(5)), 0).detach()
    estimate = gradient(tiny_rbm, loss_of(ContrastiveDivergence(0.0), tiny_rbm, positives, law))
    torch.testing.assert_close(estimate, truth, rtol=1e-10, atol=1e-12)
    flipped = gradient(tiny_rbm, -loss_of(ContrastiveDivergence(0.0), tiny_rbm, positives, law))
    assert not torch.allclose(flipped, truth)


def test_l2_is_on_the_energies_of_both_sides(tiny_rbm: BernoulliRBM) -> None:
    positives, law = states(5)[[3, 7]], torch.full((32,), 1 / 32, dtype=torch.float64)
    with_l2 = loss_of(ContrastiveDivergence(0.25), tiny_rbm, positives, law)
    without = loss_of(ContrastiveDivergence(0.0), tiny_rbm, positives, law)
    expected = 0.25 * (tiny_rbm(positives).square().mean() + tiny_rbm(states(5)).square().mean())
    assert float((with_l2 - without).detach()) == pytest.approx(float(expected.detach()), rel=1e-12)


def test_parts_add_up_over_rows(tiny_rbm: BernoulliRBM) -> None:
    """Totals and rows of two halves are those of the whole: what chunking and ranks rest on."""
    objective, rows = ContrastiveDivergence(0.1), states(5)

    def totals(positives: Tensor, negatives: Tensor) -> dict[tuple[str, int], tuple[float, int]]:
        parts = list(objective.parts(tiny_rbm, sides(positives, negatives=negatives)))
        return {
            (part.name, index): (float(part.total.detach()), part.rows)
            for index, part in enumerate(parts)
        }

    whole, first, second = (
        totals(rows[:8], rows[8:20]),
        totals(rows[:4], rows[8:14]),
        totals(rows[4:8], rows[14:20]),
    )
    for key, (total, count) in whole.items():
        assert total == pytest.approx(first[key][0] + second[key][0], rel=1e-12)
        assert count == first[key][1] + second[key][1]
