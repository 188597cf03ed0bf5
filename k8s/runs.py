"""Checks of the run inside the manifests: its arguments, its configuration, and its room."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from math import ceil, floor
from pathlib import Path
from typing import Any

import yaml

from k8s.pods import cluster_of, groups_of, quantity
from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.config.groups import conf_directory
from pipeline.config.run import RunConfig

Json = Any
MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
COMMAND = ["python", "-m", "pipeline.train"]
# what a shell changes: the submitter's takes its share, and then the one that Ray starts the driver
# with
FOR_A_SHELL = set("{}$`;&|<>()*?!\\\"'~#\n")


def job_problems(job: Json) -> Iterator[str]:
    """Check a RayJob's own fields."""
    spec = job.get("spec") or {}
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode not in MODES:
        yield f"spec.submissionMode: {mode!r} is none of {', '.join(MODES)}"
    if mode == "SidecarMode" and "submitterPodTemplate" in spec:
        yield "spec.submitterPodTemplate: SidecarMode has none"
    if not spec.get("rayClusterSpec"):
        yield "spec.rayClusterSpec: missing; components/job copies it from the RayCluster"
    try:
        config = run_of(spec.get("entrypoint", ""))
    except (ConfigError, ValueError) as error:
        yield f"spec.entrypoint: {error}"
        return
    if spec.get("backoffLimit") and config.resume != "auto":
        yield (
            f"spec.entrypoint: with resume={config.resume} a retry would not go on where the last"
            " one was"
        )
    if "://" not in (config.output or ""):
        yield f"spec.entrypoint: output={config.output} is on a pod's own disk; a URL is wanted"
    yield from _metrics_problems(job, config)
    yield from room_problems(job, config)


def run_of(entrypoint: str) -> RunConfig:
    """Return the configuration of the run that an entry point starts.

    Raises `ConfigError` where it is not valid, `ValueError` where the entry point starts no run.
    """
    if FOR_A_SHELL & set(entrypoint):
        found = " ".join(map(repr, sorted(FOR_A_SHELL & set(entrypoint))))
        raise ValueError(
            f"two shells would read {found}; put such values into a file of conf/experiment"
        )
    words = shlex.split(entrypoint)
    if words[: len(COMMAND)] != COMMAND:
        raise ValueError(f"should start with {' '.join(COMMAND)}")
    return compose(words[len(COMMAND) :])


def _metrics_problems(value: Json, config: RunConfig) -> Iterator[str]:
    path, cluster = cluster_of(value)
    containers = cluster.get("headGroupSpec", {}).get("template", {}).get("spec", {}).get(
        "containers"
    ) or [{}]
    ports = {
        port.get("name"): port.get("containerPort") for port in containers[0].get("ports") or ()
    }
    if ports.get("ebm-metrics") != config.metrics.port:
        at = f"{path}.headGroupSpec.template.spec.containers[0].ports"
        yield (
            f"{at}: ebm-metrics should be metrics.port, {config.metrics.port}, not"
            f" {ports.get('ebm-metrics')}"
        )


def cluster_problems(value: Json) -> Iterator[str]:
    """Check a Ray cluster: its groups' sizes and labels, its version, its configuration folder."""
    path, cluster = cluster_of(value)
    if cluster.get("rayVersion") != version("ray"):
        yield (
            f"{path}.rayVersion: {cluster.get('rayVersion')!r}, and constraints.txt has Ray"
            f" {version('ray')}"
        )
    wanted = _labels()
    for at, group in groups_of(value):
        sizes = [
            group.get(name, default)
            for name, default in (("minReplicas", 0), ("replicas", 0), ("maxReplicas", 0))
        ]
        if sizes != sorted(sizes):
            yield (
                f"{at}: minReplicas {sizes[0]}, replicas {sizes[1]}, maxReplicas {sizes[2]} should"
                " not fall"
            )
        labels = group.get("labels") or {}
        if not any(need.items() <= labels.items() for need in wanted):
            choices = " or ".join(str(need) for need in wanted)
            yield f"{at}.labels: {labels} is not what conf/cluster/kuberay.yaml asks for, {choices}"
    if value["kind"] == "RayCluster":
        yield from room_problems(value, compose(["cluster=kuberay"]))


def _labels() -> list[dict[str, str]]:
    """Return the labels that pools and ranks look for."""
    cluster = yaml.safe_load((conf_directory() / "cluster/kuberay.yaml").read_text())
    return [cluster["pool_labels"], cluster["server_labels"]]


def room_problems(value: Json, config: RunConfig) -> Iterator[str]:
    """Check that all actors that the run asks for have a place, every group at its maxReplicas."""
    path, _ = cluster_of(value)
    asked, ranks = config.cluster, config.trainer.replicas
    try:
        yield from _room(
            value,
            path,
            "pools",
            config.most_pools,
            asked.pool_labels,
            asked.pool_cpus,
            asked.pool_gpus,
        )
        yield from _room(
            value, path, "ranks", ranks, asked.server_labels, asked.server_cpus, asked.server_gpus
        )
    except ValueError as error:
        yield f"{path}.workerGroupSpecs: resources: {error}"


def _room(
    value: Json,
    path: str,
    what: str,
    count: int,
    labels: Mapping[str, str],
    cpus: float,
    gpus: float,
) -> Iterator[str]:
    places = 0
    for _, group in groups_of(value):
        if labels.items() <= (group.get("labels") or {}).items():
            has_cpus, has_gpus = _resources(group)
            each = min(
                floor(has_cpus / cpus) if cpus else count, floor(has_gpus / gpus) if gpus else count
            )
            places += each * group.get("maxReplicas", 0)
    if places < count:
        needs = f"each {cpus:g} CPUs and {gpus:g} GPUs on {dict(labels)}"
        yield (
            f"{path}.workerGroupSpecs: the run's {count} {what}, {needs}, have {places} places in"
            " all groups at maxReplicas"
        )


def _resources(group: Json) -> tuple[float, float]:
    """Return the CPUs and GPUs that Ray counts on one pod of the group, as KubeRay tells it."""
    start = group.get("rayStartParams") or {}
    container = group.get("template", {}).get("spec", {}).get("containers", [{}])[0]
    resources = container.get("resources") or {}
    limits = (resources.get("requests") or {}) | (resources.get("limits") or {})
    gpus = next((amount for name, amount in limits.items() if name.endswith("gpu")), 0)
    return (
        float(start.get("num-cpus", ceil(quantity(limits.get("cpu", 0))))),
        float(start.get("num-gpus", quantity(gpus))),
    )


def conf_problems(value: Json, config_maps: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Whether the head's EBM_CONF is conf/, file by file: kustomize has no wildcards, and a new
    file is forgotten.
    """
    path, cluster = cluster_of(value)
    spec = cluster.get("headGroupSpec", {}).get("template", {}).get("spec", {})
    container = (spec.get("containers") or [{}])[0]
    folder = next(
        (entry.get("value") for entry in container.get("env") or () if entry["name"] == "EBM_CONF"),
        None,
    )
    at = f"{path}.headGroupSpec.template.spec.containers[0]"
    if folder is None:
        yield f"{at}.env: EBM_CONF is not set"
        return
    volumes = {
        volume["name"]: (volume.get("configMap") or {}).get("name", "")
        for volume in spec.get("volumes") or ()
    }
    mounted = {}
    for mount in container.get("volumeMounts") or ():
        data = config_maps.get(volumes.get(mount["name"], ""), {})
        if "subPath" in mount:
            mounted[mount["mountPath"]] = data.get(mount["subPath"])
        else:
            mounted |= {f"{mount['mountPath']}/{key}": text for key, text in data.items()}
    for file in sorted(conf_directory().rglob("*.yaml")):
        name = file.relative_to(conf_directory()).as_posix()
        if mounted.get(str(Path(folder) / name)) != file.read_text():
            yield (
                f"{at}.volumeMounts: no {folder}/{name} as conf/{name} is; has"
                " conf/kustomization.yml a line for it? (make docs)"
            )
