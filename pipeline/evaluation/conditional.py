"""The judgement of a conditional model: log p(x | c) of held-out rows, and the most probable
positions under their contexts.
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from pipeline.assembly.data import sample_weights
from pipeline.common.rng import torch_generator
from pipeline.common.types import Figures, Progress
from pipeline.config.run import RunConfig
from pipeline.data.base import MOST_ROWS, DataSet
from pipeline.data.row_weights import mean, standard_error
from pipeline.energies.base import Energy
from pipeline.energies.frozen import frozen
from pipeline.energies.laws import Gaussian
from pipeline.energies.quadrature import MidpointRule
from pipeline.evaluation.likelihood import independent_levels
from pipeline.evaluation.search import argmax

SIDES = {1: 1000, 2: 128}  # points a side of the grid, by dimension
ROWS = {1: 4000, 2: 500}  # held-out rows that are scored on a grid, which each context needs anew
SEARCHED = 500  # rows for which the most probable position is looked for


def log_z_on_grid(bound: Energy, box: tuple[float, float]) -> Tensor:
    """Returns the log of the integral of exp(-E(x | c)) over [low, high]^d, d = 1 or 2, by the
    midpoint rule, `[contexts]` float64.
    """
    return MidpointRule(*box, SIDES[bound.dimension]).precise_log_integral(bound)


def log_likelihood(
    energy: Energy, x: Tensor, context: Tensor, box: tuple[float, float]
) -> Tensor | None:
    """Returns log p(x | c) of rows `[N, *shape]` under contexts `[N, *context_shape]`, `[N]`
    float64 nats.

    Z(c) is exact where the energy has it, else by a grid over `box` in one or two real dimensions;
    None elsewhere.
    """
    energy, values = frozen(energy), []
    for rows, contexts in zip(x.split(100), context.split(100), strict=True):
        distinct, which = contexts.unique(dim=0, return_inverse=True)
        log_z = energy.given(distinct).log_sum()
        if log_z is None and (energy.levels is not None or energy.dimension not in SIDES):
            return None
        log_z = log_z_on_grid(energy.given(distinct), box) if log_z is None else log_z.double()
        values.append(-energy.given(contexts)(rows).double() - log_z[which])
    return torch.cat(values)


def reach(energy: Energy, data: DataSet) -> tuple[float, float]:
    """Returns a box (low, high) far beyond the data and the base term."""
    if energy.box is not None:
        return energy.box
    far = max(6 * energy.base_scale, 1.5 * float(data.sample.abs().max()))
    return (-far, far)


def conditional_figures(
    config: RunConfig, energy: Energy, untrained: Energy, data: DataSet
) -> Generator[Progress, None, Figures]:
    """Works out the conditional log-likelihood of held-out rows, beside the law's own where it is
    known, and how good the search's answers are, for positions over levels.
    """
    assert data.context is not None
    count = len(data.held_out) if energy.levels is not None else ROWS.get(energy.dimension, 0)
    test, context = data.held_out[:count], data.context.held_out[:count]
    weights = None if data.row_weights.held_out is None else data.row_weights.held_out[:count]
    yield Progress("conditional log-likelihood", 0, 2)
    values = log_likelihood(energy, test, context, reach(energy, data)) if count else None
    figures: Figures = {}
    if values is not None:
        exact = energy.given(context[:1]).log_sum() is not None
        figures = {
            "test_log_likelihood": float(mean(values, weights)),
            "method": (
                f"given contexts, {len(test)} rows, each Z {'exact' if exact else 'by quadrature'}"
            ),
        }
        if data.log_density is not None:
            truth = data.log_density(test, context)
            gap = truth - values
            figures["true_log_likelihood"] = float(mean(truth, weights))
            figures["kl_from_truth"] = float(mean(gap, weights))
            figures["kl_from_truth_standard_error"] = standard_error(gap, weights)
        yield Progress("conditional log-likelihood", 1, 2)
        before = log_likelihood(untrained, test, context, reach(energy, data))
        assert before is not None
        baselines = {"untrained": float(mean(before, weights))}
        if energy.levels is not None:
            baselines["independent_components"] = independent_levels(data, energy.levels)
        elif energy.box is None:
            law = Gaussian.fit(data.sample[:MOST_ROWS], data.noise, sample_weights(data))
            baselines["gaussian"] = float(mean(law.log_density(test).double(), weights))
        figures["baselines"] = baselines
    if energy.levels is not None:
        figures |= search_figures(config, energy, data)
    yield Progress("conditional log-likelihood", 2, 2)
    return figures


def search_figures(config: RunConfig, energy: Energy, data: DataSet) -> Figures:
    """Returns the share of rows whose most probable position is the held-out one, by component and
    as a whole.
    """
    assert data.context is not None
    wanted, context = data.held_out[:SEARCHED], data.context.held_out[:SEARCHED]
    found = argmax(energy.given(context), torch_generator(config.seed, "search"))
    right, weights = (found.position == wanted).flatten(1), data.row_weights.held_out
    weights = None if weights is None else weights[:SEARCHED]
    return {
        "accuracy_by_component": float(mean(right.float(), weights).mean()),
        "accuracy": float(mean(right.all(1).float(), weights)),
        "search": "exact" if found.exact else "annealed chains with restarts",
    }
