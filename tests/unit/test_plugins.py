"""Parts that installed packages bring."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.assembly.kernels import make_kernel
from pipeline.common.errors import ConfigError
from pipeline.config import parts
from pipeline.config.compose import compose
from pipeline.config.groups import choices
from pipeline.config.keys import describe
from pipeline.kernels.base import Kernel

OWN = Path(__file__).resolve().parent.parent.parent / "examples" / "own_parts"
Install = Callable[[dict[str, dict[str, str]]], None]


def write_metadata(site: Path, points: dict[str, dict[str, str]]) -> None:
    """The metadata of an installed package with these entry points, by group and name."""
    folder = site / "own_parts-0.1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: own-parts\nVersion: 0.1.0\n")
    lines = []
    for group, members in points.items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in members.items())]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """A function that makes `examples/own_parts` an installed package with given entry points."""
    site = tmp_path / "site"
    site.mkdir()

    def installed(points: dict[str, dict[str, str]]) -> None:
        write_metadata(site, points)
        monkeypatch.syspath_prepend(str(OWN))
        monkeypatch.syspath_prepend(str(site))

    return installed


@pytest.fixture
def own(install: Install) -> None:
    """`examples/own_parts`, installed."""
    install(tomllib.loads((OWN / "pyproject.toml").read_text())["project"]["entry-points"])


@pytest.mark.usefixtures("own")
def test_parts_of_an_installed_package_are_choices() -> None:
    """They are offered, described and composed as this project's, inside a ladder and a mixture
    too; a configuration with them survives a trip through pickle.
    """
    for group, name in (("kernel", "cauchy_walk"), ("objective", "plain_pcd"), ("data", "hexagon")):
        assert name in choices(group)
        assert name in parts.names(group)
    chosen = ["data=hexagon", "kernel=cauchy_walk", "objective=plain_pcd", "data.rows=3000"]
    config = compose([*chosen, "kernel.step_size=0.3"])
    assert config.kernel.parameters == {"step_size": 0.3}
    assert config.data.model_dump()["rows"] == 3000
    assert config.contrastive is not None
    assert config.reweight
    assert isinstance(make_kernel(config.kernel), Kernel)
    assert pickle.loads(pickle.dumps(config)) == config
    ladder = compose(["kernel=replica_exchange", "kernel.inner=cauchy_walk", "data=hexagon"])
    assert ladder.kernel.within.name == "cauchy_walk"
    mixture = compose(["objective=mixture", "objective.weights={plain_pcd:1,denoising:0.1}"])
    assert set(mixture.objective.model_dump()["terms"]) == {"plain_pcd", "denoising"}
    meanings = {key: meaning for key, _, meaning in describe()}
    assert "objective=plain_pcd" in meanings["objective.pull"]


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("overrides", "key", "remedy"),
    [
        (["kernel=cauchy_walk", "kernel.step_size=-1"], "kernel.step_size", "greater than 0"),
        (["kernel=cauchy_walk", "kernel.width=1"], "kernel.width", "unknown key"),
        (["kernel=cauchy"], "kernel", "cauchy_walk"),
        (["energy=rbm", "kernel=cauchy_walk"], "kernel", "single_site"),
    ],
)
def test_settings_of_an_installed_part_are_checked(
    overrides: list[str], key: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert caught.value.key == key
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("mala", "own_parts:CAUCHY_WALK", "rename or uninstall that one"),
        ("own", "own_parts:Entry", r"is no pipeline\.config\.parts\.Entry"),
        ("own", "own_parts:NOTHING", "cannot be imported"),
        ("own", "no_such_package:KERNEL", "cannot be imported"),
    ],
)
def test_a_bad_entry_point_is_refused(install: Install, name: str, value: str, remedy: str) -> None:
    install({"pipeline.kernels": {name: value}})
    with pytest.raises(ConfigError, match=remedy):
        compose([f"kernel={name}"])


def test_a_section_without_a_default_is_refused(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install({"pipeline.kernels": {"bare": "own_parts:BARE"}})
    import own_parts

    entry = parts.Entry("pipeline.config.kernels:MALAKernel", "pipeline.kernels.mala:kernel")
    monkeypatch.setattr(own_parts, "BARE", entry, raising=False)
    with pytest.raises(ConfigError, match="MALAKernel has no default for transitions"):
        compose(["kernel=bare"])


def test_names_are_offered_without_an_import(tmp_path: Path) -> None:
    """Seen in a fresh interpreter: neither the package nor torch is loaded before it is chosen."""
    write_metadata(tmp_path, {"pipeline.kernels": {"cauchy_walk": "own_parts:CAUCHY_WALK"}})
    check = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from pipeline.config.compose import compose\n"
        "from pipeline.config.groups import choices\n"
        "compose([]); assert 'cauchy_walk' in choices('kernel')\n"
        "print([m for m in ('own_parts', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", check, str(tmp_path), str(OWN)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
