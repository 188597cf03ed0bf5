"""The page about runs: what is in it, for runs that are done, that go on, and side by side."""

from __future__ import annotations

import base64
import json
import random
import re
import urllib.request
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.common.masking import masked
from pipeline.common.types import Flow, RoundReport, StepReport, Verdict
from pipeline.report import main
from pipeline.runs.inline import InlineRunner
from pipeline.runs.live_page import LivePage
from pipeline.runs.page import Read, page
from pipeline.storage.rows import Row
from tests.system.test_run import train
from tests.unit.test_recorders import free_port

CONFIG = {"name": "a", "trainer": {"steps": 1}, "output": "s3://key:canary@host/run"}
PICTURES = ["curves", "samples", "energies", "filters"]
QUICK = ("evaluation.samples=2", "evaluation.transitions=2")


class Page(HTMLParser):
    """The text of a page, its pictures, and the tags that were opened and not closed."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.pictures: dict[str, str] = {}
        self.open: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            found = dict(attrs)
            self.pictures[str(found["alt"])] = str(found["src"])
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs that differ in a rate; the folder of one has a bit of HTML in its name."""
    folder = tmp_path_factory.mktemp("runs")
    for name, rate in (("one", 0.1), ("two<b>&more", 0.2)):
        train("rbm", folder / name, *QUICK, f"optimizer.learning_rate={rate}")
    return sorted(folder.iterdir())


def test_a_page_has_everything_within_itself(two: list[Path]) -> None:
    """Its pictures are the run's own files; it asks the network for nothing."""
    one = next(path for path in two if path.name == "one")
    (one / "samples.png").write_bytes(random.Random(0).randbytes(200_000))
    assert main([f"run={one}"]) == 0
    content = (one / "report.html").read_text()
    found = Page(content)
    assert found.open == []
    assert list(found.pictures) == PICTURES
    for name, picture in found.pictures.items():
        kind, _, content64 = picture.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content64) == (one / f"{name}.png").read_bytes()
    assert not re.search("https?://", content)
    text = " ".join(found.text)
    summary = json.loads((one / "summary.json").read_text())
    for words in (*summary["words"], "optimizer.learning_rate", "step 20 of 20"):
        assert words in text


def test_runs_stand_side_by_side_with_what_differs(two: list[Path], tmp_path: Path) -> None:
    """Names of the user's own are text and no HTML."""
    runs = ",".join(str(path) for path in two)
    assert main([f"runs=[{runs}]", f"output={tmp_path}"]) == 0
    content = (tmp_path / "report.html").read_text()
    assert Page(content).open == []
    table = content.partition("Settings that differ")[2].partition("</table>")[0]
    keys = re.findall("<tr><th>([^<]+)</th>", table)
    assert set(keys) == {"optimizer.learning_rate", "output"}
    assert "two<b>" not in content
    assert "two&lt;b&gt;&amp;more" in content


def test_a_run_that_goes_on_has_its_curves(two: list[Path], tmp_path: Path) -> None:
    one = next(path for path in two if path.name == "one")
    moved = ("summary.json", *(f"{name}.png" for name in PICTURES))
    for name in moved:
        (one / name).rename(tmp_path / name)
    try:
        assert main([f"run={one}", f"output={tmp_path / 'page'}"]) == 0
        found = Page((tmp_path / "page" / "report.html").read_text())
        assert list(found.pictures) == ["curves"]
        assert "not evaluated" in " ".join(found.text)
    finally:
        for name in moved:
            (tmp_path / name).rename(one / name)


def test_secrets_of_a_run_are_not_on_its_page() -> None:
    run = Read("s3://key:canary@host/run", 1, masked(CONFIG), {}, {})
    assert "canary" not in page([run, run])


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"run={tmp_path / 'nowhere'}"]) == 2
    assert "no complete checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


def test_a_run_ends_with_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is named in the last lines, and has the run's pictures, those of its filters too."""
    assert train("rbm", tmp_path, *QUICK, drawn=True) == 0
    assert f"  page        {tmp_path}/report.html" in capsys.readouterr().out
    found = Page((tmp_path / "report.html").read_text())
    assert found.open == []
    assert list(found.pictures) == PICTURES
    for name, picture in found.pictures.items():
        content = base64.b64decode(picture.partition(",")[2])
        assert content == (tmp_path / f"{name}.png").read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["page"] == "report.html"
    assert summary["pictures"] == ["energies.png", "filters.png"]
    text = " ".join(found.text)
    for score in (summary["test_log_likelihood"], *summary["baselines"].values()):
        assert f"{score:.2f}" in text


def test_a_page_that_cannot_be_made_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> str:
        raise OSError("no room at s3://key:canary@host/run")

    monkeypatch.setattr("pipeline.runs.page.page", fail)
    assert train("rbm", tmp_path, *QUICK) == 0
    printed = capsys.readouterr().out
    assert "  page        no page: OSError: no room at s3://***@host/run" in printed
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert "no room" in summary["undrawn_page"]
    assert "page" not in summary
    assert not (tmp_path / "report.html").exists()


def test_the_page_of_a_run_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is asked for by HTTP between two steps, and again at once; what Prometheus asks for is as
    ever. A password in the output is on neither.
    """
    port, answers = free_port(), dict[str, str]()
    step, whole = InlineRunner.step, LivePage._make
    made: list[int] = []

    def make(live: LivePage, rows: Sequence[Row]) -> str:
        made.append(len(rows))
        return whole(live, rows)

    def ask(runner: InlineRunner) -> tuple[StepReport, list[RoundReport], Flow]:
        done = step(runner)
        if done[0].version == 15:
            for path in ("", "?again", "metrics"):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}") as answer:
                    answers[path] = answer.read().decode()
        return done

    monkeypatch.setattr(InlineRunner, "step", ask)
    monkeypatch.setattr(LivePage, "_make", make)
    output = f"memory://key:canary@live/{port}"
    assert train("rbm", output, *QUICK, f"metrics.port={port}", "metrics.every=5") == 0
    assert f"http://127.0.0.1:{port}/" in capsys.readouterr().out
    found = Page(answers[""])
    assert found.open == []
    assert list(found.pictures) == ["curves"]
    assert '<progress value="14" max="20">' in answers[""]
    assert '<meta http-equiv="refresh"' in answers[""]
    assert "optimizer.learning_rate" in found.text
    assert made == [2], "once, with the rows of steps 5 and 10"
    assert answers["?again"] == answers[""]
    names = {family.name for family in text_string_to_metric_families(answers["metrics"])}
    assert {"ebm_steps", "ebm_loss"} <= names
    assert not [path for path, answer in answers.items() if "canary" in answer]
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/")


def test_likelihood_and_diagnosis_come_first() -> None:
    """Bounds beside the figure, and verdicts as they are told; what is no HTML stays text."""
    verdict = Verdict("over_fits", "it <rises>", since=40)._asdict()
    summary = {
        "version": 1,
        "test_log_likelihood": -9.04,
        "test_log_likelihood_at_least": -9.53,
        "test_log_likelihood_at_most": -8.73,
        "baselines": {"gaussian": -21.86, "untrained": None},
        "words": ["held-out"],
        "diagnosis": {"verdicts": [verdict], "figures": {"r_hat": 1.25}},
    }
    run = Read("a", 1, CONFIG, summary, {})
    found = Page(page([run]))
    assert found.open == []
    text = " ".join(found.text)
    for words in (
        "-9.53 -9.04 -8.73",
        "-21.86",
        "it <rises>",
        "since step 40",
        "1.25",
    ):
        assert words in text
    assert text.index("-9.53") < text.index("it <rises>") < text.index("all figures")
    rows = [{"step": 10.0, "time": 0.0}, {"step": 30.0, "time": 4.0}]
    beside = Page(page([run, Read("b", 30, CONFIG, {}, {}, rows)]))
    table = " ".join(beside.text).partition("Settings that differ")[0]
    assert "-9.53 -9.04 -8.73" in table
    assert "b (a) 30 5.0" in table, "its speed by its rows"
