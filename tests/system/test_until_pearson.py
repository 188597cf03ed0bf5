"""Runs that end when the covariances of their chains agree with those of the data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.runs.results import Run
from pipeline.train import main, run
from tests.conftest import SMALL

pytestmark = pytest.mark.usefixtures("undrawn")
SHORT = (
    *("metrics.port=0", "metrics.held_out_every=4", "evaluation.samples=0", "trainer.steps=60"),
    *("evaluation.ais_temperatures=0", "data=fasta", "data.alphabet=rna", "data.held_out=20"),
    *("energy=potts", "energy.levels=5", "kernel=gibbs", "chains.per_pool=200"),
    *("trainer.batch_size=100", "optimizer.learning_rate=0.1", "optimizer.warmup=0"),
    *("optimizer.schedule=constant",),
)


@pytest.fixture
def alignment(tmp_path: Path) -> Path:
    """200 sequences of 6 sites, of which sites 1 and 2, and 3 and 4, are the same letter."""
    codes = np.random.RandomState(0).randint(0, 4, (200, 6))
    codes[:, [1, 3]] = codes[:, [0, 2]]
    rows = ("".join("ACGU"[code] for code in row) for row in codes)
    path = tmp_path / "family.fasta"
    path.write_text("".join(f">s{number}\n{row}\n" for number, row in enumerate(rows)))
    return path


def test_a_run_ends_where_its_chains_agree(
    alignment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a look, which is in the series; it is then done for the same command."""
    asked = (*SHORT, "cluster=inline", f"data.path={alignment}", f"output={tmp_path / 'run'}")
    assert main([*asked, "trainer.until_pearson=0.6"]) == 0
    told = capsys.readouterr().out
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    ended, version = summary["ended_early"], summary["version"]
    assert version % 4 == 0
    assert 0 < version < 60
    assert (ended["step"], ended["until_pearson"]) == (version, 0.6)
    assert "ended early the chains' two-site covariances correlate with the training rows'" in told
    assert "covariances " in told
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["step"] == version
    assert last["ebm_two_site_pearson"] == ended["reached"] >= 0.6
    assert last["ebm_two_site_slope"] == ended["slope"]
    assert main([*asked, "trainer.until_pearson=0.6"]) == 0
    assert f"this run is done: step {version} of 60" in capsys.readouterr().out
    assert main([*asked, "trainer.until_pearson=0.99999"]) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["version"] == 60
    assert "ended_early" not in summary


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_through_ray_it_ends_at_the_same_step(alignment: Path, tmp_path: Path) -> None:
    """Chains of both pools count, and no step is made beyond the look, with the same weights. So it
    is where two ranks learn, each from one pool's chains.
    """
    ends: list[Run] = []
    size = ("chains.per_pool=200", "data.held_out=20", "evaluation.samples=0", "metrics.port=0")
    two_ranks = ("cluster=local", "trainer.replicas=2", "trainer.batch_size=2")
    for number, more in enumerate((("cluster=inline",), ("cluster=local",), two_ranks)):
        output = tmp_path / str(number)
        asked = ("experiment=rna_potts", f"data.path={alignment}", f"output={output}", *size)
        ends.append(run(compose([*asked, *more])))
    assert ends[0]["ended_early"] == ends[1]["ended_early"]
    assert ends[0]["ended_early"]["reached"] >= 0.95
    assert ends[0].energy.coupling.equal(ends[1].energy.coupling)
    # what each rank counts is added up in another order
    assert ends[2]["ended_early"]["step"] == ends[0]["ended_early"]["step"]
    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(ends[2].energy.coupling, ends[0].energy.coupling, **close)


POTTS = ("experiment=rna_potts", "data.path=x")


@pytest.mark.parametrize(
    ("overrides", "key", "said"),
    [
        (("optimizer.name=natural",), "optimizer.name", "it is that of energy=potts"),
        ((*POTTS, "objective.l1=0.1"), "objective.l1", "use 0, or l2"),
        ((*POTTS, "objective.expectation=exact"), "objective.expectation", "use chains"),
        ((*POTTS, "objective.moments=[1.0]"), "objective.moments", "use null"),
        ((*SMALL["rbm"], "objective=moments"), "objective", "use energy=maxent or potts"),
    ],
)
def test_what_potts_models_learn_by_is_refused_elsewhere(
    overrides: tuple[str, ...], key: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        compose(overrides)
    assert refused.value.key == key


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (SMALL["deep"], "whose rows have no letters"),
        ((*SMALL["rbm"], "objective=pseudo_likelihood"), "has no chains"),
        ((*SMALL["conditional"],), "has a law for each context"),
        ((*SMALL["rbm"], "metrics.held_out_every=0"), "nobody looks"),
        (
            (*SMALL["rbm"], "trainer.replicas=2", "cluster=local", "trainer.sharding=fsdp"),
            "nobody looks under",
        ),
    ],
)
def test_what_cannot_agree_is_refused(overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        compose([*overrides, "trainer.until_pearson=0.9"])
    assert refused.value.key == "trainer.until_pearson"
