"""Environments that Ray does not start in, or that lead its traffic astray, without a Ray."""

from __future__ import annotations

import logging
import os
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import ray

from actors import surroundings
from actors.cluster import connect
from actors.surroundings import LONGEST_SOCKET, supply_token, temporary_folder
from pipeline.common.errors import ClusterError, ConfigError
from pipeline.common.proxies import PROXIES, keep_loopback_direct
from pipeline.config.compose import compose


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (*surroundings.TOKEN_SETTINGS, "RAY_TMPDIR", "RAY_ADDRESS", "no_proxy", "NO_PROXY")
    for name in (*names, *PROXIES, *map(str.upper, PROXIES)):
        monkeypatch.setenv(name, "")  # so that it is as before when the test is over
        monkeypatch.delenv(name)


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with a short path, through a link, and in the place of /tmp."""
    link = Path("/tmp") / f"t{os.getpid()}"
    link.symlink_to(tmp_path)
    monkeypatch.setattr(surroundings, "USUAL", str(link))
    yield str(link)
    link.unlink()


def test_ray_is_where_temporary_files_are(
    short: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TMPDIR", f"{short}/own")
    assert temporary_folder() == Path(short, "own", "ray")
    monkeypatch.setenv("RAY_TMPDIR", f"{short}/rays")
    assert temporary_folder() == Path(short, "rays", "ray")
    assert not caplog.records


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize("folder", ["x" * 60, "relative", "/dev/null/there"])
def test_where_ray_cannot_be_it_is_in_the_usual_place(
    short: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    folder: str,
) -> None:
    value = f"{short}/{folder}" if folder.startswith("x") else folder
    monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING):
        assert temporary_folder() == Path(short, "ray")
    (said,) = caplog.messages
    assert said.startswith(f"{name}={value}: Ray wants an absolute path of at most ")
    longest = int(said.split(" at most ")[1].split(" ")[0])
    assert longest + 1 + len(surroundings.SOCKET) == LONGEST_SOCKET


def test_without_any_place_for_ray_the_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "USUAL", "/dev/null")
    monkeypatch.setenv("TMPDIR", "/dev/null/mine")
    with pytest.raises(ConfigError, match=r"^TMPDIR=/dev/null/mine: .* /dev/null/ray cannot"):
        temporary_folder()


def test_a_home_that_takes_a_token_is_left_to_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    supply_token()
    assert "RAY_AUTH_TOKEN" not in os.environ


@pytest.mark.parametrize("home", ["/dev/null", "unreadable", "unknown"])
def test_a_home_that_takes_none_is_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    """A token comes by the environment, unless somebody said how Ray is to be guarded."""

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    if home == "unknown":
        monkeypatch.setattr(Path, "home", unknown)
    elif home == "unreadable":
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").symlink_to(tmp_path / "gone")
        monkeypatch.setenv("HOME", str(tmp_path))
    else:
        monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    supply_token()
    assert "RAY_AUTH_TOKEN" not in os.environ
    monkeypatch.delenv("RAY_AUTH_MODE")
    supply_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.parametrize("address", ["", "auto"])
def test_whatever_ray_fails_for_is_one_line(
    short: str, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    def init(**_: Any) -> None:
        raise ValueError("the port\n  is taken")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("TMPDIR", short)
    with pytest.raises(ClusterError) as caught:
        connect(compose(["cluster=local"]), "/runs/one")
    said = str(caught.value)
    assert "ValueError: the port is taken" in said
    assert (f"logs are in {short}/ray/session_latest/logs" in said) is not bool(address)
    assert "\n" not in said


@pytest.mark.parametrize("name", [*PROXIES, "HTTP_PROXY"])
def test_this_machine_is_not_asked_through_a_proxy(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "inner.example, 127.0.0.1")
    keep_loopback_direct()
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"]
    assert os.environ["no_proxy"] == "inner.example,127.0.0.1,localhost,::1"
    for here in ("127.0.0.1:9000", "localhost:9000", "inner.example"):
        assert urllib.request.proxy_bypass(here)
    assert not urllib.request.proxy_bypass("elsewhere.example")


def test_without_a_proxy_nothing_is_set() -> None:
    keep_loopback_direct()
    assert "no_proxy" not in os.environ
