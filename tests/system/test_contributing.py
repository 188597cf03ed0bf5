"""CONTRIBUTING.md's worked examples, run as they stand, and `examples/own_parts`."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.assembly.kernels import make_kernel
from pipeline.config import parts
from pipeline.config.compose import compose
from pipeline.config.groups import choices, conf_directory
from pipeline.config.kernels import TunedKernel
from pipeline.train import run
from tests.statistics.laws import law, require
from tests.statistics.test_kernels import stationarity
from tests.unit.test_plugins import OWN, write_metadata

pytestmark = pytest.mark.usefixtures("undrawn", "coarse")
ROOT = Path(__file__).resolve().parent.parent.parent
BLOCK = re.compile(r"^```(?:python|yaml) (\S+)(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = (
    *("cluster=inline", "metrics.port=0", "metrics.every=1", "trainer.steps=5"),
    *("chains.per_pool=8", "evaluation.samples=0", "evaluation.ais_temperatures=0"),
)
NARROW = "energy.hidden=[8,8]"


class Block(NamedTuple):
    """A fenced block of the page: the file that it is (or a line of a table) and its text."""

    path: str
    table: str
    text: str


def blocks() -> list[Block]:
    return [Block(*found) for found in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text())]


@pytest.fixture
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout in which somebody has done what the page says: files beside those of the packages,
    and lines in the tables.
    """
    shutil.copytree(conf_directory(), tmp_path / "conf")
    monkeypatch.setenv("EBM_CONF", str(tmp_path / "conf"))
    for name in ("kernels", "energies", "objectives", "data"):
        package = importlib.import_module(f"pipeline.{name}")
        (tmp_path / "pipeline" / name).mkdir(parents=True)
        more = [*package.__path__, str(tmp_path / "pipeline" / name)]
        monkeypatch.setattr(package, "__path__", more)
    for block in blocks():
        if block.path == "pipeline/config/parts.py":
            names = {"Entry": parts.Entry, "CONTINUOUS": parts.CONTINUOUS}
            for name, entry in eval(f"{{{block.text}}}", names).items():
                monkeypatch.setitem(getattr(parts, block.table), name, entry)
        elif not block.path.startswith("pipeline/runs"):
            (tmp_path / block.path).write_text(block.text)


@pytest.mark.usefixtures("followed")
@pytest.mark.parametrize(
    "overrides",
    [
        ("experiment=toy", "kernel=barker", NARROW),
        ("experiment=toy", "energy=student", "kernel=underdamped"),
        ("experiment=digits_rbm", "objective=flow"),
        ("experiment=toy", "data=spiral", NARROW),
    ],
)
def test_the_worked_examples_train(overrides: tuple[str, ...], tmp_path: Path) -> None:
    group, _, name = overrides[1].partition("=")
    assert name in choices(group)
    summary = run(compose([*overrides, *SMALL, f"output={tmp_path}/run"]))
    assert summary["version"] == 5
    assert summary["skipped_steps"] == 0


@pytest.mark.usefixtures("followed")
@pytest.mark.parametrize("name", parts.CONTINUOUS)
def test_the_kernel_of_the_page_is_exact(name: str) -> None:
    section = compose(["kernel=barker", "kernel.step_size=1.0"]).kernel
    assert isinstance(section, TunedKernel)
    p_values, end = stationarity(make_kernel(section), law(name), section.parameters)
    require(p_values)
    assert 0.1 < end.acceptance < 0.9


def test_the_page_has_every_kind_of_part() -> None:
    assert {block.table for block in blocks()} >= {"KERNELS", "ENERGIES", "OBJECTIVES", "DATA"}


@pytest.fixture
def own_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """`examples/own_parts` as an installed package, and the choice of four of its parts."""
    points = tomllib.loads((OWN / "pyproject.toml").read_text())["project"]["entry-points"]
    write_metadata(tmp_path, points)
    monkeypatch.syspath_prepend(str(OWN))
    monkeypatch.syspath_prepend(str(tmp_path))
    chosen = ("data=hexagon", "kernel=cauchy_walk", "objective=plain_pcd", "energy=custom")
    return (*chosen, "energy.entry_point=ridges", "energy.options={ridges:16}")


def test_a_package_of_ones_own_trains(own_parts: tuple[str, ...], tmp_path: Path) -> None:
    """In one process, with its energy, kernel, objective and data."""
    summary = run(compose([*own_parts, *SMALL, f"output={tmp_path}/run"]))
    assert summary["version"] == 5
    assert summary["skipped_steps"] == 0


def test_recorders_of_ones_own(
    own_parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package's and the page's get the figures of the last step."""
    recording = pytest.importorskip("pipeline.runs.recording")
    (text,) = [block.text for block in blocks() if block.path.endswith("recorders/table.py")]
    (line,) = [block.text for block in blocks() if block.table == "RECORDERS"]
    names: dict[str, Any] = {}
    exec(text, names)
    for name, recorder in eval(f"{{{line}}}", names).items():
        monkeypatch.setitem(recording.RECORDERS, name, recorder)
    recorders = "recorders=[series,last_line,table]"
    run(compose([*own_parts, *SMALL, recorders, f"output={tmp_path}/run"]))
    assert json.loads((tmp_path / "run" / "last_line.json").read_text())["step"] == 5
    assert "5 ebm_" in (tmp_path / "run" / "table.txt").read_text()
