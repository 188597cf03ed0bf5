"""Alignments as text: FASTA, a2m and a3m, Stockholm, gzipped or not."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from pipeline.common.errors import DataError
from pipeline.storage.files import Place, read_file

GAPS = b"-."
KEY = "data.path"
WIDTH = 80
"""Letters on a line of a file that is written."""


class Alignment(NamedTuple):
    """The `names` of N sequences and their letters as they stand in the file, `text` [N, C]
    uint8.
    """

    names: list[str]
    text: np.ndarray


def text_of(place: Place) -> bytes:
    """Returns the content of a file, unzipped where it is gzipped. Raises `DataError` where it
    cannot be, and `FileNotFoundError` where there is none.
    """
    content = read_file(place)
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(KEY, place, f"cannot be unzipped ({error})") from error


def read_alignment(place: Place) -> Alignment:
    """Reads the alignment at `place`. Raises `DataError` where it is none, has a single sequence,
    or sequences of several lengths: of a3m files letters of lower case, which are insertions, are
    left out then.
    """
    content = text_of(place)
    if content.lstrip()[:11].upper() == b"# STOCKHOLM":
        found = dict(_of_stockholm(content, place))
    elif content.lstrip()[:1] == b">":
        names, texts = zip(*_of_fasta(content), strict=True)
        return _aligned(list(names), list(texts), place)
    else:
        remedy = "is no alignment: FASTA, a2m and a3m begin with >, Stockholm with # STOCKHOLM"
        raise DataError(KEY, place, remedy)
    return _aligned(list(found), [b"".join(lines) for lines in found.values()], place)


def _of_fasta(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields the first word of each header, and the letters below it without white space."""
    for record in content.lstrip()[1:].split(b"\n>"):
        header, _, letters = record.partition(b"\n")
        words = header.lstrip(b">").split()
        name = words[0].decode(errors="replace") if words else ""
        yield name, b"".join(letters.split())


def _of_stockholm(content: bytes, place: Place) -> Iterator[tuple[str, list[bytes]]]:
    """Yields the name of each sequence, and its letters block by block. Raises `DataError`."""
    found: dict[str, list[bytes]] = {}
    for line in content.splitlines():
        if line.startswith(b"//"):
            break
        if not line.strip() or line.startswith(b"#"):
            continue
        words = line.split()
        if len(words) != 2:
            shown = line[:40].decode(errors="replace")
            raise DataError(KEY, place, f"a line of Stockholm is a name and letters, not {shown!r}")
        found.setdefault(words[0].decode(errors="replace"), []).append(words[1])
    yield from found.items()


def _aligned(names: list[str], texts: list[bytes], place: Place) -> Alignment:
    if len(names) < 2:
        raise DataError(KEY, place, f"has {len(names)} sequences; an alignment has two or more")
    if len(set(map(len, texts))) > 1:
        lower = bytes(range(ord("a"), ord("z") + 1)) + b"."
        texts = [text.translate(None, lower) for text in texts]
    length = len(texts[0])
    other = next((n for n, text in enumerate(texts) if len(text) != length), None)
    if other is not None:
        raise DataError(
            KEY,
            place,
            f"sequence {names[other]} (number {other + 1}) has {len(texts[other])} columns, and"
            f" {names[0]} {length}; align them",
        )
    if not length:
        raise DataError(KEY, place, f"sequence {names[0]} is empty")
    return Alignment(names, np.frombuffer(b"".join(texts), np.uint8).reshape(len(names), length))


def as_fasta(headers: Iterable[str], texts: Iterable[str]) -> bytes:
    """Returns sequences as a FASTA file has them, `WIDTH` letters a line."""
    lines = []
    for header, text in zip(headers, texts, strict=True):
        lines += [f">{header}", *(text[at : at + WIDTH] for at in range(0, len(text), WIDTH))]
    return "\n".join([*lines, ""]).encode()
