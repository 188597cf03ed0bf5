"""Data with contexts: laws of y given x against quadrature and enumeration, and rows that stay with
their contexts.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.assembly.data import open_data
from pipeline.common.errors import ConfigError, DataError
from pipeline.config.compose import compose
from pipeline.data.base import DataSet
from pipeline.data.conditional_toys import LAWS
from pipeline.data.tags import TagLaw

TOY = ("energy=conditional_mlp", "data=conditional_toy", "trainer.batch_size=128")


@pytest.mark.parametrize("law", sorted(LAWS))
def test_each_law_given_x_is_a_density(law: str) -> None:
    """The integral over y is 1 for 20 contexts: a midpoint rule finer than any width, error far
    below 1e-6.
    """
    contexts = torch.linspace(-1, 1, 20)[:, None]
    mixture = LAWS[law](contexts)
    dimension = mixture.means.shape[2]
    side = torch.linspace(-5, 5, 401, dtype=torch.float64)[:-1] + 0.0125
    points = torch.cartesian_prod(*[side] * dimension).view(-1, dimension)
    for number in range(20):
        one = LAWS[law](contexts[number : number + 1].expand(len(points), 1))
        assert float(one.log_density(points).exp().sum()) * 0.025**dimension == pytest.approx(
            1, abs=1e-6
        )


@pytest.mark.parametrize("law", sorted(LAWS))
def test_rows_are_drawn_from_the_law(law: str) -> None:
    """Mean log density of the rows against the law's entropy, and of shuffled contexts far below:
    within 5 standard errors (6e-7 a test). The entropy is a mean over x of integrals over y, by
    midpoint rules.
    """
    data = open_data(compose([*TOY, f"data.law={law}"]))
    assert data.log_density is not None
    assert data.context is not None
    values = data.log_density(data.sample, data.context.sample)
    contexts = ((torch.arange(50, dtype=torch.float64) + 0.5) / 25 - 1)[:, None]
    dimension = data.shape[0]
    side = torch.linspace(-5, 5, 201, dtype=torch.float64)[:-1] + 0.025
    points = torch.cartesian_prod(*[side] * dimension).view(-1, dimension)
    entropies = []
    for context in contexts:
        logs = LAWS[law](context.expand(len(points), 1)).log_density(points)
        entropies.append(-float((logs.exp() * logs).sum()) * 0.05**dimension)
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) + np.mean(entropies)) < 5 * error
    shuffled = data.log_density(data.sample, data.context.sample.flip(0))
    assert float(shuffled.mean()) < float(values.mean()) - 20 * error


def test_the_law_of_tags_against_enumeration() -> None:
    """All 3^4 sequences under one context: their probabilities sum to 1, and are exp(score) / Z by
    hand.
    """
    law = TagLaw(3, 2, seed=1)
    x = torch.randn(1, 4, 2, generator=torch.Generator().manual_seed(0))
    everything = torch.cartesian_prod(*[torch.arange(3)] * 4)
    logs = law.log_density(everything, x.expand(81, 4, 2))
    scores = []
    for row in everything.tolist():
        own = sum(float(law.unary[tag] @ x[0, site].double()) for site, tag in enumerate(row))
        scores.append(own + sum(float(law.transition[one, next]) for one, next in pairwise(row)))
    torch.testing.assert_close(
        logs, torch.tensor(scores, dtype=torch.float64).log_softmax(0), rtol=1e-10, atol=1e-10
    )


def test_tags_are_drawn_from_their_law() -> None:
    """20,000 draws under one context against the 27 probabilities: Pearson's statistic below its
    1e-6 quantile.
    """
    import scipy.stats

    law = TagLaw(3, 2, seed=2)
    x = torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(1)) / 3
    drawn = law.sample(x.expand(20000, 3, 2), np.random.RandomState(0))
    everything = torch.cartesian_prod(*[torch.arange(3)] * 3)
    expected = 20000 * law.log_density(everything, x.expand(27, 3, 2)).exp().numpy()
    counts = np.bincount((drawn @ torch.tensor([9, 3, 1])).numpy(), minlength=27)
    rare = expected < 5
    observed = [*counts[~rare], counts[rare].sum()]
    wanted = [*expected[~rare], expected[rare].sum() + 1e-12]
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, wanted, strict=True) if e > 1)
    assert statistic < scipy.stats.chi2.isf(1e-6, len(wanted) - 1)


def read(config: list[str]) -> DataSet:
    return open_data(compose(config))


def test_a_digit_and_its_label_are_each_others_context() -> None:
    """Labels stay with their images, whichever is the position: nearest neighbours share their
    label 95 % of the time.
    """
    image = read(["energy=label_mlp"])
    assert image.context is not None
    assert image.context.shape == ()
    label = read(
        [
            "energy=pairwise",
            "energy.levels=10",
            "data.position=label",
            "data.noise=0",
            "kernel=gibbs_with_gradients",
        ]
    )
    assert label.context is not None
    assert label.shape == (1,)
    assert torch.equal(label.held_out[:, 0], image.context.held_out)
    assert torch.equal(label.context.sample, image.sample)
    nearest = torch.cdist(image.held_out.flatten(1), image.sample.flatten(1)).argmin(1)
    assert float((image.context.sample[nearest] == image.context.held_out).float().mean()) > 0.95
    rows = image.positives(0).next(50)
    assert torch.equal(rows.context, image.context.sample[rows.number])


def table(rows: int = 60) -> pa.Table:
    """Columns y0, y1 and x = y0 + y1, so that a row says whether it kept its context."""
    y = np.random.RandomState(0).randn(rows, 2).astype(np.float32)
    return pa.table({"y0": y[:, 0], "x": y.sum(1), "y1": y[:, 1]})


COLUMNS = (
    "energy=conditional_mlp",
    "data=columns",
    "data.held_out=10",
    "trainer.batch_size=8",
    "chains.per_pool=4",
)


@pytest.mark.parametrize("limit", [10**9, 300], ids=["in-memory", "streamed"])
def test_columns_of_files_are_contexts(tmp_path: Path, limit: int) -> None:
    """Positions are the other columns, in the file's order; each row keeps its context through
    splits, epochs and a resume.
    """
    pq.write_table(table(), tmp_path / "rows.parquet", row_group_size=15)
    config = [
        *COLUMNS,
        f"data.path={tmp_path}/rows.parquet",
        "data.context=[x]",
        f"data.memory_limit={limit}",
    ]
    data = read(config)
    assert data.shape == (2,)
    assert data.context_shape == (1,)
    assert data.context is not None
    positives = data.positives(3)
    rows = positives.next(70)
    state = positives.state_dict()
    following = positives.next(20)
    again = read(config).positives(3)
    again.load_state_dict(state)
    assert torch.equal(again.next(20).context, following.context)
    for position, context in (
        (rows.position, rows.context),
        (data.held_out, data.context.held_out),
        (data.sample, data.context.sample),
    ):
        torch.testing.assert_close(position.sum(1, keepdim=True), context)


def test_bad_contexts_are_refused(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "rows.parquet")
    config = [*COLUMNS, f"data.path={tmp_path}/rows.parquet"]
    with pytest.raises(ConfigError, match=r"data\.context=\['z'\]: .* has only y0, x, y1"):
        read([*config, "data.context=[z]"])
    with pytest.raises(
        ConfigError, match=r"data\.context_shape=\[3\]: a row's context has 1 numbers, not 3"
    ):
        read([*config, "data.context=[x]", "data.context_shape=[3]"])
    with pytest.raises(
        ConfigError, match=r"data=columns: energy=conditional_mlp conditions on a context"
    ):
        read(config)
    pq.write_table(table().drop_columns(["x"]), tmp_path / "short.parquet")
    with pytest.raises((ConfigError, DataError), match="x"):
        read([*COLUMNS, f"data.path={tmp_path}/*.parquet", "data.context=[x]"])
