"""Runs across several Ray nodes that come, leave and die. The nodes are raylets on this machine
(Ray's own test cluster).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray._private.internal_api import memory_summary
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from actors.driver import RayRunner
from actors.policy import Life
from pipeline.assembly.data import open_data
from pipeline.common.types import RoundReport
from pipeline.config.run import RunConfig
from tests.faults.processes import step_until
from tests.patience import PATIENCE

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.nodes]
Small = Callable[..., RunConfig]
NODE = {"object_store_memory": 100_000_000, "include_dashboard": False}
# the parameter server is too large for the node that goes
PLACES = (
    "cluster.server_labels={place:head}",
    "cluster.pool_cpus=1",
    "chains.restart=0",
    "metrics.port=0",
)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head with room for the parameter server and one pool; a node with room for one more."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "labels": {"place": "head"}, **NODE}
    )
    made.second = made.add_node(num_cpus=1, **NODE)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def start(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[[RunConfig], RayRunner]]:
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    runners: list[RayRunner] = []

    def make(config: RunConfig) -> RayRunner:
        data = open_data(config)
        runners.append(RayRunner(config, str(tmp_path), data.shape, data.context_shape))
        runners[-1].start(None, None)
        return runners[-1]

    yield make
    for runner in runners:
        runner.close()


def serving(count: int) -> Callable[[list[RoundReport]], bool]:
    seen: list[int] = []

    def enough(rounds: list[RoundReport]) -> bool:
        seen.extend(round.pool for round in rounds)
        return len(set(seen[-2 * count :])) == count

    return enough


def test_pools_come_and_go_with_their_nodes(
    small: Small, cluster: Cluster, start: Callable[..., RayRunner]
) -> None:
    """Between the least and the most: two pools to begin with; a third when a node comes; and one
    when two nodes have died.
    """
    overrides = (
        "chains.pools=2",
        "chains.max_pools=3",
        "chains.min_pools=1",
        "trainer.lag=2",
        "trainer.min_ess=0.0",
        *PLACES,
    )
    runner = start(small("deep", *overrides))
    step_until(runner, serving(2))
    third = cluster.add_node(num_cpus=1, **NODE)
    steps = step_until(runner, serving(3))
    assert steps[-1][2].pools == 3
    for node in (third, cluster.second):
        cluster.remove_node(node, allow_graceful=False)
    steps = step_until(runner, lambda _: len(runner.pools.available) == 1)
    for _ in range(5):
        report, rounds, flow = runner.step()
    assert flow.pools == 1
    assert len({round.pool for round in rounds}) == 1
    assert not report.skipped


def test_pools_stand_beside_the_ranks_that_learn_from_them(
    small: Small, cluster: Cluster, start: Callable[..., RayRunner]
) -> None:
    """Two nodes, a rank on each: pools 0 and 1 are rank 0's, pools 2 and 3 rank 1's. A node that
    has no room for all of its own has as many as it can hold, and the other the rest.
    """
    cluster.remove_node(cluster.second, allow_graceful=False)
    for _ in range(2):
        cluster.add_node(num_cpus=2, labels={"place": "ranks"}, **NODE)
    overrides = (
        "trainer.replicas=2",
        "chains.pools=4",
        "cluster.server_cpus=1",
        "cluster.server_labels={place:ranks}",
        "cluster.pool_cpus=0.5",
        "chains.restart=0",
        "metrics.port=0",
    )
    runner = start(small("deep", *overrides))
    first, second = ray.get([rank.node.remote() for rank in runner.servers.actors])
    assert first != second
    assert [pool.node for pool in runner.pools.members] == [first, first, second, second]
    runner.close()
    crowded = start(small("deep", *overrides, "cluster.pool_cpus=1"))
    ranks = ray.get([rank.node.remote() for rank in crowded.servers.actors])
    placed = [pool.node for pool in crowded.pools.members]
    assert [placed.count(node) for node in ranks] == [1, 1]


def test_several_pools_share_a_gpu(
    small: Small, cluster: Cluster, start: Callable[..., RayRunner]
) -> None:
    """Fractions of one (that Ray takes to be there): four pools on the node that has it, the
    parameter server elsewhere.
    """
    with_gpu = cluster.add_node(num_cpus=4, num_gpus=1, labels={"place": "pools"}, **NODE)
    places = ("cluster.pool_labels={place:pools}", "cluster.pool_gpus=0.25", *PLACES)
    runner = start(small("deep", "chains.pools=4", *places))
    assert len(runner.step()[1]) == 4
    assert {pool.node for pool in runner.pools.members} == {with_gpu.node_id}
    assert runner.servers.nodes == {cluster.head_node.node_id}
    seen = [
        ray.get(pool.actor.__ray_call__.remote(lambda _: ray.get_gpu_ids()))
        for pool in runner.pools.members
    ]
    assert len({str(found) for found in seen}) == 1


def test_a_node_that_is_drained_hands_its_chains_over(
    small: Small, cluster: Cluster, start: Callable[..., RayRunner]
) -> None:
    """Told that its node will leave, a pool moves with everything its chains are, and goes on in
    the same incarnation.
    """
    runner = start(small("deep", "chains.pools=2", "trainer.lag=1", "trainer.min_ess=0.0", *PLACES))
    step_until(runner, serving(2))
    (moving,) = [pool for pool in runner.pools.members if pool.node == cluster.second.node_id]
    deadline = int(time.time() * 1000) + 60_000
    GcsClient(cluster.address).drain_node(
        cluster.second.node_id,
        DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "spot",
        deadline,
    )
    steps = step_until(runner, lambda _: not moving.available)
    steps += step_until(runner, lambda _: moving.life is Life.JOINING)
    handed_over = moving.rounds
    cluster.remove_node(cluster.second, allow_graceful=False)
    cluster.add_node(num_cpus=1, **NODE)
    steps += step_until(
        runner,
        lambda rounds: any(r.pool == moving.number and r.round >= handed_over for r in rounds),
    )
    # the first ones may be too old by the time that they come; none would come at all if the chains
    # were not at that round
    after = [
        r
        for _, rounds, _ in steps
        for r in rounds
        if r.pool == moving.number and r.round >= handed_over
    ]
    assert {r.incarnation for r in after} == {0}
    assert sum(flow.handovers for _, _, flow in steps) == 1
    assert sum(sum(flow.restarts.values()) for _, _, flow in steps) == 0


def test_an_object_store_that_is_full_loses_nothing(
    small: Small, cluster: Cluster, start: Callable[..., RayRunner]
) -> None:
    """Somebody else fills it twice over: Ray moves objects to disk, and steps go on one by one."""
    runner = start(small("deep", "chains.pools=2", "trainer.lag=1", "trainer.min_ess=0.0", *PLACES))
    step_until(runner, serving(2))
    held = [ray.put(np.full(20_000_000, number, np.uint8)) for number in range(10)]
    assert "Spilled" in memory_summary(cluster.address, stats_only=True)
    first, *later = (runner.step() for _ in range(20))
    assert [report.version - first[0].version for report, _, _ in later] == [*range(1, 20)]
    assert not any(flow.restarts for _, _, flow in (first, *later))
    assert {round.pool for _, rounds, _ in later for round in rounds} == {0, 1}
    assert [int(ray.get(content)[-1]) for content in held] == list(range(10))


def test_a_run_that_loses_a_node_ends_with_the_pools_that_are_left(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The command a person gives, on two nodes; one dies in the middle."""
    output = f"file://{tmp_path}/run"
    overrides = (
        "experiment=digits_rbm",
        "chains.per_pool=20",
        "trainer.steps=1500",
        "trainer.lag=2",
        "evaluation.transitions=50",
    )
    command = (
        sys.executable,
        "-m",
        "pipeline.train",
        *overrides,
        "chains.pools=2",
        "checkpoint.every=100",
        *PLACES,
    )
    environment = {
        **os.environ,
        "RAY_ADDRESS": cluster.address,
        "RAY_AUTH_MODE": "disabled",
        "PYTHONUNBUFFERED": "1",
    }
    run = subprocess.Popen(
        (*command, f"output={output}"),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(
            lambda: list(tmp_path.glob("run/checkpoints/*/manifest.json")) or run.poll() is not None
        )
        cluster.remove_node(cluster.second, allow_graceful=False)
        printed, _ = run.communicate(timeout=PATIENCE)
    finally:
        run.kill()
    assert run.returncode == 0, printed
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["version"] == 1500
    assert summary["restarts"] == 1, printed
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert (rows[0]["ebm_pools"], rows[-1]["ebm_pools"]) == (2, 1)


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
