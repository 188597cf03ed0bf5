"""Resuming through Ray: each part of a checkpoint is read once, by the actor that needs it, and a
damaged checkpoint gives way to an older one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from fsspec.implementations.local import LocalFileSystem

from actors.chain_pool import ChainPool
from actors.driver import RayRunner
from actors.parameter_server import ParameterServer
from pipeline.assembly.data import open_data
from pipeline.assembly.energies import make_energy
from pipeline.common.errors import DamagedError, LostLeaseError
from pipeline.config.run import RunConfig
from pipeline.runs.display import Display
from pipeline.runs.inline import InlineRunner
from pipeline.runs.run import Execution
from pipeline.storage.lease import Lease
from pipeline.storage.store import CheckpointStore, find
from tests.unit.test_checkpoint import flip, part, save, trained

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
Small = Callable[..., RunConfig]
Start = Callable[..., RayRunner]
LOG = "reads.log"


def note_reads(output: Path) -> None:
    """From now on, each part that this process opens for reading is a line of the log."""
    opened = LocalFileSystem._open

    def noted(system: LocalFileSystem, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "rb" and path.endswith(".safetensors"):
            with (output / LOG).open("a") as file:
                file.write(path.rpartition("/")[2] + "\n")
        return opened(system, path, mode, **options)

    LocalFileSystem._open = noted


class NotingPool(ChainPool):
    def __init__(self, config: RunConfig, *arguments: Any) -> None:
        note_reads(Path(config.output or ""))
        super().__init__(config, *arguments)


class NotingServer(ParameterServer):
    def __init__(self, config: RunConfig) -> None:
        note_reads(Path(config.output or ""))
        super().__init__(config)


@pytest.fixture
def make() -> Iterator[Start]:
    """`make(config, output, pool=..., server=...)`: a runner, closed after the test."""
    runners = []

    def made(config: RunConfig, output: Path, **actors: type) -> RayRunner:
        data = open_data(config)
        runners.append(RayRunner(config, str(output), data.shape, data.context_shape, **actors))
        return runners[-1]

    yield made
    for runner in runners:
        runner.close()


def weights(runner: RayRunner) -> np.ndarray:
    return ray.get(runner.servers.first.publish.remote(runner._version)).flat


def test_driver_and_actors_read_each_part_once(
    small: Small, tmp_path: Path, make: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small("rbm", f"output={tmp_path}")
    save(trained(config, 2), config, str(tmp_path), 2)
    monkeypatch.setattr(LocalFileSystem, "_open", LocalFileSystem._open)  # put back afterwards
    note_reads(tmp_path)
    runner = make(config, tmp_path, pool=NotingPool, server=NotingServer)
    runner.start(CheckpointStore(str(tmp_path), 3).latest(), None)
    read = Counter((tmp_path / LOG).read_text().split())
    assert read == {"learner.safetensors": 1, "pool-0.safetensors": 1, "pool-1.safetensors": 1}


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("pool-1.safetensors", ()),
        ("learner.safetensors", ()),
        pytest.param("pool-1.safetensors", ("trainer.replicas=2",), marks=pytest.mark.slow),
    ],
)
def test_a_damaged_checkpoint_gives_way_to_an_older_one(
    small: Small, tmp_path: Path, make: Start, name: str, overrides: tuple[str, ...]
) -> None:
    """The run ends where it ends that goes on from the older one in one process."""
    quick = ("evaluation.samples=0", "evaluation.ais_temperatures=0")
    config = small("deep", "trainer.steps=6", *quick)
    for step in (2, 4):
        save(trained(config, step), config, str(tmp_path), step)
    older = next(c for c in CheckpointStore(str(tmp_path), 3).complete() if c.step == 2)
    expected = InlineRunner(config)
    expected.start(older, None)
    for _ in range(4):
        expected.step()
    flip(part(tmp_path, 4, name))
    config = small("deep", "trainer.steps=6", *quick, *overrides)
    run = Execution(config, str(tmp_path), make_energy(config, (8, 8)), Display())
    run.carry_out(lambda _: make(config, tmp_path))
    learned = find(str(tmp_path)).read("learner")["weights"].numpy()
    # means over two ranks are rounded otherwise
    np.testing.assert_allclose(
        learned, expected._learner.publish().flat, atol=1e-3 if overrides else 0, rtol=0
    )


def test_a_run_whose_output_was_taken_over_keeps_its_work(
    small: Small, tmp_path: Path, make: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Actors write the checkpoint elsewhere, and a run in one process goes on from it."""
    config = small("rbm")
    copied = RayRunner.snapshot

    def succeeded(self: RayRunner) -> Any:
        content = Lease(str(tmp_path), print)._holder._replace(owner="thenewone")
        (tmp_path / "lease/2.json").write_text(json.dumps(content._asdict()))
        return copied(self)

    monkeypatch.setattr(RayRunner, "snapshot", succeeded)
    run = Execution(config, str(tmp_path), make_energy(config, (8, 8)), Display())
    with pytest.raises(LostLeaseError, match="thenewone"):
        run.carry_out(lambda _: make(config, tmp_path))
    assert CheckpointStore(str(tmp_path), 3).latest() is None
    (aside,) = tmp_path.glob("displaced-*")
    checkpoint = find(str(aside))
    # steps may have gone on while a thread found out
    assert 10 <= checkpoint.step < 20
    whole = trained(config, checkpoint.step)
    resumed = InlineRunner(config)
    resumed.start(checkpoint, None)
    assert np.array_equal(resumed._learner.publish().flat, whole._learner.publish().flat)


def test_a_parameter_server_comes_back_from_the_newest_whole_checkpoint(
    small: Small, tmp_path: Path, make: Start
) -> None:
    config = small("deep")
    runner = make(config, tmp_path)
    runner.start(None, None)
    for step in (1, 2):
        runner.step()
        save(runner, config, str(tmp_path), step)  # type: ignore[arg-type]
    flip(part(tmp_path, 2, "learner.safetensors"))
    ray.kill(runner.servers.first, no_restart=False)
    assert runner.step()[0].version == 2, "it went on from step 1"


def test_with_all_of_another_run_it_ends_as_in_one_process(
    small: Small, tmp_path: Path, make: Start
) -> None:
    """Bit for bit, every part: the other run's weights, moments, chains and random streams."""
    old = small("deep", "trainer.steps=2")
    save(trained(old, 2), old, str(tmp_path / "old"), 2)
    quick = ("evaluation.samples=0", "evaluation.ais_temperatures=0")
    begun = (f"init_from={tmp_path / 'old'}", "init_what=all")
    config = small("deep", "trainer.steps=6", *quick, *begun)
    runners = {
        "inline": lambda _: InlineRunner(config),
        "ray": lambda _: make(config, tmp_path / "ray"),
    }
    ends = []
    for name, runner in runners.items():
        output = str(tmp_path / name)
        Execution(config, output, make_energy(config, (8, 8)), Display()).carry_out(runner)
        checkpoint = find(output)
        assert checkpoint.step == 6
        parts = checkpoint.manifest.parts
        ends.append({part: Path(checkpoint.folder, part).read_bytes() for part in parts})
    assert ends[0] == ends[1]


def test_before_its_own_checkpoint_a_run_goes_back_to_the_one_that_it_began_with(
    small: Small, tmp_path: Path, make: Start
) -> None:
    """A parameter server that dies has the other run's weights again; so it is after a rollback to
    where the run began.
    """
    old = small("deep", "trainer.steps=2")
    other = save(trained(old, 2), old, str(tmp_path / "old"), 2)
    begun = (f"init_from={tmp_path / 'old'}", "init_what=all")
    runner = make(small("deep", "trainer.steps=9", *begun), tmp_path / "new")
    for factor in (None, 0.5):
        runner.start(other, None, factor)
        assert runner.step()[0].version == 3
        assert runner.step()[0].version == 4
        ray.kill(runner.servers.first, no_restart=False)
        assert runner.step()[0].version == 3


def test_damage_is_the_same_error_through_ray(small: Small, tmp_path: Path, make: Start) -> None:
    config = small("rbm")
    checkpoint = save(trained(config, 2), config, str(tmp_path), 2)
    flip(part(tmp_path, 2, "pool-0.safetensors"))
    with pytest.raises(DamagedError, match=r"pool-0\.safetensors: its checksum"):
        make(config, tmp_path).start(checkpoint, None)
