"""The figures of a summary, for a person."""

from __future__ import annotations

import math

from pipeline.common.types import Figures
from pipeline.evaluation.contacts import contact_words
from pipeline.evaluation.moments import moment_words
from pipeline.evaluation.sequences import sequence_words, site_words

NAMES = {
    "untrained": "this model untrained",
    "gaussian": "a Gaussian with full covariance",
    "independent_components": "independent components",
}
PSEUDO = "pseudo_log_likelihood"
KINDS = {
    "test_log_likelihood": "log-likelihood",
    "test_log_likelihood_bound": "log-likelihood at least",
    f"test_{PSEUDO}": "pseudo-log-likelihood",
}
WORSE = 1.0
"""Nats a row below the untrained model's figure, from which on a person is warned."""


def in_words(figures: Figures) -> list[str]:
    """Returns a few lines; those that belong to the one above them are indented."""
    lines = moment_words(figures) if "moments" in figures else []
    lines += _likelihood(figures)
    lines += _answers(figures)
    if "scale" in figures:
        lines.append(
            f"  log-likelihoods are of rows under data.scale={figures['scale']}; for rows in their"
            f" own units add {figures['log_determinant']:.3f} nats a row"
        )
    if "compositions" in figures:
        both, either, without = (figures["compositions"][name] for name in ("and", "or", "not"))
        lines.append(
            f"compositions of the first two laws, KL from their own: and {both:.3f}, or"
            f" {either:.3f}, not {without:.3f} nats"
        )
    if figures.get("samples_r_hat") is not None:
        lines.append(
            f"  split R-hat of the samples' energies {figures['samples_r_hat']:.2f} (1: the chains"
            " agree)"
        )
    baselines = [
        f"{NAMES[name]} {value:.2f}"
        for name, value in figures.get("baselines", {}).items()
        if math.isfinite(value)
    ]
    if baselines:
        lines.append(f"  on the same rows: {', '.join(baselines)}")
    if "constant_columns" in figures:
        lines.append(
            "  the last two leave out what is constant in the training rows, columns"
            f" {', '.join(map(str, figures['constant_columns']))}, counted from 0"
        )
    lines += _worse(figures)
    lines += site_words(figures.get("log_likelihood_a_site", {}))
    if "sequence_statistics" in figures:
        lines += sequence_words(figures["sequence_statistics"])
    if "contacts" in figures:
        lines += contact_words(figures["contacts"])
    if "judged" in figures:
        lines.append(_verdict(figures["judged"]))
    return lines


def _likelihood(figures: Figures) -> list[str]:
    lines = []
    if figures.get("none_held_out"):
        lines.append(
            "no row is held out, so that nothing is told of rows that the model has not seen"
        )
    for key, kind in KINDS.items():
        if key in figures:
            lines.append(f"held-out {kind}{_told(figures, key)}")
            lines += _gap(figures, key)
        elif (of_training := key.replace("test_", "train_", 1)) in figures:
            lines.append(f"{kind} of training rows{_told(figures, of_training)}")
    if "log_z_reverse" in figures:
        lines.append(
            f"  log Z at least {figures['log_z_at_least']:.2f} by particles that came from a simple"
            f" law, at most {figures['log_z_at_most']:.2f} by particles that went back (95 % each)"
        )
    if "without_gaps" in figures and "log_z" in figures:
        of = figures["without_gaps"]
        lines.append(
            f"  log-likelihoods are of the sequences that lack no letter: {of['held_out']} held-out"
            f" ones, {of['training']} training ones"
        )
    if "true_log_likelihood" in figures:
        gap, spread = figures["kl_from_truth"], figures["kl_from_truth_standard_error"]
        truth = f"  the law itself scores {figures['true_log_likelihood']:.3f} on the same rows"
        lines.append(f"{truth}: {gap:.3f}{plus_minus(spread, 3)} nats more")
    return lines


def _gap(figures: Figures, key: str) -> list[str]:
    """Tells the same figure of training rows, and by how much it is higher. The error of log Z
    cancels in the difference.
    """
    value = figures.get(key.replace("test_", "train_", 1), math.nan)
    if not math.isfinite(value) or not math.isfinite(figures[key]):
        return []
    gap = value - figures[key]
    return [f"  training rows {value:.2f}, {abs(gap):.2f} nats {'higher' if gap > 0 else 'lower'}"]


def _told(figures: Figures, key: str) -> str:
    """Tells the figure called `key`, its error, or that it is unreliable, and the method."""
    value = figures[key]
    if not math.isfinite(value):
        return f" is not finite ({figures['method']})"
    if key.endswith(PSEUDO):
        return f" {value:.2f} nats a row ({figures['pseudo_of']})"
    bounds = [figures.get(f"{key}_{side}") for side in ("at_least", "at_most")]
    between = "" if None in bounds else f" between {bounds[0]:.2f} and {bounds[1]:.2f}"
    if "unreliable" in figures:
        return f"{between} nats a row, unreliable: {figures['unreliable']} ({figures['method']})"
    error = plus_minus(figures.get("log_z_standard_error"))
    between = between and f",{between}"
    return f" {value:.2f}{error} nats a row{between} ({figures['method']})"


def _worse(figures: Figures) -> list[str]:
    """Warns where a model is clearly worse than it was untrained, or its figure is not finite. A
    bound from below does not tell.
    """
    untrained = figures.get("baselines", {}).get("untrained", math.nan)
    keys = [key for key in KINDS if key in figures and not key.endswith("_bound")]
    if not keys or not math.isfinite(untrained):
        return []
    if figures.get(f"{keys[0]}_at_most", figures[keys[0]]) >= untrained - WORSE:
        return []
    return [
        "warning: the model is worse than it was untrained: training diverged, or was far too"
        " short; lower optimizer.learning_rate, or make more steps"
    ]


def plus_minus(error: float | None, digits: int = 2) -> str:
    """Returns " ± error" with so many decimals, or with one digit where they would all be 0;
    nothing where the error is not known, or 0: nothing was estimated.
    """
    if not error:
        return ""
    text = f"{error:.{digits}f}"
    return f" ± {text}" if float(text) else f" ± {error:.1g}"


def _answers(figures: Figures) -> list[str]:
    """Tells how often the model's answers about held-out rows are right."""
    lines = []
    if "test_accuracy" in figures:
        lines.append(
            f"label of held-out rows right: {figures['test_accuracy']:.1%} (the commonest:"
            f" {figures['commonest_label']:.1%}), log p(label)"
            f" {figures['test_label_log_likelihood']:.3f} nats a row"
        )
    if "samples_recognised" in figures:
        share = figures["samples_recognised"]
        lines.append(
            f"  class-conditional samples of their class, by 5 nearest training rows: {share:.0%}"
        )
    if "accuracy" in figures:
        lines.append(
            f"most probable position right: {figures['accuracy']:.1%} of held-out rows, "
            f"{figures['accuracy_by_component']:.1%} of components (search: {figures['search']})"
        )
    return lines


def _verdict(judged: Figures) -> str:
    value, reference = (
        "missing" if number is None else f"{number:.4g}"
        for number in (judged["value"], judged["reference"])
    )
    passes = "passes" if judged["passes"] else "does not pass"
    return (
        f"  judged by {judged['name']}: {value}, {judged['sense'].replace('_', ' ')} {reference}:"
        f" {passes}"
    )
