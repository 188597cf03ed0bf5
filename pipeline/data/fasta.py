"""Alignments of biological sequences, with weights against redundancy."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import torch

from pipeline.common.errors import ConfigError, DataError
from pipeline.config.data import ALPHABETS, GAP, FastaData
from pipeline.data.alignment_files import GAPS, Alignment, read_alignment, text_of
from pipeline.data.base import DataSet, held_out_of, in_memory
from pipeline.data.contact_map import ContactMap, read_contacts
from pipeline.data.similarity import Neighbours, held_out_clusters
from pipeline.storage.files import exists, locate

MISSING, AMBIGUOUS, UNKNOWN = -1, -2, -3
"""Codes of a gap that is no state, of a letter that stands for several, and of what is none."""
NUCLEIC = 100
"""Letters of an alignment that are taken for nucleic acids where none is of a protein alone."""


class Sequences(NamedTuple):
    """The sequences behind the rows of an alignment.

    `alphabet` has a letter for each level. A row's sites are numbers `numbering` [L] of the focus
    sequence, or columns of the alignment, and `focus` has the letters there: of the focus sequence,
    or the most frequent ones. `names` and `weights` [N] are of all sequences in the order of the
    file; those that are left out, `dropped` of them for their letters, have weight 0. `training`
    has the names of the training rows. `contacts` are those of a known structure.
    """

    alphabet: str
    numbering: list[int]
    focus: str
    names: list[str]
    weights: np.ndarray
    dropped: int
    training: list[str]
    contacts: ContactMap | None = None

    @property
    def effective(self) -> float:
        """The effective number of sequences: the sum of their weights."""
        return float(self.weights.sum())

    def in_words(self) -> str:
        """One line on how many sequences there are, and how many they count for."""
        words = (
            f"{len(self.names)} sequences of {len(self.numbering)} sites, which count as"
            f" {self.effective:.1f}"
        )
        if self.dropped:
            words += f"; {self.dropped} left out for letters that stand for several"
        return words


def fasta(config: FastaData) -> DataSet:
    """Opens the alignment at data.path as rows of letters, [L] float32 of 0, ..., q-1; with
    data.gaps=ignore, of -1 where there is a gap.

    Weights and clusters are of all sequences; held-out ones are whole clusters, or none with
    data.held_out=0. Raises `ConfigError` where no training row is left, there is no focus sequence
    or the weights or contacts do not fit, `DataError` where it is no alignment, has letters that
    are none, or a row of contacts is none.
    """
    place = locate(config.path, "data.path")
    if not exists(place):
        raise DataError("data.path", config.path, "there is nothing there")
    alignment = read_alignment(place)
    codes, sites, kept = _encode(config, alignment)
    given = _given_weights(config, len(codes))
    if given is not None:
        kept &= given > 0
    rows = codes[kept][:, sites]
    neighbours = Neighbours(rows, 1.0 if config.identity is None else config.identity)
    weights = np.zeros(len(codes))
    if given is not None:
        weights[kept] = given[kept]
    else:
        weights[kept] = 1.0 if config.identity is None else neighbours.weights
    out = held_out_clusters(
        neighbours.clusters, held_out_of(config.held_out, len(rows)), config.split_seed
    )
    if config.held_out and not out.any():
        remedy = (
            f"every cluster of sequences that are {config.identity} identical is larger; keep out"
            " more, or raise data.identity"
        )
        raise ConfigError("data.held_out", config.held_out, remedy)
    values = torch.from_numpy(rows.astype(np.float32))
    names = [alignment.names[number] for number in np.flatnonzero(kept)[~out]]
    sequences = _told(config, alignment, rows, sites, weights, names)
    if config.contacts is not None:
        known = read_contacts(config.contacts, sequences.numbering, config.contact_distance)
        sequences = sequences._replace(contacts=known)
    counted = torch.from_numpy(weights[kept])
    alike = bool((counted == 1).all())
    split = (None, None) if alike else (counted[~out], counted[out])
    data = in_memory(values[~out], values[out], 0.0, weights=split)
    return data._replace(sequences=sequences, held_out_apart=config.identity is not None)


def _encode(config: FastaData, alignment: Alignment) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the codes of all letters [N, C] int8, which columns are sites, and which sequences
    are taken. Raises `ConfigError`, `DataError`.
    """
    columns = _sites(config, alignment)
    codes = _codes(config)[alignment.text]
    other = _other_alphabet(config, alignment)
    if other and config.alphabet == "protein" and codes.size >= NUCLEIC:
        remedy = f"all letters are those of {other}; set data.alphabet={other}"
        raise DataError("data.alphabet", config.alphabet, remedy)
    unknown = codes == UNKNOWN
    if not unknown.any() and config.ambiguous == "refuse":
        unknown = codes == AMBIGUOUS
    if unknown.any():
        row, column = np.argwhere(unknown)[0]
        letter = chr(alignment.text[row, column])
        remedy = (
            f"sequence {alignment.names[row]}, column {column + 1}: {letter!r} is no letter of"
            f" {config.letters!r}; set data.alphabet{f'={other}' if other else ''}"
        )
        if config.ambiguous == "refuse":
            remedy += ", or data.ambiguous=drop or gap"
        raise DataError("data.alphabet", config.alphabet, remedy)
    ambiguous = codes == AMBIGUOUS
    kept = ~ambiguous.any(1) if config.ambiguous == "drop" else np.ones(len(codes), bool)
    codes[ambiguous] = codes.dtype.type(_gap_code(config))
    if int(kept.sum()) < 2:
        row, column = np.argwhere(ambiguous)[0]
        remedy = (
            f"leaves fewer than two sequences; sequence {alignment.names[row]}, column"
            f" {column + 1} has {chr(alignment.text[row, column])!r}; use gap"
        )
        raise ConfigError("data.ambiguous", config.ambiguous, remedy)
    return codes, columns, kept


def _other_alphabet(config: FastaData, alignment: Alignment) -> str | None:
    """Returns the known alphabet, another than the one that is set, that all letters are of."""
    text = bytes(np.unique(alignment.text)).decode("latin-1").upper()
    present = set(text) - set(GAPS.decode())
    if present <= set("ACGTN") and "T" in present:
        found = "dna"
    elif present <= set("ACGUN") and "U" in present:
        found = "rna"
    elif present <= set(ALPHABETS["protein"] + "X*"):
        found = "protein"
    else:
        return None
    return found if config.named and found != config.alphabet else None


def _gap_code(config: FastaData) -> int:
    return config.letters.find(GAP) if GAP in config.letters else MISSING


def _codes(config: FastaData) -> np.ndarray:
    """Returns the code of each of 256 bytes: that of a letter in upper and in lower case."""
    table = np.full(256, UNKNOWN, np.int8)
    known = [*((letter, AMBIGUOUS) for letter in config.ambiguous_letters)]
    known += [(letter, number) for number, letter in enumerate(config.letters)]
    for letter, code in known:
        for case in {letter.lower(), letter.upper()} if config.named else {letter}:
            table[ord(case)] = code
    if config.named or config.gaps == "ignore" or GAP in config.letters:
        table[list(GAPS)] = _gap_code(config)
    return table


def _sites(config: FastaData, alignment: Alignment) -> np.ndarray:
    """Returns the columns [L] that are sites: those where the focus sequence has a letter of upper
    case, or all. Raises `ConfigError` where there is no focus sequence.
    """
    if config.focus is None:
        return np.arange(alignment.text.shape[1])
    text = alignment.text[_focus(config, alignment)]
    lower = np.isin(text, np.arange(ord("a"), ord("z") + 1))
    found = np.flatnonzero(~(lower | np.isin(text, list(GAPS))))
    if len(found) < 2:
        remedy = f"it has {len(found)} letters of upper case, which are the sites"
        raise ConfigError("data.focus", config.focus, remedy)
    return found


def _focus(config: FastaData, alignment: Alignment) -> int:
    """Returns the number of the focus sequence: of that name, or of that name before a slash."""
    names = [(name, name.partition("/")[0]) for name in alignment.names]
    found = next((n for n, called in enumerate(names) if config.focus in called), None)
    if found is None:
        shown = ", ".join(alignment.names[:3])
        remedy = f"no sequence is called so; there are {shown}, ..."
        raise ConfigError("data.focus", config.focus, remedy)
    return found


def _given_weights(config: FastaData, count: int) -> np.ndarray | None:
    """Returns the weights in data.weights_path, one a line for each sequence of the alignment;
    None where no file is named. Raises `ConfigError`, `DataError`.
    """
    path = config.weights_path
    if path is None:
        return None
    try:
        words = text_of(locate(path, "data.weights_path")).split()
        weights = np.array(words, np.float64)
    except FileNotFoundError as error:
        raise ConfigError("data.weights_path", path, "there is no file") from error
    except ValueError as error:
        raise DataError("data.weights_path", path, f"is no list of weights: {error}") from error
    if len(weights) != count:
        remedy = f"has {len(weights)} weights, and the alignment {count} sequences"
        raise ConfigError("data.weights_path", path, remedy)
    if not (np.isfinite(weights).all() and (weights >= 0).all() and (weights > 0).sum() > 1):
        remedy = "weights are numbers of 0 or more, two of them above 0"
        raise ConfigError("data.weights_path", path, remedy)
    return weights


def _told(
    config: FastaData,
    alignment: Alignment,
    rows: np.ndarray,
    sites: np.ndarray,
    weights: np.ndarray,
    training: list[str],
) -> Sequences:
    """Returns what the rows are. The numbering is that of the focus sequence, whose name may say
    where it begins (NAME/FIRST-LAST).
    """
    if config.focus is None:
        counts = [np.bincount(column[column >= 0], minlength=1) for column in rows.T]
        focus = "".join(config.letters[int(count.argmax())] for count in counts)
        numbering = sites + 1
    else:
        number = _focus(config, alignment)
        text = alignment.text[number]
        residues = np.cumsum(~np.isin(text, list(GAPS)))
        region = re.search(r"/(\d+)-\d+$", alignment.names[number])
        numbering = residues[sites] + (int(region[1]) - 1 if region else 0)
        focus = bytes(text[sites]).decode()
    dropped = len(alignment.names) - len(rows)
    told = focus, alignment.names, weights, dropped, training
    return Sequences(config.letters, numbering.tolist(), *told)
