"""Alignments: what is read of them, how sequences weigh, and which are held out."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.common.errors import ConfigError, DataError
from pipeline.config.compose import compose
from pipeline.config.data import FastaData
from pipeline.data.fasta import Sequences, fasta
from pipeline.data.similarity import Neighbours, held_out_clusters

SHARED = Path(__file__).parents[4] / "shared" / "msa"
DEFAULTS: dict[str, Any] = {
    **{"name": "fasta", "alphabet": "protein", "gaps": "state", "ambiguous": "drop"},
    **{"focus": None, "identity": None, "weights_path": None, "held_out": 1, "split_seed": 0},
    **{"contacts": None, "contact_distance": 8.0},
}
A2M = """>focus/11-16 some words
ACd-EF
gH
>second
A-.-Ef
-H
>third
CCdaE-
-I
"""


def section(path: Path, **settings: Any) -> FastaData:
    return FastaData(path=str(path), **{**DEFAULTS, **settings})


def written(folder: Path, content: str | bytes, name: str = "family.a2m") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows_of(path: Path, **settings: Any) -> tuple[list[str], Sequences]:
    """All rows as text, sorted, and what they are."""
    data = fasta(section(path, **settings))
    told: Sequences = data.sequences
    rows = torch.cat([data.sample, data.held_out]).int().tolist()
    return sorted("".join((told.alphabet + "?")[code] for code in row) for row in rows), told


def test_focus_columns_are_its_letters_of_upper_case(tmp_path: Path) -> None:
    """Others' letters there are taken whatever their case. Residues are numbered as its name
    says, insertions and all.
    """
    rows, told = rows_of(written(tmp_path, A2M), focus="focus")
    assert rows == ["A-EFH", "ACEFH", "CCE-I"]
    assert told.numbering == [11, 12, 14, 15, 17]
    assert told.focus == "ACEFH"
    assert told.names == ["focus/11-16", "second", "third"]
    assert rows_of(written(tmp_path, A2M), focus="focus/11-16")[0] == rows


def test_gaps_are_a_letter_or_missing(tmp_path: Path) -> None:
    path = written(tmp_path, A2M)
    config = section(path, focus="focus")
    assert config.discrete_levels == 21
    assert config.letters[0] == "-"
    ignored = section(path, focus="focus", gaps="ignore")
    assert ignored.discrete_levels == 20
    data = fasta(ignored)
    assert float(torch.cat([data.sample, data.held_out]).min()) == -1
    assert rows_of(path, focus="focus", gaps="ignore")[0] == ["A?EFH", "ACEFH", "CCE?I"]


def test_whole_alignments_number_their_columns(tmp_path: Path) -> None:
    rows, told = rows_of(written(tmp_path, A2M))
    assert rows == ["A---EF-H", "ACD-EFGH", "CCDAE--I"]
    assert told.numbering == list(range(1, 9))
    assert told.focus == "ACD-EF-H"


@pytest.mark.parametrize("zipped", [False, True])
def test_stockholm_and_gzip(tmp_path: Path, zipped: bool) -> None:
    text = "# STOCKHOLM 1.0\n#=GF ID x\na/1-4  AC\nb  GU\n\n#=GC SS ..\na/1-4  GU\nb  .-\n//\n"
    content = gzip.compress(text.encode()) if zipped else text.encode()
    rows, told = rows_of(written(tmp_path, content), alphabet="rna")
    assert rows == ["ACGU", "GU--"]
    assert told.names == ["a/1-4", "b"]


def test_insertions_of_a3m_are_left_out(tmp_path: Path) -> None:
    rows, _ = rows_of(written(tmp_path, ">a\nACGU\n>b\nAcgC-uU\n"), alphabet="rna")
    assert rows == ["AC-U", "ACGU"]


def test_letters_may_be_given(tmp_path: Path) -> None:
    rows, told = rows_of(written(tmp_path, ">a\n_*^\n>b\n^^_\n"), alphabet="_*^")
    assert rows == ["^^_", "_*^"]
    assert told.alphabet == "_*^"


def test_other_files_by_their_urls(tmp_path: Path) -> None:
    path = written(tmp_path, A2M)
    config = section(path).model_copy(update={"path": f"file://{path}"})
    assert fasta(config).rows == 2


@pytest.mark.parametrize(
    ("content", "settings", "said"),
    [
        (">a\nAC1F\n>b\nACDF\n", {}, "sequence a, column 3: '1' is no letter"),
        (
            ">a\nACFD\n>b\nACDF\n",
            {"alphabet": "rna"},
            "letter of '-ACGU'; set data.alphabet=protein",
        ),
        (">a\nACGT\n>b\nACGG\n", {"alphabet": "rna"}, "letter of '-ACGU'; set data.alphabet=dna"),
        (
            f">a\n{'ACGT' * 20}\n>b\n{'AC-N' * 20}\n",
            {},
            "data.alphabet=protein: all letters are those of",
        ),
        (f">a\n{'ACGU' * 20}\n>b\n{'AC-N' * 20}\n", {}, "are those of rna; set data.alphabet=rna"),
        (">a\nACXF\n>b\nACDF\n", {"ambiguous": "refuse"}, "sequence a, column 3: 'X'"),
        (">a\nACDF\n>b\nACD\n", {}, "sequence b (number 2) has 3 columns, and a 4"),
        (">a\nACDF\n", {}, "has 1 sequences"),
        (">a\n\n>b\n\n", {}, "sequence a is empty"),
        ("ACDF\n", {}, "is no alignment"),
        ("# STOCKHOLM 1.0\na b c\n//\n", {}, "a line of Stockholm"),
        (b"\x1f\x8bnothing", {}, "cannot be unzipped"),
        (A2M, {"focus": "none"}, "data.focus=none: no sequence is called so; there are focus/11"),
        (">f\nA---\n>b\nACDF\n", {"focus": "f"}, "it has 1 letters of upper case"),
        (
            ">a\nACD*\n>b\nACD*\n",
            {},
            "data.ambiguous=drop: leaves fewer than two sequences; sequence a, column 4 has '*'",
        ),
        (">a\nACDF\n>b\nACDF\n", {}, "data.held_out=1: every cluster"),
    ],
)
def test_what_is_no_alignment_is_refused(
    tmp_path: Path, content: str | bytes, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises((ConfigError, DataError)) as refused:
        fasta(section(written(tmp_path, content), **settings))
    assert said in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is nothing there"):
        fasta(section(tmp_path / "none"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("1\n1\n", "has 2 weights, and the alignment 3"),
        ("1\n-1\n1\n", "weights are numbers of 0 or more"),
        ("0\n0\n1\n", "two of them above 0"),
        ("1\nx\n1\n", "is no list of weights"),
        (None, "there is no file"),
    ],
)
def test_weights_that_are_none_are_refused(tmp_path: Path, content: str | None, said: str) -> None:
    weights = tmp_path / "weights.txt"
    if content is not None:
        weights.write_text(content)
    with pytest.raises((ConfigError, DataError)) as refused:
        fasta(section(written(tmp_path, A2M), weights_path=str(weights)))
    assert said in str(refused.value)


def test_weights_of_a_file_are_those_of_the_rows(tmp_path: Path) -> None:
    """A sequence of weight 0 is left out."""
    weights = written(tmp_path, "0.5\n0\n0.25\n", "weights.txt")
    data = fasta(section(written(tmp_path, A2M), weights_path=str(weights)))
    assert data.rows == 1
    assert data.row_weights.sample is not None
    assert data.row_weights.held_out is not None
    both = [float(data.row_weights.sample), float(data.row_weights.held_out)]
    assert sorted(both) == [0.25, 0.5]
    assert data.total_weight == both[0]
    assert data.sequences.weights.tolist() == [0.5, 0, 0.25]


def test_ambiguous_sequences_are_left_out_or_gaps(tmp_path: Path) -> None:
    path = written(tmp_path, ">a\nACXF\n>b\nACDF\n>c\nCCDF\n")
    rows, told = rows_of(path)
    assert rows == ["ACDF", "CCDF"]
    assert told.dropped == 1
    assert told.weights.tolist() == [0, 1, 1]
    assert told.in_words().endswith("; 1 left out for letters that stand for several")
    assert rows_of(path, ambiguous="gap")[0] == ["AC-F", "ACDF", "CCDF"]


# -- weights ---------------------------------------------------------------------------------------


def test_neighbours_are_counted_as_by_definition() -> None:
    """Of 300 sequences near three centres, more than a block of them; and the clusters are the
    components of the graph, found by growing each.
    """
    random = np.random.RandomState(0)
    centres = random.randint(0, 4, (3, 20))
    codes = centres[random.randint(0, 3, 300)].astype(np.int8)
    changed = random.rand(*codes.shape) < 0.25
    codes[changed] = random.randint(-1, 4, int(changed.sum()))
    near = (codes[:, None] == codes[None]).sum(2) >= 0.7 * 20
    found = Neighbours(codes, 0.7)
    assert found.counts.tolist() == near.sum(1).tolist()
    np.testing.assert_array_equal(found.weights, 1 / near.sum(1))
    reached = near
    for _ in range(9):
        reached = (reached.astype(int) @ reached) > 0
    np.testing.assert_array_equal(found.clusters[:, None] == found.clusters[None], reached)
    assert 3 < len(np.unique(found.clusters)) < 300


def test_held_out_sequences_are_apart_where_there_is_an_identity(tmp_path: Path) -> None:
    path = written(tmp_path, A2M)
    assert not fasta(section(path, focus="focus")).held_out_apart
    assert fasta(section(path, focus="focus", identity=0.9)).held_out_apart


def test_held_out_sequences_are_whole_clusters() -> None:
    clusters = np.repeat(np.arange(40), np.arange(1, 41))
    out = held_out_clusters(clusters, 200, 0)
    assert 150 < out.sum() <= 200
    assert not set(clusters[out]) & set(clusters[~out])
    assert (out != held_out_clusters(clusters, 200, 1)).any()


def test_levels_are_those_of_the_alphabet(tmp_path: Path) -> None:
    base = ["data=fasta", f"data.path={written(tmp_path, A2M)}", "kernel=gibbs", "energy=potts"]
    assert compose([*base]).data.discrete_levels == 21
    for arguments, said in (
        ([*base, "energy.levels=20"], "energy.levels=20: data.alphabet=protein has 21 levels"),
        ([*base, "data.alphabet=rna"], "use 5"),
        ([*base, "energy=mlp", "kernel=mala"], "use energy=potts"),
        (
            [*base, "energy.levels=20", "data.gaps=ignore"],
            "data.gaps=ignore: energy=potts by objective=pseudo_likelihood alone",
        ),
        (
            [
                *base,
                *("energy.levels=20", "data.gaps=ignore", "objective=pseudo_likelihood"),
                "objective.sites=3",
            ],
            "needs objective.sites=null",
        ),
    ):
        with pytest.raises(ConfigError) as refused:
            compose(arguments)
        assert said in str(refused.value)


@pytest.mark.skipif(not SHARED.exists(), reason="the alignments are not there")
def test_weights_of_dhfr_are_plmcs() -> None:
    """The reference tool's weights of a family, to 1e-6; it writes 0 of those it leaves out."""
    told = fasta(
        section(SHARED / "DHFR.a2m.gz", focus="DYR_ECOLI", identity=0.8, gaps="ignore")
    ).sequences
    with gzip.open(SHARED / "DHFR_weights_raw.txt.gz") as file:
        truth = np.array(file.read().split(), np.float64)
    np.testing.assert_allclose(told.weights, truth, rtol=0, atol=1e-6)
    assert told.focus.startswith("MISLIAALAVDRVIG")
    assert told.numbering == list(range(1, 160))
