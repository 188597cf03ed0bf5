"""Potts models whose graph grows or is decimated, through the front door."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import pipeline
from pipeline.assembly.data import open_data
from pipeline.assembly.learner import make_learner
from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.energies.potts import PottsModel
from pipeline.train import run
from tests.system.test_until_pearson import SHORT, alignment

__all__ = ["alignment"]
pytestmark = pytest.mark.usefixtures("undrawn")
SAME = [0, 9]
"""The numbers of the pairs of sites 1 and 2, and 3 and 4, which are the same letter."""
CHANGES = (
    *SHORT,
    "cluster=inline",
    "energy.edge_share=0.13",
    "energy.edge_steps=40",
    "data.identity=null",
)


def coupled(energy: PottsModel) -> list[int]:
    return energy.coupling.flatten(1).any(1).nonzero()[:, 0].tolist()


def loaded(url: Path) -> PottsModel:
    energy = pipeline.load(str(url))
    assert isinstance(energy, PottsModel)
    return energy


@pytest.mark.parametrize("graph", ["grown", "decimated"])
@pytest.mark.parametrize("optimizer", ["adam", "natural"])
def test_the_pairs_that_matter_are_coupled(
    graph: str, optimizer: str, alignment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And no others, in the averaged weights too, whatever the optimizer's moments are."""
    data = (f"data.path={alignment}", f"output={tmp_path / 'run'}", f"energy.graph={graph}")
    if optimizer == "natural":
        data += ("optimizer.name=natural", "optimizer.damping=0.02", "optimizer.weight_decay=0")
    run(compose([*CHANGES, *data, "optimizer.ema=0.9"]))
    assert coupled(loaded(tmp_path / "run")) == SAME
    told = capsys.readouterr().out
    assert "  2 of 15 pairs of sites are coupled\n" in told
    assert "with 2 pairs" in told
    rows = [json.loads(row) for row in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    series = [row["ebm_coupled_pairs"] for row in rows]
    assert series == sorted(series, reverse=graph == "decimated")
    assert len(set(series)) > 2
    assert series[-1] == 2
    assert json.loads((tmp_path / "run/summary.json").read_text())["contacts"]["coupled"] == 2


@pytest.mark.parametrize("graph", ["grown", "decimated"])
def test_a_run_goes_on_with_its_graph(graph: str, alignment: Path, tmp_path: Path) -> None:
    """One that lost its last steps, down to one between two changes, ends as it had ended."""
    asked = (f"data.path={alignment}", f"output={tmp_path}", f"energy.graph={graph}")
    asked += ("checkpoint.every=25", "checkpoint.keep=3", "optimizer.ema=0.9")
    run(compose([*CHANGES, *asked]))
    weights = [loaded(tmp_path)]
    for version in (50, 60):
        shutil.rmtree(tmp_path / "checkpoints" / f"{version:08d}")
    run(compose([*CHANGES, *asked]))
    weights.append(loaded(tmp_path))
    assert coupled(weights[0]) == SAME
    for one, other in zip(*(energy.parameters() for energy in weights), strict=True):
        assert one.equal(other)


def test_a_trained_model_is_decimated(alignment: Path, tmp_path: Path) -> None:
    """From its weights; until_pearson waits until all are gone that are to go."""
    data = (*SHORT, "cluster=inline", f"data.path={alignment}")
    run(compose([*data, f"output={tmp_path / 'all'}"]))
    assert len(coupled(loaded(tmp_path / "all"))) == 15
    few = (*CHANGES, f"data.path={alignment}", "energy.graph=decimated", "trainer.steps=60")
    few += (f"init_from={tmp_path / 'all'}", "trainer.until_pearson=0.3")
    run(compose([*few, f"output={tmp_path / 'few'}"]))
    assert coupled(loaded(tmp_path / "few")) == SAME
    summary = json.loads((tmp_path / "few/summary.json").read_text())
    assert summary["ended_early"]["step"] == 40


@pytest.mark.parametrize(("graph", "pairs"), [("grown", 0), ("decimated", 15)])
def test_a_graph_begins_where_a_checkpoint_has_none(
    graph: str, pairs: int, alignment: Path
) -> None:
    """As those of before have none, whose settings do not bind then."""
    both: tuple[tuple[str, ...], ...] = ((), (f"energy.graph={graph}",))
    configs = [
        compose([*SHORT, "energy.edge_steps=40", f"data.path={alignment}", *more]) for more in both
    ]
    before, now = (make_learner(config, open_data(config)) for config in configs)
    state = before.state_dict()
    assert state["graph"] is None
    for known in (state, {key: value for key, value in state.items() if key != "graph"}):
        now.load_state_dict(known)
        assert isinstance(now.energy, PottsModel)
        assert int(now.energy.coupled.sum()) == pairs


@pytest.mark.parametrize(
    ("asked", "key", "said"),
    [
        (("energy.graph=fixed",), "energy.edge_share", "use energy.graph=grown or decimated"),
        (("energy.graph=shrunk",), "energy.graph", "'fixed', 'grown' or 'decimated'"),
        (("energy.graph=grown", "energy.edge_steps=70"), "energy.edge_steps", "trainer.steps=60"),
        (("energy.graph=grown", "energy.edge_steps=15"), "energy.edge_steps", "multiple of 10"),
    ],
)
def test_graphs_that_make_no_sense_are_refused(asked: tuple[str, ...], key: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        compose([*CHANGES, "data.path=family.fasta", *asked])
    assert refused.value.key == key


def test_a_line_search_bears_no_change() -> None:
    asked = ("experiment=protein_potts", "data.path=family.fasta", "energy.graph=grown")
    with pytest.raises(ConfigError, match=r"energy\.graph=grown: .*optimizer\.name=lbfgs"):
        compose([*asked, "energy.edge_steps=10"])
