"""Columns of categories, and rows with holes, in files and in frames: taken, and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.assembly.data import of_kinds, open_data, told_columns
from pipeline.assembly.energies import make_energy
from pipeline.assembly.learner import imputing
from pipeline.common.errors import ConfigError, RefusedError
from pipeline.config.compose import compose
from pipeline.config.data import DataSection
from pipeline.config.energies import MixedRBMEnergy
from pipeline.config.run import RunConfig
from pipeline.data.base import DataSet
from pipeline.data.content import content_of, recorded_of
from pipeline.data.given import given_rows
from pipeline.data.holes import filled, split_whole

MIXED = ("energy=mixed_rbm", "kernel=gibbs", "trainer.batch_size=4")
WORDS = ["oak", "ash", "elm"]
FRAME = pd.DataFrame(
    {
        "height": np.arange(30) * 2.0,
        "tree": pd.Categorical([WORDS[i % 3] for i in range(30)]),
        "tall": [i % 2 == 0 for i in range(30)],
        "grade": [(1, 3, 5)[i % 3] for i in range(30)],
    }
)


def opened(path: Path, *overrides: str) -> DataSet:
    chosen = ["data=columns", f"data.path={path}", "data.held_out=6", *MIXED, *overrides]
    return open_data(compose(chosen))


def written(folder: Path, kind: str, frame: pd.DataFrame = FRAME) -> Path:
    path = folder / f"trees.{kind}"
    if kind == "csv":
        frame.to_csv(path, index=False)
    else:
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_text_dictionaries_and_booleans_are_found(tmp_path: Path, kind: str) -> None:
    """Places in sorted order; numbers stay numbers, and are scaled alone."""
    data = opened(written(tmp_path, kind), "data.categorical=auto", "data.scale=standard")
    assert data.columns[:2] == [("height", None), ("tree", ["ash", "elm", "oak"])]
    assert data.kinds == (0, 3, 2, 0)
    words = data.columns[2][1]
    assert words is not None
    assert [word.lower() for word in words] == ["false", "true"]
    rows = torch.cat([data.sample, data.held_out])
    assert set(rows[:, 1].tolist()) == {0, 1, 2}
    assert data.scale is not None
    assert data.scale.width[1:3].tolist() == [1, 1]
    height = data.scale.in_own_units(rows)[:, 0].round().int()
    places = [["ash", "elm", "oak"].index(WORDS[i // 2 % 3]) for i in height.tolist()]
    assert rows[:, 1].tolist() == places
    assert "categories of tree: ash is 0, elm is 1, oak is 2" in told_columns(data)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_of_numbers_are_categories_where_they_are_named(tmp_path: Path, kind: str) -> None:
    data = opened(written(tmp_path, kind), "data.categorical=[grade]", "data.columns=[grade]")
    assert data.columns == [("grade", [1, 3, 5])]
    assert set(data.sample.unique().tolist()) == {0, 1, 2}


def test_text_of_numbers_is_numbers_in_a_csv_alone(tmp_path: Path) -> None:
    """A CSV has no types; a column of text in Parquet was meant so."""
    frame = pd.DataFrame({"zip": ["10", "9"] * 10})
    assert opened(written(tmp_path, "csv", frame), "data.categorical=auto").kinds is None
    data = opened(written(tmp_path, "parquet", frame), "data.categorical=auto")
    assert data.columns == [("zip", ["10", "9"])]


def test_a_trained_run_has_its_own_categories(tmp_path: Path) -> None:
    """Of other rows too, of which one that it does not know is refused by its place."""
    data = opened(written(tmp_path, "csv"), "data.categorical=auto")
    asked = ["data=columns", f"data.path={tmp_path}/trees.csv", "data.held_out=3", *MIXED]
    config = compose([*asked, "data.categorical=auto"])
    content = content_of(config.data, data)
    assert recorded_of(content)["columns"] == [
        (name, values and list(values)) for name, values in data.columns
    ]
    section = config.data.telling(recorded=content)
    own = config.model_copy(update={"data": section})
    written(tmp_path, "csv", FRAME[FRAME.tree != "ash"])
    assert open_data(own).kinds == data.kinds
    written(tmp_path, "csv", FRAME.assign(tree=["fir", *list(FRAME.tree)[1:]]))
    with pytest.raises(
        RefusedError, match=r"column tree, row 0 of .*: 'fir' is none of the labels"
    ):
        open_data(own)


def kinds(config: RunConfig) -> tuple[int, ...]:
    energy = of_kinds(config, open_data(config)).energy
    assert isinstance(energy, MixedRBMEnergy)
    return energy.kinds


def test_kinds_of_the_energy_follow_from_the_data(tmp_path: Path) -> None:
    path = written(tmp_path, "csv")
    asked = ["data=columns", f"data.path={path}", "data.held_out=6", *MIXED]
    config = compose([*asked, "data.categorical=auto"])
    assert kinds(config) == (0, 3, 2, 0)
    config = compose([*asked, "data.columns=[height,grade]"])
    assert kinds(config) == (0, 0)
    config = compose([*asked, "data.categorical=auto", "energy.kinds=[0,3,2,2]"])
    with pytest.raises(
        ConfigError, match=r"energy.kinds=\[0, 3, 2, 2\]: the rows .* \[0, 3, 2, 0\]"
    ):
        of_kinds(config, open_data(config))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("data.categorical=[tree,leaf]",), "learned from are height, tree, tall, grade"),
        (
            ("data.categorical=auto", "energy=gaussian_rbm"),
            "over R^d, and column tree has 3 categories; use energy=mixed_rbm kernel=gibbs",
        ),
        (
            ("data.categorical=auto", "energy=rbm"),
            "over {0, 1}^d, and column height holds real numbers; use energy=mixed_rbm",
        ),
        (
            ("data.columns=[tree]", "data.categorical=[tree]", "energy=rbm"),
            "kernel=gibbs or energy=potts_rbm energy.levels=3",
        ),
        (("data.columns=[height,tree]",), "of words data.categorical=auto makes categories"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, overrides: tuple[str, ...], said: str
) -> None:
    with pytest.raises(RefusedError) as caught:
        opened(written(tmp_path, "csv"), *overrides)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (["oak"] * 30, "holds one value alone"),
        ([f"tree {i}" for i in range(1100)], "holds more than 1,000 different values"),
    ],
)
def test_columns_that_are_no_categories_are_refused(
    tmp_path: Path, column: list[str], said: str
) -> None:
    path = written(tmp_path, "csv", pd.DataFrame({"tree": column}))
    with pytest.raises(ConfigError, match=said):
        opened(path, "data.categorical=auto")


def test_tables_of_one_kind_fit_the_machine_of_that_kind(tmp_path: Path) -> None:
    path = written(tmp_path, "csv")
    one = ("data.categorical=[tree,grade]", "data.columns=[tree,grade]")
    data = opened(path, *one, "energy=potts_rbm", "energy.levels=3")
    assert data.kinds == (3, 3)
    assert opened(path, "data.categorical=[tall]", "data.columns=[tall]", "energy=rbm").kinds == (
        2,
    )


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rows_with_holes_are_kept_and_not_held_out(tmp_path: Path, kind: str) -> None:
    """Every value that is there stays; in a hole is one of the same column; the scale is that of
    what is there.
    """
    frame = FRAME.copy()
    frame["tall"] = frame["tall"].astype(object)
    frame.loc[[1, 4], "height"] = np.nan
    frame.loc[[4, 7, 9], "tree"] = None
    frame.loc[2, "tall"] = None
    path, asked = written(tmp_path, kind, frame), ["data.categorical=auto", "data.missing=impute"]
    data = opened(path, *asked, "data.scale=standard", "data.held_out=20")
    assert data.missing is not None
    assert data.missing.sum(0).tolist() == [2, 3, 1, 0]
    assert data.rows == 10
    assert (
        "missing: 6 values of 5 of the 10 training rows, which are imputed"
        in (told_columns(data)[-1])
    )
    assert data.scale is not None
    own = data.scale.in_own_units(data.sample)
    there = own[:, 0][~data.missing[:, 0]].double()
    assert data.scale.shift[0] == pytest.approx(float(there.mean()), rel=1e-5)
    assert data.scale.width[0] == pytest.approx(float(there.std(correction=0)), rel=1e-5)
    assert bool(torch.isin(own[:, 0].round(), there.round()).all())
    assert data.whole().sample.shape == (5, 4)
    with pytest.raises(ConfigError, match="25 of the 30 rows lack nothing, and no others are held"):
        opened(path, *asked, "data.held_out=26")
    with pytest.raises(ConfigError, match="kept in memory; raise the limit"):
        opened(path, *asked, "data.memory_limit=100")
    with pytest.raises(RefusedError, match=r"missing.*data.missing=impute learns from them"):
        opened(path, "data.categorical=auto")


def test_a_split_without_holes_is_the_one_of_rows_that_are_whole() -> None:
    from pipeline.data.base import split

    rows = np.random.default_rng(0).normal(size=(20, 2))
    for one, other in zip(split(rows, 5, 3), split_whole(rows, 5, 3), strict=True):
        assert torch.equal(one, other)


def test_holes_are_filled_by_draws_of_the_column() -> None:
    """Shares of what is drawn are those of what is there, within 5 standard errors."""
    rows = torch.full((20_000, 2), torch.nan)
    rows[:4000, 0] = torch.arange(4000) % 4 // 3  # a quarter are 1
    rows[:, 1] = 7.0
    found = filled(rows, ["a", "b"], "x", 0)
    assert torch.equal(found[:4000], rows[:4000])
    assert float(found[:, 1].std()) == 0
    share = float(found[4000:, 0].mean())
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / 16_000) ** 0.5
    with pytest.raises(RefusedError, match="column a has no value in any training row"):
        filled(rows[4000:], ["a", "b"], "x", 0)


def section(categorical: Any, missing: str = "refuse") -> DataSection:
    chosen = {"categorical": categorical, "missing": missing}
    return compose(["data=rows"]).data.model_copy(update=chosen)


FRAMES: dict[str, Any] = {
    "pandas": FRAME,
    "polars": pl.from_pandas(FRAME),
    "arrow": pa.Table.from_pandas(FRAME, preserve_index=False),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_frames_have_the_same_categories(kind: str) -> None:
    """Of the held-out rows too, whose values count."""
    held_out = FRAMES[kind][:4] if kind != "arrow" else FRAMES[kind].slice(0, 4)
    given = given_rows(FRAMES[kind], held_out, section=section("auto"))
    assert given.columns == [
        ("height", None),
        ("tree", ["ash", "elm", "oak"]),
        ("tall", ["false", "true"]),
        ("grade", None),
    ]
    assert given.rows[:3].tolist() == [[0, 2, 1, 1], [2, 0, 0, 3], [4, 1, 1, 5]]
    assert given.held_out is not None
    assert given.held_out.tolist() == given.rows[:4].tolist()
    named = section(("tree", "tall", "grade"))
    pair = given_rows((FRAMES[kind], np.arange(30)[:, None]), section=named)
    assert pair.columns[3] == ("grade", [1, 3, 5])
    assert pair.context is not None


def test_frames_with_holes() -> None:
    frame = FRAME.copy()
    frame.loc[3, "height"], frame.loc[5, "tree"] = np.nan, None
    given = given_rows(frame, section=section("auto", "impute"))
    assert np.argwhere(np.isnan(given.rows)).tolist() == [[3, 0], [5, 1]]
    asked = ["data=rows", "data.held_out=6", "data.categorical=auto", "data.missing=impute", *MIXED]
    data = open_data(compose(asked).carrying(rows=given))
    assert data.missing is not None
    assert int(data.missing.sum()) == 2
    assert data.kinds == (0, 3, 2, 0)
    array = given_rows([[1.0, None], [2.0, 3.0]], section=section((), "impute"))
    assert np.isnan(array.rows[0, 1])


@pytest.mark.parametrize(
    ("rows", "categorical", "said"),
    [
        (FRAME[["tree"]], (), "set data.categorical=auto, encode it, or leave it out"),
        (FRAME, ("leaf",), "there are only height, tree, tall, grade"),
        (np.ones((3, 2)), ("a",), "give a frame or an Arrow table"),
        (FRAME.assign(height=[None, *range(29)]), "auto", "data.missing=impute learns from them"),
        (np.array([[1, np.nan]]), (), "data.missing=impute learns from them"),
        (FRAME.assign(lists=[[1, 2]] * 30), ("lists",), "categories are text or numbers"),
        (FRAME.assign(lists=[[1, 2]] * 30), ("tree",), "leave lists out"),
    ],
)
def test_frames_that_do_not_fit_are_refused(rows: Any, categorical: Any, said: str) -> None:
    with pytest.raises(RefusedError) as caught:
        given_rows(rows, section=section(categorical))
    assert said in str(caught.value)


def test_contexts_and_holes_do_not_go_together() -> None:
    given = given_rows((FRAME[["height"]], np.zeros((30, 1))))
    asked = ["data=rows", "data.held_out=6", "data.missing=impute", *MIXED]
    with pytest.raises(ConfigError, match="no energy that holes are filled by takes contexts"):
        open_data(compose(asked).carrying(rows=given))


def test_rows_with_holes_do_not_come_all_at_once() -> None:
    asked = ["data=rows", "data.held_out=6", "data.missing=impute", "data.categorical=auto", *MIXED]
    config = compose([*asked, "trainer.batch_size=null"])
    holes = FRAME.assign(height=[None, *range(29)])
    given = given_rows(holes, section=config.data)
    with pytest.raises(ConfigError, match=r"trainer\.batch_size=null: rows with holes are filled"):
        open_data(config.carrying(rows=given))


def test_weighted_rows_of_words_with_holes(tmp_path: Path) -> None:
    """In a file as in a frame: a scale under the weights of what is there, weights that stay with
    their rows, and a stream that has a row as often as its weight says, filled.
    """
    frame = FRAME.copy()
    frame.loc[[1, 3], "height"], frame.loc[[3, 5], "tree"] = np.nan, None
    weights = np.resize([6.0, 1.0, 1.0, 1.0, 0.0], 30)
    path = written(tmp_path, "parquet", frame.assign(w=weights))
    asked = ["data.categorical=auto", "data.missing=impute", "data.scale=standard"]
    data = opened(path, *asked, "data.weight=w")
    config = compose(["data=rows", "data.held_out=6", *asked, *MIXED])
    given = config.carrying(rows=given_rows(frame, weights=weights, section=config.data))
    same, sample = open_data(given), data.row_weights.sample
    assert torch.equal(data.sample, same.sample)
    assert sample is not None
    assert same.row_weights.sample is not None
    assert torch.equal(sample, same.row_weights.sample)
    assert data.scale is not None
    assert data.missing is not None

    own, there = data.scale.in_own_units(data.sample).double()[:, 0], ~data.missing[:, 0]
    number = (own / 2).round().long()
    assert torch.equal(sample[there], torch.from_numpy(weights)[number[there]])
    mean = float((sample * own)[there].sum() / sample[there].sum())
    assert data.scale.shift[0] == pytest.approx(mean, rel=1e-5)
    whole = data.whole()
    assert whole.row_weights.sample is not None
    assert len(whole.row_weights.sample) == len(whole.sample) < len(sample)

    settled = of_kinds(given, same)
    fill = imputing(settled, same)
    assert fill is not None
    rows = fill(same.positives(0), make_energy(settled, same.shape, None)).next(len(sample))
    assert rows.number is not None
    share = sample * len(sample) / sample.sum()
    found = torch.bincount(rows.number, minlength=len(sample))
    assert bool(((found - share).abs() < 1).all())
    held = ~same.missing[rows.number]
    assert torch.equal(rows.position[held], same.sample[rows.number][held])


def test_rows_that_are_held_out_lack_nothing(tmp_path: Path) -> None:
    """Those that a column or a file of their own names."""
    frame = FRAME.assign(kept=[number % 5 == 0 for number in range(30)])
    frame.loc[4, "height"] = np.nan
    asked = ("data.categorical=auto", "data.missing=impute")
    path = written(tmp_path, "parquet", frame)
    data = opened(path, *asked, "data.held_out_column=kept")
    assert (len(data.held_out), data.kinds) == (6, (0, 3, 2, 0))
    assert data.missing is not None
    frame.loc[5, "height"] = np.nan
    with pytest.raises(ConfigError, match="1 of the rows held out there lack values"):
        opened(written(tmp_path, "parquet", frame), *asked, "data.held_out_column=kept")
    (tmp_path / "apart").mkdir()
    others = written(tmp_path / "apart", "parquet", FRAME[:6])
    path = written(tmp_path, "parquet", frame.drop(columns="kept"))
    data = opened(path, *asked, f"data.held_out_path={others}")
    assert data.held_out[:3].tolist() == [[0, 2, 1, 1], [2, 0, 0, 3], [4, 1, 1, 5]]
    others = written(tmp_path / "apart", "parquet", frame[4:7].drop(columns="kept"))
    with pytest.raises(RefusedError) as caught:
        opened(path, *asked, f"data.held_out_path={others}")
    assert "data.held_out_path" in str(caught.value)
    assert "data.missing=impute" not in str(caught.value)
