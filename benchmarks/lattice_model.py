"""Lattice proteins: 27 amino acids on the sites of a 3 x 3 x 3 cube.

A structure is a walk along the edges of the cube that visits every site once, up to rotations and
reflections: there are 103,346 (Shakhnovich & Gutin 1990). Amino acids at neighbouring sites that
are no neighbours along the chain are in contact: 28 pairs. The energy of a sequence in a structure
is the sum over its contacts of the energies of Miyazawa & Jernigan (1996), and the probability of
folding into the native structure is

    P_nat = exp(-E(seq, native)) / sum over structures S of exp(-E(seq, S)),

with energies in units of k_B T (Jacquin, Gilson, Shakhnovich, Cocco & Monasson 2016).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product
from typing import NamedTuple

import numpy as np

SIDE, SITES, CONTACTS = 3, 27, 28
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
BLOCK = 200
"""Sequences whose energies in all structures are held at once."""
ROUNDING = 1e-3
"""Of energies in float32."""
MEASURED = """
C 544 499 580 550 583 496 495 416 357 316 311 286 259 285 241 227 360 257 195 307
M 546 656 602 641 532 555 491 394 339 351 303 295 330 257 289 398 312 248 345
F 726 684 728 629 616 566 481 413 428 402 375 410 348 356 477 398 336 425
I 654 704 605 578 525 458 378 403 352 324 367 317 327 414 363 301 376
L 737 648 614 567 491 416 434 392 374 404 340 359 454 403 337 420
V 552 518 462 404 338 346 305 283 307 248 267 358 307 249 332
W 506 466 382 342 322 299 307 311 284 299 398 341 269 373
Y 417 336 301 301 278 276 297 276 279 352 316 260 319
A 272 231 232 201 184 189 170 151 241 183 131 203
G 224 208 182 174 166 159 122 215 172 115 187
T 212 196 188 190 180 174 242 190 131 190
S 167 158 149 163 148 211 162 105 157
N 168 171 168 151 208 164 121 153
Q 154 146 142 198 180 129 173
D 121 102 232 229 168 133
E 91 215 227 180 126
H 305 216 135 225
R 155 59 170
K 12 97
P 175
"""
"""Contact energies e_ij, times -100: the upper triangle of table 3 of Miyazawa & Jernigan (1996), a
line for each amino acid. As printed in the file MJ.txt of github.com/cossio/LatticeProteins.jl.
"""


class Structures(NamedTuple):
    """All structures: whether each has each of P pairs in contact, `contacts` [S, P] float32, and
    the two amino acids of each pair along the chain, `pairs` [2, P].
    """

    contacts: np.ndarray
    pairs: np.ndarray

    def without(self, out: np.ndarray) -> Structures:
        """Those that are not `out` [S] bool."""
        return self._replace(contacts=self.contacts[~out])


def contact_energies() -> np.ndarray:
    """The energy of two amino acids in contact, `[20, 20]`, in the order of `LETTERS`."""
    lines = [line.split() for line in MEASURED.strip().splitlines()]
    order = [LETTERS.index(line[0]) for line in lines]
    table = np.zeros((len(order), len(order)))
    for number, (_, *values) in enumerate(lines):
        for other, value in zip(order[number:], values, strict=True):
            table[order[number], other] = table[other, order[number]] = -int(value) / 100
    return table


def structures() -> Structures:
    """Finds all of them, one for each class of walks that a symmetry of the cube maps to one
    another: one that begins at a given corner, or at the centre of a given face, and comes first
    among those that symmetries of this place make of it. On 27 sites no walk begins elsewhere.
    """
    places = list(product(range(SIDE), repeat=3))
    number = {place: index for index, place in enumerate(places)}
    symmetries = [
        np.array([number[_moved(place, axes, flips)] for place in places])
        for axes in permutations(range(3))
        for flips in product((False, True), repeat=3)
    ]
    found = []
    for start in (number[0, 0, 0], number[1, 1, 0]):
        walks = _walks(start, places)
        first = np.ones(len(walks), bool)
        for symmetry in symmetries:
            if symmetry[start] == start:
                change = symmetry[walks] - walks
                at = (change != 0).argmax(1)
                first &= change[np.arange(len(walks)), at] >= 0
        found.append(walks[first])
    return _contacts(np.concatenate(found), places)


def _moved(
    place: tuple[int, ...], axes: tuple[int, ...], flips: tuple[bool, ...]
) -> tuple[int, ...]:
    return tuple(
        SIDE - 1 - place[axis] if flip else place[axis]
        for axis, flip in zip(axes, flips, strict=True)
    )


def _neighbours(places: list[tuple[int, ...]]) -> np.ndarray:
    """Whether two sites are neighbours, `[27, 27]` bool."""
    points = np.array(places)
    distances: np.ndarray = np.abs(points[:, None] - points).sum(2)
    return distances == 1


def _walks(start: int, places: list[tuple[int, ...]]) -> np.ndarray:
    """All walks from `start` that visit each of the `places` once, `[N, 27]` int8, all grown by one
    site at a time.
    """
    near = _neighbours(places)
    most = near.sum(1).max()
    table = np.stack([np.resize(np.flatnonzero(row), most) for row in near])
    fresh = np.arange(most) < near.sum(1, keepdims=True)  # a row that is shorter begins again
    walks, seen = np.array([[start]], np.int8), np.array([1 << start])
    for _ in places[1:]:
        end = walks[:, -1]
        walk, way = np.nonzero(fresh[end] & (seen[:, None] >> table[end] & 1 == 0))
        site = table[end[walk], way]
        walks = np.concatenate([walks[walk], site[:, None].astype(np.int8)], 1)
        seen = seen[walk] | 1 << site
    return walks


def _contacts(walks: np.ndarray, places: list[tuple[int, ...]]) -> Structures:
    """The contacts of walks [S, 27]."""
    along = walks.argsort(1)  # of each site, the place in the chain
    first, second = np.nonzero(np.triu(_neighbours(places)))
    pairs = np.sort(np.stack([along[:, first], along[:, second]]), 0)
    codes = pairs[0] * SITES + pairs[1]
    apart = pairs[1] - pairs[0] > 1
    known = np.unique(codes[apart])
    contacts = np.zeros((len(walks), len(known)), np.float32)
    walk, edge = np.nonzero(apart)
    contacts[walk, np.searchsorted(known, codes[walk, edge])] = 1
    return Structures(contacts, np.stack([known // SITES, known % SITES]))


def gaps(
    sequences: np.ndarray, among: Structures, native: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    """E(seq, S) - E(seq, native) of `sequences` [N, 27] of numbers of `LETTERS`, some at a time:
    which they are, and `[n, S]`. `native` [P] has the contacts of the native structure.
    """
    table, (one, other) = contact_energies(), among.pairs
    apart = (among.contacts - native).T
    for start in range(0, len(sequences), BLOCK):
        some = slice(start, start + BLOCK)
        codes = sequences[some]
        yield some, table[codes[:, one], codes[:, other]].astype(np.float32) @ apart


def folding_probabilities(
    sequences: np.ndarray, among: Structures, native: np.ndarray
) -> np.ndarray:
    """P_nat of `sequences` [N, 27], `[N]`, where the structures `among` compete, of which the
    native one is one.
    """
    found = np.zeros(len(sequences))
    for some, differences in gaps(sequences, among, native):
        found[some] = 1 / np.exp(-differences.astype(np.float64)).sum(1)
    return found


def native_structure(sequences: np.ndarray, among: Structures) -> np.ndarray:
    """The contacts [P] of the structure in which most of the first `BLOCK` sequences have their
    lowest energy.
    """
    nothing = np.zeros_like(among.contacts[0])
    _, energies = next(gaps(sequences[:BLOCK], among, nothing))
    best: np.ndarray = among.contacts[np.bincount(energies.argmin(1)).argmax()]
    return best


def ruled_out(
    sequences: np.ndarray, published: np.ndarray, among: Structures, native: np.ndarray
) -> np.ndarray:
    """Which structures cannot be among those that published probabilities of folding are of,
    `[S]` bool: alone they would make P_nat of some sequence smaller than it is `published` [N].

    The other structures have all that were used among them, so that P_nat among them is never above
    what it was computed to be.
    """
    out = np.zeros(len(among.contacts), bool)
    own = (among.contacts == native).all(1)
    for some, differences in gaps(sequences, among.without(own), native):
        least = -np.log(1 / published[some] - 1)
        out[~own] |= (differences < least[:, None] - ROUNDING).any(0)
    return out
