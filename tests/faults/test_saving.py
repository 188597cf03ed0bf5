"""Actors that die while a checkpoint is written beside their steps."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import ray

from actors.chain_pool import ChainPool
from pipeline.assembly.energies import make_energy
from pipeline.common.types import Part
from pipeline.runs.inline import InlineRunner
from pipeline.runs.metrics import RunMetrics
from pipeline.runs.saving import Saving
from pipeline.storage.lease import Lease
from pipeline.storage.store import CheckpointStore
from tests.faults.processes import Small, Start, kill, step_until, wait_until_back

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


class SlowStorage(ChainPool):
    """Its first part is not written before there is a file `go` beside the checkpoints."""

    def written(self, save: int, folder: str) -> list[Part] | None:
        go = Path(folder).parent.parent / "go"
        return super().written(save, folder) if go.exists() else None


@pytest.mark.parametrize("lag", [0, 4])
def test_steps_go_on_while_actors_write(
    small: Small, start: Start, tmp_path: Path, lag: int
) -> None:
    """What they write is the state as it was; in lock-step with the bits of one process."""
    config = small("deep", f"trainer.lag={lag}")
    runner, alone = start(config, pool=SlowStorage), InlineRunner(config)
    metrics = RunMetrics("run")
    with Lease(str(tmp_path), lambda _: None) as lease:
        saving = Saving(config, str(tmp_path), make_energy(config, (8, 8)), metrics, lease)
        store = CheckpointStore(str(tmp_path), 3)
        for _ in range(3):
            runner.step()
        saving.save(runner, 3)
        made = sum(len(runner.stretch(4)) for _ in range(5))
        assert made >= 5
        saving.poll()
        assert store.latest() is None
        (tmp_path / "go").touch()
        assert saving.holds(3)
    checkpoint = store.latest()
    assert checkpoint is not None
    assert checkpoint.read("learner")["version"] == 3
    if lag:
        return
    alone.start(None, None)
    for _ in range(3):
        alone.step()
    assert np.array_equal(checkpoint.averaged(), alone._learner.averaged())
    again = InlineRunner(config)
    again.start(checkpoint, None)
    for runner_ in (alone, again):
        runner_.step()
    assert np.array_equal(again._learner.publish().flat, alone._learner.publish().flat)


@pytest.mark.parametrize("who", ["pool", "parameter_server"])
def test_an_actor_that_dies_while_it_writes_costs_that_save_alone(
    small: Small, start: Start, tmp_path: Path, who: str
) -> None:
    config = small("deep", "chains.restart=0")
    runner, metrics = start(config, pool=SlowStorage), RunMetrics("run")
    with Lease(str(tmp_path), lambda _: None) as lease:
        saving = Saving(config, str(tmp_path), make_energy(config, (8, 8)), metrics, lease)
        (tmp_path / "go").touch()
        runner.step()
        saving.save(runner, 1, final=True)
        (tmp_path / "go").unlink()
        for _ in range(2):
            runner.step()
        saving.save(runner, 3)
        actor = runner.pools.members[1].actor if who == "pool" else runner.servers.first
        kill(actor)
        wait_until_back(actor)
        steps = step_until(runner, lambda rounds: len(rounds) == 2)
        time.sleep(0.1)
        (tmp_path / "go").touch()
        saving.settle()
        assert metrics.row()["ebm_checkpoint_failures_total"] == 1
        store = CheckpointStore(str(tmp_path), 3)
        assert [checkpoint.step for checkpoint in store.complete()] == [1]
        assert not list((tmp_path / "checkpoints").glob("00000003/*"))
        version = steps[-1][0].version
        assert steps[0][0].version == (4 if who == "pool" else 2)
        saving.save(runner, version, final=True)
        latest = store.latest()
        assert latest is not None
        assert latest.step == version
    assert ray.get(runner.servers.publish(version)).version == version
