"""Effects of mutations: E of a mutant less E of the wild type, the focus sequence."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from pipeline.common.errors import DataError
from pipeline.common.types import Figures
from pipeline.config.data import GAP
from pipeline.data.fasta import Sequences
from pipeline.energies.base import Energy
from pipeline.evaluation.energy_histograms import TOGETHER
from pipeline.evaluation.letter_pictures import mutation_panels
from pipeline.storage.figures import draw_figure
from pipeline.storage.files import locate, read_file, write_file

KEY, TABLE, PICTURE = "mutations", "mutations.csv", "mutations.png"
MUTATION = re.compile(r"(\D)(-?\d+)(\D)")
SHOWN = 5
"""Mutants of the lowest energies that are told one by one."""


class Mutants(NamedTuple):
    """Mutants by their `names` [M], such as A24G:L28I; the `codes` of the wild type, `[L]`, and of
    the mutants, `[M, L]`, float32 of 0, ..., q-1, below 0 where a letter is missing; and the
    `scores` that were measured, `[M]`, NaN where none was.
    """

    names: list[str]
    wild_type: Tensor
    codes: Tensor
    scores: np.ndarray


def read_mutants(url: str, sequences: Sequences) -> Mutants:
    """Reads a CSV file with a column `mutant`, such as A24G by the numbers of the sites, several
    joined by colons, and perhaps a column `score`. Raises `ConfigError` where there is no such
    file system, and `DataError` where there is no file or no such column, and for the first row
    that names a letter or a site that is none, or another letter than the wild type's.
    """
    try:
        text = read_file(locate(url, KEY)).decode("utf-8-sig")
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise DataError(KEY, url, f"cannot be read as a CSV file ({error})") from error
    table = csv.DictReader(io.StringIO(text))
    if "mutant" not in (table.fieldnames or ()):
        raise DataError(KEY, url, "has no column mutant, of mutations such as A24G or A24G:L28I")
    gap = sequences.alphabet.find(GAP)  # -1 where a gap is no letter: then it is missing
    letters = [_letter(text, sequences.alphabet) for text in sequences.focus]
    wild_type = [max(sequences.alphabet.find(letter), gap) for letter in letters]
    places = {number: place for place, number in enumerate(sequences.numbering)}
    names, codes, scores = [], [], []
    for row, cells in enumerate(table, 1):
        name = (cells["mutant"] or "").strip()
        try:
            codes.append(_mutated(name, wild_type, places, sequences))
            score = (cells.get("score") or "").strip()
            scores.append(float(score or math.nan))
        except ValueError as error:
            raise DataError(KEY, url, f"row {row}, {name or 'empty'}: {error}") from error
        names.append(name)
    if not names:
        raise DataError(KEY, url, "has no rows")
    own, others = (torch.tensor(values).float() for values in (wild_type, codes))
    return Mutants(names, own, others, np.array(scores))


def _mutated(
    name: str, wild_type: Sequence[int], places: dict[int, int], sequences: Sequences
) -> list[int]:
    """Returns the codes of the mutant called `name`. Raises `ValueError` where it is none."""
    codes, done = list(wild_type), set()
    for mutation in name.split(":"):
        found = MUTATION.fullmatch(mutation.strip())
        if found is None:
            raise ValueError("a mutation is two letters with a number between, such as A24G")
        number, alphabet = int(found[2]), sequences.alphabet
        before, after = (_letter(text, alphabet) for text in (found[1], found[3]))
        if number not in places:
            first, last = sequences.numbering[0], sequences.numbering[-1]
            raise ValueError(f"{number} is no site; sites are among {first}, ..., {last}")
        place = places[number]
        if number in done:
            raise ValueError(f"site {number} is mutated twice")
        own = _letter(sequences.focus[place], alphabet)
        if own != before:
            raise ValueError(f"the wild type has {own} at {number}, not {before}")
        if after not in alphabet:
            raise ValueError(f"{after} is no letter of {alphabet}")
        codes[place] = alphabet.index(after)
        done.add(number)
    return codes


def _letter(text: str, alphabet: str) -> str:
    """Returns a letter as the alphabet has it: of upper case, or as it is if it is known."""
    return text if text in alphabet else text.upper()


@torch.no_grad()
def mutation_figures(
    energy: Energy, mutants: Mutants, sequences: Sequences, caption: str, output: str
) -> Figures:
    """Writes delta E = E(mutant) - E(wild type), nats, as `mutations.csv`, and those of all single
    mutants as the picture `mutations.png`. Returns the lowest; where scores were measured,
    Spearman's rank correlation of -delta E with them; and what `draw_figure` returns. Raises
    `StorageError`.
    """
    rows = torch.cat([mutants.wild_type[None], mutants.codes])
    energies = torch.cat([energy(some).double() for some in rows.split(TOGETHER)]).numpy()
    changes, scores = energies[1:] - energies[0], mutants.scores
    measured = ~np.isnan(scores)
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["mutant", "delta_energy", *(["score"] if measured.any() else [])])
    for name, change, score in zip(mutants.names, changes.tolist(), scores.tolist(), strict=True):
        own = [] if not measured.any() else ["" if math.isnan(score) else score]
        table.writerow([name, f"{change:.6f}", *own])
    write_file(output, TABLE, buffer.getvalue().encode())
    order = changes.argsort(kind="stable")[:SHOWN]
    correlation = math.nan
    if measured.sum() > 1 and np.ptp(scores[measured]) > 0 and np.ptp(changes[measured]) > 0:
        correlation = float(spearmanr(-changes[measured], scores[measured]).statistic)
    known = scores[measured], -changes[measured]
    undrawn = draw_figure(
        lambda: mutation_panels(energy, mutants.wild_type, sequences, known, caption),
        output,
        PICTURE,
    )
    return {
        "mutants": len(mutants.names),
        "wild_type_energy": float(energies[0]),
        "lowest": [
            {"mutant": mutants.names[place], "delta_energy": float(changes[place])}
            for place in order
        ],
        "measured": int(measured.sum()),
        "spearman": None if math.isnan(correlation) else correlation,
        "file": f"{output}/{TABLE}",
        **({} if undrawn else {"picture": f"{output}/{PICTURE}"}),
        **undrawn,
    }


def mutation_words(found: Figures) -> list[str]:
    """Tells the lowest of the changes, and how they agree with what was measured."""
    lowest = ", ".join(f"{one['mutant']} {one['delta_energy']:+.2f}" for one in found["lowest"])
    lines = [f"{found['mutants']:,} mutants, delta E in nats, the lowest first: {lowest}"]
    if found["measured"]:
        value = found["spearman"]
        told = "is undefined" if value is None else f"{value:.2f}"
        lines.append(f"  Spearman of -delta E with {found['measured']:,} measured scores {told}")
    drawn = f", and all single mutants {found['picture']}" if "picture" in found else ""
    return [*lines, f"  all of them {found['file']}{drawn}"]
