"""Manifests: what they must be, and that a damaged checkpoint is told and passed over."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

import pipeline
from pipeline.common.errors import CheckpointError, DamagedError, FormatError
from pipeline.config.compose import compose
from pipeline.config.run import RunConfig
from pipeline.energies.rbm import BernoulliRBM
from pipeline.energies.weights import flatten
from pipeline.runs.display import Display
from pipeline.runs.run import Execution
from pipeline.runs.summaries import summary_of
from pipeline.storage import retries
from pipeline.storage.checkpoint import Checkpoint
from pipeline.storage.manifest import MANIFEST, seal
from pipeline.storage.parts import Snapshot
from pipeline.storage.store import CheckpointStore, find, find_averaged
from pipeline.train import main
from tests.conftest import SMALL

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return compose([*SMALL["rbm"], "cluster=inline"])


@pytest.fixture
def energy() -> BernoulliRBM:
    return BernoulliRBM((8, 8), hidden=16, weight_scale=0.01)


@pytest.fixture
def save(tmp_path: Path, config: RunConfig, energy: BernoulliRBM) -> Callable[..., Checkpoint]:
    """`save(step, store=None)` writes a checkpoint of small parts under `tmp_path`."""
    import torch

    def saved(step: int, store: CheckpointStore | None = None, **row: float) -> Checkpoint:
        store = store or CheckpointStore(str(tmp_path), 9)
        folder = store.prepare(step)
        weights = {"weights": torch.from_numpy(flatten(energy))}
        parts = [Snapshot(name, weights).write(folder) for name in ("energy", "learner", "pool-0")]
        return store.commit(step, parts, config, energy, row=row)

    return saved


def folder(tmp_path: Path, step: int) -> Path:
    return tmp_path / "checkpoints" / f"{step:08d}"


def edited(path: Path, edit: Edit) -> None:
    """Changes the manifest, whose checksum then holds."""
    manifest = json.loads((path / MANIFEST).read_text())
    edit(manifest)
    (path / MANIFEST).write_bytes(seal(manifest))


def put(key: str, value: Any) -> Edit:
    return lambda manifest: manifest.update({key: value})


def of_part(**fields: Any) -> Edit:
    return lambda manifest: manifest["parts"]["energy.safetensors"].update(fields)


def renamed(name: str) -> Edit:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["parts"][name] = manifest["parts"].pop("energy.safetensors")

    return edit


EDITS = {
    "missing": (lambda manifest: manifest.pop("signature"), "signature: Field required"),
    "more": (put("extra", 1), "extra: Extra inputs are not permitted"),
    "step": (put("step", 3), "is of step 3"),
    "text": (put("step", "2"), "step: Input should be a valid integer"),
    "true": (put("step", True), "step: Input should be a valid integer"),
    "run": (put("run", "../x"), "run: String should match"),
    "config": (put("config", {}), "config: Value error, it has no energy with a name"),
    "parts": (put("parts", []), "parts: Input should be"),
    "large": (of_part(bytes=10**15), "energy.safetensors: its size is"),
    "huge": (of_part(bytes=10**18), "bytes: Input should be less than or equal"),
    "negative": (of_part(bytes=-1), "greater than or equal to 0"),
    "hash": (of_part(sha256="0"), "sha256: String should match"),
    "up": (renamed("../../x"), "String should match"),
    "deep": (renamed("a/energy.safetensors"), "String should match"),
    "dots": (renamed(".."), "String should match"),
    "line": (renamed("energy.safetensors\n"), "String should match"),
    "other": (renamed("notes.txt"), "String should match"),
}


@pytest.mark.parametrize("kind", EDITS)
def test_an_odd_manifest_is_damage(
    save: Callable[..., Checkpoint], tmp_path: Path, kind: str
) -> None:
    edit, words = EDITS[kind]
    save(1), save(2)
    edited(folder(tmp_path, 2), edit)
    check_damaged(tmp_path, words)


CONTENTS = {
    "empty": (b"", "it is no JSON"),
    "list": (b"[]", "it is no JSON object"),
    "null": (b"null", "it is no JSON object"),
    "object": (b"{}", "it has no format version"),
    "true": (b'{"format": true}', "it has no format version"),
    "bytes": (b"\xff\xfe", "it is no JSON"),
    "nested": (b"[" * 100000, "it is no JSON"),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_manifest_of_something_else_is_damage(
    save: Callable[..., Checkpoint], tmp_path: Path, kind: str
) -> None:
    content, words = CONTENTS[kind]
    save(1), save(2)
    (folder(tmp_path, 2) / MANIFEST).write_bytes(content)
    check_damaged(tmp_path, words)


def test_a_manifest_cut_short_anywhere_is_damage(
    save: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    save(1), save(2)
    path = folder(tmp_path, 2) / MANIFEST
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        assert find(str(tmp_path)).step == 1


def test_a_changed_byte_of_a_manifest_is_damage(
    save: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    save(1), save(2)
    path = folder(tmp_path, 2) / MANIFEST
    path.write_text(path.read_text().replace('"step": 2', '"step": 2 '))
    assert find(str(tmp_path)).step == 2, "spelling is no content"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    check_damaged(tmp_path, "its checksum is not that of its content")


@pytest.mark.parametrize("name", [MANIFEST, "energy.safetensors"])
def test_a_folder_in_place_of_a_file_is_damage(
    save: Callable[..., Checkpoint], tmp_path: Path, name: str
) -> None:
    save(1), save(2)
    (folder(tmp_path, 2) / name).unlink()
    (folder(tmp_path, 2) / name).mkdir()
    check_damaged(tmp_path, "folder" if name != MANIFEST else "its manifest is no file")


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b'{"run": "../x"}', b'{"run": 1}', b"\xff"]
)
def test_a_damaged_record_of_the_run_is_told_once_and_written_anew(
    save: Callable[..., Checkpoint],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    content: bytes,
) -> None:
    """The manifests say whose the checkpoints are."""
    run, record = save(1).manifest.run, tmp_path / "checkpoints" / "run.json"
    record.write_bytes(content)
    store = CheckpointStore(str(tmp_path), 9)
    assert [found.step for found in store.complete()] == [1]
    assert save(2, store).manifest.run == run
    assert [each.message for each in caplog.records] == [f"{record} is damaged: it names no run"]
    assert json.loads(record.read_text()) == {"run": run}


def test_a_run_does_not_start_over_beside_checkpoints_that_are_not_called_its_own(
    save: Callable[..., Checkpoint], tmp_path: Path, config: RunConfig, energy: BernoulliRBM
) -> None:
    save(1)
    record = tmp_path / "checkpoints" / "run.json"
    run = Execution(config, str(tmp_path), energy, Display())
    record.write_text(json.dumps({"run": "a" * 32}))
    with pytest.raises(CheckpointError, match=r"run\.json names another run .* remove it to go on"):
        next(run._starts())
    record.unlink()
    record.mkdir()
    with pytest.raises(CheckpointError, match=r"run\.json is a folder; move it away"):
        next(run._starts())
    record.rmdir()
    checkpoint, _ = next(run._starts())
    assert checkpoint is not None


def check_damaged(tmp_path: Path, words: str) -> None:
    """Asserts that the checkpoint at step 2 is told once, counted once, and passed over."""
    counted: Counter[str] = Counter()
    store = CheckpointStore(str(tmp_path), 9, count=lambda name: counted.update([name]))
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("pipeline.storage.store").addHandler(handler)
    try:
        for _ in range(2):
            assert [found.step for found in store.complete()] == [1]
    finally:
        logging.getLogger("pipeline.storage.store").removeHandler(handler)
    assert counted == {"ebm_checkpoints_damaged": 1}
    (told,) = records
    assert told.startswith(f"{folder(tmp_path, 2)}: damaged: ")
    assert words in told
    assert store.committed()
    with pytest.raises(DamagedError):
        find(str(folder(tmp_path, 2)))
    assert pipeline.load(str(tmp_path)) is not None


def test_a_run_from_before_a_setting_of_its_energy_loads(
    save: Callable[..., Checkpoint], tmp_path: Path, energy: BernoulliRBM
) -> None:
    """The setting is as its default has it; one that this version does not know is refused."""
    save(1)
    edited(folder(tmp_path, 1), lambda manifest: manifest["config"]["energy"].pop("weight_scale"))
    assert (flatten(pipeline.load(str(tmp_path))) == flatten(energy)).all()
    edited(folder(tmp_path, 1), lambda manifest: manifest["config"]["energy"].update(later=1))
    with pytest.raises(CheckpointError, match="this version knows no such energy"):
        pipeline.load(str(tmp_path))


def test_another_format_is_refused_by_name(save: Callable[..., Checkpoint], tmp_path: Path) -> None:
    save(1), save(2)
    edited(folder(tmp_path, 2), put("format", 6))
    with pytest.raises(FormatError, match=r"00000002: its format is 6, this version reads 4 and 5"):
        pipeline.load(str(tmp_path))


def test_a_part_that_the_manifest_does_not_name_is_damage(
    save: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    checkpoint = save(1)
    with pytest.raises(DamagedError, match=r"pool-7\.safetensors: its manifest names no such part"):
        checkpoint.read("pool-7")
    edited(folder(tmp_path, 1), lambda manifest: manifest["parts"].pop("energy.safetensors"))
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        find_averaged(str(tmp_path))


def test_a_moved_checkpoint_is_read_where_it_is(
    save: Callable[..., Checkpoint], tmp_path: Path, energy: BernoulliRBM
) -> None:
    save(1)
    shutil.move(folder(tmp_path, 1), tmp_path / "best")
    assert (flatten(pipeline.load(str(tmp_path / "best"))) == flatten(energy)).all()


def test_a_failure_of_storage_is_no_absence(
    save: Callable[..., Checkpoint],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What cannot be looked at may be there: a run does not start at 0 for it."""
    save(1)
    monkeypatch.setattr(retries, "LIMIT", 0.1)

    def broken(*_: Any, **__: Any) -> Iterator[str]:
        raise OSError(5, "Input/output error")

    for way in ("ls", "_open", "info"):
        with monkeypatch.context() as patch:
            patch.setattr(LocalFileSystem, way, broken)
            with pytest.raises(Exception, match="Input/output error"):
                CheckpointStore(str(tmp_path), 9).latest()
    assert CheckpointStore(str(tmp_path), 9).latest() is not None


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_summary_that_is_cut_off_reads_as_not_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*SMALL["rbm"], "cluster=inline", "evaluation.samples=0"]
    assert main([*command, f"output={tmp_path / 'run'}"]) == 0
    summary = tmp_path / "run" / "summary.json"
    whole, checkpoint = summary.read_bytes(), find(str(tmp_path / "run"))
    asked = str(tmp_path / "run"), compose(command), checkpoint
    for content in (whole[:-20], b"", b"[]", b"null", b'{"version": 20}', b"\xff"):
        summary.write_bytes(content)
        assert summary_of(*asked) is None
    summary.write_bytes(whole)
    assert summary_of(*asked) == json.loads(whole)
    capsys.readouterr()
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert main([*command, f"output={tmp_path / 'moved'}"]) == 0
    out = capsys.readouterr().out
    assert "this run is done" in out
    assert f"{tmp_path / 'moved'}/checkpoints/00000020" in out
    assert f"{tmp_path / 'run'}/" not in out
