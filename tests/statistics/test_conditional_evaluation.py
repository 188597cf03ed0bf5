"""What conditional models are judged by, against laws that are known; and what `judged` makes of
figures.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.assembly.data import open_data
from pipeline.common.types import Figures
from pipeline.config.compose import compose
from pipeline.config.sections import Judgement
from pipeline.energies.given import ConditionalEnergy
from pipeline.evaluation.conditional import (
    conditional_figures,
    log_likelihood,
    log_z_on_grid,
    search_figures,
)
from pipeline.evaluation.labels import recognised
from pipeline.evaluation.report import judge, sample_contexts


class Regression(ConditionalEnergy):
    """E(y | x) = |y - (x, ..., x)|^2 / (2 s^2) + 3 x: log Z(x) = d log(2 pi s^2) / 2 - 3 x."""

    def __init__(self, dimension: int, spread: float = 0.4) -> None:
        super().__init__((dimension,), (1,), base_scale=1.0)
        self.spread = spread

    def of(self, x: Tensor, code: Tensor) -> Tensor:
        return (x - code).square().sum(1) / (2 * self.spread**2) + 3 * code[:, 0]


class Independent(ConditionalEnergy):
    """Two sites of three levels, each pulled to the level its context names: p(y_i = k | x) of
    logits 2 [k = x_i].
    """

    def __init__(self) -> None:
        super().__init__((2,), (2,), levels=3)

    def of(self, x: Tensor, code: Tensor) -> Tensor:
        return -2.0 * (x == code).sum(1).to(code.dtype)


@pytest.mark.parametrize("dimension", [1, 2])
def test_log_z_of_each_context_by_quadrature(dimension: int) -> None:
    """A Gaussian's, in closed form, to 1e-4: the midpoint rule is far finer than its width, float32
    sums are not.
    """
    contexts = torch.tensor([[-1.0], [0.3], [0.8]])
    values = log_z_on_grid(Regression(dimension).given(contexts), (-6.0, 6.0))
    truth = dimension * math.log(2 * math.pi * 0.4**2) / 2 - 3 * contexts[:, 0].double()
    torch.testing.assert_close(values, truth, rtol=0, atol=1e-4)


def test_conditional_log_likelihood_row_by_row() -> None:
    """Each row under its own context, also where they repeat; and by enumeration over levels."""
    generator = torch.Generator().manual_seed(0)
    contexts = torch.randint(4, (250, 1), generator=generator).float() / 4
    rows = contexts + 0.4 * torch.randn(250, 1, generator=generator)
    values = log_likelihood(Regression(1), rows, contexts, (-6.0, 6.0))
    assert values is not None
    normal = torch.distributions.Normal(contexts[:, 0].double(), 0.4)
    torch.testing.assert_close(values, normal.log_prob(rows[:, 0].double()), rtol=0, atol=1e-4)
    states, named = torch.randint(3, (2, 60, 2), generator=generator).float()
    over_levels = log_likelihood(Independent(), states, named, (0.0, 0.0))
    by_hand = torch.where(states == named, 2.0, 0.0).sum(1) - 2 * math.log(math.exp(2) + 2)
    assert over_levels is not None
    torch.testing.assert_close(over_levels.float(), by_hand, rtol=0, atol=1e-5)
    assert log_likelihood(Regression(3), rows.expand(-1, 3), contexts, (-6.0, 6.0)) is None


def finish(run: object) -> Figures:
    while True:
        try:
            next(run)  # type: ignore[call-overload]
        except StopIteration as stop:
            figures: Figures = stop.value
            return figures


def test_figures_of_a_model_that_is_off_by_a_known_amount() -> None:
    """Of the fork's law, a Gaussian given x scores as its expected log density says: the gap from
    the truth is the mean difference, and its standard error that of the rows.
    """
    config = compose(["experiment=conditional_regression"])
    data = open_data(config)
    assert data.context is not None
    assert data.log_density is not None
    figures = finish(conditional_figures(config, Regression(1), Regression(1, 1.0), data))
    rows, contexts = data.held_out, data.context.held_out
    normal = torch.distributions.Normal(contexts[:, 0].double(), 0.4)
    gap = data.log_density(rows, contexts) - normal.log_prob(rows[:, 0].double())
    assert figures["kl_from_truth"] == pytest.approx(float(gap.mean()), abs=1e-3)
    assert figures["kl_from_truth_standard_error"] == pytest.approx(
        float(gap.std()) / math.sqrt(len(gap)), rel=1e-3
    )
    wide = torch.distributions.Normal(contexts[:, 0].double(), 1.0).log_prob(rows[:, 0].double())
    assert figures["baselines"]["untrained"] == pytest.approx(float(wide.mean()), abs=1e-3)


def test_accuracy_counts_components_and_rows() -> None:
    """The most probable state is the context itself: the rows that are theirs, whole or by halves,
    are counted.
    """
    config = compose(["experiment=conditional_structured"])
    contexts = torch.randint(3, (40, 2), generator=torch.Generator().manual_seed(0)).float()
    rows = contexts.clone()
    rows[:10, 0] = (rows[:10, 0] + 1) % 3
    data = open_data(config)
    assert data.context is not None
    made = data._replace(held_out=rows, context=data.context._replace(held_out=contexts))
    figures = search_figures(config, Independent(), made)
    assert figures == {"accuracy_by_component": 0.875, "accuracy": 0.75, "search": "exact"}


def test_judgements() -> None:
    figures = {"a": 0.5, "b": {"c": 0.4}}
    assert judge(Judgement(figure="a", sense="at_least", reference="b.c"), figures)["passes"]
    assert not judge(Judgement(figure="a", sense="at_most", reference="b.c"), figures)["passes"]
    verdict = judge(Judgement(figure="b.c", sense="at_most", reference=0.4), figures)
    assert verdict == {
        "name": "b.c",
        "value": 0.4,
        "sense": "at_most",
        "reference": 0.4,
        "passes": True,
    }
    assert (
        judge(Judgement(figure="missing", sense="at_most", reference=1.0), figures)["passes"]
        is False
    )


def test_samples_are_recognised_by_their_neighbours() -> None:
    """Rows themselves are of their class; under the labels of others they are not."""
    config = compose(["experiment=conditional_label"])
    data = open_data(config)
    assert data.context is not None
    assert recognised(data.held_out, data.context.held_out, data) > 0.95
    assert recognised(data.held_out, (data.context.held_out + 1) % 10, data) < 0.05
    labels = sample_contexts(config, data)
    assert labels is not None
    assert [int((labels == label).sum()) for label in range(10)] == [5] * 10
