"""EBM_CONF: a configuration folder that is not the package's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.config.groups import choices, conf_directory


def test_another_folder_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its defaults and its choices count, an experiment of one's own among them."""
    folder = tmp_path / "conf"
    shutil.copytree(conf_directory(), folder)
    (folder / "experiment/toy.yaml").rename(folder / "experiment/mine.yaml")
    (folder / "config.yaml").write_text(
        (folder / "config.yaml").read_text().replace("seed: 0", "seed: 17")
    )
    monkeypatch.setenv("EBM_CONF", str(folder))
    assert conf_directory() == folder
    assert "mine" in choices("experiment")
    assert "toy" not in choices("experiment")
    assert compose(["experiment=mine"]).data.name == "toy"
    assert compose().seed == 17


@pytest.mark.parametrize("made", [(), ("config.yaml",)])
def test_a_folder_that_is_not_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: tuple[str, ...]
) -> None:
    """One that is missing, or only half there, is said by name before anything starts."""
    folder = tmp_path / "conf"
    for name in made:
        folder.mkdir()
        (folder / name).touch()
    monkeypatch.setenv("EBM_CONF", str(folder))
    with pytest.raises(ConfigError, match=r"EBM_CONF.*experiment"):
        compose()
