"""Objectives as functions of an energy and rows: losses for a training loop of one's own.

Each returns a scalar with a graph to the energy's parameters, a mean over rows. `energy` maps
positions `[N, *shape]` to nats `[N]`: a function, a module, in whichever mode it is in, or an
`Energy`. What is not finite stays so in the loss. The formulas stand with the objectives, in
`pipeline/objectives`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.common.errors import ArgumentError
from pipeline.energies.base import Energy
from pipeline.energies.function import Function, FunctionEnergy
from pipeline.library.arguments import check_positive, check_whole, on_domain, source_of
from pipeline.objectives.base import Batch, NegativeSide, Objective, PositiveSide
from pipeline.objectives.contrastive import ContrastiveDivergence
from pipeline.objectives.noise_contrastive import (
    ConditionalNoiseContrastive,
    NoiseContrastive,
    NoiseLaw,
)
from pipeline.objectives.probes import PROBES, TraceEstimator, basis
from pipeline.objectives.pseudo import PseudoLikelihood, RatioMatching
from pipeline.objectives.score_matching import (
    DenoisingScoreMatching,
    FiniteDifferenceScoreMatching,
    ScoreMatching,
    SlicedScoreMatching,
)

Rows = Tensor | np.ndarray
Probe = Literal["rademacher", "gaussian", "sphere", "orthogonal", "hutch_pp"]


def score_matching(energy: Energy | Function, x: Rows) -> Tensor:
    """Score matching with the exact trace of the Hessian, on R^d (Hyvarinen 2005, theorem 1): d
    second derivatives a row, for rows `x` [N, *shape] of d numbers.

    Raises `ArgumentError` where an argument is not what it should be.
    """
    model, rows = _on_reals(energy, x)
    return _loss(ScoreMatching(basis, 1), model, rows, torch.Generator(rows.device))


def hutchinson(
    energy: Energy | Function,
    x: Rows,
    generator: torch.Generator,
    *,
    probes: int = 1,
    probe: Probe = "rademacher",
) -> Tensor:
    """Score matching with Hutchinson's estimate of the trace, on R^d: as `score_matching` in
    expectation, from `probes` directions a row of the law `probe` (`pipeline.objectives.probes`).

    Raises `ArgumentError` where an argument is not what it should be.
    """
    model, rows = _on_reals(energy, x)
    objective = ScoreMatching(_estimator(probe, probes, model), probes)
    return _loss(objective, model, rows, generator)


def sliced(
    energy: Energy | Function,
    x: Rows,
    generator: torch.Generator,
    *,
    probes: int = 1,
    probe: Probe = "rademacher",
) -> Tensor:
    """Sliced score matching, on R^d (Song et al. 2019, equation 7), along `probes` directions a
    row of the law `probe`.

    Raises `ArgumentError` where an argument is not what it should be.
    """
    model, rows = _on_reals(energy, x)
    objective = SlicedScoreMatching(_estimator(probe, probes, model), probes)
    return _loss(objective, model, rows, generator)


def finite_difference(
    energy: Energy | Function,
    x: Rows,
    generator: torch.Generator,
    *,
    probes: int = 1,
    probe: Probe = "rademacher",
    epsilon: float = 0.05,
) -> Tensor:
    """Sliced score matching from energies alone, on R^d (Pang et al. 2020): differences along
    `epsilon` v, in units of `x`, with a bias of O(epsilon^2).

    Raises `ArgumentError` where an argument is not what it should be.
    """
    check_positive(epsilon=epsilon)
    model, rows = _on_reals(energy, x)
    objective = FiniteDifferenceScoreMatching(_estimator(probe, probes, model), probes, epsilon)
    return _loss(objective, model, rows, generator)


def denoising(
    energy: Energy | Function,
    x: Rows,
    generator: torch.Generator,
    *,
    sigmas: float | Sequence[float] = 0.1,
    draws: int = 1,
) -> Tensor:
    """Denoising score matching, on R^d (Vincent 2011): learns the law of rows with noise N(0,
    sigma^2) added, `draws` times a row, sigma one of the `sigmas`, in units of `x`.

    Raises `ArgumentError` where an argument is not what it should be.
    """
    levels = (sigmas,) if isinstance(sigmas, int | float) else tuple(sigmas)
    if not levels:
        raise ArgumentError("sigmas", "[]", "should be one positive number at least")
    for sigma in levels:
        check_positive(sigmas=sigma)
    check_whole(draws=draws)
    model, rows = _on_reals(energy, x)
    return _loss(DenoisingScoreMatching(levels, draws), model, rows, generator)


def contrastive(
    energy: Energy | Function,
    positives: Rows,
    negatives: Rows,
    *,
    weights: Tensor | None = None,
    energy_l2: float = 0.0,
) -> Tensor:
    """Mean E of data rows less mean E of draws of the model, [N, *shape] and [M, *shape] (Hinton
    2002): its gradient is that of the negative log-likelihood, its value is none.

    `weights` [M], of mean 1, weigh the negatives, and `energy_l2` the mean squares of energies that
    are added (Du & Mordatch 2019). Raises `ArgumentError` where an argument is not what it should
    be.
    """
    model, rows = on_domain(energy, positives, "positives")
    model, others = on_domain(model, negatives, "negatives")
    if weights is not None and (
        not isinstance(weights, Tensor) or weights.shape != others.shape[:1]
    ):
        remedy = f"should be a tensor [{len(others)}], one weight for each negative"
        shown = f"shape {list(np.shape(weights))}"
        raise ArgumentError("weights", shown, remedy)
    side = NegativeSide(others, weights=None if weights is None else weights.detach())
    return _mean(ContrastiveDivergence(energy_l2), model, Batch(PositiveSide(rows), side))


def nce(
    energy: Energy | Function,
    x: Rows,
    generator: torch.Generator,
    *,
    noise: NoiseLaw,
    log_z: Tensor | float = 0.0,
    draws: int = 8,
) -> Tensor:
    """Noise-contrastive estimation (Gutmann & Hyvarinen 2012), with `draws` of the `noise` for each
    row of `x` [N, *shape].

    `noise` has `sample(count, generator)` and `log_density(x)`, as
    `pipeline.energies.laws.Gaussian.fit(rows, 0.0)` has. `log_z` is the model's, a parameter of
    your own to be learned beside the energy's; leave it out where the energy has a free constant.

    Raises `ArgumentError` where an argument is not what it should be.
    """
    check_whole(draws=draws)
    if not (hasattr(noise, "sample") and hasattr(noise, "log_density")):
        remedy = "should have sample(count, generator) and log_density(x), as Gaussian has"
        raise ArgumentError("noise", type(noise).__name__, remedy)
    model, rows = on_domain(energy, x, "x")
    objective = NoiseContrastive(draws)  # its own log Z is 0 and stays so
    objective.noise = noise
    normalised = FunctionEnergy(lambda u: model(u) + log_z, model.shape)
    return _loss(objective, normalised, rows, generator)


def conditional_nce(
    energy: Energy | Function,
    x: Rows,
    generator: torch.Generator,
    *,
    scale: float,
    draws: int = 4,
    levels: int | None = None,
) -> Tensor:
    """Conditional noise-contrastive estimation (Ceylan & Gutmann 2018): rows against themselves
    with noise N(0, `scale`^2) added, `draws` times each, on R^d. With `levels` = 2, over {0, 1}^d,
    each component is flipped with probability `scale` instead.

    Raises `ArgumentError` where an argument is not what it should be.
    """
    check_positive(scale=scale)
    check_whole(draws=draws)
    model, rows = on_domain(energy, x, "x", levels)
    if model.levels is None:
        model, rows = _on_reals(model, rows)
    elif model.levels > 2 or scale >= 1:
        remedy = "over levels should be less than 1, and the levels 2"
        raise ArgumentError("scale", scale, remedy)
    return _loss(ConditionalNoiseContrastive(draws, scale), model, rows, generator)


def pseudo_likelihood(
    energy: Energy | Function,
    x: Rows,
    generator: torch.Generator | None = None,
    *,
    levels: int | None = None,
    sites: int | None = None,
) -> Tensor:
    """The negative pseudo-log-likelihood of rows `x` [N, *shape] over {0, ..., `levels` - 1}^d,
    nats a row (Besag 1975): from d (q - 1) energies a row. With `sites`, an unbiased estimate from
    so many components of each row, which the `generator` draws.

    `levels` is an `Energy`'s own, and given for a function. Raises `ArgumentError` where an
    argument is not what it should be.
    """
    model, rows = _over_levels(energy, x, levels)
    return _of_sites(PseudoLikelihood(sites), model, rows, generator, sites)


def ratio_matching(
    energy: Energy | Function,
    x: Rows,
    generator: torch.Generator | None = None,
    *,
    sites: int | None = None,
) -> Tensor:
    """Ratio matching of rows `x` [N, *shape] over {0, 1}^d (Hyvarinen 2007), from d energies a row.
    With `sites`, an unbiased estimate from so many components of each row, which the `generator`
    draws.

    Raises `ArgumentError` where an argument is not what it should be.
    """
    model, rows = _over_levels(energy, x, None if isinstance(energy, Energy) else 2)
    if model.levels != 2:
        raise ArgumentError("energy", f"over {model.levels} levels", "should be over {0, 1}^d")
    return _of_sites(RatioMatching(sites), model, rows, generator, sites)


def _on_reals(energy: Energy | Function, x: Rows) -> tuple[Energy, Tensor]:
    """The energy and its positions. Raises `ArgumentError` where it is not on R^d."""
    model, rows = on_domain(energy, x, "x")
    if model.levels is not None or model.box is not None:
        domain = f"over {model.levels} levels" if model.box is None else f"in the box {model.box}"
        raise ArgumentError("energy", domain, "should be on R^d, where this objective is defined")
    return model, rows


def _over_levels(energy: Energy | Function, x: Rows, levels: int | None) -> tuple[Energy, Tensor]:
    """The energy and its positions. Raises `ArgumentError` where it is over no levels."""
    model, rows = on_domain(energy, x, "x", levels)
    if model.levels is None:
        raise ArgumentError("levels", None, "should be q, for positions over {0, ..., q-1}^d")
    return model, rows


def _estimator(probe: str, probes: int, energy: Energy) -> TraceEstimator:
    """Raises `ArgumentError` where there is none of that name, or the number does not go with
    it.
    """
    if probe not in PROBES or probe == "basis":
        choices = ", ".join(sorted(set(PROBES) - {"basis"}))
        raise ArgumentError("probe", probe, f"should be one of {choices}")
    check_whole(3 if probe == "hutch_pp" else 1, probes=probes)
    if probe == "orthogonal" and probes > energy.dimension:
        remedy = f"should be {energy.dimension} at most, as there are dimensions"
        raise ArgumentError("probes", probes, remedy)
    return PROBES[probe]


def _of_sites(
    objective: Objective,
    energy: Energy,
    rows: Tensor,
    generator: torch.Generator | None,
    sites: int | None,
) -> Tensor:
    """The loss of an objective that draws `sites`, or takes all of them, and draws nothing then."""
    if sites is not None:
        check_whole(sites=sites)
    elif generator is None:
        generator = torch.Generator(rows.device)
    return _loss(objective, energy, rows, generator)


def _loss(objective: Objective, energy: Energy, rows: Tensor, generator: object) -> Tensor:
    """The objective's loss of rows `[N, *shape]`, with what it draws for them."""
    drawn = objective.draw(energy, rows, source_of(generator, rows.device, seeds=False))
    return _mean(objective, energy, Batch(PositiveSide(rows, drawn)))


def _mean(objective: Objective, energy: Energy, batch: Batch) -> Tensor:
    parts = objective.parts(energy, batch)
    return torch.stack([part.weight * part.total / part.rows for part in parts]).sum()
