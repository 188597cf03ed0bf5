"""An overlay, and the ways in which the tests break it."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from typing import Any

import pytest

from k8s.manifests import ROOT, render

Json = Any
rendered = functools.cache(render)


def overlay(name: str) -> list[Json]:
    """An overlay's objects, to be broken at will."""
    return copy.deepcopy(rendered(ROOT / "overlays" / name))


def of_kind(objects: list[Json], kind: str, name: str = "ebm") -> Json:
    return next(
        value for value in objects if (value["kind"], value["metadata"]["name"]) == (kind, name)
    )


def spec_of(objects: list[Json]) -> Json:
    return of_kind(objects, "RayJob")["spec"]


def cluster(objects: list[Json]) -> Json:
    return spec_of(objects)["rayClusterSpec"]


def head(objects: list[Json]) -> Json:
    return cluster(objects)["headGroupSpec"]["template"]["spec"]


def pool(objects: list[Json]) -> Json:
    return cluster(objects)["workerGroupSpecs"][0]


def worker(objects: list[Json]) -> Json:
    return pool(objects)["template"]["spec"]["containers"][0]


def breaks(text: str) -> Callable[[Callable[[list[Json]], object]], Any]:
    """A case of the test below: how to break overlays/gpu, and what is said about it."""

    def case(change: Callable[[list[Json]], object]) -> Any:
        CASES.append(pytest.param(change, text, id=change.__name__))
        return change

    return case


CASES: list[Any] = []


@breaks("RayJob ebm: spec: Additional properties are not allowed ('backofLimit' was unexpected)")
def misspelt_field_of_the_job(objects: list[Json]) -> None:
    spec_of(objects)["backofLimit"] = spec_of(objects).pop("backoffLimit")


@breaks(
    "template.spec.containers[0]: Additional properties are not allowed ('enviroment' was"
    " unexpected)"
)
def misspelt_field_of_a_container(objects: list[Json]) -> None:
    worker(objects)["enviroment"] = worker(objects).pop("env")


@breaks(
    "PodDisruptionBudget ebm-server: spec: Additional properties are not allowed ('minAvailabel'"
    " was unexpected)"
)
def misspelt_field_of_a_built_in_kind(objects: list[Json]) -> None:
    of_kind(objects, "PodDisruptionBudget", "ebm-server")["spec"]["minAvailabel"] = 1


@breaks("RayJob ebm: metadata: Additional properties are not allowed ('label' was unexpected)")
def misspelt_field_of_metadata(objects: list[Json]) -> None:
    of_kind(objects, "RayJob")["metadata"]["label"] = {}


@breaks("RayJob ebm: spec.backoffLimit: '3' is not of type 'integer'")
def number_as_a_word(objects: list[Json]) -> None:
    spec_of(objects)["backoffLimit"] = "3"


@breaks(
    "RayJob ebm: spec.rayClusterSpec.authOptions.mode: 'tokens' is not one of ['disabled', 'token']"
)
def mode_of_authentication_that_is_none(objects: list[Json]) -> None:
    cluster(objects)["authOptions"]["mode"] = "tokens"


@breaks(
    "RayJob ebm: spec.deletionStrategy: legacy policies (onSuccess/onFailure) and deletionRules"
    " cannot be used together"
)
def rule_of_the_definition(objects: list[Json]) -> None:
    policy = {"policy": "DeleteSelf"}
    rules = [{"condition": {"jobStatus": "FAILED"}, **policy}]
    spec_of(objects)["deletionStrategy"] = {
        "onSuccess": policy,
        "onFailure": policy,
        "deletionRules": rules,
    }


@breaks("RayJob ebm: spec.managedBy: the managedBy field value must be either")
def another_rule_of_the_definition(objects: list[Json]) -> None:
    spec_of(objects)["managedBy"] = "me"


@breaks("containers[0].env: two entries with name = ('HOME',)")
def variable_that_is_there_twice(objects: list[Json]) -> None:
    worker(objects)["env"].append({"name": "HOME", "value": "/home"})


@breaks(
    "RayJob ebm: spec.submissionMode: 'K8sJob' is none of K8sJobMode, HTTPMode, SidecarMode,"
    " InteractiveMode"
)
def bogus_submission_mode(objects: list[Json]) -> None:
    spec_of(objects)["submissionMode"] = "K8sJob"


@breaks("ports[3].name: 'ebm-metrics-of-driver' has 21 characters, and 15 are allowed")
def long_port_name(objects: list[Json]) -> None:
    head(objects)["containers"][0]["ports"][3]["name"] = "ebm-metrics-of-driver"


@breaks("containers[0].ports: ebm-metrics should be metrics.port, 9464, not 9465")
def another_metrics_port(objects: list[Json]) -> None:
    head(objects)["containers"][0]["ports"][3]["containerPort"] = 9465


@breaks(
    "workerGroupSpecs[0].template.spec.containers[0].resources.requests.memory: 48Gi is above the"
    " limit, 24Gi"
)
def request_above_limit(objects: list[Json]) -> None:
    worker(objects)["resources"]["requests"]["memory"] = "48Gi"


@breaks(
    "containers[0].resources.requests.nvidia.com/gpu: an extended resource's request equals its"
    " limit"
)
def half_asked_for_gpus(objects: list[Json]) -> None:
    del worker(objects)["resources"]["requests"]["nvidia.com/gpu"]


@breaks("autoscalerOptions.resources: requests and limits are wanted, both")
def autoscaler_without_limits(objects: list[Json]) -> None:
    del cluster(objects)["autoscalerOptions"]["resources"]["limits"]


@breaks("volumes[1].configMap.name: there is no ConfigMap 'ebm-conf'")
def config_map_without_its_hash(objects: list[Json]) -> None:
    head(objects)["volumes"][1]["configMap"]["name"] = "ebm-conf"


@breaks("containers[0].envFrom[0].secretRef.name: there is no Secret 'ebm-storrage'")
def misspelt_secret(objects: list[Json]) -> None:
    worker(objects)["envFrom"][0]["secretRef"]["name"] = "ebm-storrage"


@breaks("headGroupSpec.template.spec.serviceAccountName: there is no ServiceAccount 'ebm-head'")
def missing_account(objects: list[Json]) -> None:
    objects.remove(of_kind(objects, "ServiceAccount", "ebm-head"))


@breaks("volumes[0].persistentVolumeClaim.claimName: there is no PersistentVolumeClaim 'runs'")
def missing_claim(objects: list[Json]) -> None:
    head(objects)["volumes"][0] = {"name": "tmp", "persistentVolumeClaim": {"claimName": "runs"}}


@breaks("autoscalerOptions.volumeMounts[1].name: there is no volume 'autoscaler-token'")
def mount_without_a_volume(objects: list[Json]) -> None:
    head(objects)["volumes"].pop()


@breaks(
    "workerGroupSpecs[0].labels: {'ebm': 'pools'} is not what conf/cluster/kuberay.yaml asks for"
)
def wrong_label(objects: list[Json]) -> None:
    pool(objects)["labels"] = {"ebm": "pools"}


@breaks("spec.entrypoint: chains.pool=8: unknown key; did you mean chains.pools")
def override_that_does_not_compose(objects: list[Json]) -> None:
    spec_of(objects)["entrypoint"] = "python -m pipeline.train chains.pool=8 output=s3://bucket/run"


@breaks(
    "spec.entrypoint: two shells would read '{' '}'; put such values into a file of conf/experiment"
)
def override_for_a_shell(objects: list[Json]) -> None:
    spec_of(objects)["entrypoint"] += " cluster.pool_labels={ebm:pool}"


@breaks("spec.entrypoint: should start with python -m pipeline.train")
def other_entry_point(objects: list[Json]) -> None:
    spec_of(objects)["entrypoint"] = "python train.py"


@breaks("spec.entrypoint: output=None is on a pod's own disk; a URL is wanted")
def run_without_storage(objects: list[Json]) -> None:
    spec_of(objects)["entrypoint"] = re.sub(r" output=\S+", "", spec_of(objects)["entrypoint"])


@breaks("spec.entrypoint: with resume=never a retry would not go on where the last one was")
def run_that_starts_over(objects: list[Json]) -> None:
    spec_of(objects)["entrypoint"] += " resume=never"


@breaks("the run's 33 pools, each 1 CPUs and 0.25 GPUs on {'ebm': 'pool'}, have 32 places")
def more_pools_than_places(objects: list[Json]) -> None:
    spec_of(objects)["entrypoint"] += " chains.max_pools=33"


@breaks("the run's 2 ranks, each 4 CPUs and 1 GPUs on {'ebm': 'server'}, have 1 places")
def more_ranks_than_places(objects: list[Json]) -> None:
    spec_of(objects)["entrypoint"] += " trainer.replicas=2"


@breaks("workerGroupSpecs[0]: minReplicas 9, replicas 0, maxReplicas 8 should not fall")
def least_above_most(objects: list[Json]) -> None:
    pool(objects)["minReplicas"] = 9


@breaks(
    "submitterPodTemplate.spec.containers[0].securityContext.runAsNonRoot: this container may run"
    " as root"
)
def root_container(objects: list[Json]) -> None:
    spec_of(objects)["submitterPodTemplate"]["spec"]["containers"][0]["securityContext"][
        "runAsUser"
    ] = 0


@breaks("autoscalerOptions.securityContext.capabilities: should drop ALL, and add none")
def autoscaler_with_capabilities(objects: list[Json]) -> None:
    cluster(objects)["autoscalerOptions"]["securityContext"]["capabilities"] = {
        "add": ["NET_ADMIN"]
    }


@breaks("workerGroupSpecs[0].template.spec.automountServiceAccountToken: should be false")
def pod_with_a_token(objects: list[Json]) -> None:
    del pool(objects)["template"]["spec"]["automountServiceAccountToken"]


@breaks("spec.rayClusterSpec.rayVersion: '2.59.0', and constraints.txt has Ray")
def another_ray(objects: list[Json]) -> None:
    cluster(objects)["rayVersion"] = "2.59.0"


@breaks(
    "no /etc/ebm/conf/experiment/toy.yaml as conf/experiment/toy.yaml is; has"
    " conf/kustomization.yml a line for it? (make docs)"
)
def forgotten_file_of_the_configuration(objects: list[Json]) -> None:
    maps = [
        value for value in objects if value["metadata"]["name"].startswith("ebm-conf-experiment")
    ]
    del maps[0]["data"]["toy.yaml"]
