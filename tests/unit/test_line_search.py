"""L-BFGS on all rows: its minimum, what a step costs, and what a run with it is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.assembly.data import open_data
from pipeline.assembly.learner import make_learner
from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.data.base import DataSet, in_memory
from pipeline.energies.potts import PottsModel
from pipeline.evaluation.contacts import (
    contact_scores,
    coupling_norms,
    named,
    strongest_pairs,
    table_of,
)
from pipeline.evaluation.likelihood import independent_levels
from pipeline.training.gradient import Gradient
from pipeline.training.learner import Learner

SEARCHED = (
    *("optimizer.name=lbfgs", "optimizer.learning_rate=1", "optimizer.schedule=constant"),
    *("optimizer.warmup=0", "optimizer.weight_decay=0", "optimizer.clip_norm=null"),
    *("optimizer.ema=0", "trainer.batch_size=null"),
)
PENALTY = 0.5


@pytest.fixture
def alignment(tmp_path: Path) -> Path:
    """60 sequences of 8 sites of 4 letters, of which the last is the first's: some are copies of
    others but for a letter, some letters are gaps.
    """
    random = np.random.RandomState(0)
    codes = random.randint(0, 4, (60, 8))
    codes[30:] = codes[:30]
    codes[30:, 3] = random.randint(0, 4, 30)
    codes[:, 7] = codes[:, 0]
    letters = np.array(list("ACGU"))[codes]
    letters[random.rand(*codes.shape) < 0.05] = "-"
    lines = [f">s{number}\n{''.join(row)}\n" for number, row in enumerate(letters)]
    path = tmp_path / "family.fasta"
    path.write_text("".join(lines))
    return path


def arguments(path: Path, *more: str) -> list[str]:
    return [
        *("data=fasta", f"data.path={path}", "data.alphabet=rna", "data.gaps=ignore"),
        *("data.held_out=6", "energy=potts", "energy.levels=4", "kernel=gibbs", "cluster=inline"),
        *("objective=pseudo_likelihood", f"objective.l2_couplings={PENALTY}"),
        *("objective.l2_fields=0.01", *SEARCHED, *more),
    ]


def made(path: Path) -> tuple[Learner, DataSet]:
    config = compose(arguments(path))
    data = open_data(config)
    return make_learner(config, data), data


def test_the_minimum_is_found(alignment: Path) -> None:
    """Of the weighted sum with its penalties: there the gradient vanishes, worked out by the
    energy's own conditionals in float64.
    """
    learner, data = made(alignment)
    losses = [learner.step([])[0].loss for _ in range(60)]
    assert losses[:30] == sorted(losses[:30], reverse=True)
    energy = PottsModel((8,), 4).double()
    assert isinstance(learner.energy, PottsModel)
    energy.load_state_dict(learner.energy.state_dict())
    weights = data.row_weights.sample
    assert weights is not None
    assert 1 < float(weights.sum()) < data.rows
    value = -energy.site_log_likelihood(data.sample, weights)
    value += PENALTY * energy.coupling.square().sum() + 0.01 * energy.field.square().sum()
    gradients = torch.autograd.grad(value, list(energy.parameters()))
    assert max(float(gradient.abs().max()) for gradient in gradients) < 2e-3
    assert losses[-1] == pytest.approx(float(value.detach()) / float(weights.sum()), rel=1e-6)


def test_most_steps_need_one_gradient(alignment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one where a search ends is that of the next step."""
    passes, add = 0, Gradient.add

    def counted(gradient: Gradient, sides: Any, *more: Any) -> None:
        nonlocal passes
        passes += len(sides)
        add(gradient, sides, *more)

    monkeypatch.setattr(Gradient, "add", counted)
    learner, _ = made(alignment)
    for _ in range(20):
        learner.step([])
    (state,) = learner.state_dict()["optimizer"]["state"].values()
    searched = state["func_evals"] - 20  # it counts where a step begins, too
    assert 20 <= searched < passes < searched + 5


def test_a_resumed_search_ends_bitwise_alike(alignment: Path) -> None:
    learner, _ = made(alignment)
    for _ in range(6):
        learner.step([])
    state = copy.deepcopy(learner.state_dict())
    other, _ = made(alignment)
    other.load_state_dict(state)
    for _ in range(5):
        (mine, weights), (theirs, others) = learner.step([]), other.step([])
        assert mine.loss == theirs.loss
        np.testing.assert_array_equal(weights.flat, others.flat)


@pytest.mark.parametrize(
    ("more", "key", "said"),
    [
        (["trainer.batch_size=8"], "trainer.batch_size", "use null, all of them"),
        (["optimizer.ema=0.9"], "optimizer.name", "with it go optimizer.learning_rate=1.0"),
        (
            ["data.gaps=state", "energy.levels=5", "objective.sites=2"],
            "optimizer.name",
            "draws at random",
        ),
        (
            ["cluster=local", "trainer.replicas=2", "optimizer.name=adam"],
            "trainer.batch_size",
            "ranks share a step's rows",
        ),
    ],
)
def test_searches_that_cannot_be_are_refused(
    alignment: Path, more: list[str], key: str, said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        compose(arguments(alignment, *more))
    assert refused.value.key == key
    assert said in str(refused.value)


def test_other_rows_all_at_once(small: Callable[..., Any], alignment: Path) -> None:
    """Of rows that count alike any objective takes all; of others those that weigh them."""
    config = small("rbm", "trainer.batch_size=null")
    assert make_learner(config, open_data(config)).prepare() is None
    with pytest.raises(ConfigError, match=r"trainer\.batch_size=null: data\.noise"):
        small("deep", "trainer.batch_size=null", "data.noise=0.1")
    with pytest.raises(ConfigError, match="one chain at each positive"):
        small("rbm", "trainer.batch_size=null", "objective=cd")
    weighed = (
        *("data=fasta", f"data.path={alignment}", "data.alphabet=rna", "energy=potts"),
        *("energy.levels=5", "kernel=gibbs", "trainer.batch_size=null", "data.held_out=6"),
    )
    with pytest.raises(ConfigError, match="objective=nce takes all rows alike"):
        open_data(compose([*weighed, "objective=nce"]))
    assert open_data(compose([*weighed, "objective=pcd"])).row_weights.sample is not None
    with pytest.raises(ConfigError, match="energy=rbm has no fields and couplings"):
        small("rbm", "objective=pseudo_likelihood", "objective.l2_fields=1")


# -- contacts --------------------------------------------------------------------------------------


def test_scores_are_corrected_norms(alignment: Path) -> None:
    """By definition, over all pairs; in the zero-sum gauge, without the gap's letter."""
    learner, data = made(alignment)
    for _ in range(20):
        learner.step([])
    energy = learner.energy
    assert isinstance(energy, PottsModel)
    norms = torch.zeros(8, 8).double()
    first, second = torch.triu_indices(8, 8, 1)
    for number, (i, j) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        block = energy.coupling[number].detach().double()
        block = block - block.mean(0, keepdim=True) - block.mean(1, keepdim=True) + block.mean()
        norms[i, j] = norms[j, i] = block.square().sum().sqrt()
    means = norms.sum(1) / 7
    truth = norms - means[:, None] * means / (norms.sum() / 56)
    scores = contact_scores(energy)
    torch.testing.assert_close(scores, truth[first, second])
    without = coupling_norms(energy, gap=0)
    assert bool((without < coupling_norms(energy)).all())
    order = strongest_pairs(scores, data.sequences, 5)
    assert order[:, 0].tolist() == [0, 7]
    assert named(order[:, :1], data.sequences) == [
        "-".join(f"{data.sequences.focus[site]}{site + 1}" for site in (0, 7))
    ]
    lines = table_of(scores, data.sequences).splitlines()
    assert len(lines) == 28
    assert lines[0].split()[:5] == ["1", data.sequences.focus[0], "2", data.sequences.focus[1], "0"]
    assert float(lines[6].split()[5]) == pytest.approx(float(truth[0, 7]), abs=1e-6)


def test_likelihoods_are_of_rows_that_lack_nothing() -> None:
    """And the weights are theirs; with all letters there nothing is left out."""
    rows = torch.tensor([[0.0, 1], [0, -1], [1, 1]])
    data = in_memory(rows, rows[:2], 0.0, weights=(torch.tensor([1.0, 2, 3]), torch.ones(2)))
    complete = data.complete()
    assert complete.sample.tolist() == [[0, 1], [1, 1]]
    assert complete.held_out.tolist() == [[0, 1]]
    assert complete.row_weights.sample is not None
    assert complete.row_weights.sample.tolist() == [1, 3]
    assert complete.complete() is complete


def test_baselines_leave_out_missing_letters() -> None:
    """p = (n_ik + 1) / (n_i + q) of 3 rows, 2 of which have component 1."""
    rows = torch.tensor([[0.0, 1], [0, -1], [1, 1]])
    data = in_memory(rows, rows[:2], 0.0)
    held = torch.tensor([[3 / 5, 3 / 4], [3 / 5, 1]]).log().sum(1).mean()
    assert independent_levels(data, 2) == pytest.approx(float(held))
