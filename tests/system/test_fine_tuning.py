"""Runs that begin where another run ended: with its weights, or with all that it had."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.storage.store import find
from pipeline.train import main
from tests.conftest import SMALL, undrawn

pytestmark = pytest.mark.usefixtures("undrawn")


def train(output: Path, *overrides: str) -> int:
    return main([*SMALL["deep"], "cluster=inline", f"output={output}", *overrides])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`short`, of 20 steps, and `long`, of 30; at a constant rate, which knows no last step."""
    folder = tmp_path_factory.mktemp("runs")
    for name, steps in (("short", 20), ("long", 30)):
        constant = ("optimizer.schedule=constant", f"trainer.steps={steps}")
        with undrawn():
            assert train(folder / name, *constant) == 0
    return folder


def parts(output: Path) -> dict[str, bytes]:
    """The learner's and the pools' parts of the newest checkpoint."""
    checkpoint = find(str(output))
    return {name: Path(checkpoint.folder, name).read_bytes() for name in checkpoint.manifest.parts}


def rates(output: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["ebm_learning_rate"] for row in rows}


ALL = ("init_what=all", "trainer.steps=30", "optimizer.schedule=constant")


def test_with_all_a_run_ends_where_a_longer_one_would(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit: weights, their average, moments, chains, random streams, the place in the rows.
    The other run stays as it was; the same command goes on from checkpoints of its own.
    """
    before = parts(runs / "short")
    assert train(tmp_path, f"init_from={runs / 'short'}", *ALL) == 0
    assert "resuming at step 20 of 30" in capsys.readouterr().out
    assert parts(tmp_path) == parts(runs / "long")
    assert list(rates(tmp_path)) == [30]
    assert parts(runs / "short") == before
    assert find(str(tmp_path)).manifest.run != find(str(runs / "short")).manifest.run
    assert train(tmp_path, f"init_from={runs / 'short'}", *ALL) == 0
    assert "this run is done: step 30 of 30" in capsys.readouterr().out


def test_with_all_a_run_goes_on_at_another_rate(runs: Path, tmp_path: Path) -> None:
    """The moments are the other run's, so that the first step is not a new optimizer's."""
    new = ("optimizer.learning_rate=1e-5", "optimizer.warmup=0", "metrics.every=1")
    assert train(tmp_path, f"init_from={runs / 'short'}", *ALL, *new) == 0
    assert rates(tmp_path) == dict.fromkeys(range(21, 31), 1e-5)
    moments = find(str(tmp_path)).read("learner")["optimizer"]["state"]
    assert float(moments[0]["step"]) == 30


def test_with_weights_a_run_begins_anew_on_other_rows_at_another_rate(
    runs: Path, tmp_path: Path
) -> None:
    """At step 0, with the averaged weights."""
    new = ("optimizer.learning_rate=1e-12", "data.split_seed=1", "trainer.steps=10", "seed=3")
    assert train(tmp_path, f"init_from={runs / 'short'}", "optimizer.weight_decay=0", *new) == 0
    assert list(rates(tmp_path)) == [10]
    weights = [find(str(place)).averaged() for place in (runs / "short", tmp_path)]
    np.testing.assert_allclose(weights[1], weights[0], atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("energy.hidden=[16,8]", *ALL), "energy.hidden=[16, 16] there, [16, 8] here"),
        (("energy.hidden=[16,8]", "init_what=weights"), "init_from="),
        (("data.split_seed=1", *ALL), "data.split_seed=0 there, 1 here. With init_what=weights"),
        (("optimizer.name=sgd", *ALL), "optimizer.name=adam there, sgd here"),
        ((*ALL, "trainer.steps=20"), "trainer.steps=20: "),
        (("init_what=some",), "init_what=some: "),
    ],
)
def test_what_does_not_fit_is_refused(
    overrides: tuple[str, ...],
    words: str,
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "run"
    assert train(output, f"init_from={runs / 'short'}", *overrides) == 2
    assert words in capsys.readouterr().err
    assert not (output / "checkpoints").exists()


def test_all_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "init_what=all") == 2
    assert "init_what=all: of which run?" in capsys.readouterr().err
