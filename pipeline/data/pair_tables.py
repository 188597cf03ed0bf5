"""Tables of pairs of sites: one pair a line, words between blanks, tabs or commas."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.common.errors import ConfigError
from pipeline.data.alignment_files import text_of
from pipeline.storage.files import locate

Row = tuple[int, Sequence[str]]
"""The number of a line, from 1, and its words."""


def read_pairs(url: str, key: str) -> list[Row]:
    """Reads the rows of the table at `url`, which the setting `key` names, gzipped or not. A first
    line without numbers is taken for a heading, and lines that begin with # are left out. Raises
    `ConfigError` where there is no file.
    """
    try:
        lines = text_of(locate(url, key)).decode(errors="replace").splitlines()
    except FileNotFoundError as error:
        raise ConfigError(key, url, "there is no file") from error
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        words = line.replace(",", " ").split()
        if words and not words[0].startswith("#"):
            rows.append((number, words))
    headed = bool(rows) and not any(word[:1].isdigit() for word in rows[0][1])
    return rows[headed:]


def ends_of(first: str, second: str) -> tuple[int, int]:
    """Returns the numbers of a pair. Raises `ValueError` where they are none, or the same."""
    i, j = int(first), int(second)
    if i == j:
        raise ValueError("a site makes no pair with itself")
    return i, j
