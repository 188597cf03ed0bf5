"""Refusals that want a cluster, without one."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray

from actors import cluster as actors_cluster
from actors.cluster import connect, on_cores_of_its_own
from pipeline.common.errors import ConfigError
from pipeline.common.process import keep_to_core
from pipeline.config.compose import compose


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A connected cluster of 2 nodes with 8 CPUs, as Ray would describe it."""
    described: dict[str, object] = {"CPU": 8.0}
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: described)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": True}, {"Alive": False}])
    return described


@pytest.mark.usefixtures("cluster")
def test_a_local_path_on_several_nodes_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"output=/runs/one: a local path on a cluster of 2 nodes"
    ):
        connect(compose([]), "/runs/one")
    connect(compose([]), "s3://bucket/run")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["chains.pools=16"],
            "16 pools of 0.5 and a parameter server of 0.5 need 8.5 CPUs; the cluster has 8.0",
        ),
        (
            ["device=cuda", "cluster.pool_gpus=0.5", "cluster.server_gpus=1"],
            "need 2.0 GPUs; the cluster has 0.0",
        ),
    ],
)
@pytest.mark.usefixtures("cluster")
def test_what_a_cluster_cannot_hold_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        connect(compose(overrides), "s3://bucket/run")


@pytest.mark.parametrize(
    ("cores", "overrides", "address", "pins"),
    [
        (2, [], "", True),
        (3, [], "", True),
        (4, [], "", False),  # with a core to spare the system finds it
        (4, ["trainer.replicas=2"], "", True),
        (2, ["cluster.threads=2"], "", False),
        (2, ["cluster.pin=false"], "", False),
        (2, [], "ray://elsewhere", False),
        (2, ["cluster=ray"], "", False),
    ],
)
def test_actors_keep_to_cores_where_those_are_scarce_and_their_own(
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    overrides: list[str],
    address: str,
    pins: bool,
) -> None:
    monkeypatch.setattr(actors_cluster, "usable_cores", lambda: cores)
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert on_cores_of_its_own(compose(overrides)).cluster.pin is pins


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no such call")
def test_a_thread_keeps_to_one_of_the_cores_it_may_use() -> None:
    allowed = sorted(os.sched_getaffinity(0))

    def keep(place: int) -> set[int]:
        keep_to_core(place)
        return os.sched_getaffinity(0)

    for place in range(len(allowed) + 1):
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(keep, place).result() == {allowed[place % len(allowed)]}
    assert sorted(os.sched_getaffinity(0)) == allowed
