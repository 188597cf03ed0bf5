"""Sequences drawn from a model of an alignment, against those that it learned: figures, words and a
picture.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from pipeline.assembly.chains import make_plan
from pipeline.assembly.data import noisy_sample, sample_weights
from pipeline.common.rng import numpy_generator, torch_generator
from pipeline.common.types import Figures, Progress
from pipeline.config.run import RunConfig
from pipeline.data.base import DataSet
from pipeline.energies.base import Energy
from pipeline.evaluation.alignments import Weighted, compare
from pipeline.evaluation.samples import draw_from_noise
from pipeline.evaluation.sequence_pictures import draw_sequences

CHAINS = 1000
"""Sequences that are drawn, at least: statistics of fewer are mostly noise."""


def sequence_figures(
    config: RunConfig, energy: Energy, data: DataSet, output: str
) -> Generator[Progress, None, Figures]:
    """Draws `evaluation.samples` sequences by chains from noise, 1,000 at least, and compares them
    with the training sequences; writes `sequences.png`. Yields progress, and returns the figures,
    what as many training sequences score that are drawn by their weights, and what `draw_figure`
    returns. Raises `StorageError`.
    """
    count, transitions = max(CHAINS, config.evaluation.samples), config.evaluation.transitions
    generator = torch_generator(config.seed, "sequences")
    drawn = yield from draw_from_noise(energy, make_plan(config), count, transitions, generator)
    samples = energy.visible(drawn.position)
    natural, weights = noisy_sample(config, data), sample_weights(data)
    levels = energy.levels or 2
    rows = Weighted(
        natural.numpy().astype(np.int64),
        np.ones(len(natural)) if weights is None else weights.numpy(),
    )
    shares, random = rows.weights / rows.weights.sum(), numpy_generator(config.seed, "sequences")
    again = rows.codes[random.choice(len(shares), count, p=shares)]
    ones = np.ones(count)
    own = Weighted(samples.numpy().astype(np.int64), ones)
    found = compare(rows, own, levels)
    caption = (
        f"{config.name}: {count:,} samples, chains started at noise, {transitions:,}"
        f" {config.kernel.name} transitions each, against {len(natural):,} training sequences"
    )
    undrawn = draw_sequences(energy, found, rows, samples, generator, caption, output)
    return {
        "sequence_statistics": {
            "samples": count,
            "triples": found.triples,
            **found.figures(),
            "rows": compare(rows, Weighted(again, ones), levels).figures(),
        },
        **({} if undrawn else {"pictures": ["sequences.png"]}),
        **undrawn,
    }


def likelihood_a_site(figures: Figures, sites: int) -> Figures:
    """Returns the log-likelihoods among the `figures` of an evaluation over so many `sites`, of
    `held_out` and of `training` sequences, nats a site, each as the mapping

        value, at_least, at_most    as the log-likelihood has them; bounds where log Z has them
        forward, reverse            by the estimates of log Z by particles that came from a simple
                                    law, which is too low on average, and that went back to it
    """
    found = {}
    for rows, name in (("held_out", "test_log_likelihood"), ("training", "train_log_likelihood")):
        if name not in figures:
            continue
        value, log_z = figures[name], figures["log_z"]
        told = {"value": value}
        told |= {side: figures.get(f"{name}_{side}") for side in ("at_least", "at_most")}
        for way in ("forward", "reverse"):
            other = figures.get(f"log_z_{way}")
            told[way] = None if other is None else value + log_z - other
        found[rows] = {key: nats / sites for key, nats in told.items() if nats is not None}
    return found


def site_words(found: Figures) -> list[str]:
    """Tells the `log_likelihood_a_site`, and how far apart its bounds are."""
    lines: list[str] = []
    for rows, told in found.items():
        line = "  " if lines else "log-likelihood a site: "
        line += f"{rows.replace('_', '-')} sequences {told['value']:.4f} nats"
        if "at_least" in told and "at_most" in told:
            low, high = told["at_least"], told["at_most"]
            line += f", between {low:.4f} and {high:.4f} ({high - low:.1g} wide)"
        if "reverse" in told:
            line += f"; AIS forward {told['forward']:.4f}, reverse {told['reverse']:.4f}"
        lines.append(line)
    return lines


def sequence_words(found: Figures) -> list[str]:
    """Tells the `sequence_statistics`, and beside them those of training sequences."""
    return [
        f"{_told(found)}: Pearson, {found['samples']:,} samples against training sequences",
        f"  as many training sequences, drawn by their weights: {_told(found['rows'])};"
        f" {found['triples']} triples of sites",
    ]


def _told(found: Figures) -> str:
    one, two, slope, three = (
        "undefined" if found[name] is None else f"{found[name]:.2f}"
        for name in ("one_site", "two_site", "two_site_slope", "three_site")
    )
    pairs = f"two-site covariances {two} (slope {slope})"
    return f"one-site frequencies {one}, {pairs}, three-site {three}"
