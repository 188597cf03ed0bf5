"""Contacts of a known structure: a table of pairs of sites."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.common.errors import ConfigError, DataError
from pipeline.data.pair_tables import ends_of, read_pairs

KEY = "data.contacts"


class ContactMap(NamedTuple):
    """Pairs of sites that touch, `touching` [L, L] bool, symmetric; the sites that the structure
    has, `there` [L] bool; and how many rows of the file were of residues that are no sites.
    """

    touching: Tensor
    there: Tensor
    elsewhere: int


def read_contacts(url: str, numbering: Sequence[int], below: float) -> ContactMap:
    """Reads a table of pairs of sites, by the `numbering` [L] of these: a line `I J`, or `I J
    DISTANCE` in angstrom (`pipeline.data.pair_tables`).

    Pairs without a distance touch, and the structure has all sites. Those with one touch where the
    least of the pair is `below`, and the structure has the sites that are named. Raises
    `ConfigError` where there is no file, or it names no pair of sites; and `DataError` for the
    first row that is none.
    """
    rows = read_pairs(url, KEY)
    width = len(rows[0][1]) if rows else 0
    places = {number: place for place, number in enumerate(numbering)}
    found = [_pair(url, number, words, width) for number, words in rows]
    pairs = [
        (places[i], places[j], distance) for i, j, distance in found if i in places and j in places
    ]
    if not pairs:
        sites = f"{numbering[0]}, ..., {numbering[-1]}"
        remedy = f"none of its {len(found)} rows is a pair of sites, which are among {sites}"
        raise ConfigError(KEY, url, remedy)
    touching = torch.zeros(len(numbering), len(numbering), dtype=torch.bool)
    there = torch.full((len(numbering),), width == 2)
    for i, j, distance in pairs:
        there[[i, j]] = True
        if distance < below:
            touching[i, j] = touching[j, i] = True
    return ContactMap(touching, there, len(found) - len(pairs))


def _pair(url: str, number: int, words: Sequence[str], width: int) -> tuple[int, int, float]:
    """The numbers of a row's two residues, and their distance, -inf where it has none."""
    try:
        if len(words) != width or width not in (2, 3):
            raise ValueError(f"a row is I J, or I J DISTANCE; this one has {len(words)} words")
        i, j = ends_of(*words[:2])
        distance = float(words[2]) if width == 3 else -math.inf
        if math.isnan(distance) or (width == 3 and distance < 0):
            raise ValueError(f"{words[2]} is no distance; distances are 0 angstrom or more")
    except ValueError as error:
        raise DataError(KEY, url, f"line {number}, {' '.join(words)}: {error}") from error
    return i, j, distance
