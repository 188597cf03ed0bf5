"""The page about runs: what is in it, for runs that are done, that go on, and side by side."""

from __future__ import annotations

import base64
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.common.masking import masked
from pipeline.report import main
from pipeline.runs.page import Read, page
from tests.system.test_run import train

CONFIG = {"name": "a", "trainer": {"steps": 1}, "output": "s3://key:canary@host/run"}
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
    assert list(found.pictures) == ["curves", "samples"]
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
    for name in ("curves.png", "samples.png", "summary.json"):
        (one / name).rename(tmp_path / name)
    try:
        assert main([f"run={one}", f"output={tmp_path / 'page'}"]) == 0
        found = Page((tmp_path / "page" / "report.html").read_text())
        assert list(found.pictures) == ["curves"]
        assert "not evaluated" in " ".join(found.text)
    finally:
        for name in ("curves.png", "samples.png", "summary.json"):
            (tmp_path / name).rename(one / name)


def test_secrets_of_a_run_are_not_on_its_page() -> None:
    run = Read("s3://key:canary@host/run", 1, masked(CONFIG), {}, {})
    assert "canary" not in page([run, run])


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"run={tmp_path / 'nowhere'}"]) == 2
    assert "no complete checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()
