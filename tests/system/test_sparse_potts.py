"""Potts models on a graph: couplings of given pairs alone, from a table or the strongest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import pipeline
from pipeline.common.errors import ConfigError, DataError
from pipeline.config.compose import compose
from pipeline.data.edges import read_edges
from pipeline.energies.potts import PottsModel
from pipeline.train import run
from tests.statistics.test_potts import EXACT, by_definition, model, states

NUMBERS = [11, 12, 13, 20]
SHORT = (
    *("cluster=inline", "metrics.port=0", "recorders=[]", "evaluation.samples=0"),
    *("data.alphabet=rna", "data.held_out=0", "trainer.steps=12", "evaluation.ais_temperatures=0"),
)
BY_CHAINS = (
    *("data=fasta", "energy=potts", "energy.levels=5", "kernel=gibbs", "objective=pcd"),
    *("chains.per_pool=16", "trainer.batch_size=16"),
)
BY_SITES = ("experiment=protein_potts", "energy.levels=4", "objective.l2_couplings=1")


@pytest.fixture
def alignment(tmp_path: Path) -> Path:
    """100 sequences of 6 sites, of which the first and the last are the same, and numbered from
    11.
    """
    codes = np.random.RandomState(0).randint(0, 4, (100, 6))
    codes[:, 5] = codes[:, 0]
    rows = ["".join("ACGU"[code] for code in row) for row in codes]
    path = tmp_path / "family.fasta"
    names = ["f/11-16", *(f"s{number}" for number in range(1, 100))]
    path.write_text("".join(f">{name}\n{row}\n" for name, row in zip(names, rows, strict=True)))
    return path


def coupled(url: Path) -> list[int]:
    """The numbers of the pairs that are coupled in a run's averaged weights."""
    energy = pipeline.load(str(url))
    assert isinstance(energy, PottsModel)
    return energy.coupling.flatten(1).any(1).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("asked", [BY_CHAINS, BY_SITES])
def test_only_pairs_that_are_named_are_coupled(
    asked: tuple[str, ...], alignment: Path, tmp_path: Path
) -> None:
    """By the numbers of the focus sequence; under Adam with weight decay, and under L-BFGS."""
    table = tmp_path / "a, b.txt"
    table.write_text("# a ring\n11 16\n13 11\n")
    data = (f"data.path={alignment}", "data.focus=f", *SHORT, f"energy.edges={table}")
    run(compose([*asked, *data, f"output={tmp_path / 'run'}"]))
    assert coupled(tmp_path / "run") == [1, 4]


def test_the_strongest_stay(alignment: Path, tmp_path: Path) -> None:
    """A run begins at the weights of one of all pairs, and with the share of them that a run's own
    table of scores has on top.
    """
    data = (*BY_SITES, *SHORT, f"data.path={alignment}")
    run(compose([*data, f"output={tmp_path / 'all'}"]))
    assert len(coupled(tmp_path / "all")) == 15
    table = tmp_path / "all" / "contacts.txt"
    rows = [line.split() for line in table.read_text().splitlines()]
    best = sorted(range(15), key=lambda number: -float(rows[number][5]))[:3]
    words = (f"energy.edges={table}", "energy.edge_share=0.2", f"init_from={tmp_path / 'all'}")
    short = (*data, *words, "trainer.steps=1", f"output={tmp_path / 'few'}")
    run(compose([*short]))
    assert coupled(tmp_path / "few") == sorted(best)


def test_what_is_held_has_no_gradient() -> None:
    """Nor does it change the law: the same as with the other couplings at 0."""
    energy, x = model(), states()[::7]
    kept = torch.zeros(15, dtype=torch.bool)
    kept[[0, 7]] = True
    energy.couple(kept)
    assert energy.coupling.flatten(1).any(1).nonzero()[:, 0].tolist() == [0, 7]
    torch.testing.assert_close(energy(x), by_definition(energy, x), **EXACT)
    found = energy.energies_and_pull(x)
    assert found is not None
    found[1](torch.ones(len(x)).double())
    energy.hold()
    assert energy.coupling.grad is not None
    assert energy.coupling.grad.flatten(1).any(1).nonzero()[:, 0].tolist() == [0, 7]
    assert list(energy.state_dict()) == ["field", "coupling"]


@pytest.mark.parametrize(
    ("text", "share", "pairs"),
    [
        ("11 20\n13,12\n", 1.0, [2, 3]),
        ("i j score\n11 20 0.5\n12 11 2\n12 13 -1\n", 0.3, [0]),
        ("11 A 20 C 0 0.5\n11 A 12 C 0 2\n12 A 20 C 0 3\n13 A 12 C 0 1\n", 0.5, [0, 4]),
        ("11 20 1\n20 11 5\n12 13 2\n", 0.5, [2]),
    ],
)
def test_tables_of_edges(tmp_path: Path, text: str, share: float, pairs: list[int]) -> None:
    path = tmp_path / "edges.txt"
    path.write_text(text)
    assert read_edges(str(path), share, NUMBERS).nonzero()[:, 0].tolist() == pairs


@pytest.mark.parametrize(
    ("text", "share", "said"),
    [
        ("11 20\n11 x\n", 1.0, "line 2, 11 x: invalid literal"),
        ("11 11\n", 1.0, "line 1, 11 11: a site makes no pair with itself"),
        ("11 20\n11 14\n", 1.0, "line 2, 11 14: 14 is no site; sites are among 11, ..., 20"),
        ("11 20 3 4\n", 1.0, "line 1, 11 20 3 4: a row is I J, I J SCORE or"),
        ("11 20 nan\n", 1.0, "line 1, 11 20 nan: nan is no score"),
        ("11 20\n12 20\n", 0.5, "energy.edge_share=0.5: .* has no scores by which to choose"),
        ("", 1.0, "has no pair of sites"),
        (None, 1.0, "there is no file"),
    ],
)
def test_what_is_no_edge_is_refused(
    tmp_path: Path, text: str | None, share: float, said: str
) -> None:
    path = tmp_path / "edges.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises((ConfigError, DataError), match=said):
        read_edges(str(path), share, NUMBERS)


def test_a_share_wants_a_table(alignment: Path, tmp_path: Path) -> None:
    words = [*BY_SITES, *SHORT, f"data.path={alignment}", f"output={tmp_path / 'run'}"]
    with pytest.raises(ConfigError, match=r"energy\.edge_share=0\.5: is a share of the pairs"):
        run(compose([*words, "energy.edge_share=0.5"]))
    assert not (tmp_path / "run").exists()
