"""Runs on weighted rows beside runs on rows that are repeated as often."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pipeline
from pipeline.common.errors import CheckpointError
from pipeline.config.compose import compose
from pipeline.train import run

SHORT = (
    *("cluster=inline", "metrics.port=0", "checkpoint.every=4", "evaluation.samples=0"),
    *("trainer.steps=8", "recorders=[]", "optimizer.learning_rate=0.05"),
)
# rows that stand there twice, each with half of its weight, and so once or three times in every
# epoch of 24; and rows that have none
ROWS, TIMES = 24, np.resize([1, 3], 12)
WEIGHTS = np.concatenate([TIMES.repeat(2) / 2, np.zeros(3)])
RANDOM = np.random.default_rng(0)
BITS, REAL = RANDOM.integers(0, 2, (15, 4)), RANDOM.normal(size=(15, 4))
RBM = ("data.encoding=binary", "energy=rbm", "energy.hidden=3", "kernel=gibbs")
ISING = ("data.encoding=binary", "energy=quadratic", "kernel=single_site")
FAMILY = (
    "data.encoding=binary",
    "energy=maxent",
    "energy.levels=2",
    "energy.features=[{kind:means},{kind:pairs}]",
)
PLAIN = (
    *("optimizer.weight_decay=0", "optimizer.name=sgd", "optimizer.warmup=0"),
    "optimizer.schedule=constant",
)
CASES: dict[str, tuple[np.ndarray, tuple[str, ...]]] = {
    "maximum_likelihood": (BITS, (*RBM, "objective=maximum_likelihood")),
    "ratio_matching": (BITS, (*ISING, "objective=ratio_matching")),
    "score_matching": (REAL, ("energy.hidden=[8]", "objective=score_matching")),
    "moments": (BITS, (*FAMILY, "objective=moments", "kernel=single_site", "objective.l2=0.1")),
}


def trained(folder: Path, values: np.ndarray, arguments: Any, **given: Any) -> dict[str, Any]:
    config = compose(["data=rows", f"output={folder}", *arguments, *SHORT])
    return run(config, rows=values, **given)


def weights_of(summary: dict[str, Any]) -> torch.Tensor:
    energy = pipeline.load(summary["output"])
    return torch.cat([value.flatten() for value in energy.state_dict().values()]).double()


@pytest.mark.parametrize("case", CASES)
def test_weights_do_what_repeated_rows_do(case: str, tmp_path: Path) -> None:
    """Of the positives of each step, of what a model starts from, and of what it is judged by. A
    step has a whole epoch; of moments, whatever the batch.
    """
    once, arguments = CASES[case]
    values = np.concatenate([once[:12].repeat(2, 0), once[12:]])
    batch = f"trainer.batch_size={4 if case == 'moments' else ROWS}"
    shared = (*arguments, *PLAIN, batch, "evaluation.ais_temperatures=0")
    held_out, of_held_out = once[:8][::-1], np.resize([0, 2, 3], 8)
    both = {"held_out": held_out, "held_out_weights": of_held_out * 0.1}
    found = trained(tmp_path / "weighted", values, shared, weights=WEIGHTS, **both)
    again = {"held_out": held_out.repeat(of_held_out, 0)}
    same = trained(tmp_path / "repeated", once[:12].repeat(TIMES, 0), shared, **again)
    apart = (weights_of(found) - weights_of(same)).abs().max()
    assert apart < 1e-6
    names = ("test_log_likelihood", "train_log_likelihood")
    if case != "score_matching":  # four real dimensions have no exact log Z
        figures, truth = found, same
        assert {name: figures[name] for name in names if name in figures} == {
            name: pytest.approx(truth[name], abs=1e-6) for name in names if name in truth
        }
        assert (case == "maximum_likelihood") <= ("test_log_likelihood" in figures)
    unweighted = trained(tmp_path / "alike", values, shared, held_out=held_out)
    assert (weights_of(found) - weights_of(unweighted)).abs().max() > 1e-3


def test_a_weighted_run_resumes_bitwise(tmp_path: Path) -> None:
    """With weights that are no whole numbers, in the middle of an epoch; and not with others."""
    arguments = (*RBM, *PLAIN, "objective.energy_l2=0", "trainer.batch_size=7", "data.held_out=4")
    sizes = ("chains.per_pool=8", "chains.pools=1", "evaluation.ais_temperatures=0")
    weights = RANDOM.gamma(1.0, size=15)
    whole = trained(tmp_path / "whole", BITS, (*arguments, *sizes), weights=weights)
    half = (*arguments, *sizes, "trainer.steps=8")
    config = compose(["data=rows", f"output={tmp_path / 'half'}", *half, *SHORT, "trainer.steps=4"])
    run(config, rows=BITS, weights=weights)
    with pytest.raises(CheckpointError, match=r"data\.given"):
        trained(tmp_path / "half", BITS, half, weights=weights + 1)
    rest = trained(tmp_path / "half", BITS, half, weights=weights)
    assert torch.equal(weights_of(whole), weights_of(rest))


def test_a_table_with_a_column_of_weights(tmp_path: Path) -> None:
    """From the file to the figures: weighted means, over the weighted standard deviation."""
    weights = RANDOM.gamma(1.0, size=120)
    rows = RANDOM.normal(size=(120, 2)) * [3, 0.1] + [10, 1]
    lines = [f"{a},{b},{w}" for (a, b), w in zip(rows, weights, strict=True)]
    (tmp_path / "rows.csv").write_text("\n".join(["a,b,w", *lines]))
    asked = (
        *("data=columns", f"data.path={tmp_path}/rows.csv", "data.weight=w", "data.scale=standard"),
        *("data.held_out=40", "energy.hidden=[8]", "trainer.batch_size=16", "chains.per_pool=16"),
        *("chains.pools=1", f"output={tmp_path}/run", "metrics.held_out_every=4"),
    )
    summary = run(compose([*asked, *SHORT, "evaluation.samples=20", "evaluation.transitions=5"]))
    order = np.random.RandomState(0).permutation(120)
    train, of_train = rows[order][:-40], weights[order][:-40]
    energy = pipeline.load(summary["output"])
    middle = np.average(train, 0, of_train)
    np.testing.assert_allclose(energy.row_scale.shift, middle, rtol=1e-5)
    test = energy.row_scale.scaled(torch.from_numpy(rows[order][-40:]).float())
    figures = summary
    with torch.no_grad():
        logs = -energy(test).double().numpy() - figures["log_z"]
    level = np.average(logs, weights=weights[order][-40:])
    assert figures["test_log_likelihood"] == pytest.approx(level, abs=1e-4)
    assert figures["samples_likeness"]["rows_energy_distance"] < 0.2
