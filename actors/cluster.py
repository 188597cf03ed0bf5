"""Connecting to Ray, and the checks that want a cluster to be made: both before anything of the run
starts.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.surroundings import supply_token, temporary_folder
from pipeline.common.errors import ClusterError, ConfigError
from pipeline.config.cores import usable_cores
from pipeline.config.run import RunConfig

QUIET = {"logging_level": logging.WARNING, "log_to_driver": False}


def connect(config: RunConfig, output: str) -> None:
    """Joins the cluster at RAY_ADDRESS, or starts a Ray on this machine where the configuration
    allows it.

    Raises `ConfigError` where there is no cluster, where it is too small, where the environment
    leaves Ray no folder to start in, and where it has several nodes but `output` is a path that
    each of them would see differently; and `ClusterError` where Ray fails otherwise.
    """
    if not ray.is_initialized():
        _initialise(config)
    _check_size(config)
    nodes = nodes_alive()
    if nodes > 1 and "://" not in output:
        remedy = (
            f"a local path on a cluster of {nodes} nodes, each with a disk of its own; give a URL"
            " such as s3://bucket/run"
        )
        raise ConfigError("output", output, remedy)


def nodes_alive() -> int:
    """Returns how many nodes the cluster has."""
    return sum(node["Alive"] for node in ray.nodes())


def pool_options(config: RunConfig, rank_nodes: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Returns Ray's options for each pool that the run may come to use.

    Where the nodes of the ranks are given, a pool stands on that of the rank which learns from it
    if there is room, and elsewhere if there is none: batches then stay on their node. Ranks have
    equal shares of the pools, in their order. Labels that are asked for decide alone.
    """
    cluster, ranks = config.cluster, len(rank_nodes)
    needs: dict[str, Any] = {"num_cpus": cluster.pool_cpus, "num_gpus": cluster.pool_gpus}
    if cluster.pool_labels:
        needs["label_selector"] = cluster.pool_labels
    options = [dict(needs) for _ in range(config.most_pools)]
    for number in range(config.pools if ranks and not cluster.pool_labels else 0):
        options[number]["scheduling_strategy"] = NodeAffinitySchedulingStrategy(
            rank_nodes[number * ranks // config.pools], soft=True, _spill_on_unavailable=True
        )
    return options


def _initialise(config: RunConfig) -> None:
    # when several actors fail at one thing, the driver tells of the first; Ray would print the
    # traceback of each of the others
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_address(address)
    if address or config.cluster.name in ("ray", "kuberay"):
        _join(config, address or "auto")
    else:
        _start(config)


def _join(config: RunConfig, address: str) -> None:
    try:
        ray.init(address=address, **QUIET)
    except ConnectionError as error:
        remedy = (
            "no running cluster found, or its RAY_AUTH_MODE or RAY_AUTH_TOKEN is not this"
            " process's; `ray start --head` starts one, RAY_ADDRESS names one, cluster=local"
            " needs none"
        )
        raise ConfigError("cluster", config.cluster.name, f"{remedy} ({error})") from error
    except Exception as error:  # Ray raises all kinds of errors
        raise ClusterError(f"the Ray cluster could not be joined: {_in_a_line(error)}") from error


def _start(config: RunConfig) -> None:
    # Ray guards what it starts with a token, and warns that it does: nothing to tell a person who
    # runs alone
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(
        logging.ERROR
    )
    # actors that hold every CPU would starve each other on a small machine; the run is what it was
    # started for
    cpus = max(os.cpu_count() or 1, math.ceil(_demand(config, config.most_pools)["CPU"]))
    folder = temporary_folder()
    supply_token()
    try:
        with _hang_up_kept_from_children():
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                _temp_dir=str(folder),
                **QUIET,
            )
    except Exception as error:  # Ray raises all kinds of errors
        raise ClusterError(
            f"Ray could not start: {_in_a_line(error)}; its logs are in"
            f" {folder}/session_latest/logs"
        ) from error


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextmanager
def _hang_up_kept_from_children() -> Iterator[None]:
    """Has the processes that start within never see a SIGHUP: a terminal that closes sends it to
    all of them, and the run still needs its Ray for a last checkpoint. (Ray itself does so with
    SIGINT.) One that comes for this process meanwhile waits.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _check_address(address: str) -> None:
    """Refuses at once what Ray would try for minutes, or fail at when the training is over."""
    if "://" in address:
        remedy = (
            "the cluster's host:port is wanted (port 6379 by default); from outside it, `ray job"
            " submit --address`"
        )
        raise ConfigError("RAY_ADDRESS", address, remedy)
    host, colon, port = address.rpartition(":")
    if not colon:  # auto, local
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        remedy = (
            f"nothing answers there ({error}); `ray start --head` starts a cluster, without"
            " RAY_ADDRESS none is needed"
        )
        raise ConfigError("RAY_ADDRESS", address, remedy) from error


def _demand(config: RunConfig, pools: int) -> dict[str, float]:
    cluster, ranks = config.cluster, config.trainer.replicas
    return {
        "CPU": pools * cluster.pool_cpus + ranks * cluster.server_cpus,
        "GPU": pools * cluster.pool_gpus + ranks * cluster.server_gpus,
    }


def _check_size(config: RunConfig) -> None:
    """Refuses what would wait for ever. A cluster that scales up (cluster=kuberay) is not held to
    what it has now.
    """
    if config.cluster.name == "kuberay":
        return
    have = ray.cluster_resources()
    pools = min(config.chains.min_pools or config.pools, config.pools)
    for kind, need in _demand(config, pools).items():
        if need > have.get(kind, 0.0):
            key = kind.lower() + "s"
            per_pool, per_rank = (
                getattr(config.cluster, f"{role}_{key}") for role in ("pool", "server")
            )
            ranks = (
                "a parameter server"
                if config.trainer.replicas == 1
                else f"{config.trainer.replicas} parameter-server ranks"
            )
            remedy = (
                f"{pools} pools of {per_pool} and {ranks} of {per_rank} need {need} {kind}s; "
                f"the cluster has {have.get(kind, 0.0)}"
            )
            raise ConfigError(f"cluster.pool_{key}", per_pool, remedy)


def on_cores_of_its_own(config: RunConfig) -> RunConfig:
    """The configuration as its actors get it. They keep to cores only on a Ray of the run's own,
    with a thread each, and where there are no more cores than actors: with some to spare, the
    system finds a free one at once, and others may be waiting for the first.
    """
    cluster, actors = config.cluster, config.most_pools + config.trainer.replicas
    pin = cluster.pin and cluster.threads == 1 and usable_cores() <= actors
    pin = pin and not os.environ.get("RAY_ADDRESS")
    return config.model_copy(update={"cluster": cluster.model_copy(update={"pin": pin})})
