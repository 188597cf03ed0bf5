"""Storage: failures that pass are waited out, others are one line, and nothing is half written."""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.common.errors import ConfigError, StorageError
from pipeline.common.masking import masked
from pipeline.config.run import RunConfig
from pipeline.evaluate import main as evaluate
from pipeline.sample import main as sample
from pipeline.storage import exclusive, files, local, probe, retries
from pipeline.storage.files import Place, locate
from pipeline.storage.paths import check_shared, resolve_output, with_absolute_paths
from pipeline.storage.probe import check_input, check_output
from pipeline.train import main, run
from tests.conftest import SMALL, undrawn
from tests.flaky import Flaky, permanent_failures, transient_failures

Small = Callable[..., RunConfig]
FILE = "flaky://bucket/run/a"
CANARY = "cAnArY5ecret"


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The pauses between attempts, on a clock that only they move."""
    pauses: list[float] = []

    def wait(seconds: float) -> bool:
        pauses.append(seconds)
        return True

    monkeypatch.setattr(retries, "_wait", wait)
    monkeypatch.setattr(retries.time, "monotonic", lambda: sum(pauses))
    with Flaky.installed():
        yield pauses


def put(url: str = FILE, content: bytes = b"content") -> None:
    folder, _, name = url.rpartition("/")
    files.write_file(folder, name, content)


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that is done."""
    output = tmp_path_factory.mktemp("trained")
    with undrawn():
        few = ("trainer.steps=1", "evaluation.samples=0", "evaluation.ais_temperatures=0")
        assert main([*SMALL["rbm"], *few, "cluster=inline", f"output={output}"]) == 0
    return output


OPERATIONS: dict[str, tuple[Callable[[], Any], Any]] = {
    "read": (lambda: files.read_file(FILE), b"content"),
    "write": (lambda: put(content=b"other"), None),
    "size": (lambda: files.size(FILE), 7),
    "exists": (lambda: files.exists(FILE), True),
    "names": (lambda: files.names("flaky://bucket/run"), ["a"]),
    "move": (lambda: files.move(FILE, FILE + "2"), None),
    "remove": (lambda: files.remove(FILE), None),
    "open": (lambda: files.open_file(FILE).read(), b"content"),
    "is_folder": (lambda: files.is_folder(FILE), False),
    "files_below": (lambda: [*map(str, files.files_below(locate("flaky://bucket")))], None),
}


@pytest.mark.parametrize("kind", transient_failures())
@pytest.mark.parametrize("operation", OPERATIONS)
def test_failures_that_pass_are_waited_out(
    operation: str, kind: str, slept: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    put()
    run, expected = OPERATIONS[operation]
    Flaky.failures += [transient_failures()[kind] for _ in range(3)]
    found = run()
    assert expected is None or found == expected
    assert not Flaky.failures
    assert len(slept) == 3
    assert len(caplog.records) == 1  # a warning for them all
    if operation == "write":
        assert files.read_file(FILE) == b"other"
    if operation == "move":
        assert files.names("flaky://bucket/run") == ["a2"]
    if operation == "remove":
        assert not files.exists(FILE)


@pytest.mark.parametrize("kind", permanent_failures())
@pytest.mark.parametrize("operation", OPERATIONS)
def test_failures_that_stay_are_one_line_at_once(
    operation: str, kind: str, slept: list[float]
) -> None:
    put()
    failure, words = permanent_failures()[kind]
    Flaky.fails = lambda *_: failure
    with pytest.raises(StorageError) as raised:
        OPERATIONS[operation][0]()
    assert not slept
    text = str(raised.value)
    assert text.startswith("flaky://bucket")
    assert words in text
    assert "\n" not in text
    assert str(pickle.loads(pickle.dumps(raised.value))) == text


def test_a_server_away_for_15_seconds_is_waited_for_and_one_for_longer_is_not(
    slept: list[float],
) -> None:
    put()
    Flaky.fails = lambda *_: ConnectionRefusedError() if sum(slept) < 15 else None
    assert files.read_file(FILE) == b"content"
    assert 15 <= sum(slept) < 30
    assert max(slept) <= retries.LONGEST
    slept.clear()
    Flaky.fails = lambda *_: ConnectionRefusedError(errno.ECONNREFUSED, "refused")
    with pytest.raises(StorageError, match=r"read for \d+ s.*refused.*its address"):
        files.read_file(FILE)
    assert 30 < sum(slept) <= retries.LIMIT


def test_a_file_that_is_not_there_is_just_that(slept: list[float]) -> None:
    absent = "flaky://bucket/nothing"
    for operation in (files.read_file, files.size, files.open_file, files.remove):
        with pytest.raises(FileNotFoundError):
            operation(absent)
    with pytest.raises(FileNotFoundError):
        files.move(absent, FILE)
    assert not files.exists(absent)
    assert files.names(absent) == []
    assert not slept


class AnsweredError(Exception):
    """What a client raises of a response."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


def test_a_failure_that_its_client_takes_for_absence_is_seen(slept: list[float]) -> None:
    """The client of HTTP says of every failure that the file is not there."""
    put()

    def absent(cause: Exception) -> FileNotFoundError:
        error = FileNotFoundError(FILE)
        error.__cause__ = cause
        return error

    Flaky.failures += [absent(ConnectionResetError("reset")), absent(AnsweredError(503))]
    assert files.exists(FILE)
    assert len(slept) == 2
    Flaky.failures.append(absent(AnsweredError(403)))
    with pytest.raises(StorageError, match=r"status 403.*check the user or key"):
        files.exists(FILE)
    Flaky.failures.append(absent(AnsweredError(404)))
    assert not files.exists(FILE)


def test_a_change_whose_answer_was_lost_is_made_once() -> None:
    """The server did it, and the connection broke before it could say so."""
    put()
    whole = Flaky.mv

    def lost(system: Flaky, *arguments: Any, **options: Any) -> None:
        first = not Flaky.calls["mv"]
        whole(system, *arguments, **options)
        if first:
            raise ConnectionResetError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flaky, "mv", lost)
        files.move(FILE, FILE + "2")
    assert files.names("flaky://bucket/run") == ["a2"]


def test_a_reader_goes_on_where_it_was() -> None:
    put(content=bytes(range(100)))
    reader = files.open_file(FILE)
    assert reader.read(10) == bytes(range(10))
    Flaky.failures += [ConnectionResetError(), TimeoutError(), OSError("bad")]
    assert reader.read(5) == bytes(range(10, 15))
    assert reader.seek(-4, os.SEEK_END) == 96
    assert reader.read() == bytes(range(96, 100))
    assert reader.tell() == 100


def test_a_bucket_is_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an object store no folder is made; elsewhere none that may be a bucket."""
    with pytest.raises(StorageError, match="no such bucket or folder"):
        files.write_file("flaky://bukket/run", "a", b"")
    with pytest.raises(ConfigError, match=r"^output=flaky://bukket/run: .*no such bucket"):
        check_output("flaky://bukket/run")
    monkeypatch.setattr(files, "OBJECT_STORES", {"flaky"})
    monkeypatch.setattr(probe, "OBJECT_STORES", {"flaky"})
    monkeypatch.setattr(Flaky, "makedirs", None)
    put()
    assert files.read_file(FILE) == b"content"
    with pytest.raises(ConfigError, match=r"no such bucket"):  # though it would take the file
        check_output("flaky://bukket/run")
    assert not [path for path in Flaky.store if "bukket" in path]


def test_a_write_on_disk_is_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content is on the disk before its name is, and the name before the call returns."""
    files.write_file(f"{tmp_path}/new/folder", "a", b"old")
    done = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(local.os, "fsync", lambda f: (done.append("fsync"), sync(f)))
    monkeypatch.setattr(local.os, "replace", lambda a, b: (done.append("rename"), replace(a, b)))
    files.write_file(f"{tmp_path}/new/folder", "a", b"new")
    assert done == ["fsync", "rename", "fsync"]

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(local.os, "fsync", full)
    with pytest.raises(StorageError, match="make room"):
        files.write_file(f"{tmp_path}/new/folder", "a", b"newer")
    assert files.read_file(f"{tmp_path}/new/folder/a") == b"new"
    assert files.names(f"{tmp_path}/new/folder") == ["a"]


# -- URLs and places -------------------------------------------------------------------------------


def test_the_home_folder_is_expanded(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert resolve_output(small("rbm", "output=~/runs/a")) == "/home/somebody/runs/a"
    rows = ("data=columns", "data.path=~/rows/*.parquet", "energy=mlp", "kernel=mala")
    config = with_absolute_paths(small("deep", *rows))
    assert config.data.path == "/home/somebody/rows/*.parquet"  # type: ignore[attr-defined]
    assert locate("~/a").path == "/home/somebody/a"


@pytest.mark.parametrize(
    ("url", "right"),
    [
        ("s3:/bucket/run", "s3://bucket/run"),
        ("gs:bucket/run", "gs://bucket/run"),
        ("file:/tmp/run", "file:///tmp/run"),
    ],
)
def test_one_slash_is_refused_with_the_right_form(url: str, right: str, small: Small) -> None:
    with pytest.raises(ConfigError) as raised:
        resolve_output(small("rbm", f"output={url}"))
    assert str(raised.value) == f"output={url}: a URL has two slashes behind its colon: {right}"


@pytest.mark.parametrize("url", ["memory://", "memory:///", "file://"])
def test_a_url_of_nothing_is_refused(url: str, small: Small) -> None:
    with pytest.raises(ConfigError, match=rf"^output={url}: names nothing"):
        resolve_output(small("rbm", f"output={url}"))


def test_an_output_where_no_run_can_be_is_refused(trained_run: Path, small: Small) -> None:
    """A run's own folders, whose paths are easily taken for its own; a web server."""
    for name, what in {
        "checkpoints/00000001": "is a checkpoint",
        "checkpoints": "holds the checkpoints of a run",
        "lease": "holds the lease of a run",
    }.items():
        inner = trained_run / name
        with pytest.raises(ConfigError, match=rf"^output=.*/{name}: {what}; give the run's own"):
            run(small("rbm", "cluster=inline", f"output={inner}/"))
        assert not (inner / "checkpoints").exists()
        assert sample([f"run={trained_run}", f"output={inner}", "samples=2"]) == 2
    with pytest.raises(ConfigError, match="web servers give files, and take none"):
        check_output("http://127.0.0.1:9/run")


@pytest.mark.parametrize(
    ("door", "argument", "words"),
    [
        (sample, "run=", "run='': give a run's output"),
        (sample, "run={}/nowhere", "run={}/nowhere: no complete checkpoint"),
        (sample, "run={}/summary.json", "run={}/summary.json: is a file; give"),
        (evaluate, "run={}/nowhere", "run={}/nowhere: no complete checkpoint"),
        (evaluate, "points=s3:/x.npy", "points=s3:/x.npy: a URL has two slashes"),
        (evaluate, "points=flaky://bucket/x.npy", "points=flaky://bucket/x.npy: could not be"),
        (evaluate, "ood=flaky://bucket/x", "ood=flaky://bucket/x: could not be read"),
        (evaluate, "evaluation.samples=1000000000000", "evaluation.samples=1000000000000: takes"),
        (sample, "samples=1000000000000", "samples=1000000000000: takes more than this machine's"),
        (main, "init_from={}/nowhere", "init_from={}/nowhere: no complete checkpoint"),
        (main, "init_from={}/summary.json", "init_from={}/summary.json: is a file"),
        (main, "chains.per_pool=1000000000000", "chains.per_pool=1000000000000: takes more"),
        (main, "chains.pools=1000000000000", "chains.pools=1000000000000: takes more"),
        (main, "evaluation.ais_particles=1000000000000", "evaluation.ais_particles=1000000000000"),
    ],
)
def test_every_door_names_the_key(
    door: Callable[[list[str]], int],
    argument: str,
    words: str,
    trained_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """URLs with nothing there, and counts that no memory holds: one line, before the start."""
    Flaky.fails = lambda *_: PermissionError(errno.EACCES, "Permission denied")
    given = [argument.format(trained_run)]
    if door is main:
        given = [*SMALL["rbm"], "cluster=inline", f"output={tmp_path}/run", *given]
    elif not argument.startswith("run="):
        given.append(f"run={trained_run}")
    capsys.readouterr()
    assert door(given) == 2
    found = capsys.readouterr().err.strip()
    assert found.startswith(f"refused: {words.format(trained_run)}")
    assert "\n" not in found


def test_memory_is_refused_where_there_are_other_processes(small: Small) -> None:
    inline, apart = small("rbm", "cluster=inline"), small("rbm", "cluster=local")
    check_shared(inline, "memory://run")
    check_shared(apart, "s3://bucket/run")
    with pytest.raises(ConfigError, match=r"^output=memory://run: .*cluster=inline"):
        check_shared(apart, "memory://run")
    with pytest.raises(ConfigError, match=r"^init_from=memory://run: "):
        check_shared(small("rbm", "cluster=local", "init_from=memory://run"), "there")


def test_the_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    check_output(f"{tmp_path}/a/b")
    assert list(tmp_path.iterdir()) == []
    check_output("flaky://bucket/run")
    assert not Flaky.store


def test_the_probe_removes_no_folder_that_another_run_may_have_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[Path]] = []

    def look(place: files.Place, *rest: float) -> None:
        seen.append({path for path in tmp_path.rglob("*") if path.is_dir()})
        files.remove(place, *rest)

    monkeypatch.setattr(probe, "remove", look)
    check_output(f"{tmp_path}/a/b")
    assert seen == [set(tmp_path.rglob("*"))]


def test_a_folder_that_goes_while_a_file_is_created_in_it_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def make_once(place: files.Place) -> None:
        files.make_folder(place)
        made.append(Path(place.path))
        if len(made) == 1:
            made[0].rmdir()

    monkeypatch.setattr(exclusive, "make_folder", make_once)
    assert exclusive.create_file(f"{tmp_path}/lease/1", b"mine")
    assert len(made) == 2


@pytest.mark.parametrize("door", ["train", "sample", "evaluate"])
def test_an_output_that_is_a_file_is_refused(
    door: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], trained_run: Path
) -> None:
    (tmp_path / "file").write_text("here")
    output = f"output={tmp_path}/file/run"
    doors = {
        "train": lambda: main([*SMALL["rbm"], "cluster=local", output]),
        "sample": lambda: sample([f"run={trained_run}", output]),
        "evaluate": lambda: evaluate([f"run={trained_run}", output]),
    }
    assert doors[door]() == 2
    found = capsys.readouterr().err.strip()
    assert found.startswith(f"refused: {output}: could not be written")
    assert "a folder is wanted" in found
    assert "\n" not in found


@pytest.mark.parametrize("name", ["checkpoints", "lease"])
def test_a_folder_within_the_output_that_cannot_be_written_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found before the start, and not at the first checkpoint."""
    command, output = [*SMALL["rbm"], "cluster=inline"], f"output={tmp_path}"
    (tmp_path / name).write_text("notes")
    assert main([*command, output]) == 2
    found = capsys.readouterr().err.strip()
    assert found.startswith(f"refused: {output}: could not be written")
    assert "a folder is wanted" in found
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    write = files.write_durably

    def refuse(folder: str, *rest: Any) -> None:
        if folder == f"{tmp_path}/{name}":
            raise PermissionError(errno.EACCES, "Permission denied")
        write(folder, *rest)

    monkeypatch.setattr(files, "write_durably", refuse)
    assert main([*command, output]) == 2
    found = capsys.readouterr().err.strip()
    assert found.startswith(f"refused: {output}: could not be written (")
    assert "what it may do" in found
    assert [path.name for path in tmp_path.rglob("*")] == [name]


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EROFS, "is read-only"), (errno.EACCES, "what it may do")]
)
def test_an_output_without_write_access_is_refused(
    number: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the folders made on the way are gone again."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "write_durably", refuse)
    with pytest.raises(ConfigError, match=words):
        check_output(f"{tmp_path}/a/b")
    assert list(tmp_path.iterdir()) == []


def test_data_that_cannot_be_read_are_refused_in_words(
    slept: list[float],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put("flaky://bucket/data/rows.parquet")
    for failure, words in permanent_failures().values():
        Flaky.fails = lambda *_, failure=failure: failure
        with pytest.raises(ConfigError, match=r"^data\.path=flaky://bucket/data: ") as raised:
            check_input("flaky://bucket/data", "data.path")
        assert words in str(raised.value)
    assert not slept
    Flaky.fails = lambda *_: ConnectionRefusedError(errno.ECONNREFUSED, "refused")
    arguments = [*SMALL["deep"], "data=columns", "kernel=mala", "cluster=local"]
    path = "data.path=flaky://bucket/data/*.parquet"
    assert main([*arguments, path, f"output={tmp_path}/run"]) == 2
    found = capsys.readouterr().err.strip().splitlines()
    assert found[-1].startswith(f"refused: {path}: could not be read")
    assert sum(slept) <= retries.FIRST_LIMIT
    Flaky.fails = None
    check_input("flaky://bucket/data/*.parquet", "data.path")
    check_input("flaky://bucket/nothing", "data.path")  # which the reader has words for
    monkeypatch.setattr(probe, "OBJECT_STORES", {"flaky"})
    check_input("flaky://bucket/nothing", "data.path")
    with pytest.raises(ConfigError, match="no such bucket"):
        check_input("flaky://bukket/data/*.parquet", "data.path")


def test_a_folder_that_cannot_be_listed_is_not_passed_over() -> None:
    """Fewer rows than there are would be trained on without a word."""
    put("flaky://bucket/data/a/1.parquet")
    put("flaky://bucket/data/b/2.parquet")
    denied = PermissionError(errno.EACCES, "Permission denied")
    Flaky.fails = lambda call, path: denied if call == "ls" and path.endswith("/b") else None
    with pytest.raises(StorageError, match="Permission denied"):
        files.files_below(locate("flaky://bucket/data"))


# -- secrets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ftp://user:pass@host/a", "ftp://***@host/a"),
        ("s3://KEY:SEC/RET@bucket/a and more", "s3://***@bucket/a and more"),
        ("https://token@host/a?b=1", "https://***@host/a?b=1"),
        ("https://h/a?b=1&token=x&c=2", "https://h/a?b=1&token=***&c=2"),
        ("https://h/a?sv=1&sig=a%2Fb", "https://h/a?sv=1&sig=***"),
        ("https://h/a?X-Amz-Signature=ab", "https://h/a?X-Amz-Signature=***"),
        (
            "{'key': 'a', 'secret': 'b', 'anon': 'c'}",
            "{'key': '***', 'secret': '***', 'anon': 'c'}",
        ),
        ("http://host:8080/a@b", "http://host:8080/a@b"),
        ("abfs://container@account.dfs.core.windows.net/a",) * 2,
        ("s3://bucket/run-1.2/a=b",) * 2,
        ("/home/a/runs",) * 2,
    ],
)
def test_secrets_are_masked_and_nothing_else(text: str, expected: str) -> None:
    assert masked(text) == expected
    assert masked({"a": [text, 1, None]}) == {"a": [expected, 1, None]}
    assert masked(expected) == expected


@pytest.mark.usefixtures("undrawn")
def test_no_secret_is_written_or_said(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A run whose output and data have passwords: every file, line and warning is without."""
    secret = f"flaky://user:{CANARY}@bucket"
    rows_to("flaky://bucket/data/rows.parquet")
    arguments = [*STREAMED, f"data.path={secret}/data?token={CANARY}"]
    output = f"output={secret}/run"
    Flaky.failures += [ConnectionResetError()]
    assert main([*arguments, output]) == 0
    assert main([*arguments, output]) == 0  # done already
    assert main([*arguments, output, "energy.hidden=[7]"]) == 2
    assert main([*arguments, f"output={secret}/none", f"init_from={secret}/none"]) == 2
    assert sample([f"run={secret}/run", "samples=4", f"data.path={secret}/data"]) == 0
    assert sample([f"run={secret}/run", "samples=4"]) == 0  # which needs no data
    assert evaluate([f"run={secret}/run"]) == 2
    assert "secrets were not stored" in capsys.readouterr().err
    assert evaluate([f"run={secret}/run", "--json", f"data.path={secret}/data?sig={CANARY}"]) == 0
    said = capsys.readouterr()
    assert "flaky://***@bucket" in said.out
    assert CANARY not in said.out + said.err + caplog.text
    written = {path: bytes(file.getvalue()) for path, file in Flaky.store.items()}
    assert any("manifest.json" in path for path in written)
    assert not [path for path, content in written.items() if CANARY.encode() in content]
    assert not [path for path in written if CANARY in path]
    assert not list(tmp_path.iterdir())


# -- runs ------------------------------------------------------------------------------------------

STREAMED = (
    *(*SMALL["deep"], "energy.hidden=[4]", "cluster=inline", "data=columns", "kernel=mala"),
    *("data.held_out=20", "data.memory_limit=1000", "evaluation.samples=0"),
    *("evaluation.ais_temperatures=0", "checkpoint.every=7"),
)


def rows_to(url: str) -> None:
    table = pa.table({name: np.random.default_rng(0).normal(size=600) for name in "xy"})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, row_group_size=60)
    put(url, buffer.getvalue().to_pybytes())


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (
            ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
            "failed: flaky://bucket/rows.parquet: could not be read",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file"),
            "failed: data.path=flaky://bucket/rows.parquet: cannot be read",
        ),
    ],
)
def test_rows_that_can_no_longer_be_read_end_the_run_behind_a_checkpoint(
    failure: OSError,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that is away, a file that is gone: one line and status 1; the run goes on from
    there, and comes to where it would have come.
    """
    rows_to("flaky://bucket/rows.parquet")
    arguments = [*STREAMED, "data.path=flaky://bucket/rows.parquet"]
    assert main([*arguments, f"output={tmp_path}/whole"]) == 0
    reads = Flaky.calls["read"]
    Flaky.calls.clear()
    Flaky.fails = lambda *_: failure if Flaky.calls["read"] > 0.8 * reads else None
    monkeypatch.setattr(retries, "LIMIT", 1.0)
    capsys.readouterr()
    assert main([*arguments, f"output={tmp_path}/run"]) == 1
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(words)
    assert "resume=auto" in line
    saved = sorted(path.name for path in (tmp_path / "run/checkpoints").glob("0*"))
    assert int(saved[-1]) % 7 != 0  # no step is lost
    Flaky.fails = None
    assert main([*arguments, f"output={tmp_path}/run"]) == 0
    ends = [
        json.loads((tmp_path / name / "checkpoints/00000020/manifest.json").read_text())
        for name in ("whole", "run")
    ]
    of_weights = [end["parts"]["energy.safetensors"]["sha256"] for end in ends]
    assert of_weights[0] == of_weights[1]


def test_a_place_is_shown_without_its_secrets() -> None:
    assert str(locate("/a/b/")) == "/a/b"
    place = locate(f"flaky://user:{CANARY}@bucket/a")
    assert isinstance(place, Place)
    assert str(place / "b") == "flaky://bucket/a/b"


def test_log_lines_are_masked() -> None:
    from pipeline.common.masking import MaskingFormatter

    record = logging.LogRecord("a", 30, "", 0, "%s: gone", (f"ftp://u:{CANARY}@h/a",), None)
    assert MaskingFormatter("%(message)s").format(record) == "ftp://***@h/a: gone"
