"""Parameter servers that die in the middle of a run, whole or one rank of several."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch

from actors.driver import RayRunner
from actors.parameter_server import ParameterServer
from pipeline.assembly.energies import make_energy
from pipeline.chains.batch import decode
from pipeline.common.errors import ClusterError
from pipeline.common.types import Flow, StepReport, Weights
from pipeline.energies.weights import unflatten_
from pipeline.runs.inline import InlineRunner
from pipeline.storage.store import CheckpointStore
from pipeline.training.learner import Learner
from tests.faults.processes import Small, Start, kill, step_until

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.mark.parametrize(
    "overrides",
    [("trainer.lag=0",), ("trainer.lag=4",), ("trainer.lag=2", "objective=cd")],
    ids=str,
)
def test_a_parameter_server_that_dies_comes_back_from_its_checkpoint(
    small: Small, start: Start, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    """A checkpoint is not lost: steps go on from version 4, not from 0. Pools, which may wait for
    its weights, or for rows of it, are not taken for dead.
    """
    config = small("deep", *overrides)
    runner = start(config)
    for _ in range(4):
        runner.step()
    store = CheckpointStore(str(tmp_path), 3)
    store.commit(4, runner.save(store.folder(4)), config, make_energy(config, (8, 8)))
    for _ in range(3):
        runner.step()
    kill(runner.servers.first)
    report, _, flow = runner.step()
    assert report.version == 5
    assert flow.restarts == {"parameter_server": 1}
    steps = [runner.step() for _ in range(10)]
    assert steps[0][0].version == 6
    assert {round.incarnation for _, rounds, _ in steps for round in rounds} == {0}
    assert not any(flow.restarts for _, _, flow in steps)


def test_versions_that_nobody_asks_for_do_not_pile_up(small: Small, start: Start) -> None:
    runner = start(small("deep", "objective=denoising"))
    for _ in range(5):
        runner.step()
    assert (
        ray.get(runner.servers.first.__ray_call__.remote(lambda server: len(server._published)))
        <= 2
    )


def test_a_parameter_server_without_a_checkpoint_begins_again(small: Small, start: Start) -> None:
    """Its versions are counted anew, and pools that saw the numbers before sample from the weights
    that they stand for now.
    """
    config = small("rbm", "optimizer.learning_rate=1.0")
    runner = start(config)
    runner.step()
    runner.step()
    kill(runner.servers.first)
    assert runner.step()[0].version == 1
    energy = make_energy(config, (8, 8))
    unflatten_(energy, ray.get(dict(runner._weights)[0]).flat)
    for pool in runner.pools.members:
        batch = decode(ray.get(pool.last))
        assert (batch.version, batch.round) == (0, 2)
        expected = energy(batch.position.view(-1, 8, 8)).detach()
        torch.testing.assert_close(batch.energy, expected, rtol=1e-4, atol=1e-3)


class EveryStepIsLost(ParameterServer):
    """Its process dies in every step."""

    def step(self, _version: int, *_batches: pa.RecordBatch) -> StepReport:
        os._exit(1)


def test_a_parameter_server_that_dies_in_every_step_ends_the_run(
    small: Small, start: Start
) -> None:
    """Not before it was restarted as often as it may be, each time of which is told at once: no
    step ever comes that could tell of it.
    """
    told: list[Flow] = []
    with pytest.raises(ClusterError, match=r"cluster\.server_restarts=2 allows: .*actor"):
        start(
            small("deep", "cluster.server_restarts=2", "trainer.lag=2"),
            server=EveryStepIsLost,
            watch=told.append,
        ).step()
    assert sum(flow.restarts.get("parameter_server", 0) for flow in told) == 2
    assert len([flow for flow in told if flow.restarts]) == 2
    assert all(set(flow.restarts) <= {"parameter_server"} for flow in told)


RANKS = (
    "trainer.replicas=2",
    "cluster.server_cpus=0.25",
    "cluster.pool_cpus=0.25",
    "optimizer.name=sgd",
)


def test_two_ranks_learn_what_one_learns(small: Small, start: Start, tmp_path: Path) -> None:
    """Through Ray, in lock-step, by a call and in a stretch: same rows, same chains, the same
    weights to rounding, and one checkpoint for both.
    """
    config = small("deep", *RANKS)
    runner = start(config)
    alone = InlineRunner(small("deep", "optimizer.name=sgd"))
    alone.start(None, None)
    made = [runner.step(), *runner.stretch(1), *runner.stretch(1)]
    for report, rounds, _ in made:
        expected = alone.step()[0]
        assert report.negatives == expected.negatives == 16
        assert len(rounds) == len(report.lags) == 2
        assert report.loss == pytest.approx(expected.loss, rel=1e-4)
    found = ray.get(runner.servers.publish(3)).flat
    assert abs(found - alone._learner.publish().flat).max() < 1e-5
    store = CheckpointStore(str(tmp_path), 3)
    store.commit(3, runner.save(store.folder(3)), config, make_energy(config, (8, 8)))
    runner.step()
    for rank, version in ((1, 5), (0, 6)):
        kill(runner.servers.actors[rank])
        report, _, flow = runner.step()
        assert report.version == version, "a step was lost, or counted twice"
        assert flow.restarts == {"parameter_server": 1}


class OneStepIsLost(ParameterServer):
    """At version 3, the first time, the second rank dies, and the first hears nothing of it."""

    def step(self, version: int, *batches: pa.RecordBatch) -> StepReport:
        seen = Path(str(self._config.output))
        if version == 3 and not (seen / f"{self._ranks.rank}").exists():
            (seen / f"{self._ranks.rank}").touch()
            if self._ranks.rank:
                os._exit(1)
            time.sleep(3600)
        return super().step(version, *batches)


def test_a_rank_that_dies_is_seen_though_the_first_one_hangs(
    small: Small, start: Start, tmp_path: Path
) -> None:
    runner = start(
        small("deep", *RANKS, "trainer.lag=2", f"output={tmp_path}", "cluster.timeout=60"),
        server=OneStepIsLost,
    )
    reports = [runner.step() for _ in range(4)]
    assert [report.version for report, _, _ in reports] == [1, 2, 3, 1]
    assert reports[-1][2].restarts == {"parameter_server": 1}


class RanksDieOnce(ParameterServer):
    """At version 5, the first time, one rank dies, or both do, as `die-RANK` in the output says:
    when its batches are there, by a call or in a stretch.
    """

    def _die(self, version: int) -> None:
        order = Path(str(self._config.output)) / f"die-{self._ranks.rank}"
        if version == 5 and order.exists():
            order.unlink()
            os._exit(1)

    def step(self, version: int, *batches: pa.RecordBatch) -> StepReport:
        self._die(version)
        return super().step(version, *batches)

    def _exchange(self, learner: Learner, step: int, weights: Weights) -> Any:
        exchanged = super()._exchange(learner, step, weights)
        self._die(step)
        return exchanged


def weights_at(runner: RayRunner, version: int, stretches: bool) -> np.ndarray:
    """The weights of that version, made by calls or in stretches; the steps are told one by one,
    and a restart of the parameter server at most once.
    """
    seen, restarts = 0, 0
    while seen < version:
        for report, _, flow in runner.stretch(version - seen) if stretches else [runner.step()]:
            assert report.version == seen + 1, "a step was lost, or made twice"
            seen, restarts = report.version, restarts + flow.restarts.get("parameter_server", 0)
    assert restarts <= 1
    return ray.get(runner.servers.publish(version)).flat


@pytest.mark.parametrize("stretches", [False, True], ids=["calls", "stretches"])
def test_a_rank_that_dies_comes_back_from_the_other(
    small: Small, start: Start, tmp_path: Path, stretches: bool
) -> None:
    """There is no checkpoint, and no step is lost: weights are those of an undisturbed run bit for
    bit, whichever of the two died.
    """
    config = small("deep", *RANKS, f"output={tmp_path}", "optimizer.name=adam")
    undisturbed = weights_at(start(config), 9, stretches)
    for rank in range(2):
        (tmp_path / f"die-{rank}").touch()
        disturbed = start(config, server=RanksDieOnce)
        assert np.array_equal(weights_at(disturbed, 9, stretches), undisturbed)
        assert not (tmp_path / f"die-{rank}").exists(), "nothing died: the test shows nothing"


def test_when_both_ranks_die_they_come_back_from_the_checkpoint(
    small: Small, start: Start, tmp_path: Path
) -> None:
    config = small("deep", *RANKS, f"output={tmp_path}")
    runner = start(config, server=RanksDieOnce)
    for _ in range(3):
        runner.step()
    store = CheckpointStore(str(tmp_path), 3)
    store.commit(3, runner.save(store.folder(3)), config, make_energy(config, (8, 8)))
    for _ in range(2):
        runner.step()
    for rank in range(2):
        (tmp_path / f"die-{rank}").touch()
    report, _, flow = runner.step()
    assert report.version == 4
    assert flow.restarts == {"parameter_server": 1}


def test_two_ranks_go_on_when_fewer_pools_than_ranks_are_left(small: Small, start: Start) -> None:
    """One batch for two ranks: the one without learns from its positives, and weights are of all
    rows.
    """
    runner = start(small("deep", *RANKS))
    runner.step()
    kill(runner.pools.members[0].actor)
    report, rounds, _ = runner.step()
    assert [round.pool for round in rounds] == [1]
    assert report.negatives == 8
    step_until(runner, lambda rounds: len(rounds) == 2)
