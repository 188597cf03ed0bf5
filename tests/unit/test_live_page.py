"""The page of a run that goes on: what it is made from, how often, and what becomes of failures."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.common.types import Figures, Verdict
from pipeline.config.run import RunConfig
from pipeline.evaluation import curves
from pipeline.runs import live_page
from pipeline.runs.live_page import LivePage
from pipeline.runs.metrics import RunMetrics
from pipeline.runs.recorders import live_rows
from pipeline.runs.recorders.live_rows import LiveRows
from pipeline.runs.recorders.prometheus import Prometheus, page_of
from pipeline.storage.rows import StoredRows
from tests.unit.test_metrics import FLOW, ROUND, STEP
from tests.unit.test_recorders import free_port, recorded

Small = Callable[..., RunConfig]


def steps(rows: LiveRows) -> list[float]:
    return [row["step"] for row in rows.all()]


def test_rows_are_few_however_long_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stay evenly spaced, from the first one to one near the last."""
    monkeypatch.setattr(live_rows, "MOST", 10)
    rows = LiveRows(str(tmp_path))
    for step in range(1, 1001):
        rows.add({"step": step, "ebm_loss": step / 10})
        assert len(steps(rows)) <= 10
    found = steps(rows)
    assert found[0] == 1
    assert {later - earlier for earlier, later in pairwise(found)} == {128}
    assert 1000 - found[-1] < 128


def test_a_run_put_back_drops_rows(tmp_path: Path) -> None:
    rows = LiveRows(str(tmp_path))
    for step in (10, 20, 30):
        rows.add({"step": step})
    rows.rewind(20)
    assert steps(rows) == [10, 20]


def test_rows_of_earlier_processes_are_in_storage(tmp_path: Path) -> None:
    """But until the run has rows of its own, storage may have those of one that it replaces."""
    StoredRows(str(tmp_path)).add([{"step": step} for step in (10, 20, 30)])
    rows = LiveRows(str(tmp_path))
    assert steps(rows) == []
    rows.add({"step": 30})
    rows.add({"step": 40})
    assert steps(rows) == [10, 20, 30, 40]
    rows.rewind(5)
    rows.add({"step": 20})
    assert steps(rows) == [10, 20]


def live(tmp_path: Path, small: Small, known: Callable[[], Figures] = dict) -> LivePage:
    metrics = RunMetrics("mine")
    metrics.observe(STEP, [ROUND], FLOW)
    return LivePage(small("rbm"), str(tmp_path), metrics, known)


ROWS = [{"step": float(step), "time": float(step)} for step in (0, 1)]


def test_it_is_drawn_every_few_seconds_at_most(
    tmp_path: Path, small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where it cannot be drawn: then it says why, and has the rest."""
    clock, drawn = [100.0], list[int]()

    def fail(rows: object, title: str) -> bytes:  # noqa: ARG001
        drawn.append(1)
        raise RuntimeError("no such <colour> at s3://key:canary@host")

    monkeypatch.setattr(live_page.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(curves, "curves", fail)
    verdict = Verdict("ladder", "rungs are too far apart", since=40)._asdict()
    known = {"diagnosis": {"verdicts": [verdict], "figures": {}}}
    page = live(tmp_path, small, lambda: known)
    for clock[0], times in ((100.0, 1), (104.9, 1), (105.0, 2), (106.0, 2)):
        content = page(ROWS)
        assert len(drawn) == times
    assert "no such &lt;colour&gt; at s3://***@host" in content
    assert "rungs are too far apart" in content
    assert "optimizer.learning_rate" in content


@pytest.mark.parametrize("wanted", [True, False])
def test_a_page_that_fails_leaves_the_metrics(wanted: bool, tmp_path: Path, small: Small) -> None:
    """metrics.page=false has them at /, as ever."""

    def fail(rows: object) -> str:  # noqa: ARG001
        raise RuntimeError("no <page> at s3://key:canary@host")

    port = free_port()
    run, _ = recorded(tmp_path, small, f"metrics.port={port}", f"metrics.page={wanted}")
    endpoint, url = Prometheus(), f"http://127.0.0.1:{port}/"
    endpoint.start(run._replace(page=fail))
    try:
        assert b"ebm_steps_total" in urllib.request.urlopen(f"{url}metrics").read()
        if not wanted:
            assert b"ebm_steps_total" in urllib.request.urlopen(url).read()
            return
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url)
        assert refused.value.code == 500
        told = refused.value.read().decode()
        assert "no page: RuntimeError: no &lt;page&gt; at s3://***@host" in told
    finally:
        endpoint.finish(None)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "http://127.0.0.1:9/"),
        (["metrics.address=::1"], r"http://[::1]:9/"),
        (["metrics.port=0"], None),
        (["metrics.page=false"], None),
        (["recorders=[series]"], None),
    ],
)
def test_a_run_says_where_its_page_is(
    overrides: list[str], expected: str | None, small: Small
) -> None:
    assert page_of(small("rbm", "cluster=inline", "metrics.port=9", *overrides)) == expected
