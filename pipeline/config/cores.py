"""A machine's cores, and their share for each process of a run (`cluster.threads=auto`)."""

from __future__ import annotations

import os
from typing import Any

from pipeline.config.run import RunConfig

AUTO = "auto"
SHARE = "; cluster.threads=auto shares them out"


def usable_cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def wants_share(raw: dict[str, Any]) -> bool:
    """True where plain containers leave the number of threads to the machine."""
    cluster = raw.get("cluster")
    return isinstance(cluster, dict) and cluster.get("threads") == AUTO


def with_share(config: RunConfig) -> RunConfig:
    """Returns the configuration with the share of each process for `cluster.threads`, at least 1.

    On one machine it is the cores over the processes that compute at the same time, which the
    configuration alone says: `cluster=inline` gets what `cluster=local` gets, and so computes the
    same bits. Elsewhere it is the CPUs that a pool asks Ray for.
    """
    share = int(config.cluster.pool_cpus)
    if on_this_machine(config):
        share = usable_cores() // _at_once(config)
    cluster = config.cluster.model_copy(update={"threads": max(share, 1)})
    return config.model_copy(update={"cluster": cluster})


def crowding(config: RunConfig) -> str | None:
    """Returns a line that says so where the run asks for more threads than there are cores; None
    where it does not.
    """
    threads = config.cluster.threads
    if not on_this_machine(config):
        if threads <= max(config.cluster.pool_cpus, 1):
            return None
        return (
            f"each pool computes with {threads} threads and asks for {config.cluster.pool_cpus:g}"
            " CPUs; cluster.threads=auto takes no more than those"
        )
    processes, cores = 1 if config.cluster.name == "inline" else _at_once(config), usable_cores()
    if processes * threads <= cores:
        return None
    each, remedy = ("a thread", "") if threads == 1 else (f"{threads} threads", SHARE)
    if processes == 1:
        return f"one process computes with {each} on {cores} cores{remedy}"
    return f"{processes} processes compute at once, with {each} each, on {cores} cores{remedy}"


def on_this_machine(config: RunConfig) -> bool:
    """Returns whether every process of the run is on the machine that reads the configuration."""
    name = config.cluster.name
    return name == "inline" or (name == "local" and not os.environ.get("RAY_ADDRESS"))


def _at_once(config: RunConfig) -> int:
    """Returns how many processes compute at the same time: in lock-step pools and then ranks, else
    all of them.
    """
    pools, ranks = config.most_pools, config.trainer.replicas
    return max(pools, ranks) if config.trainer.lag == 0 else pools + ranks
