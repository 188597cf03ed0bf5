"""Checks of the pods inside a RayJob or RayCluster that no schema and no API server makes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from k8s.schemas import built_in_problems

Json = Any
# what the cluster or a person has, beside what is rendered: kind and name, and where it comes from
FROM_ELSEWHERE = {
    ("Secret", "ebm-storage"): "keys of object storage",
    ("Secret", "ebm-redis"): "the password of components/gcs-fault-tolerance's Redis",
    ("ConfigMap", "kube-root-ca.crt"): "Kubernetes', in every namespace",
}
PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([a-z0-9-]*[a-z0-9])?")
SUFFIXES: dict[str, Decimal] = {"": Decimal(1), "m": Decimal("0.001")}
SUFFIXES |= {letter: Decimal(1000**power) for power, letter in enumerate("kMGTP", 1)}
SUFFIXES |= {f"{letter}i": Decimal(1024**power) for power, letter in enumerate("KMGTP", 1)}


@dataclass(frozen=True)
class Template:
    """A pod template at `path`.

    `sidecars` are settings of containers that KubeRay adds to it, by their paths.
    """

    path: str
    template: Json
    sidecars: Mapping[str, Json]

    @property
    def spec(self) -> Json:
        return self.template.get("spec") or {}

    def containers(self) -> Iterator[tuple[str, Json]]:
        for kind in ("initContainers", "containers"):
            for index, container in enumerate(self.spec.get(kind) or ()):
                yield f"{self.path}.spec.{kind}[{index}]", container


def cluster_of(value: Json) -> tuple[str, Json]:
    """Return path and specification of the Ray cluster in a RayJob or RayCluster."""
    spec = value.get("spec") or {}
    return (
        ("spec.rayClusterSpec", spec.get("rayClusterSpec") or {})
        if value["kind"] == "RayJob"
        else ("spec", spec)
    )


def groups_of(value: Json) -> Iterator[tuple[str, Json]]:
    path, cluster = cluster_of(value)
    for index, group in enumerate(cluster.get("workerGroupSpecs") or ()):
        yield f"{path}.workerGroupSpecs[{index}]", group


def templates(value: Json) -> Iterator[Template]:
    """Return every pod template of a RayJob or RayCluster."""
    path, cluster = cluster_of(value)
    head = cluster.get("headGroupSpec") or {}
    autoscaler = cluster.get("autoscalerOptions") or {}
    sidecars = (
        {f"{path}.autoscalerOptions": autoscaler} if cluster.get("enableInTreeAutoscaling") else {}
    )
    yield Template(f"{path}.headGroupSpec.template", head.get("template") or {}, sidecars)
    for at, group in groups_of(value):
        yield Template(f"{at}.template", group.get("template") or {}, {})
    submitter = (value.get("spec") or {}).get("submitterPodTemplate")
    if submitter:
        yield Template("spec.submitterPodTemplate", submitter, {})


def pod_problems(pod: Template, rendered: set[tuple[str, str]]) -> Iterator[str]:
    """Check one template: as a Pod against Kubernetes' schema, and by rules of its own."""
    wrapped = {"apiVersion": "v1", "kind": "Pod", **pod.template}
    wrapped["metadata"] = {"name": "pod", **(pod.template.get("metadata") or {})}
    for problem in built_in_problems(wrapped):
        yield f"{pod.path}.{problem}"
    yield from _port_problems(pod)
    yield from _resource_problems(pod)
    yield from _security_problems(pod)
    yield from _volume_problems(pod)
    for at, kind, name in _references(pod):
        if (kind, name) not in rendered | FROM_ELSEWHERE.keys():
            yield f"{at}: there is no {kind} {name!r}"


def _port_problems(pod: Template) -> Iterator[str]:
    for at, container in pod.containers():
        names = [port.get("name", "") for port in container.get("ports") or ()]
        for index, name in enumerate(names):
            where = f"{at}.ports[{index}].name"
            if len(name) > 15:
                yield f"{where}: {name!r} has {len(name)} characters, and 15 are allowed"
            elif name and not PORT_NAME.fullmatch(name):
                yield f"{where}: {name!r} should be of a-z, 0-9 and -, with a letter"
            if name and name in names[:index]:
                yield f"{where}: {name!r} is another port's name too"


def quantity(text: object) -> Decimal:
    """Return `500m`, `8Gi` or `2` as a number. Raises `ValueError` for what is none of the kind."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-zA-Z]*)", str(text))
    if match is None or match[2] not in SUFFIXES:
        raise ValueError(f"{text!r} is no quantity such as 500m, 8Gi or 2")
    return Decimal(match[1]) * SUFFIXES[match[2]]


def _resource_problems(pod: Template) -> Iterator[str]:
    for at, container in [*pod.containers(), *pod.sidecars.items()]:
        resources = container.get("resources") or {}
        requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
        if not requests or not limits:
            yield f"{at}.resources: requests and limits are wanted, both"
        for name, asked in requests.items():
            try:
                above = name in limits and quantity(asked) > quantity(limits[name])
            except ValueError as error:
                yield f"{at}.resources: {name}: {error}"
                continue
            if above:
                yield f"{at}.resources.requests.{name}: {asked} is above the limit, {limits[name]}"
        for name in {*requests, *limits} - {"cpu", "memory", "ephemeral-storage"}:
            if requests.get(name) != limits.get(name):
                yield (
                    f"{at}.resources.requests.{name}: an extended resource's request equals its"
                    " limit"
                )


def _security_problems(pod: Template) -> Iterator[str]:
    """Check the pod security standard `restricted`, and that the root file system is read-only."""
    of_pod = pod.spec.get("securityContext") or {}
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield f"{pod.path}.spec.automountServiceAccountToken: should be false"
    if (of_pod.get("seccompProfile") or {}).get("type") != "RuntimeDefault":
        yield f"{pod.path}.spec.securityContext.seccompProfile.type: should be RuntimeDefault"
    for at, container in [*pod.containers(), *pod.sidecars.items()]:
        own = container.get("securityContext") or {}
        context = of_pod | own
        where = f"{at}.securityContext"
        if context.get("runAsNonRoot") is not True or context.get("runAsUser") == 0:
            yield f"{where}.runAsNonRoot: this container may run as root"
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{where}.allowPrivilegeEscalation: should be false"
        if own.get("readOnlyRootFilesystem") is not True:
            yield f"{where}.readOnlyRootFilesystem: should be true"
        if own.get("privileged"):
            yield f"{where}.privileged: should not be"
        capabilities = own.get("capabilities") or {}
        if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
            yield f"{where}.capabilities: should drop ALL, and add none"


def _volume_problems(pod: Template) -> Iterator[str]:
    """Look for mounts without a volume, which KubeRay takes out without a word."""
    volumes = [volume.get("name") for volume in pod.spec.get("volumes") or ()]
    for at, container in [*pod.containers(), *pod.sidecars.items()]:
        for index, mount in enumerate(container.get("volumeMounts") or ()):
            if mount.get("name") not in volumes:
                yield f"{at}.volumeMounts[{index}].name: there is no volume {mount.get('name')!r}"


def _references(pod: Template) -> Iterator[tuple[str, str, str]]:
    """Give (path, kind, name) of every object that the pod names."""
    spec = pod.spec
    if "serviceAccountName" in spec:
        yield f"{pod.path}.spec.serviceAccountName", "ServiceAccount", spec["serviceAccountName"]
    for index, volume in enumerate(spec.get("volumes") or ()):
        at = f"{pod.path}.spec.volumes[{index}]"
        yield from _sources(at, volume)
        for place, source in enumerate((volume.get("projected") or {}).get("sources") or ()):
            yield from _sources(f"{at}.projected.sources[{place}]", source)
    for at, container in [*pod.containers(), *pod.sidecars.items()]:
        for index, entry in enumerate(container.get("envFrom") or ()):
            yield from _sources(f"{at}.envFrom[{index}]", entry)
        for index, entry in enumerate(container.get("env") or ()):
            yield from _sources(f"{at}.env[{index}].valueFrom", entry.get("valueFrom") or {})


SOURCES = {
    "configMap": ("ConfigMap", "name"),
    "configMapRef": ("ConfigMap", "name"),
    "configMapKeyRef": ("ConfigMap", "name"),
    "secretRef": ("Secret", "name"),
    "secretKeyRef": ("Secret", "name"),
    "persistentVolumeClaim": ("PersistentVolumeClaim", "claimName"),
}


def _sources(at: str, value: Json) -> Iterator[tuple[str, str, str]]:
    for key, (kind, field) in SOURCES.items():
        if key in value:
            yield f"{at}.{key}.{field}", kind, str(value[key].get(field))
    if "secret" in value:  # a volume's, or a projected source's
        field = "secretName" if "secretName" in value["secret"] else "name"
        yield f"{at}.secret.{field}", "Secret", str(value["secret"].get(field))
