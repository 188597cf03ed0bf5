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


def site_figures(figures: Figures, sites: int) -> Figures:
    """Divides the held-out log-likelihood by the number of sites, where there is one: `value`,
    and by annealing also with log Z of the way there and of the way back; nats a site.
    """
    value = figures.get("test_log_likelihood")
    if value is None or "unreliable" in figures:
        return {}
    found = {"value": value / sites, "sites": sites}
    for way in ("forward", "reverse"):
        if f"log_z_{way}" in figures:
            found[way] = (value + figures["log_z"] - figures[f"log_z_{way}"]) / sites
    return {"site_log_likelihood": found}


def site_words(found: Figures) -> str:
    """Tells the `site_log_likelihood`."""
    words = f"  that is {found['value']:.3f} nats a site ({found['sites']} sites)"
    if "reverse" not in found:
        return words
    return (
        f"{words}: {found['forward']:.3f} by the way there, {found['reverse']:.3f} by the way back"
    )


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
