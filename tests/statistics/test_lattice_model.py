"""The model of lattice proteins, on a square of nine sites, against sums that are written out."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from benchmarks import lattice_model, lattice_proteins
from benchmarks.lattice_model import (
    LETTERS,
    Structures,
    contact_energies,
    folding_probabilities,
    native_structure,
    ruled_out,
)

SQUARE = [(x, y, 0) for x, y in product(range(3), repeat=2)]


@pytest.fixture(scope="module")
def walks() -> np.ndarray:
    return np.concatenate([lattice_model._walks(start, SQUARE) for start in range(9)])


@pytest.fixture(scope="module")
def among(walks: np.ndarray) -> Structures:
    """One structure for each set of contacts."""
    found = lattice_model._contacts(walks, SQUARE)
    return found._replace(contacts=np.unique(found.contacts, axis=0))


def random_sequences(count: int) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 20, (count, 9))


def energy(sequence: np.ndarray, contacts: np.ndarray, pairs: np.ndarray) -> float:
    """A sum over contacts, one by one."""
    table = contact_energies()
    ends = zip(*pairs[:, contacts > 0], strict=True)
    return sum(table[sequence[i], sequence[j]] for i, j in ends)


def test_energies_are_those_of_the_table() -> None:
    table = contact_energies()
    assert (table == table.T).all()
    assert (table < 0).all()
    for pair, value in {"CC": -5.44, "LL": -7.37, "KK": -0.12, "EK": -1.80, "PF": -4.25}.items():
        assert table[LETTERS.index(pair[0]), LETTERS.index(pair[1])] == value


def test_walks_visit_every_site_once(walks: np.ndarray) -> None:
    """A square of nine sites has 8 such walks from each corner and from its centre, and none from
    elsewhere: 40 in all.
    """
    assert len(walks) == 40
    assert (np.bincount(walks[:, 0], minlength=9) == [8, 0, 8, 0, 8, 0, 8, 0, 8]).all()
    assert (np.sort(walks, 1) == np.arange(9)).all()
    points = np.array(SQUARE)
    assert (np.abs(points[walks[:, 1:]] - points[walks[:, :-1]]).sum(2) == 1).all()
    assert len(np.unique(walks, axis=0)) == 40


def test_contacts_are_neighbours_that_the_chain_does_not_join(walks: np.ndarray) -> None:
    """4 of the square's 12 edges; of the walk to and fro those that are listed."""
    found = lattice_model._contacts(walks, SQUARE)
    assert (found.contacts.sum(1) == 4).all()
    number = int((walks == [0, 1, 2, 5, 4, 3, 6, 7, 8]).all(1).argmax())
    pairs = found.pairs.T[found.contacts[number] > 0].tolist()
    assert sorted(pairs) == [[0, 5], [1, 4], [3, 8], [4, 7]]


def test_probabilities_are_those_of_the_sum(among: Structures) -> None:
    sequences, native = random_sequences(30), among.contacts[1]
    truth = [
        math.exp(-energy(row, native, among.pairs))
        / sum(math.exp(-energy(row, each, among.pairs)) for each in among.contacts)
        for row in sequences
    ]
    found = folding_probabilities(sequences, among, native)
    np.testing.assert_allclose(found, truth, rtol=1e-5)


def test_the_native_structure_is_the_one_that_most_sequences_prefer(among: Structures) -> None:
    sequences = random_sequences(2000)
    native = among.contacts[2]
    folded = sequences[folding_probabilities(sequences, among, native) > 0.5]
    assert len(folded) > 10
    others = sequences[: len(folded) // 2]
    found = native_structure(np.concatenate([folded, others]), among)
    assert (found == native).all()


def test_structures_are_ruled_out_that_were_not_used(among: Structures) -> None:
    """Probabilities among half of them: none of that half is ruled out, some of the others are, and
    what is left gives no probability above the published one.
    """
    sequences, native = random_sequences(500), among.contacts[0]
    used = np.arange(len(among.contacts)) % 2 == 0
    published = folding_probabilities(sequences, among.without(~used), native)
    out = ruled_out(sequences, published, among, native)
    assert not out[used].any()
    assert out[~used].any()
    left = folding_probabilities(sequences, among.without(out), native)
    assert (left <= published * (1 + 1e-5)).all()


def test_sequences_are_read_and_the_nearest_found() -> None:
    natural = lattice_proteins.codes_of(">>S1\nACD\n>S2\nYWV\n")
    assert natural.tolist() == [[0, 1, 2], [19, 18, 17]]
    drawn = np.array([[19, 1, 17], [0, 1, 17]])
    assert lattice_proteins.nearest(drawn, natural).tolist() == [1, 0]
