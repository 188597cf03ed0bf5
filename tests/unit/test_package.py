"""What is shipped: the wheel holds the YAML groups, and works outside the checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow
def test_the_wheel_brings_its_configuration(tmp_path: Path) -> None:
    """Built without a network, unpacked elsewhere: the same files as conf/, found from there."""
    build = [
        "-m",
        "pip",
        "wheel",
        str(ROOT),
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        str(tmp_path),
    ]
    subprocess.run([sys.executable, *build], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    shipped = {
        path.relative_to(tmp_path / "site/pipeline/conf")
        for path in (tmp_path / "site").rglob("conf/**/*.yaml")
    }
    assert shipped == {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    question = (
        "from pipeline.config.compose import compose\n"
        "from pipeline.config.groups import conf_directory\nprint(conf_directory(),"
        " compose().name)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", question],
        cwd=tmp_path / "site",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert answer == [str(tmp_path / "site/pipeline/conf"), "digits"]
