"""Retention: which checkpoints are kept, and that nothing else in an output is touched."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

from pipeline.common.errors import DamagedError
from pipeline.config.run import RunConfig
from pipeline.energies.rbm import BernoulliRBM
from pipeline.energies.weights import flatten
from pipeline.storage import files
from pipeline.storage.checkpoint import Checkpoint
from pipeline.storage.manifest import MANIFEST, Figure
from pipeline.storage.parts import Snapshot
from pipeline.storage.retention import Kept, kept_steps
from pipeline.storage.store import CheckpointStore, find
from pipeline.train import main
from tests.conftest import SMALL

Save = Callable[..., Checkpoint]


@pytest.fixture
def save(small: Callable[..., RunConfig]) -> Save:
    """`save(store, step, **row)` writes a checkpoint of one small part."""
    config, energy = small("rbm", "cluster=inline"), BernoulliRBM((8, 8), 16, 0.01)

    def saved(store: CheckpointStore, step: int, **row: float) -> Checkpoint:
        state = {"weights": torch.from_numpy(flatten(energy))}
        parts = [Snapshot("energy", state).write(store.prepare(step))]
        return store.commit(step, parts, config, energy, row=row)

    return saved


def listed(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


def folder(output: Path, step: int) -> Path:
    return output / "checkpoints" / f"{step:08d}"


def damage(output: Path, step: int) -> None:
    part = folder(output, step) / "energy.safetensors"
    part.write_bytes(part.read_bytes()[:-1])


def alter(output: Path, step: int) -> None:
    """Changes a byte of a part, whose size stays."""
    part = folder(output, step) / "energy.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)


def unfinished(output: Path, step: int) -> None:
    """Leaves what an interrupted save leaves."""
    Snapshot("pool-0", {"position": torch.zeros(3)}).write(str(folder(output, step)))


# -- which are kept ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "steps"),
    [
        (Kept(2), {40, 50}),
        (Kept(9), {10, 20, 30, 40, 50}),
        (Kept(1, every=20), {20, 40, 50}),
        (Kept(1, best="loss"), {20, 50}),
        (Kept(1, best="max:loss"), {40, 50}),
        (Kept(1, best="other"), {30, 50}),
        (Kept(1, best="unheard"), {50}),
    ],
)
def test_the_newest_few_are_kept(kept: Kept, steps: set[int]) -> None:
    """With them those that `every` and `best` ask for; of equals the newest is the best."""
    values = {10: 0.0, 20: 0.0, 40: 5.0, 50: 1.0}
    whole = [(step, Figure(name="loss", value=value)) for step, value in values.items()]
    assert kept_steps(kept, sorted([*whole, (30, Figure(name="other", value=1.0))])) == steps


def test_what_is_kept_in_storage(save: Save, tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), 2, every=40, best="max:f")
    for step, value in ((10, 1.0), (20, 9.0), (30, 2.0), (40, 1.0), (50, 1.0), (60, 1.0)):
        save(store, step, f=value)
    assert listed(tmp_path) == ["00000020", "00000040", "00000050", "00000060", "run.json"]
    assert json.loads((folder(tmp_path, 20) / MANIFEST).read_text())["figure"] == {
        "name": "f",
        "value": 9.0,
    }
    again = CheckpointStore(str(tmp_path), 2, every=40, best="max:f")
    save(again, 70, f=float("nan"))
    assert listed(tmp_path) == ["00000020", "00000040", "00000060", "00000070", "run.json"]


@pytest.mark.parametrize("harm", [damage, alter])
def test_damaged_checkpoints_do_not_count(
    save: Save, tmp_path: Path, harm: Callable[[Path, int], None]
) -> None:
    """They go when they are older than all that are kept."""
    store = CheckpointStore(str(tmp_path), 2)
    save(store, 10), save(store, 20)
    harm(tmp_path, 20)
    save(store, 30)
    assert listed(tmp_path) == ["00000010", "00000020", "00000030", "run.json"]
    save(store, 40)
    assert listed(tmp_path) == ["00000030", "00000040", "run.json"]


def test_the_newest_is_read_back_before_an_older_one_goes(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(str(tmp_path), 1)
    save(store, 10)
    whole = files.write_file

    def losing(target: str, name: str, content: bytes) -> None:
        whole(target, name, content[:-1] + b"?" if name.startswith("energy") else content)

    monkeypatch.setattr("pipeline.storage.parts.write_file", losing)
    with pytest.raises(DamagedError, match="what is read back is not what was written"):
        save(store, 20)
    assert find(str(tmp_path)).step == 10
    monkeypatch.undo()
    save(store, 20)
    assert listed(tmp_path) == ["00000020", "run.json"]


def test_a_failure_to_remove_is_counted_and_fails_no_save(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: Counter[str] = Counter()
    store = CheckpointStore(str(tmp_path), 1, count=lambda name: counted.update([name]))
    save(store, 10)

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "rm", refused)
        assert save(store, 20).step == 20
    assert counted == {"ebm_checkpoint_prune_failures": 1}
    save(store, 30)
    assert listed(tmp_path) == ["00000030", "run.json"]


# -- whose they are ------------------------------------------------------------------------------


def test_what_is_not_a_checkpoint_of_this_run_is_left_alone(save: Save, tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    for name in ("20261129", "1", "foo", "00000005", "000000007", "\u0662" * 8, "00000006"):
        (root / name).mkdir(parents=True)
        (root / name / "notes.txt").write_text("mine")
    (root / "20261129" / MANIFEST).write_text('{"name": "a page"}')
    (root / "00000006" / "pool-0.safetensors").write_text("of something else")
    (root / "00000004").write_text("a file")
    (root / "00000003").mkdir()
    elsewhere = CheckpointStore(str(tmp_path / "other"), 1)
    save(elsewhere, 8)
    (tmp_path / "other" / "checkpoints" / "00000008").rename(root / "00000008")
    before = listed(tmp_path)
    store = CheckpointStore(str(tmp_path), 1)
    store.start_over()
    for step in (10, 20, 30):
        save(store, step)
    store.go_on_from(30)
    # with no record of a run in the output, the checkpoint at step 8 is taken to be of it
    assert listed(tmp_path) == sorted({*before, "00000030", "run.json"} - {"00000008"})
    assert all(path.read_text() == "mine" for path in root.glob("*/notes.txt"))


def test_a_file_in_the_place_of_a_checkpoint_is_refused(tmp_path: Path) -> None:
    """At the start, and where a save would come to it: others are somebody's own."""
    root = tmp_path / "checkpoints"
    root.mkdir()
    for name in ("00000007", "00000030"):
        (root / name).write_text("mine")
    run = (*SMALL["rbm"], "cluster=inline", f"output={tmp_path}", "checkpoint.every=10")
    assert main([*run, "trainer.steps=30"]) == 2
    assert [path.read_text() for path in root.iterdir()] == ["mine"] * 2
    assert main([*run, "trainer.steps=20"]) == 0
    assert (root / "00000007").read_text() == "mine"


def test_the_checkpoint_of_another_run_is_neither_taken_nor_removed(
    save: Save, tmp_path: Path
) -> None:
    store = CheckpointStore(str(tmp_path / "one"), 1)
    save(store, 10)
    save(CheckpointStore(str(tmp_path / "two"), 1), 15)
    folder(tmp_path / "two", 15).rename(folder(tmp_path / "one", 15))
    assert find(str(tmp_path / "one")).step == 10
    save(store, 20)
    store.go_on_from(10)
    assert "00000015" in listed(tmp_path / "one")


def test_notes_within_a_checkpoint_outlive_it(save: Save, tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), 1)
    save(store, 10)
    (folder(tmp_path, 10) / "notes.txt").write_text("the good one")
    save(store, 20)
    assert [path.name for path in folder(tmp_path, 10).iterdir()] == ["notes.txt"]


def test_interrupted_saves_are_removed(save: Save, tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), 3)
    save(store, 10)
    unfinished(tmp_path, 15), unfinished(tmp_path, 25)
    save(store, 20)
    assert listed(tmp_path) == ["00000010", "00000020", "00000025", "run.json"]
    assert store.go_on_from(20) == []
    assert listed(tmp_path) == ["00000010", "00000020", "run.json"]
    unfinished(tmp_path, 30)
    save(store, 30)
    assert [path.name for path in folder(tmp_path, 30).iterdir() if path.name != MANIFEST] == [
        "energy.safetensors"
    ], "the part of before is not there"


# -- going on below later ones, and starting over ------------------------------------------------


def test_later_checkpoints_are_moved_aside_and_stay(save: Save, tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), 1)
    save(store, 10)
    kept = CheckpointStore(str(tmp_path), 9)
    save(kept, 20), save(kept, 30)
    save(store, 15)
    assert {"00000020", "00000030"} <= set(listed(tmp_path)), "a lower step removes no later one"
    moved = store.go_on_from(15)
    assert [Path(url).name.partition(".aside-")[0] for url in moved] == ["00000020", "00000030"]
    assert find(str(tmp_path)).step == 15
    assert [find(url).step for url in moved] == [20, 30]
    save(store, 40)
    assert listed(tmp_path) == sorted(["00000040", "run.json", *(Path(url).name for url in moved)])


def test_a_run_keeps_its_id_and_a_new_one_gets_another(save: Save, tmp_path: Path) -> None:
    first = save(CheckpointStore(str(tmp_path), 3), 10).manifest.run
    assert save(CheckpointStore(str(tmp_path), 3), 20).manifest.run == first
    (tmp_path / "checkpoints" / "run.json").write_text("{")
    assert save(CheckpointStore(str(tmp_path), 3), 30).manifest.run == first
    store = CheckpointStore(str(tmp_path), 3)
    store.start_over()
    assert save(store, 10).manifest.run != first


def test_an_old_run_goes_when_the_new_one_has_a_checkpoint(
    save: Save, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(str(tmp_path), 3)
    save(store, 10), save(store, 20)
    new = CheckpointStore(str(tmp_path), 3)
    new.start_over()
    assert find(str(tmp_path)).step == 20
    assert list(new.complete(besides=new.runs())) == [], "a new run falls back on none of them"
    save(new, 10)
    assert listed(tmp_path) == ["00000010", "run.json"]
    assert find(str(tmp_path)).manifest.run == new.run
    assert not caplog.records, "what was to go is not told to be anywhere"


def test_a_new_run_that_cannot_clear_is_the_one_that_goes_on(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though checkpoints of the old one are there yet, of later steps."""
    save(CheckpointStore(str(tmp_path), 3), 20)
    store = CheckpointStore(str(tmp_path), 3)
    store.start_over()

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "rm", refused)
        save(store, 10)
    assert "00000020" in listed(tmp_path)
    assert find(str(tmp_path)).step == 10


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_resume_never_clears_after_the_first_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*SMALL["rbm"], "cluster=inline", f"output={tmp_path}", "evaluation.samples=0"]
    assert main(command) == 0
    before = find(str(tmp_path)).manifest.run
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "commit", lambda *_: 1 / 0)
        assert main([*command, "resume=never"]) == 1
    assert (find(str(tmp_path)).step, find(str(tmp_path)).manifest.run) == (20, before)
    assert main([*command, "resume=never", "trainer.steps=10"]) == 0
    assert find(str(tmp_path)).manifest.run != before
    assert listed(tmp_path) == ["00000010", "run.json"]
    capsys.readouterr()


def test_a_figure_that_no_row_has_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*SMALL["rbm"], "cluster=inline", f"output={tmp_path / 'run'}"]
    assert main([*command, "checkpoint.keep_best=max:held_out"]) == 2
    assert "checkpoint.keep_best=max:held_out: names no figure" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_the_best_by_a_figure_of_the_run_is_kept(tmp_path: Path) -> None:
    command = [*SMALL["rbm"], "cluster=inline", f"output={tmp_path}", "evaluation.samples=0"]
    kept = ("checkpoint.every=5", "checkpoint.keep=1", "checkpoint.keep_best=ebm_version")
    assert main([*command, *kept]) == 0
    assert listed(tmp_path) == ["00000005", "00000020", "run.json"]
