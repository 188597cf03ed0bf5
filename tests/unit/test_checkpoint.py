"""Checkpoints: whole or not at all, on any file system, and bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

import pipeline
from pipeline.assembly.data import open_data
from pipeline.assembly.energies import make_energy
from pipeline.common.errors import CheckpointError
from pipeline.config.run import RunConfig
from pipeline.energies.weights import flatten
from pipeline.runs.inline import InlineRunner
from pipeline.storage.checkpoint import MANIFEST, Checkpoint, CheckpointStore, find, write_part

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
    """Law 4: stopped at 100 of 200 steps and resumed by a new process's objects, the weights end
    bitwise equal.
    """
    output = str(tmp_path) if where == "disk" else f"memory://{tmp_path.name}-{kind}"
    config = small(kind, "cluster=inline", "trainer.steps=200")
    whole = trained(config, 200)
    checkpoint = save(trained(config, 100), config, output, 100)
    found = CheckpointStore(output, 3).latest()
    assert found is not None
    assert found.folder == checkpoint.folder
    resumed = trained(config, 100, found)
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
            resumed._learner._positives._noisy.set_state(
                fresh._learner._positives._noisy.get_state()
            )  # type: ignore[attr-defined]
        elif forget == "optimizer":
            resumed._learner._optimizer.load_state_dict(fresh._learner._optimizer.state_dict())
        else:
            resumed._pools[1]._generator.set_state(fresh._pools[1]._generator.get_state())
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
    part = tmp_path / "checkpoints" / "00000003" / "pool-1.pt"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    latest = store.latest()
    assert latest is not None
    assert latest.step == 2
    manifest = tmp_path / "checkpoints" / "00000002" / MANIFEST
    manifest.write_text(manifest.read_text()[:-40])
    latest = store.latest()
    assert latest is not None
    assert latest.step == 1
    (tmp_path / "checkpoints" / "00000001" / "learner.pt").unlink()
    assert store.latest() is None
    assert store.damaged
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        find(str(tmp_path))


def test_a_part_changed_after_it_was_found_is_refused(small: Small, tmp_path: Path) -> None:
    config = small("rbm", "cluster=inline")
    checkpoint = save(trained(config, 1), config, str(tmp_path), 1)
    write_part(checkpoint.folder, "pool-0.pt", {"position": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="checksum"):
        checkpoint.read("pool-0.pt")


def test_only_the_newest_are_kept(small: Small, tmp_path: Path) -> None:
    config = small("rbm", "cluster=inline")
    runner = trained(config, 1)
    for step in (1, 2, 10):
        save(runner, config, str(tmp_path), step, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "00000002",
        "00000010",
    ]


def test_retention_counts_whole_checkpoints_and_never_the_newest(
    small: Small, tmp_path: Path
) -> None:
    """A half-written one of a later step, given up since, must not push the good ones out."""
    config = small("rbm", "cluster=inline")
    runner = trained(config, 1)
    save(runner, config, str(tmp_path), 1000, keep=1)
    store = CheckpointStore(str(tmp_path), 1)
    runner.save(store.folder(900))
    runner.save(store.folder(1337))
    save(runner, config, str(tmp_path), 1200, keep=1)
    latest = store.latest()
    assert latest is not None
    assert latest.step == 1200
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00001200"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=1", "seed=0"),
        ("energy.hidden=[8]", "energy="),
        ("chains.per_pool=4", "chains.per_pool=8"),
        ("data.noise=0.3", "data="),
    ],
)
def test_a_run_it_does_not_fit_is_refused(
    small: Small, tmp_path: Path, override: str, words: str
) -> None:
    config = small("deep", "cluster=inline")
    checkpoint = save(trained(config, 1), config, str(tmp_path), 1)
    checkpoint.check_fits(
        small("deep", "trainer.steps=40", "optimizer.learning_rate=0.5", "cluster=local")
    )
    with pytest.raises(CheckpointError, match=words):
        checkpoint.check_fits(small("deep", override))


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
    (Path(checkpoint.folder) / MANIFEST).write_text(json.dumps(manifest))
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
    path.write_text(json.dumps(manifest))
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
    parts = checkpoint.manifest["parts"]
    assert set(parts) == {"learner.pt", "energy.pt", "pool-0.pt", "pool-1.pt"}
    file_system, path = fsspec.core.url_to_fs(checkpoint.folder)
    for name, part in parts.items():
        assert file_system.size(f"{path}/{name}") == part["bytes"]
    assert checkpoint.manifest["config"]["energy"]["hidden"] == 16
