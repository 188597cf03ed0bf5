"""A machine's cores: `cluster.threads=auto`, and the line on a run that asks for more of them."""

from __future__ import annotations

import json
import os
import re

import pytest

from pipeline.common.errors import ConfigError
from pipeline.config import cores
from pipeline.config.compose import compose, validate
from pipeline.config.cores import crowding

AUTO = "cluster.threads=auto"


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 8)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("given", "threads"),
    [
        ([], 4),
        (["chains.pools=1"], 8),
        (["chains.pools=3"], 2),
        (["chains.pools=16"], 1),
        (["chains.max_pools=3", "trainer.lag=1"], 2),
        (["objective=hutchinson", "trainer.replicas=4"], 2),
        (["chains.pools=4", "trainer.replicas=4"], 2),
        (["trainer.lag=4"], 2),
        (["objective=hutchinson"], 8),
    ],
)
def test_the_cores_are_shared_by_what_computes_at_once(given: list[str], threads: int) -> None:
    """In lock-step pools and ranks take turns; one process gets what several would, for the bits'
    sake.
    """
    several = any("replicas" in key or "max_pools" in key for key in given)
    for cluster in ("local",) if several else ("local", "inline"):
        config = compose([AUTO, f"cluster={cluster}", *given])
        assert config.cluster.threads == threads, cluster
        assert threads == 1 or crowding(config) is None


@pytest.mark.parametrize(("cpus", "threads"), [(0.25, 1), (1, 1), (6.5, 6)])
@pytest.mark.parametrize("cluster", ["ray", "kuberay", "local"])
def test_on_a_cluster_it_is_what_a_pool_asks_for(
    cpus: float, threads: int, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    config = compose([AUTO, f"cluster={cluster}", f"cluster.pool_cpus={cpus}"])
    assert config.cluster.threads == threads
    assert crowding(config) is None


def test_it_is_settled_once() -> None:
    """A checkpoint's configuration holds the number, wherever it is read."""
    stored = json.loads(json.dumps(compose([AUTO]).model_dump(mode="json")))
    assert stored["cluster"]["threads"] == 4
    stored["chains"]["pools"] = 8
    assert validate(stored).cluster.threads == 4
    assert compose([AUTO]).digest() == compose([]).digest()


@pytest.mark.parametrize("given", ["0", "all", "1.5"])
def test_other_words_are_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.threads"):
        compose([f"cluster.threads={given}"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["cluster.threads=4"], None),
        (
            ["cluster.threads=5"],
            "2 processes compute at once, with 5 threads each, on 8 cores; .*=auto",
        ),
        (["cluster.threads=8", "cluster=inline"], None),
        (["cluster.threads=9", "cluster=inline"], "one process computes with 9 threads on 8 "),
        (["chains.pools=9"], "9 processes compute at once, with a thread each, on 8 cores$"),
        (["cluster=ray", "cluster.threads=2"], "with 2 threads and asks for 1 CPUs; .*=auto"),
    ],
)
def test_a_run_that_asks_for_more_than_there_are_says_so(
    given: list[str], words: str | None
) -> None:
    said = crowding(compose(given))
    if words is None:
        assert said is None
    else:
        assert said is not None
        assert re.search(words, said), said


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 6}, raising=False)
    assert cores.usable_cores() == 3
