"""Data as other tools leave them: their folders, their types of columns, and their mistakes, each
refused by its name and place.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.common.errors import ConfigError, DataError, PipelineError
from tests.unit.data.test_columns import (
    BINARY,
    assert_rows,
    listed,
    matrix,
    numbered,
    read,
    write,
)

# -- folders ---------------------------------------------------------------------------------------


def test_files_that_tools_keep_for_themselves_are_passed_over(tmp_path: Path) -> None:
    """Names that begin with _ or a dot, in a folder and under a glob, whatever they hold."""
    write(f"{tmp_path}/part-0.parquet", listed(matrix(30)))
    for name in ("_metadata.parquet", ".part-0.parquet", "_temporary/0.parquet", "_SUCCESS"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"nothing of the kind")
    for pattern in ("", "/*", "/*.parquet", "/**/*.parquet"):
        assert_rows(read(f"{tmp_path}{pattern}"), matrix(30))


def test_a_name_that_is_given_is_taken(tmp_path: Path) -> None:
    """A folder that is called _x or .x, and is named, is meant."""
    (tmp_path / "_kept").mkdir()
    write(f"{tmp_path}/_kept/rows.parquet", listed(matrix(30)))
    for pattern in ("_kept", "_kept/*.parquet", "_kept/rows.parquet"):
        assert_rows(read(f"{tmp_path}/{pattern}"), matrix(30))


@pytest.mark.parametrize("pattern", ["run[1]/p.parquet", "run[1]", "what?/p.parquet", "a*b"])
def test_characters_of_globs_in_real_paths(pattern: str, tmp_path: Path) -> None:
    """A path that exists is what is meant, also where it reads as a glob."""
    folder = tmp_path / pattern.removesuffix("/p.parquet")
    folder.mkdir()
    write(f"{folder}/p.parquet", listed(matrix(30)))
    assert_rows(read(f"{tmp_path}/{pattern}"), matrix(30))


def test_a_glob_of_folders(tmp_path: Path) -> None:
    """Folders that a glob finds are taken as folders are."""
    for number in range(2):
        (tmp_path / f"year={number}").mkdir()
        write(f"{tmp_path}/year={number}/p.parquet", listed(matrix(20, 20 * number)))
    assert_rows(read(f"{tmp_path}/year=*"), matrix(40))


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        ("_delta_log/00000000000000000000.json", "a Delta table"),
        ("metadata/v1.metadata.json", "an Iceberg table"),
        (".hoodie/hoodie.properties", "a Hudi table"),
    ],
)
def test_tables_with_a_log_are_named(log: str, kind: str, tmp_path: Path) -> None:
    """Their folder holds files of older versions; its files may be given."""
    write(f"{tmp_path}/part-0.parquet", listed(matrix(30)))
    (tmp_path / log).parent.mkdir()
    (tmp_path / log).write_text("{}")
    with pytest.raises(DataError, match=rf"data\.path={tmp_path}: this is {kind}.*export it"):
        read(str(tmp_path))
    assert_rows(read(f"{tmp_path}/*.parquet"), matrix(30))


def stream(path: Path, table: pa.Table) -> None:
    """Writes an Arrow stream, in batches of 7 rows."""
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def test_an_arrow_stream(tmp_path: Path) -> None:
    """Its rows are found by reading it through; one that ends within a batch is refused."""
    stream(tmp_path / "rows.arrow", listed(matrix(30)))
    assert_rows(read(f"{tmp_path}/rows.arrow"), matrix(30))
    data = read(f"{tmp_path}/rows.arrow", memory_limit=300)
    assert data.streamed
    seen = set(data.positives(0).next(100).position[:, 0].tolist())
    assert seen <= set(range(30))
    assert len(seen) > 12
    content = (tmp_path / "rows.arrow").read_bytes()
    (tmp_path / "rows.arrow").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"data\.path=.*cannot be read"):
        read(f"{tmp_path}/rows.arrow")


def saved(folder: Path, table: pa.Table) -> Path:
    """Writes the files that Hugging Face's `Dataset.save_to_disk` writes (datasets 5.2), and one
    that its cache leaves beside them.
    """
    folder.mkdir(parents=True)
    names = [f"data-0000{number}-of-00002.arrow" for number in range(2)]
    for name, part in zip(names, (table.slice(0, 20), table.slice(20)), strict=True):
        stream(folder / name, part)
    stream(folder / "cache-2cd4b1c7f2835801.arrow", table)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_a_data_set_that_hugging_face_saved(tmp_path: Path) -> None:
    """The files that its record names, and no others; of several splits one is to be named."""
    assert_rows(read(str(saved(tmp_path / "one", listed(matrix(30))))), matrix(30))
    for split in ("train", "test"):
        saved(tmp_path / "two" / split, listed(matrix(30)))
    (tmp_path / "two" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    message = rf"holds the splits train, test; give one, as in data\.path={tmp_path}/two/train"
    with pytest.raises(DataError, match=message):
        read(f"{tmp_path}/two")
    assert_rows(read(f"{tmp_path}/two/train"), matrix(30))
    (tmp_path / "two" / "train" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow.*cannot be read"):
        read(f"{tmp_path}/two/train")
    for text in ("{", "{}", '{"_data_files": [1]}'):
        (tmp_path / "two" / "test" / "state.json").write_text(text)
        with pytest.raises(DataError, match=r"state\.json: cannot be read"):
            read(f"{tmp_path}/two/test")


def test_lists_of_lists_are_rows(tmp_path: Path) -> None:
    """As Hugging Face's Array2D has them; one that is short is told by the row that it is in."""
    images = np.arange(180.0).reshape(30, 2, 3).tolist()
    write(f"{tmp_path}/rows.parquet", pa.table({"x": images}))
    assert_rows(
        read(f"{tmp_path}/rows.parquet", shape=(2, 3)), np.float32(images).reshape(30, 2, 3)
    )
    images[8][1] = [1.0, 2.0]
    write(f"{tmp_path}/rows.parquet", pa.table({"x": images}))
    with pytest.raises(DataError, match=r"column x, row 8 of .*: a list of 2 numbers"):
        read(f"{tmp_path}/rows.parquet")
    images[8][1] = [1.0, None, 2.0]
    write(f"{tmp_path}/rows.parquet", pa.table({"x": images}))
    with pytest.raises(DataError, match=r"column x, row 8 of .*: number 1 of its list is missing"):
        read(f"{tmp_path}/rows.parquet")


# -- types of columns ------------------------------------------------------------------------------

VALUES = np.arange(180, dtype=np.float32).reshape(30, 6)


def tensors(shape: tuple[int, ...], permutation: list[int] | None = None) -> pa.Array:
    kind = pa.fixed_shape_tensor(pa.float32(), shape, permutation=permutation)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(VALUES.ravel()), 6)
    return pa.ExtensionArray.from_storage(kind, lists)


TAKEN = {
    "list": pa.array(VALUES.tolist(), pa.list_(pa.float32())),
    "large list": pa.array(VALUES.tolist(), pa.large_list(pa.float64())),
    "list of bytes": pa.array(VALUES.astype(np.uint8).tolist(), pa.list_(pa.uint8())),
    "list of decimals": pa.array(
        [[decimal.Decimal(int(x)) for x in row] for row in VALUES], pa.list_(pa.decimal128(9, 2))
    ),
    "tensor": tensors((2, 3)),
}


@pytest.mark.parametrize("kind", TAKEN)
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_lists_of_one_length(kind: str, suffix: str, tmp_path: Path) -> None:
    """Their type need not say the length: the rows do. Loaded and streamed are the same numbers."""
    write(f"{tmp_path}/rows.{suffix}", pa.table({"x": TAKEN[kind]}), unit=7)
    data = read(f"{tmp_path}/rows.{suffix}")
    assert_rows(data, VALUES)
    streamed = read(f"{tmp_path}/rows.{suffix}", memory_limit=300)
    assert set(map(float, streamed.sample.flatten(1)[:, 0])) <= set(map(float, VALUES[:, 0]))


@pytest.mark.parametrize("permutation", [None, [1, 0]])
def test_tensors_bring_their_shape(permutation: list[int] | None, tmp_path: Path) -> None:
    """The shape of a row is the tensor's as its readers see it, unless another is given."""
    write(f"{tmp_path}/rows.arrow", pa.table({"x": tensors((2, 3), permutation)}))
    seen = VALUES.reshape(30, 2, 3)
    seen = seen if permutation is None else seen.transpose(0, 2, 1)
    data = read(f"{tmp_path}/rows.arrow")
    assert data.shape == seen.shape[1:]
    assert_rows(data, np.ascontiguousarray(seen).reshape(30, 6))
    assert read(f"{tmp_path}/rows.arrow", shape=(6,)).shape == (6,)


def test_decimals(tmp_path: Path) -> None:
    values = [decimal.Decimal(number) / 4 for number in range(30)]
    write(f"{tmp_path}/rows.parquet", pa.table({"x": pa.array(values, pa.decimal128(12, 2))}))
    assert_rows(read(f"{tmp_path}/rows.parquet"), np.arange(30, dtype=np.float32)[:, None] / 4)


# -- what is refused, and how ----------------------------------------------------------------------


def refusal(table: pa.Table, tmp_path: Path, *overrides: str, **data: Any) -> str:
    """The message that refuses the table; its rows are in two record batches or row groups."""
    write(f"{tmp_path}/rows.parquet", table, unit=15)
    with pytest.raises(PipelineError) as error:
        read(f"{tmp_path}/rows.parquet", *overrides, **data)
    return str(error.value).replace(str(tmp_path), "")


def test_a_column_of_strings_says_how_to_leave_it_out(tmp_path: Path) -> None:
    """Nobody asked for it: all columns are taken where none are named."""
    table = numbered(matrix(30)).append_column("kind", pa.array(["cat"] * 30))
    message = refusal(table, tmp_path)
    assert message.startswith("data.columns=kind: is of type string in /rows.parquet, row 0 is")
    assert "name the columns to learn from, without it, in data.columns=[..]" in message


def test_a_date_is_no_context(tmp_path: Path) -> None:
    days = pa.array([datetime.date(2020, 1, 1)] * 30)
    message = refusal(numbered(matrix(30)).append_column("day", days), tmp_path, context=("day",))
    assert message.startswith("data.context=day: is of type date32[day] in /rows.parquet, row 0 is")
    assert "write labels as numbers 0, ..., K-1" in message


@pytest.mark.parametrize("kind", ["numbers", "lists"])
def test_a_value_that_is_not_finite_is_found(kind: str, tmp_path: Path) -> None:
    """Column and row, counted in the file and not in its row group."""
    values = matrix(30)
    values[22, 1] = math.nan
    message = refusal(numbered(values) if kind == "numbers" else listed(values), tmp_path)
    column = "b" if kind == "numbers" else "x"
    assert f"column {column}, row 22 of /rows.parquet: nan is not finite" in message


def test_a_value_too_large_for_32_bits_is_named(tmp_path: Path) -> None:
    values = np.zeros(30)
    values[4] = 1e300
    message = refusal(pa.table({"x": values}), tmp_path)
    assert "column x, row 4 of /rows.parquet: 1e+300 is not finite in 32 bits" in message


def test_a_null_within_a_list_is_found(tmp_path: Path) -> None:
    """Of booleans and integers too, which have no NaN."""
    for kind, value in ((pa.bool_(), True), (pa.int32(), 1)):
        rows: list[list[Any]] = [[value, value] for _ in range(30)]
        rows[17][1] = None
        message = refusal(pa.table({"x": pa.array(rows, pa.list_(kind, 2))}), tmp_path)
        assert "column x, row 17 of /rows.parquet: number 1 of its list is missing" in message


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    """Refused where they are meant, and passed over where others are."""
    columns = [pa.array(np.arange(30.0))] * 3
    table = pa.Table.from_arrays(columns, names=["a", "a", "b"])
    with pa.ipc.new_file(f"{tmp_path}/rows.arrow", table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match=r"data\.path=.*more than one column called a"):
        read(f"{tmp_path}/rows.arrow")
    assert read(f"{tmp_path}/rows.arrow", columns=("b",)).rows == 24


def test_a_column_named_twice(tmp_path: Path) -> None:
    """A label among the positions that it is the label of would make it trivial."""
    write(f"{tmp_path}/rows.parquet", numbered(matrix(30)))
    for more in ({"columns": ("a", "a")}, {"columns": ("a", "b"), "context": ("b",)}):
        with pytest.raises(ConfigError, match=r"data\.columns=.*would be taken twice"):
            read(f"{tmp_path}/rows.parquet", **more)


@pytest.mark.parametrize(
    ("values", "overrides", "message"),
    [
        ([0, 1, 2], BINARY, "data.encoding=binary: column x, row 2 of /rows.parquet holds 2, "),
        ([0, 0.5, 1], BINARY, "holds 0.5, and values must be 0, ..., 1; use encoding=real"),
        ([1, 2, 3], ("levels=3",), "data.levels=3: column x, row 2 of /rows.parquet holds 3, "),
        ([1, 2, 3], ("levels=3",), "they begin at 1 there: subtract 1 from each"),
        ([0, 1, 4], ("levels=3",), "use data.levels=5 or more"),
    ],
)
def test_values_that_are_no_levels(
    values: list[float], overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    """The key that is wrong, the value and its place, and the cure that fits."""
    if overrides == ("levels=3",):
        overrides = ("energy=potts_rbm", "kernel=gibbs", "data.encoding=categorical")
        overrides = (*overrides, "data.levels=3", "energy.levels=3")
    table = pa.table({"x": np.tile(np.array(values, np.float64), 10)})
    assert message in refusal(table, tmp_path, *overrides)


def test_a_table_without_positions_is_refused(tmp_path: Path) -> None:
    """Lists of no numbers, contexts alone, no columns at all."""
    label = pa.table({"label": list(range(30))})
    empty = label.append_column("x", pa.array([[]] * 30, pa.list_(pa.float32())))
    message = refusal(empty, tmp_path, context=("label",))
    assert message.startswith("data.path=/rows.parquet: column x, row 0 of /rows.parquet: the list")
    message = refusal(label, tmp_path, context=("label",))
    assert "has no column besides data.context=['label'] to learn from" in message
    write(f"{tmp_path}/none.arrow", label.select([]))
    with pytest.raises(DataError, match="has no column to learn from"):
        read(f"{tmp_path}/none.arrow")


# -- labels ----------------------------------------------------------------------------------------


def labelled(labels: Any, tmp_path: Path, classes: int = 3, **data: Any) -> str:
    """The message that refuses rows with these labels under energy=label_mlp."""
    table = numbered(matrix(30)).append_column("label", pa.array(labels))
    config = ("energy=label_mlp", "objective=pcd", f"energy.classes={classes}")
    return refusal(table, tmp_path, *config, **{"context": ("label",), **data})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([2, 3, 4], "data.context=['label']: the labels are 2, ..., 4, and must be 0, ..., 2"),
        ([0, 1, 5], "energy.classes=3: the labels reach to 5; use 6"),
        ([0, 1, -1], "data.context=['label']: a label is -1"),
        ([0, 1, 0.5], "data.context=['label']: a label is 0.5"),
    ],
)
def test_labels_that_are_none(labels: list[float], message: str, tmp_path: Path) -> None:
    """Whether the labels or the number of classes are to be changed depends on the labels."""
    assert message in labelled(np.tile(np.array(labels, np.float64), 10), tmp_path)


def test_a_label_of_held_out_rows_alone_is_seen(tmp_path: Path) -> None:
    """They are scored in the end: the energy must know their classes as well."""
    for odd in range(30):
        labels = np.arange(30) % 3
        labels[odd] = 7
        assert "energy.classes=3: the labels reach to 7; use 8" in labelled(labels, tmp_path)


def test_a_label_of_several_numbers(tmp_path: Path) -> None:
    message = labelled([0, 1, 2] * 10, tmp_path, context=("label", "c"))
    assert message.startswith("data.context=['label', 'c']: has 2 numbers a row")


# -- few rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [7, 8])
def test_a_single_training_row_is_refused(rows: int, tmp_path: Path) -> None:
    """One row has no spread to start from; two have."""
    write(f"{tmp_path}/rows.parquet", listed(matrix(rows)))
    if rows == 8:
        assert read(f"{tmp_path}/rows.parquet", "trainer.batch_size=1").rows == 2
        return
    with pytest.raises(ConfigError, match=r"data\.held_out=6: leaves a single training row"):
        read(f"{tmp_path}/rows.parquet", "trainer.batch_size=1")


def test_a_stream_of_which_one_row_fits(tmp_path: Path) -> None:
    """Two rows are in hand; where one of them is held out, one is left."""
    write(f"{tmp_path}/rows.parquet", listed(matrix(200)), unit=1)
    with pytest.raises(ConfigError, match=r"data\.memory_limit=24: a single training row fits"):
        read(
            f"{tmp_path}/rows.parquet",
            "trainer.batch_size=1",
            memory_limit=24,
            held_out=100,
            split_seed=1,
        )
