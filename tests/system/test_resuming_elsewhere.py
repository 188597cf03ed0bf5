"""Runs that resume with other settings, or with their data at another place or gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.common.errors import DataError
from pipeline.config.compose import compose
from pipeline.config.run import RunConfig
from pipeline.evaluate import main as evaluate
from pipeline.sample import main as sample
from pipeline.storage.binding import RULES, differences, rule_of
from pipeline.train import main
from tests.conftest import SMALL

pytestmark = pytest.mark.usefixtures("undrawn")
ROOT = Path(__file__).resolve().parent.parent.parent
LITTLE = (
    *("cluster=inline", "metrics.port=0", "chains.per_pool=8", "optimizer.warmup=0"),
    *("evaluation.samples=0", "evaluation.ais_temperatures=0", "checkpoint.every=2"),
)


def write(path: Path, rows: int = 80, seed: int = 0) -> None:
    values = np.random.RandomState(seed).randn(rows, 3).astype(np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"x": lists}), path)


def train(tmp_path: Path, path: Path, steps: int, *more: str) -> int:
    return main(
        [
            *("data=columns", f"data.path={path}", "data.held_out=10", "energy.hidden=[4]"),
            *("kernel.transitions=1", "trainer.batch_size=8", f"trainer.steps={steps}"),
            *LITTLE,
            f"output={tmp_path}/run",
            *more,
        ]
    )


def test_moved_data_do_not_end_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows bind, and neither the folder nor the protocol that they are reached by."""
    write(tmp_path / "here" / "rows.parquet")
    assert train(tmp_path, tmp_path / "here", 2) == 0
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert train(tmp_path, tmp_path / "there" / "rows.parquet", 4) == 0
    assert "resuming at step 2 of 4" in capsys.readouterr().out


def test_other_data_at_the_same_place_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many rows with other numbers differ in their digest, and other settings are told too."""
    rows = tmp_path / "rows.parquet"
    write(rows)
    assert train(tmp_path, rows, 2) == 0
    write(rows, seed=1)
    assert train(tmp_path, rows, 4) == 2
    words = capsys.readouterr().err
    assert "data (digest of rows): " in words
    assert "training rows" not in words
    write(rows, rows=90)
    assert train(tmp_path, rows, 4, "seed=3", "data.noise=0.5", "kernel=ula") == 2
    words = capsys.readouterr().err
    for difference in (
        *("seed=0 there, 3 here", "data.noise=0.0 there, 0.5 here"),
        *("kernel.name=mala there, ula here", "data (training rows): 70 there, 80 here"),
    ):
        assert difference in words


def test_a_checkpoint_that_knows_no_content_is_held_to_the_path() -> None:
    config = compose(["data=columns", "data.path=/here"]).model_dump(mode="json")
    moved = {**config, "data": {**config["data"], "path": "/there"}}
    assert differences(config, moved, None, {"training rows": 1}) == [
        "data.path=/here there, /there here"
    ]
    assert differences(config, moved, {"training rows": 1}, {"training rows": 1}) == []


def test_every_setting_has_a_rule() -> None:
    """And the rules that bind name settings that there are."""
    missing = [key for key in RunConfig.model_fields if not any(rules_within(key))]
    assert missing == []
    assert rule_of("data.path") != rule_of("data.noise")
    assert len({rule.key for rule in RULES}) == len(RULES)


def rules_within(key: str) -> Iterator[str]:
    return (rule.key for rule in RULES if rule.key.split(".")[0] == key)


def test_the_page_has_the_table() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    for rule in RULES:
        row = f"| `{rule.key}` | {'no' if rule.binds else 'yes'} | {rule.why} |"
        assert row in page, row


OTHERS = {
    "batch_size": ("trainer.batch_size=12",),
    "negatives": ("trainer.negatives=8",),
    "lag": ("trainer.lag=2",),
    "exact lag": ("trainer.lag=1", "trainer.lag_mode=exact"),
    "auto": ("trainer.lag=auto",),
    "inflight": ("trainer.lag=1", "trainer.inflight=3"),
    "reweight": ("trainer.lag=1", "trainer.lag_mode=exact", "trainer.reweight=false"),
    "refresh": ("trainer.lag=1", "trainer.lag_mode=exact", "trainer.refresh=2"),
    "min_ess": ("trainer.min_ess=0.2",),
    "chunks": ("trainer.chunk_rows=3", "trainer.chunk_draws=2"),
    "rates": ("optimizer.learning_rate=0.1", "optimizer.schedule=constant", "optimizer.ema=0.5"),
    "kernel": ("kernel.transitions=3",),
    "chains": ("chains.restart=0.5", "chains.burn_in=3"),
    "shape": ("chains.pools=4", "chains.per_pool=4"),
    "more chains": ("chains.pools=3", "chains.per_pool=20", "chains.newcomers=data"),
    "one pool": ("chains.pools=1",),
}
# in a conditional model rows and chains of a step hang together
CONDITIONAL = {
    "batch_size": ("trainer.batch_size=4", "trainer.negatives=32"),
    "negatives": ("trainer.batch_size=4", "trainer.negatives=32"),
    "shape": ("chains.pools=4", "chains.per_pool=16"),
    "more chains": ("chains.pools=3", "trainer.batch_size=12", "chains.newcomers=data"),
    "one pool": ("chains.pools=1", "trainer.batch_size=4"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rbm", "deep", "conditional"])
def test_what_may_change_does(kind: str, tmp_path: Path) -> None:
    """Each setting that is documented to be free is changed on the way, and the run goes on."""
    common = [*SMALL[kind], *LITTLE[:2], "evaluation.samples=0", "evaluation.ais_temperatures=0"]
    common += ["energy.hidden=4"] if kind == "rbm" else []
    assert main([*common, "trainer.steps=2", f"output={tmp_path}/run"]) == 0
    for name, others in OTHERS.items():
        if kind == "rbm" and name == "negatives":
            others = ("trainer.negatives=20",)
        if kind == "conditional":
            others = CONDITIONAL.get(name, others)
        shutil.copytree(tmp_path / "run", tmp_path / name)
        assert main([*common, "trainer.steps=4", f"output={tmp_path}/{name}", *others]) == 0, name
        assert json.loads((tmp_path / name / "summary.json").read_text())["version"] == 4


# -- samples without data --------------------------------------------------------------------------

GONE = {
    "plane": ("experiment=toy", "objective=nce", "energy.hidden=[8]"),
    "images": ("objective=nce", "energy.hidden=[8]", "data.noise=0"),
    "labelled": ("experiment=compose_toys", "energy.hidden=[8]", "objective=denoising"),
    "binary": ("experiment=digits_rbm", "energy.hidden=4"),
}


@pytest.fixture
def gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No data can be opened where runs are opened again."""

    def refuse(_: RunConfig) -> None:
        raise DataError("data.path", "nowhere", "there is nothing there")

    monkeypatch.setattr("pipeline.runs.trained.open_data", refuse)


def trained(tmp_path: Path, kind: str) -> str:
    common = (*LITTLE, "trainer.steps=2", "trainer.batch_size=16")
    assert main([*GONE[kind], *common, f"output={tmp_path}/run"]) == 0
    return f"run={tmp_path}/run"


@pytest.mark.usefixtures("gone")
@pytest.mark.parametrize("kind", GONE)
def test_samples_need_no_data(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = trained(tmp_path, kind)
    few = ("samples=6", "transitions=2", f"output={tmp_path}/drawn")
    assert sample([run, *few]) == 0
    assert "its data are not there (data.path=nowhere: there is nothing there)" in caplog.text
    drawn = json.loads((tmp_path / "drawn" / "summary.json").read_text())
    assert drawn["samples"] == 6
    assert "undrawn_samples" not in drawn
    if kind == "labelled":
        assert sample([run, *few, "given=1"]) == 0
        assert sample([run, *few, "given=2"]) == 2


@pytest.mark.usefixtures("gone")
def test_what_needs_data_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures do, and so does a path that was given, and the reach of an integral."""
    run = trained(tmp_path, "plane")
    assert evaluate([run, f"output={tmp_path}/figures"]) == 2
    assert "refused: data.path=nowhere" in capsys.readouterr().err
    either = f"runs=[{tmp_path}/run,{tmp_path}/run]"
    assert sample([either, "compose=or", f"output={tmp_path}/drawn"]) == 2
    assert "refused: log_partitions=null: the data are not there" in capsys.readouterr().err
