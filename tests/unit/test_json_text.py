"""JSON that every reader takes, wherever this project writes it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.json_text import to_json
from pipeline.runs.recorders.series import Series
from pipeline.storage.files import write_file
from tests.house import House

ROOT = Path(__file__).resolve().parent.parent.parent


def strict(text: str) -> Any:
    """The value of the text; JSON has no NaN and no infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_is_not_finite_becomes_null() -> None:
    value = {"a": [math.nan, 1.5, (math.inf, -math.inf)], "b": {"c": math.nan}, "d": True, "e": "x"}
    assert strict(to_json(value)) == {
        "a": [None, 1.5, [None, None]],
        "b": {"c": None},
        "d": True,
        "e": "x",
    }
    with pytest.raises(TypeError):
        to_json({"a": object()})


def test_a_series_is_json_and_is_read_as_it_was(tmp_path: Path) -> None:
    """A figure that was not finite is NaN again in the rows of a resumed run."""
    series = Series()
    write_file(
        str(tmp_path), "metrics.jsonl", (to_json({"step": 1, "loss": math.nan}) + "\n").encode()
    )

    class Run:
        output = str(tmp_path)

    series.start(Run())  # type: ignore[arg-type]
    series.rewind(1)
    series.record(2, {"loss": math.inf})
    series.flush()
    series.settle()
    rows = [strict(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1, "loss": None}, {"step": 2, "loss": None}]
    assert math.isnan(series.rows[0]["loss"])


def test_files_are_written_by_the_one_function() -> None:
    """`json.dumps` alone writes NaN as NaN. What is hashed or shown to a person is no file, and
    checkpoints refuse what is not finite.
    """
    allowed = {"pipeline.common.json_text", "pipeline.config.fields", "pipeline.config.arguments"}
    allowed |= {"pipeline.storage.manifest", "pipeline.storage.parts"}
    modules = House(ROOT).modules
    found = {name for name, path in modules.items() if "json.dump" in path.read_text()}
    assert found <= allowed
