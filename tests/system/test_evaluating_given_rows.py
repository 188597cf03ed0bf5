"""A run on rows given in code, evaluated again: without them what needs none, with them all of it;
their scale.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import pipeline
from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.evaluate import evaluate
from pipeline.evaluate import main as command
from pipeline.train import run

SHORT = (
    *("cluster=inline", "data=rows", "metrics.port=0", "recorders=[]", "trainer.steps=4"),
    *("trainer.batch_size=16", "chains.per_pool=8", "chains.pools=1", "data.held_out=20"),
    *("evaluation.samples=12", "evaluation.transitions=5", "evaluation.ais_temperatures=3"),
    "evaluation.ais_particles=2",
)
ROWS = np.random.default_rng(0).normal(size=(80, 3)) * [300, 0.01, 1] + [5000, 2, 0]
BITS = (ROWS.mean(0) < ROWS).astype(int)


@pytest.mark.usefixtures("undrawn")
def test_rows_in_their_own_units(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With data.scale rows are learned, samples drawn and points ranked as those of a table are."""
    arguments = [*SHORT, "energy.hidden=[8]", "data.scale=standard", f"output={tmp_path}/run"]
    weights = np.resize([1.0, 3.0], 80)
    trained = run(compose(arguments), rows=ROWS, weights=weights)
    order = np.random.RandomState(0).permutation(80)[:-20]
    mean = np.average(ROWS[order], 0, weights[order])
    scale = pipeline.load(trained["output"]).row_scale
    np.testing.assert_allclose(scale.shift, mean, rtol=1e-5)
    assert trained["scale"] == "standard"
    np.save(tmp_path / "points.npy", ROWS[:7])
    asked = (f"points={tmp_path}/points.npy", f"output={tmp_path}/again")
    capsys.readouterr()
    assert command([f"run={trained['output']}", *asked]) == 0
    out = capsys.readouterr().out
    assert "no likelihood, no baselines and no distances" in out
    assert "pipeline.evaluate.evaluate(run, rows=...)" in out
    ranked = json.loads((tmp_path / "again" / "summary.json").read_text())["ranking"]
    with torch.no_grad():
        values = pipeline.load(trained["output"])(scale.scaled(torch.from_numpy(ROWS[:7]).float()))
    first = ranked["first"][0]
    assert first["energy"] == pytest.approx(float(values.min()), rel=1e-4)

    again = evaluate(trained["output"], *asked, rows=ROWS, weights=weights)
    for name in ("test_log_likelihood", "train_log_likelihood", "baselines"):
        assert again["figures"][name] == pytest.approx(trained[name], abs=1e-6)
    assert "without_rows" not in again
    other = evaluate(trained["output"], *asked, rows=ROWS, held_out=ROWS[:9] + 9)
    assert other["figures"]["test_log_likelihood"] < again["figures"]["test_log_likelihood"]


@pytest.mark.usefixtures("undrawn")
def test_what_needs_rows_is_refused(tmp_path: Path) -> None:
    """log Z of a machine needs none; what tells held-out rows from others does."""
    machine = ("energy=rbm", "energy.hidden=2", "kernel=gibbs", "data.encoding=binary")
    arguments = [*SHORT, *machine, "objective.energy_l2=0", f"output={tmp_path}/run"]
    trained = run(compose(arguments), rows=BITS)
    asked = (trained["output"], "evaluation.samples=0", f"output={tmp_path}/again")
    found = evaluate(*asked)
    assert found["figures"]["log_z"] == pytest.approx(trained["log_z"], rel=1e-6)
    assert "test_log_likelihood" not in found["figures"]
    with pytest.raises(ConfigError, match=r"ood=noise: .* has no held-out rows .*rows=\.\.\."):
        evaluate(*asked, "ood=noise")
    assert 0 <= evaluate(*asked, "ood=noise", rows=BITS)["ood"]["auroc"] <= 1
    with pytest.raises(ConfigError, match=r"rows=shape \[1\]: a row of .* has shape \[3\]"):
        evaluate(*asked, rows=BITS[:, :1])
    with pytest.raises(ConfigError, match="rows=no rows"):
        evaluate(*asked, rows=BITS[:0])
