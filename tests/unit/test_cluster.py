"""Refusals that want a cluster, without one."""

from __future__ import annotations

import pytest
import ray

from actors.cluster import connect
from pipeline.common.errors import ConfigError
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
