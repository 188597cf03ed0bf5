"""The moments of a maximum-entropy model beside those that it was asked for, and its distance to
the law that has them.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.assembly.chains import make_plan
from pipeline.assembly.data import noisy_sample, sample_weights
from pipeline.chains.sampler import Sampler
from pipeline.common.rng import torch_generator
from pipeline.common.types import Figures, Progress
from pipeline.config.objectives import MomentsObjective, terms_of
from pipeline.config.run import RunConfig
from pipeline.data.base import MOST_ROWS, DataSet
from pipeline.energies.maxent.exponential_family import ExponentialFamily
from pipeline.energies.maxent.marginal_polytope import locate
from pipeline.evaluation.diagnostics import split_r_hat
from pipeline.objectives.moments import family_of, target_moments
from pipeline.storage.figures import draw_figure

if TYPE_CHECKING:
    from pipeline.evaluation.maximum_entropy import Dual

CHAINS = 64  # at least, for moments by chains
# |z| of a residual that is called one: chance alone gives it in 1 of 200,000, with 64 chains
LIMIT = 5.0
MET = 0.01  # the same of one that is exact, in standard deviations of the feature


class Expected(NamedTuple):
    """E[phi] [F], its standard error and the standard deviation of phi, [F] each; and what else was
    seen on the way.
    """

    mean: Tensor
    standard_error: Tensor
    deviation: Tensor
    figures: Figures


def moment_figures(
    config: RunConfig, energy: ExponentialFamily, data: DataSet, output: str
) -> Generator[Progress, None, Figures]:
    """Works out residuals E[phi] - mu with standard errors, the entropy, the distance to the law of
    maximum entropy (`dual_gap`, which without relaxation is the KL divergence from it, nats) and,
    where the data's law is known and of this family, that of the parameters from the truth;
    `infeasible` says why no law, or none with finite parameters, has such moments, where that is
    certain. Writes `moments.png`. Yields progress; returns the figures.
    """
    # brings SciPy's optimizers, that most runs do without
    from pipeline.evaluation.maximum_entropy import against_truth, maximum_entropy

    section = terms_of(config.objective)["moments"]
    assert isinstance(section, MomentsObjective)
    rows = energy.into_domain(noisy_sample(config, data))
    mu = target_moments(family_of(energy), section.moments, rows, sample_weights(data))
    exact = energy.exact_moments()
    if exact is None:
        expected = yield from by_chains(config, energy)
    else:
        deviation = exact.covariance.diagonal().clamp(min=0).sqrt()
        expected = Expected(
            exact.mean, torch.zeros_like(exact.mean), deviation, {"entropy": exact.entropy}
        )
    figures = expected.figures | residuals(energy, mu, expected, section)
    best = maximum_entropy(energy, mu, section.l1, section.l2)
    if best is not None:
        figures |= {"dual_gap": best.gap}
    if (
        best is not None
        and data.log_density is not None
        and section.moments is None
        and not data.noise
    ):
        figures |= against_truth(energy, best, data.log_density, min(data.rows, MOST_ROWS))
        for row, true, error in zip(
            figures["moments"],
            figures.pop("true_parameters", []),
            figures.pop("parameter_standard_errors", []),
            strict=False,
        ):
            row |= {"true_parameter": true, "parameter_standard_error": error}
    undrawn = draw_moments(config.name, energy, figures, best, output)
    return figures | {
        "infeasible": locate(energy, mu, section.l1).reason or None,
        "pictures": [] if undrawn else ["moments.png"],
        **undrawn,
    }


def by_chains(config: RunConfig, energy: ExponentialFamily) -> Generator[Progress, None, Expected]:
    """From independent chains begun at noise, their second `evaluation.transitions` transitions:
    the mean over chains of each one's mean, whose standard error is their standard deviation over
    the root of their number, however the draws of one depend on one another.
    """
    plan, generator = make_plan(config), torch_generator(config.seed, "moments")
    count = max(CHAINS, config.evaluation.samples)
    sampler = Sampler(energy, plan, count, generator)
    burn_in, done = config.evaluation.transitions, 0
    draws: list[Tensor] = []
    while done < 2 * burn_in:
        step = min(plan.transitions, 2 * burn_in - done)
        sampler.advance(generator, step)
        done += step
        if done > burn_in:
            draws.append(energy.features(sampler.position[-count:]).double())
        if done // step % 50 == 0 or done == 2 * burn_in:
            yield Progress("moments by chains", done, 2 * burn_in)
    values = torch.stack(draws, 1)
    means = values.mean(1)
    r_hat = np.nan_to_num(split_r_hat(values.numpy())) if values.shape[1] >= 4 else np.zeros(1)
    return Expected(
        means.mean(0),
        means.std(0) / math.sqrt(count),
        values.flatten(0, 1).std(0),
        {
            "moment_chains": count,
            "moment_draws": values.shape[1],
            "moments_r_hat": float(r_hat.max()),
        },
    )


def residuals(
    energy: ExponentialFamily, mu: Tensor, expected: Expected, section: MomentsObjective
) -> Figures:
    """Returns `moments`, an entry a feature; the largest residual, and the largest of what a
    relaxation does not explain, max(|E[phi] - mu + l2 lambda| - l1, 0), in standard errors (None
    where they are 0) and in standard deviations of phi.
    """
    residual = expected.mean - mu
    beyond = ((residual + section.l2 * energy.natural.double()).abs() - section.l1).clamp(min=0)
    exact = not expected.standard_error.any()
    scores = beyond / expected.standard_error.clamp(min=1e-300)
    # what never varied has no error to speak of
    scores = torch.where((beyond == 0) | (expected.standard_error == 0), 0.0, scores)
    columns = (mu, expected.mean, residual, expected.standard_error, energy.natural.double())
    keys = ("target", "model", "residual", "standard_error", "parameter")
    rows = zip(energy.names, *(column.tolist() for column in columns), strict=True)
    return {
        "moments": [
            {"feature": name, **dict(zip(keys, values, strict=True))} for name, *values in rows
        ],
        "max_abs_residual": float(residual.abs().max()),
        "max_residual_z": None if exact else float(scores.max()),
        "max_residual_deviations": float((beyond / expected.deviation.clamp(min=1e-12)).max()),
    }


def moment_words(figures: Figures) -> list[str]:
    """Tells the figures to a person, a line each."""
    count, relative = len(figures["moments"]), figures["max_residual_deviations"]
    worst = max(figures["moments"], key=lambda row: abs(row["residual"]))
    text = (
        f"{count} moments, largest residual {worst['residual']:+.2g} ({worst['feature']}, wanted"
        f" {worst['target']:.4g})"
    )
    score = figures["max_residual_z"]
    exact = (
        "exact"
        if score is None
        else f"by {figures['moment_chains']} chains, at most {score:.1f} standard errors off"
    )
    lines = [f"{text}; {exact}"]
    if figures["infeasible"]:
        lines.append(
            f"  no law, or none with finite parameters, has these moments: {figures['infeasible']}"
        )
    if (relative > MET) if score is None else (score > LIMIT):
        missed = f"{relative:.2g} standard deviations of a feature"
        lines.append(
            f"  NOT MET ({missed}): train longer, or at a rate that falls to 0; or no law may have"
            " these moments"
        )
    if "entropy" in figures:
        lines.append(f"  entropy {figures['entropy']:.4f} nats")
    if "dual_gap" in figures:
        lines.append(
            f"  {figures['dual_gap']:.2g} nats from the law of maximum entropy with these moments"
            " (its dual gap)"
        )
    if "chi_square" in figures:
        found, bound = figures["chi_square"], figures["chi_square_bound"]
        lines.append(
            f"  parameters against the true ones: chi-square {found:.1f} of"
            f" {figures['chi_square_freedom']} degrees of freedom (below {bound:.1f} in all but 1"
            " of 10,000 samples of this size)"
        )
    return lines


def draw_moments(
    name: str, energy: ExponentialFamily, figures: Figures, best: Dual | None, output: str
) -> dict[str, str]:
    """Draws `moments.png`: the moments as asked and as they are; the law itself in one dimension,
    else the parameters. Returns what `draw_figure` returns.
    """
    return draw_figure(lambda: _moments(name, energy, figures, best), output, "moments.png")


def _moments(name: str, energy: ExponentialFamily, figures: Figures, best: Dual | None) -> Figure:
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = figures["moments"]
    target, model, error = (
        np.array([row[key] for row in rows]) for key in ("target", "model", "standard_error")
    )
    left.axline((target[0], target[0]), slope=1, color="0.7", linewidth=1)
    left.errorbar(target, model, yerr=2 * error, fmt="o", markersize=4)
    left.set(
        xlabel="moment asked for",
        ylabel="the model's" + (" (2 standard errors)" if error.any() else ""),
        title="moments",
    )
    if energy.dimension == 1 and best is not None:
        _draw_law(right, energy, best)
    else:
        _draw_parameters(right, figures, best)
    figure.suptitle(name, fontsize=10)
    return figure


def _draw_law(axis: Any, energy: ExponentialFamily, best: Dual) -> None:
    """Draws the learned law over the one of maximum entropy: densities or probabilities."""
    learned = np.exp(best.log_law(energy.natural.double().numpy()))
    wanted = np.exp(best.log_law(best.natural))
    base = np.exp(best.log_law(np.zeros(len(best.natural))))
    if energy.levels is not None:
        axis.bar(range(energy.levels), learned, alpha=0.5, label="learned")
        for law, style, label in ((wanted, "k_", "maximum entropy"), (base, "C1_", "base measure")):
            axis.plot(range(energy.levels), law, style, markersize=20, label=label)
        axis.set_ylabel("probability")
    else:
        points, cell = best.points.reshape(-1), math.exp(energy.log_cell())
        axis.fill_between(points, learned / cell, alpha=0.4, label="learned")
        axis.plot(points, wanted / cell, "k--", linewidth=1, label="maximum entropy")
        axis.plot(points, base / cell, "C1:", linewidth=1, label="base measure")
        shown = points[np.maximum(wanted, learned) > 1e-5 * wanted.max()]
        axis.set(ylabel="density", xlim=(shown[0], shown[-1]))
    axis.set(xlabel="x", title="the law")
    axis.legend(fontsize=8)


def _draw_parameters(axis: Any, figures: Figures, best: Dual | None) -> None:
    """Draws the parameters learned against the true ones where they are known, else those of
    maximum entropy; else by number.
    """
    rows = figures["moments"]
    learned = np.array([row["parameter"] for row in rows])
    if "true_parameter" in rows[0]:
        others, label = np.array([row["true_parameter"] for row in rows]), "true parameter"
        errors = 2 * np.array([row["parameter_standard_error"] for row in rows])
    elif best is not None:
        others, label, errors = best.natural, "parameter of maximum entropy", 0.0 * learned
    else:
        axis.plot(learned, "o", markersize=4)
        axis.set(xlabel="feature", ylabel="parameter learned", title="parameters")
        return
    axis.axline((others[0], others[0]), slope=1, color="0.7", linewidth=1)
    axis.errorbar(others, learned, yerr=errors, fmt="o", markersize=4)
    axis.set(
        xlabel=label,
        ylabel="parameter learned" + (" (2 standard errors)" if np.any(errors) else ""),
        title="parameters",
    )
