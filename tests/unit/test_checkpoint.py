"""Checkpoints: whole or not at all, on any file system, and bit for bit."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

import pipeline
from pipeline.assembly.data import open_data
from pipeline.assembly.energies import make_energy
from pipeline.common.errors import CheckpointError, ConfigError, DamagedError
from pipeline.config.run import RunConfig
from pipeline.energies.weights import flatten
from pipeline.evaluate import main as evaluate_main
from pipeline.runs.inline import InlineRunner
from pipeline.sample import main as sample_main
from pipeline.storage import store
from pipeline.storage.checkpoint import Checkpoint
from pipeline.storage.manifest import MANIFEST, seal
from pipeline.storage.parts import Snapshot
from pipeline.storage.store import CheckpointStore, find, find_averaged
from pipeline.train import main
from tests.conftest import SMALL

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]
Small = Callable[..., RunConfig]


def save(
    runner: InlineRunner, config: RunConfig, output: str, step: int, keep: int = 3
) -> Checkpoint:
    store = CheckpointStore(output, keep)
    data = open_data(config)
    energy = make_energy(config, data.shape, data.context_shape)
    return store.commit(step, runner.save(store.folder(step)), config, energy)


def trained(config: RunConfig, steps: int, checkpoint: Checkpoint | None = None) -> InlineRunner:
    runner = InlineRunner(config)
    runner.start(checkpoint, None)
    for _ in range(steps):
        runner.step()
    return runner


def final_weights(runner: InlineRunner) -> np.ndarray:
    return runner._learner.publish().flat


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("rbm", "disk"),
        ("rbm", "memory"),
        ("deep", "disk"),
        ("ladder", "disk"),
        ("conditional", "disk"),
        pytest.param("conv", "disk", marks=pytest.mark.slow),
    ],
)
def test_resuming_is_as_if_never_stopped(
    small: Small, tmp_path: Path, kind: str, where: str
) -> None:
    """Law 4: stopped at 30 of 60 steps and resumed by a new process's objects, the weights end
    bitwise equal. The ladder's rungs still move when it stops, and have come to rest at the end.
    """
    output = str(tmp_path) if where == "disk" else f"memory://{tmp_path.name}-{kind}"
    adapted = ["kernel.adapt_rounds=45"] if kind == "ladder" else []
    config = small(kind, "cluster=inline", "trainer.steps=60", *adapted)
    whole = trained(config, 60)
    checkpoint = save(trained(config, 30), config, output, 30)
    found = CheckpointStore(output, 3).latest()
    assert found is not None
    assert found.folder == checkpoint.folder
    resumed = trained(config, 30, found)
    assert np.array_equal(final_weights(whole), final_weights(resumed))
    assert np.array_equal(whole._learner.averaged(), resumed._learner.averaged())
    for one, two in zip(whole._pools, resumed._pools, strict=True):
        assert torch.equal(one.state_dict()["position"], two.state_dict()["position"])
        kept, again = one.state_dict()["kept"], two.state_dict()["kept"]
        assert kept is None or torch.equal(kept["position"], again["position"])


def test_forgetting_any_part_of_the_state_is_caught(small: Small, tmp_path: Path) -> None:
    """The test above has teeth: without the noise stream, the optimizer or a pool's stream, weights
    differ.
    """
    config = small("deep", "cluster=inline")
    whole = final_weights(trained(config, 8))
    checkpoint = save(trained(config, 4), config, str(tmp_path), 4)
    fresh = InlineRunner(config)
    for forget in ("noise", "optimizer", "generator"):
        resumed = InlineRunner(config)
        resumed.start(checkpoint, None)
        if forget == "noise":
            resumed._learner._rows._stream._noisy.set_state(
                fresh._learner._rows._stream._noisy.get_state()
            )  # type: ignore[attr-defined]
        elif forget == "optimizer":
            moments = fresh._learner._updates.optimizer.state_dict()
            resumed._learner._updates.optimizer.load_state_dict(moments)
        else:
            resumed._pools[1].generator.set_state(fresh._pools[1].generator.get_state())
        for _ in range(4):
            resumed.step()
        assert not np.array_equal(whole, final_weights(resumed)), forget


def test_half_written_and_damaged_checkpoints_are_passed_over(small: Small, tmp_path: Path) -> None:
    config = small("rbm", "cluster=inline")
    runner = trained(config, 1)
    for step in (1, 2, 3, 4):
        save(runner, config, str(tmp_path), step, keep=9)
    store = CheckpointStore(str(tmp_path), 9)
    (tmp_path / "checkpoints" / "00000004" / MANIFEST).unlink()
    part = tmp_path / "checkpoints" / "00000003" / "pool-1.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    latest = store.latest()
    assert latest is not None
    assert latest.step == 2
    manifest = tmp_path / "checkpoints" / "00000002" / MANIFEST
    manifest.write_text(manifest.read_text()[:-40])
    latest = store.latest()
    assert latest is not None
    assert latest.step == 1
    (tmp_path / "checkpoints" / "00000001" / "learner.safetensors").unlink()
    assert store.latest() is None
    assert store.committed(), "a run must not start over here unasked"
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        find(str(tmp_path))


def test_a_part_changed_after_it_was_found_is_refused(small: Small, tmp_path: Path) -> None:
    config = small("rbm", "cluster=inline")
    checkpoint = save(trained(config, 1), config, str(tmp_path), 1)
    Snapshot("pool-0", {"position": torch.zeros(3)}).write(checkpoint.folder)
    with pytest.raises(DamagedError, match=r"damaged: pool-0\.safetensors: its size is"):
        checkpoint.read("pool-0")
    save(trained(config, 1), config, str(tmp_path), 1)
    flip(part(tmp_path, 1, "pool-0.safetensors"))
    with pytest.raises(DamagedError, match="checksum"):
        checkpoint.read("pool-0")
    (Path(checkpoint.folder) / "pool-1.safetensors").unlink()
    with pytest.raises(DamagedError, match="gone"):
        checkpoint.read("pool-1")


def test_a_url_that_nothing_serves_is_refused() -> None:
    with pytest.raises(ConfigError, match="url=nosuch://x"):
        find("nosuch://x")


# -- damage --------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    """A byte changes, the size does not: only a checksum tells."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {"flipped": flip, "truncated": truncate, "gone": Path.unlink}


def train(kind: str, output: Path, *overrides: str) -> int:
    return main([*SMALL[kind], "cluster=inline", f"output={output}", *overrides])


def part(output: Path, step: int, name: str) -> Path:
    return output / "checkpoints" / f"{step:08d}" / name


class Counted(Counter[str]):
    """Counts how often each part of the checkpoint in `folder` is opened for reading, and `hashed`,
    how often one is hashed.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        super().__init__()
        self.hashed = 0
        opened, hash_of = LocalFileSystem._open, hashlib.sha256

        def noted(system: LocalFileSystem, path: str, mode: str = "rb", **options: Any) -> Any:
            within, _, name = path.rpartition("/")
            if mode == "rb" and within == str(folder) and name.endswith(".safetensors"):
                self[name] += 1
            return opened(system, path, mode, **options)

        def hashing(*content: bytes) -> Any:
            self.hashed += 1
            return hash_of(*content)

        monkeypatch.setattr(LocalFileSystem, "_open", noted)
        monkeypatch.setattr(hashlib, "sha256", hashing)


def test_a_resumed_run_reads_and_hashes_each_part_once(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not what it does not need: the averaged weights alone."""
    config = small("rbm", "cluster=inline")
    save(trained(config, 1), config, str(tmp_path), 1)
    counted = Counted(monkeypatch, part(tmp_path, 1, ""))
    trained(config, 0, CheckpointStore(str(tmp_path), 3).latest())
    assert counted == {"learner.safetensors": 1, "pool-0.safetensors": 1, "pool-1.safetensors": 1}
    assert counted.hashed == 4, "three parts, and the manifest without its checksum"


def test_training_on_reads_each_part_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for what its first save reads back, where the parts are not large."""
    monkeypatch.setattr(store, "READ_BACK", 0)
    assert train("rbm", tmp_path) == 0
    counted = Counted(monkeypatch, part(tmp_path, 20, ""))
    assert train("rbm", tmp_path, "trainer.steps=30") == 0
    assert counted == {"learner.safetensors": 1, "pool-0.safetensors": 1, "pool-1.safetensors": 1}


def test_a_run_that_is_done_reads_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train("rbm", tmp_path) == 0
    counted = Counted(monkeypatch, part(tmp_path, 20, ""))
    assert train("rbm", tmp_path) == 0
    assert not counted


@pytest.mark.parametrize("door", ["load", "sample", "evaluate", "init_from"])
def test_the_other_doors_read_the_averaged_weights_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    assert train("rbm", tmp_path / "run") == 0
    counted = Counted(monkeypatch, part(tmp_path / "run", 20, ""))
    if door == "load":
        pipeline.load(str(tmp_path / "run"))
    elif door == "sample":
        assert sample_main([f"run={tmp_path / 'run'}", "samples=4", "transitions=2"]) == 0
    elif door == "evaluate":
        assert evaluate_main([f"run={tmp_path / 'run'}", "evaluation.samples=0"]) == 0
    else:
        assert train("rbm", tmp_path / "other", f"init_from={tmp_path / 'run'}") == 0
    assert counted == {"energy.safetensors": 1}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("learner.safetensors", "flipped"),
        ("pool-1.safetensors", "flipped"),
        ("pool-1.safetensors", "gone"),
    ],
)
def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    """It ends where one ends that was never stopped: nothing of the damaged one was taken up."""
    quick = ("evaluation.samples=0", "evaluation.ais_temperatures=0")
    whole = tmp_path / "whole"
    assert train("deep", tmp_path / "run", *quick) == 0
    DAMAGE[damage](part(tmp_path / "run", 20, name))
    assert train("deep", tmp_path / "run", "trainer.steps=30", *quick) == 0
    assert "resuming at step 10 of 30" in capsys.readouterr().out
    assert train("deep", whole, "trainer.steps=30", *quick) == 0
    one, two = (find(str(url)).read("learner") for url in (tmp_path / "run", whole))
    assert torch.equal(one["weights"], two["weights"])


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    assert train("rbm", tmp_path) == 0
    DAMAGE[damage](part(tmp_path, 10, "learner.safetensors"))
    DAMAGE[damage](part(tmp_path, 20, "pool-0.safetensors"))
    assert train("rbm", tmp_path, "trainer.steps=30") == 2
    assert "resume=never starts over" in capsys.readouterr().err


@pytest.mark.parametrize("damage", DAMAGE)
def test_load_takes_the_newest_weights_that_are_whole(tmp_path: Path, damage: str) -> None:
    assert train("rbm", tmp_path) == 0
    DAMAGE[damage](part(tmp_path, 20, "energy.safetensors"))
    checkpoint, weights = find_averaged(str(tmp_path))
    assert checkpoint.step == 10
    assert np.array_equal(flatten(pipeline.load(str(tmp_path))), weights)
    DAMAGE[damage](part(tmp_path, 10, "energy.safetensors"))
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        pipeline.load(str(tmp_path))


def test_a_warm_start_takes_the_newest_weights_that_are_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("rbm", tmp_path / "run") == 0
    flip(part(tmp_path / "run", 20, "energy.safetensors"))
    warm = ("trainer.steps=10", f"init_from={tmp_path / 'run'}", "resume=never")
    assert train("rbm", tmp_path / "other", *warm) == 0
    flip(part(tmp_path / "run", 10, "energy.safetensors"))
    assert train("rbm", tmp_path / "other", *warm) == 2
    assert "no complete checkpoint" in capsys.readouterr().err
    assert find(str(tmp_path / "other")).step == 10, "what is refused leaves the old run"


# -- checkpoints of before -----------------------------------------------------------------------

# Written at commit 999e760: `resumed.npz` holds the weights that its own code came to, when it went
# on from the checkpoint to step 10; the figures are those that it found at step 6.
BEFORE = Path(__file__).parent / "checkpoints"
OLD = (
    *("chains.per_pool=4", "trainer.batch_size=8", "checkpoint.every=4", "metrics.every=2"),
    *("evaluation.transitions=5", "evaluation.samples=4", "metrics.port=0", "cluster=inline"),
)
OLD_RUNS = {
    "rbm": ("experiment=digits_rbm", "energy.hidden=2", *OLD),
    "deep": (
        *("kernel.transitions=2", "energy.hidden=[4]", *OLD),
        *("evaluation.ais_temperatures=5", "evaluation.ais_particles=4"),
    ),
}
OLD_FIGURES = {
    "rbm": {"test_log_likelihood": -25.347272895687198, "log_z": 34.72645103638846},
    "deep": {"test_log_likelihood": -107.73062515619048, "log_z": 84.03791212833914},
}


@pytest.mark.parametrize("kind", OLD_RUNS)
def test_a_checkpoint_of_before_resumes(tmp_path: Path, kind: str) -> None:
    """To the weights that the code which wrote it came to; another processor rounds differently in
    the last digit, and a lost random stream or moment would show in the first.
    """
    shutil.copytree(BEFORE / kind, tmp_path / "run")
    assert main([*OLD_RUNS[kind], f"output={tmp_path / 'run'}", "trainer.steps=10"]) == 0
    checkpoint, theirs = find(str(tmp_path / "run")), np.load(BEFORE / kind / "resumed.npz")
    assert checkpoint.step == 10
    for name, key in (("learner", "weights"), ("energy", "averaged")):
        ours = checkpoint.read(name)["weights"].numpy()
        np.testing.assert_allclose(ours, theirs[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", OLD_RUNS)
def test_a_checkpoint_of_before_is_loaded_and_evaluated(tmp_path: Path, kind: str) -> None:
    """Though its configuration does not know of recorders."""
    url = str(BEFORE / kind)
    weights = find(url).read("energy")["weights"].numpy()
    assert np.array_equal(flatten(pipeline.load(url)), weights)
    assert evaluate_main([f"run={url}", f"output={tmp_path}"]) == 0
    figures = json.loads((tmp_path / "summary.json").read_text())["figures"]
    for name, value in OLD_FIGURES[kind].items():
        assert figures[name] == pytest.approx(value, rel=1e-5)
    assert sample_main([f"run={url}", f"output={tmp_path}", "samples=4", "transitions=2"]) == 0


def test_only_the_newest_are_kept(small: Small, tmp_path: Path) -> None:
    config = small("rbm", "cluster=inline")
    runner = trained(config, 1)
    for step in (1, 2, 10):
        save(runner, config, str(tmp_path), step, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        *("00000002", "00000010", "run.json")
    ]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=1", "seed=0"),
        ("energy.hidden=[8]", r"energy.hidden=\[16, 16\] there, \[8\] here"),
        ("kernel=ula", "kernel.name=mala there, ula here"),
        ("data.noise=0.3", "data.noise=0.15 there, 0.3 here"),
    ],
)
def test_a_run_it_does_not_fit_is_refused(
    small: Small, tmp_path: Path, override: str, words: str
) -> None:
    config = small("deep", "cluster=inline")
    checkpoint = save(trained(config, 1), config, str(tmp_path), 1)
    checkpoint.check_fits(
        small("deep", "trainer.steps=40", "optimizer.learning_rate=0.5", "chains.per_pool=4")
    )
    with pytest.raises(CheckpointError, match=words):
        checkpoint.check_fits(small("deep", override))


def test_streamed_rows_are_refused_by_another_number_of_ranks(small: Small, tmp_path: Path) -> None:
    """Before anything starts. Rows in memory are dealt anew."""
    config = small("deep", "cluster=inline")
    checkpoint, other = save(trained(config, 1), config, str(tmp_path), 1), ("trainer.replicas=2",)
    checkpoint.check_fits(small("deep", *other), {"streamed": False})
    with pytest.raises(CheckpointError, match=r"trainer\.replicas=1 there, 2 here \(rows are str"):
        checkpoint.check_fits(small("deep", *other), {"streamed": True})


@pytest.mark.parametrize("kind", ["rbm", "deep", "conv"])
def test_load_gives_the_averaged_energy(small: Small, tmp_path: Path, kind: str) -> None:
    """From a run or one checkpoint; the function is the average's, ready for calls, without Ray."""
    config = small(kind, "cluster=inline")
    runner = trained(config, 3)
    checkpoint = save(runner, config, str(tmp_path), 3)
    for url in (str(tmp_path), checkpoint.folder, checkpoint.folder + "/", f"file://{tmp_path}"):
        energy = pipeline.load(url)
        assert np.array_equal(flatten(energy), runner._learner.averaged())
    assert not np.array_equal(flatten(energy), final_weights(runner))
    assert energy(torch.zeros(4, 8, 8)).shape == (4,)
    assert not any(parameter.requires_grad for parameter in energy.parameters())
    manifest = json.loads((Path(checkpoint.folder) / MANIFEST).read_text())
    del manifest["config"]["chains"]["restart"]
    (Path(checkpoint.folder) / MANIFEST).write_bytes(seal(manifest))
    pipeline.load(
        str(tmp_path)
    )  # a configuration of an older version, or a newer one, loads all the same


def test_load_refuses_parameters_that_do_not_fit(small: Small, tmp_path: Path) -> None:
    """A buffer or a layer missing from what was stored is said, not dropped in silence."""
    config = small("deep", "cluster=inline")
    checkpoint = save(trained(config, 1), config, str(tmp_path), 1)
    path = Path(checkpoint.folder) / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["signature"].pop()
    path.write_bytes(seal(manifest))
    with pytest.raises(CheckpointError, match="do not fit"):
        pipeline.load(str(tmp_path))


def test_warm_start_takes_the_weights_alone(small: Small, tmp_path: Path) -> None:
    config = small("deep", "cluster=inline")
    runner = trained(config, 3)
    save(runner, config, str(tmp_path), 3)
    other = InlineRunner(small("deep", "cluster=inline", "seed=7"))
    other.start(None, find(str(tmp_path)))
    assert other._learner.version == 0
    assert np.array_equal(final_weights(other), runner._learner.averaged())
    unlike = InlineRunner(small("conv", "cluster=inline"))
    with pytest.raises(CheckpointError, match="init_from"):
        unlike.start(None, find(str(tmp_path)))


def test_manifest_says_what_is_there(small: Small, tmp_path: Path) -> None:
    config = small("rbm", "cluster=inline")
    checkpoint = save(trained(config, 1), config, f"file://{tmp_path}", 1)
    parts = checkpoint.manifest.parts
    names = ("learner", "energy", "pool-0", "pool-1")
    assert set(parts) == {f"{name}.safetensors" for name in names}
    file_system, path = fsspec.core.url_to_fs(checkpoint.folder)
    for name, part in parts.items():
        assert file_system.size(f"{path}/{name}") == part.bytes
    assert checkpoint.manifest.config["energy"]["hidden"] == 16
