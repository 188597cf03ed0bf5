"""One run at a time writes to an output: who holds a lease, who may succeed, who has lost it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.common.errors import ConfigError, LostLeaseError, StorageError
from pipeline.storage import files, lease
from pipeline.storage.exclusive import create_file
from pipeline.storage.files import names, read_file, write_file
from pipeline.storage.lease import Holder, Lease

SECONDS = 20  # after which a thread that should have ended is given up
HELD = "import sys; from pipeline.storage.lease import Lease; Lease(sys.argv[1], print).__enter__()"


@pytest.fixture(params=["local", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "run") if request.param == "local" else f"memory://{uuid4().hex}"


@pytest.fixture
def lines() -> list[str]:
    """The lines that leases say."""
    return []


@pytest.fixture
def hold(lines: list[str]) -> Iterator[Callable[[str], Lease]]:
    """`hold(output)` takes a lease, which is given back after the test."""
    held = []

    def take(output: str) -> Lease:
        held.append(Lease(output, lines.append))
        return held[-1].__enter__()

    yield take
    for one in held:
        if one._heart.ident is not None:
            one.__exit__()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT", 0.01)
    monkeypatch.setattr(lease, "POLL", 0.01)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits."""

    def sleep(_: float) -> None:
        raise AssertionError("it waits")

    monkeypatch.setattr(lease.time, "sleep", sleep)


def holder(output: str) -> Holder:
    """Returns the holder of the lease of `output` by its newest file."""
    whole = [name for name in names(f"{output}/lease") if not name.startswith(".")]
    newest = max(whole, key=lambda name: int(name.removesuffix(".json")))
    while True:
        found = lease._parsed(read_file(f"{output}/lease/{newest}"))
        if found:  # not half-written
            return found


def rewrite(output: str, generation: int = 1, **changed: Any) -> None:
    """Makes a lease's file that of another holder; where there is none, of this process."""
    own = Lease(output, print)._holder
    content = json.dumps(own._replace(**changed)._asdict()).encode()
    write_file(f"{output}/lease", f"{generation}.json", content)


@pytest.mark.usefixtures("at_once")
def test_a_second_one_is_refused_and_the_owner_named(
    output: str, hold: Callable[[str], Lease]
) -> None:
    first = hold(output)
    with pytest.raises(ConfigError) as refused:
        hold(output)
    assert (refused.value.key, refused.value.exit_status) == ("output", 2)
    owner = holder(output)
    assert owner.owner == first.owner
    for word in (str(os.getpid()), owner.host, owner.since, first.owner, "another output"):
        assert word in str(refused.value)
    first.check()


@pytest.mark.usefixtures("at_once")
def test_one_that_was_given_back_is_free(
    output: str, hold: Callable[[str], Lease], lines: list[str]
) -> None:
    write_file(output, "metrics.jsonl", b"")
    with Lease(output, lines.append):
        pass
    assert holder(output).released
    second = hold(output)
    second.check()
    assert names(f"{output}/lease") == ["2.json"]
    assert lines == []


def test_a_run_that_wrote_nothing_leaves_nothing(tmp_path: Path) -> None:
    """But for a folder that was there before, and what others put there."""
    there, noted = tmp_path / "there", tmp_path / "noted"
    there.mkdir()
    for output in (tmp_path / "new", there, noted):
        with Lease(str(output), print):
            if output == noted:
                (noted / "notes").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["noted", "there"]
    assert list(there.iterdir()) == []
    assert {path.name for path in noted.iterdir()} == {"lease", "notes"}


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("reaped", [True, False])
def test_a_process_that_was_killed_holds_nothing(
    tmp_path: Path, hold: Callable[[str], Lease], lines: list[str], reaped: bool
) -> None:
    """Whether or not its parent has taken note of its end."""
    code = f"{HELD}; import os; os.kill(os.getpid(), 9)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    if reaped:
        process.wait()
    hold(str(tmp_path)).check()
    process.wait()
    assert len(lines) == 1
    assert f"process {process.pid} on" in lines[0]
    assert "takes it over" in lines[0]


@pytest.mark.usefixtures("at_once")
def test_another_process_is_refused_as_long_as_this_one_runs(
    tmp_path: Path, hold: Callable[[str], Lease]
) -> None:
    hold(str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", HELD, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert f"process {os.getpid()} on" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "lease/2.json").exists()


@pytest.mark.usefixtures("at_once")
def test_a_process_id_that_was_given_anew_is_no_holder(
    output: str, hold: Callable[[str], Lease], lines: list[str]
) -> None:
    rewrite(output, started=lease._started(psutil.Process()) - 60)
    hold(output)
    assert "has gone" in lines[0]


@pytest.mark.parametrize(
    "odd",
    [{"pid": "7"}, {"pid": None}, {"pid": 2**70}, {"pid": 1.5}, {"started": "now"}, {"host": []}],
    ids=str,
)
def test_a_file_that_names_no_process_is_watched(
    output: str,
    hold: Callable[[str], Lease],
    lines: list[str],
    odd: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever wrote it may be alive, and renew it."""
    monkeypatch.setattr(lease, "PATIENCE", 0.02)
    rewrite(output, **odd)
    hold(output)
    assert lines[0].startswith("another run has not given the output up")
    assert lines[1].startswith("another run shows no sign of life")


@pytest.mark.usefixtures("at_once")
def test_a_folder_in_place_of_its_file_is_passed_over_and_left(
    tmp_path: Path, hold: Callable[[str], Lease]
) -> None:
    (tmp_path / "lease/4.json").mkdir(parents=True)
    (tmp_path / "lease/4.json/notes.txt").write_text("mine")
    hold(str(tmp_path)).check()
    assert (tmp_path / "lease/5.json").exists()
    assert (tmp_path / "lease/4.json/notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("at_once")
def test_a_clock_that_is_set_makes_no_process_another(
    output: str, hold: Callable[[str], Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(output)
    created, booted = psutil.Process.create_time, psutil.boot_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: created(self) + 3600)
    monkeypatch.setattr(psutil, "boot_time", lambda: booted() + 3600)
    with pytest.raises(ConfigError, match="writes there"):
        hold(output)


def test_a_heartbeat_from_elsewhere_refuses(
    output: str, hold: Callable[[str], Lease], lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "PATIENCE", SECONDS)
    first = hold(output)
    with first._lock:
        first._holder = first._holder._replace(machine="elsewhere", host="node-7")
    while holder(output).host != "node-7":
        pass
    with pytest.raises(ConfigError, match=r"process .* on node-7 .* writes there"):
        hold(output)
    assert len(lines) == 1
    assert "waiting for up to 20 s" in lines[0]


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"owner": 1}'])
def test_a_heartbeat_that_stands_still_is_taken_over(
    output: str,
    hold: Callable[[str], Lease],
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
    content: bytes | None,
) -> None:
    """That of another machine, and a file that a writer died over."""
    monkeypatch.setattr(lease, "PATIENCE", 0.05)
    if content is None:
        rewrite(output, machine="elsewhere", host="node-7")
    else:
        write_file(f"{output}/lease", "1.json", content)
    second = hold(output)
    assert len(lines) == 2
    assert "waiting" in lines[0]
    assert "takes it over" in lines[1]
    assert all(("node-7" if content is None else "another run") in line for line in lines)
    assert holder(output).owner == second.owner


@pytest.mark.parametrize("given_back", [True, False])
def test_one_that_goes_while_it_is_watched_is_free(
    output: str, hold: Callable[[str], Lease], monkeypatch: pytest.MonkeyPatch, given_back: bool
) -> None:
    rewrite(output, machine="elsewhere")

    def sleep(_: float) -> None:
        if given_back:
            rewrite(output, machine="elsewhere", released=True)
        else:
            files.remove(f"{output}/lease/1.json")

    monkeypatch.setattr(lease.time, "sleep", sleep)
    hold(output).check()


def test_a_holder_that_was_succeeded_finds_out(output: str, hold: Callable[[str], Lease]) -> None:
    """By its heartbeat, and when it asks; and it leaves the file of the new one alone."""
    first = hold(output)
    rewrite(output, generation=2, owner="thenewone", host="node-7")
    first._heart.join(SECONDS)
    assert first.lost
    with pytest.raises(LostLeaseError, match=r"taken over by process .* on node-7 \(run thenewone"):
        first.check()
    first.__exit__()
    assert not holder(output).released
    assert holder(output).owner == "thenewone"


def test_a_holder_finds_out_before_its_heart_beats(
    output: str, hold: Callable[[str], Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT", 1000)
    first = hold(output)
    first.check()
    rewrite(output, generation=1, owner="thenewone")
    with pytest.raises(LostLeaseError, match="thenewone"):
        first.check()


def test_a_file_that_was_removed_is_written_again(
    output: str, hold: Callable[[str], Lease]
) -> None:
    first = hold(output)
    files.remove(f"{output}/lease/1.json")
    first.check()
    while names(f"{output}/lease") != ["1.json"]:
        assert not first.lost


def test_storage_that_is_away_for_a_while_stops_no_heart(
    output: str,
    hold: Callable[[str], Lease],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, away = hold(output), threading.Event()

    def failing(*arguments: Any) -> None:
        if len(caplog.records) < 1 or not away.is_set():
            away.set()
            raise OSError(errno.EIO, "away")
        write_file(*arguments)

    monkeypatch.setattr(lease, "write_file", failing)
    assert away.wait(SECONDS)
    beat = holder(output).beat
    while holder(output).beat == beat:
        assert not first.lost
    assert "could not be renewed" in caplog.text


# -- create_file -----------------------------------------------------------------------------------


def test_one_alone_creates_a_file(output: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        created = list(
            threads.map(lambda n: create_file(f"{output}/a/1", f"writer {n}".encode()), range(8))
        )
    assert sum(created) == 1
    assert read_file(f"{output}/a/1") == f"writer {created.index(True)}".encode()


def test_a_full_disk_leaves_no_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def write(self, _: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fdopen", lambda *_: Full())
    with pytest.raises(StorageError, match="No space left"):
        create_file(str(tmp_path / "1"), b"mine")
    assert list(tmp_path.iterdir()) == []


overwrite = MemoryFileSystem.pipe_file


def without_mode(self: MemoryFileSystem, path: str, value: bytes) -> None:
    """A client that knows no conditions."""
    overwrite(self, path, value)


def mode_ignored(self: MemoryFileSystem, path: str, value: bytes, **_: Any) -> None:
    overwrite(self, path, value)


def not_implemented(
    self: MemoryFileSystem, path: str, value: bytes, mode: str = "overwrite"
) -> None:
    """s3fs, and a server that knows no conditions."""
    if mode == "create":
        raise OSError(errno.ENOSYS, "A header you provided is not implemented")
    overwrite(self, path, value)


def answer_lost(self: MemoryFileSystem, path: str, value: bytes, mode: str = "overwrite") -> None:
    """The client asks again, and meets its own file."""
    overwrite(self, path, value, mode=mode)
    if mode == "create":
        raise FileExistsError(path)


STORES = [without_mode, mode_ignored, not_implemented, answer_lost]


@pytest.mark.parametrize("pipe_file", STORES)
def test_a_file_is_created_once_on_every_kind_of_store(
    monkeypatch: pytest.MonkeyPatch, pipe_file: Callable[..., None]
) -> None:
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    url = f"memory://{uuid4().hex}/lease/1.json"
    assert create_file(url, b"mine")
    assert not create_file(url, b"another's")
    assert read_file(url) == b"mine"


@pytest.mark.parametrize(
    "conflict", [FileExistsError("there"), OSError(errno.EINVAL, "PreconditionFailed")]
)
def test_a_conflict_has_many_names(monkeypatch: pytest.MonkeyPatch, conflict: OSError) -> None:
    """Another writer is quicker, after this one has looked."""
    url = f"memory://{uuid4().hex}/lease/1.json"

    def refusing(self: MemoryFileSystem, path: str, _: bytes, **__: Any) -> None:
        overwrite(self, path, b"another's")
        raise conflict

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refusing)
    assert not create_file(url, b"mine")


def test_any_other_failure_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", away)
    with pytest.raises(StorageError, match="read-only"):
        create_file(f"memory://{uuid4().hex}/lease/1.json", b"mine")


@pytest.mark.parametrize("pipe_file", STORES)
def test_without_conditions_the_last_writer_holds_the_lease(
    hold: Callable[[str], Lease], monkeypatch: pytest.MonkeyPatch, pipe_file: Callable[..., None]
) -> None:
    """Two that looked at the same moment: one goes on, the other finds out."""
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    output = f"memory://{uuid4().hex}"
    first = hold(output)
    with first._lock:
        rewrite(output, owner="thequickone")
    with pytest.raises(LostLeaseError, match="thequickone"):
        first.check()
    first._heart.join(SECONDS)
    assert holder(output).owner == "thequickone", "and it does not write its own again"
