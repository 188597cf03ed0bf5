"""The graph of a Potts model: which pairs of sites are coupled."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.common.errors import ConfigError, DataError
from pipeline.data.pair_tables import ends_of, read_pairs

KEY, SHARE = "energy.edges", "energy.edge_share"
WIDTHS = {2: (1, None), 3: (1, 2), 6: (2, 5)}
"""The columns of a row's second site and of its score, by the number of its words."""


def read_edges(url: str, share: float, numbering: Sequence[int]) -> Tensor:
    """Reads a table of pairs of sites, by the `numbering` [L] of these: a line `I J`, `I J SCORE`,
    or `I A J A 0 SCORE`, as contacts.txt has it. Of the pairs the `share` of the largest scores is
    taken.

    Returns which pairs i < j there are, in the order of `torch.triu_indices`, `[L (L-1) / 2]` bool.
    Raises `ConfigError` where there is no file, it has no pair, or pairs without scores are to be
    chosen among, and `DataError` for the first row that is no pair of two sites.
    """
    places = {number: place for place, number in enumerate(numbering)}
    rows = read_pairs(url, KEY)
    if not rows:
        raise ConfigError(KEY, url, "has no pair of sites")
    width = len(rows[0][1])
    found: dict[tuple[int, int], float] = {}
    for number, words in rows:
        try:
            first, second, score = _edge(words, width, places, numbering)
        except ValueError as error:
            raise DataError(KEY, url, f"line {number}, {' '.join(words)}: {error}") from error
        found[first, second] = max(score, found.get((first, second), -math.inf))
    if share < 1 and WIDTHS[width][1] is None:
        remedy = f"{url} has no scores by which to choose among its pairs; use 1"
        raise ConfigError(SHARE, share, remedy)
    count = max(1, round(share * len(found)))
    kept = sorted(found, key=lambda ends: -found[ends])[:count]
    first, second = torch.tensor(kept).T
    sites = len(numbering)
    chosen = torch.zeros(sites * (sites - 1) // 2, dtype=torch.bool)
    chosen[first * (2 * sites - first - 1) // 2 + second - first - 1] = True
    return chosen


def _edge(
    words: Sequence[str], width: int, places: dict[int, int], numbering: Sequence[int]
) -> tuple[int, int, float]:
    """Returns the places of a row's two sites, the lower first, and its score, 0 where it has none.
    Raises `ValueError` where it is no pair of sites.
    """
    if len(words) != width or width not in WIDTHS:
        raise ValueError(
            f"a row is I J, I J SCORE or I A J A 0 SCORE; this one has {len(words)} words"
        )
    second, score = WIDTHS[width]
    ends = ends_of(words[0], words[second])
    for end in ends:
        if end not in places:
            raise ValueError(
                f"{end} is no site; sites are among {numbering[0]}, ..., {numbering[-1]}"
            )
    value = 0.0 if score is None else float(words[score])
    if math.isnan(value):
        raise ValueError(f"{words[score or 0]} is no score")
    low, high = sorted(places[end] for end in ends)
    return low, high, value
