"""Contacts of a known structure: what a table of them says, and what is none."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from pipeline.common.errors import ConfigError, DataError
from pipeline.config.compose import compose
from pipeline.data.contact_map import ContactMap, read_contacts
from pipeline.data.fasta import Sequences
from pipeline.evaluation.contacts import contact_words, precision, strongest_pairs

NUMBERS = [11, 12, 13, 14, 20]


def read(folder: Path, text: str | bytes, below: float = 8.0) -> ContactMap:
    path = folder / "contacts.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_contacts(str(path), NUMBERS, below)


def pairs_of(touching: torch.Tensor) -> list[list[int]]:
    assert torch.equal(touching, touching.T)
    return touching.triu().nonzero().tolist()


def test_pairs_touch(tmp_path: Path) -> None:
    """By the numbers of the sites, in either order; all sites are there."""
    found = read(tmp_path, "# of a structure\n11 20\n13 12\n\n12 99\n")
    assert pairs_of(found.touching) == [[0, 4], [1, 2]]
    assert found.there.all()
    assert found.elsewhere == 1


@pytest.mark.parametrize(
    "text",
    [
        "i,j,distance\n11,20,7.9\n14,11,12\n11,14,3\n12,14,8.0\n",
        gzip.compress(b"11\t20\t7.9\n14\t11\t12\n11\t14\t3\n12\t14\t8\n", mtime=0),
    ],
)
def test_pairs_that_are_near_touch(tmp_path: Path, text: str | bytes) -> None:
    """The least distance of a pair counts, and the structure has the sites that are named."""
    found = read(tmp_path, text)
    assert pairs_of(found.touching) == [[0, 3], [0, 4]]
    assert found.there.tolist() == [True, True, False, True, True]
    assert pairs_of(read(tmp_path, text, below=9.0).touching) == [[0, 3], [0, 4], [1, 3]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("11 20\n11\n", "line 2, 11: a row is I J, or I J DISTANCE; this one has 1 words"),
        ("11 20 3\n11 20\n", "line 2, 11 20: a row is I J, or I J DISTANCE; this one has 2"),
        ("11 20 3 4\n", "line 1, 11 20 3 4: a row is"),
        ("11 20\n\n11 x\n", "line 3, 11 x: invalid literal"),
        ("11 20 far\n", "line 1, 11 20 far: could not convert"),
        ("11 20 -1\n", "line 1, 11 20 -1: -1 is no distance"),
        ("11 20 nan\n", "line 1, 11 20 nan: nan is no distance"),
        ("11 11\n", "line 1, 11 11: a site makes no pair with itself"),
        ("1 2\n3 4\n", "none of its 2 rows is a pair of sites, which are among 11, ..., 20"),
        ("", "none of its 0 rows"),
    ],
)
def test_what_is_no_contact_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises((ConfigError, DataError)) as refused:
        read(tmp_path, text)
    assert said in str(refused.value)
    assert str(refused.value).startswith("data.contacts=")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        read_contacts(str(tmp_path / "none"), NUMBERS, 8.0)


def test_contacts_want_couplings() -> None:
    words = ["data=fasta", "data.path=a.fasta", "data.contacts=b c.txt", "kernel=gibbs"]
    words += ["energy=potts_rbm", "energy.levels=21"]
    with pytest.raises(ConfigError, match=r"data\.contacts=b c\.txt: energy=potts_rbm has no"):
        compose(words)


def test_precision_is_the_share_that_touches(tmp_path: Path) -> None:
    """Of 12 sites, of which 5 is not in the structure; the 15 pairs more than 5 apart."""
    rows = "".join(
        f"{i} {j} {20 if j - i != 8 else 5}\n"
        for i in range(1, 13)
        for j in range(i, 13)
        if i != j and 5 not in (i, j)
    )
    path = tmp_path / "distances.txt"
    path.write_text(rows)
    known = read_contacts(str(path), list(range(1, 13)), 8.0)
    first, second = torch.triu_indices(12, 12, 1)
    scores = (second - first).double() + first / 100  # 11 apart first, then 10, ...
    told = Sequences("AC", list(range(1, 13)), "A" * 12, [], torch.ones(0).numpy(), 0, [], known)
    order = strongest_pairs(scores, told, 5)
    assert order[:, :3].T.tolist() == [[0, 11], [1, 11], [0, 10]]
    assert int((order[1] - order[0]).min()) == 6
    found = precision(order, known)
    # 11 apart is 1 pair, 10 are 2, 9 are 3, 8 are 4, which touch, 7 are 4 and 6 are 5
    shares = {"L/5": 0 / 2, "L/2": 0 / 6, "L": 4 / 12, "2L": 4 / 19}
    assert found["ppv"] == pytest.approx(shares)
    assert found["by_chance"] == pytest.approx(4 / 19)
    assert found["pairs"] == 19
    assert len(found["curve"]) == 19
    lines = contact_words({"strongest": [], "apart": 5, "file": "contacts.txt", **found})
    assert lines[1].startswith("  of the strongest so many pairs touch: 0.00 of L/5, 0.00 of L/2")
