"""The manifests hold, as far as anyone can say without a cluster; and what is wrong with broken ones is said by name."""

from __future__ import annotations

import copy
import functools
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from k8s import schemas
from k8s.manifests import RENDERINGS, ROOT, crds_folder, main, problems, render
from k8s.pods import quantity
from pipeline.compose import conf_directory

pytestmark = pytest.mark.k8s
Json = Any
rendered = functools.cache(render)


@pytest.fixture
def crds() -> Path:
    """Fails, and does not skip, where there are none: what was not checked should not look well."""
    return crds_folder()


def overlay(name: str) -> list[Json]:
    """An overlay's objects, to be broken at will."""
    return copy.deepcopy(rendered(ROOT / "overlays" / name))


def of_kind(objects: list[Json], kind: str, name: str = "ebm") -> Json:
    return next(value for value in objects if (value["kind"], value["metadata"]["name"]) == (kind, name))


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


@pytest.mark.parametrize("folder", RENDERINGS, ids=lambda folder: folder.name)
def test_a_rendering_is_without_problems(folder: Path, crds: Path) -> None:
    assert problems(rendered(folder), crds) == []


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


@breaks("template.spec.containers[0]: Additional properties are not allowed ('enviroment' was unexpected)")
def misspelt_field_of_a_container(objects: list[Json]) -> None:
    worker(objects)["enviroment"] = worker(objects).pop("env")


@breaks("PodDisruptionBudget ebm-server: spec: Additional properties are not allowed ('minAvailabel' was unexpected)")
def misspelt_field_of_a_built_in_kind(objects: list[Json]) -> None:
    of_kind(objects, "PodDisruptionBudget", "ebm-server")["spec"]["minAvailabel"] = 1


@breaks("RayJob ebm: metadata: Additional properties are not allowed ('label' was unexpected)")
def misspelt_field_of_metadata(objects: list[Json]) -> None:
    of_kind(objects, "RayJob")["metadata"]["label"] = {}


@breaks("RayJob ebm: spec.backoffLimit: '3' is not of type 'integer'")
def number_as_a_word(objects: list[Json]) -> None:
    spec_of(objects)["backoffLimit"] = "3"


@breaks("RayJob ebm: spec.rayClusterSpec.authOptions.mode: 'tokens' is not one of ['disabled', 'token']")
def mode_of_authentication_that_is_none(objects: list[Json]) -> None:
    cluster(objects)["authOptions"]["mode"] = "tokens"


@breaks("RayJob ebm: spec.deletionStrategy: legacy policies (onSuccess/onFailure) and deletionRules cannot be used together")
def rule_of_the_definition(objects: list[Json]) -> None:
    policy = {"policy": "DeleteSelf"}
    rules = [{"condition": {"jobStatus": "FAILED"}, **policy}]
    spec_of(objects)["deletionStrategy"] = {"onSuccess": policy, "onFailure": policy, "deletionRules": rules}


@breaks("RayJob ebm: spec.managedBy: the managedBy field value must be either")
def another_rule_of_the_definition(objects: list[Json]) -> None:
    spec_of(objects)["managedBy"] = "me"


@breaks("containers[0].env: two entries with name = ('HOME',)")
def variable_that_is_there_twice(objects: list[Json]) -> None:
    worker(objects)["env"].append({"name": "HOME", "value": "/home"})


@breaks("RayJob ebm: spec.submissionMode: 'K8sJob' is none of K8sJobMode, HTTPMode, SidecarMode, InteractiveMode")
def bogus_submission_mode(objects: list[Json]) -> None:
    spec_of(objects)["submissionMode"] = "K8sJob"


@breaks("ports[3].name: 'ebm-metrics-of-driver' has 21 characters, and 15 are allowed")
def long_port_name(objects: list[Json]) -> None:
    head(objects)["containers"][0]["ports"][3]["name"] = "ebm-metrics-of-driver"


@breaks("containers[0].ports: ebm-metrics should be metrics.port, 9464, not 9465")
def another_metrics_port(objects: list[Json]) -> None:
    head(objects)["containers"][0]["ports"][3]["containerPort"] = 9465


@breaks("workerGroupSpecs[0].template.spec.containers[0].resources.requests.memory: 48Gi is above the limit, 24Gi")
def request_above_limit(objects: list[Json]) -> None:
    worker(objects)["resources"]["requests"]["memory"] = "48Gi"


@breaks("containers[0].resources.requests.nvidia.com/gpu: an extended resource's request equals its limit")
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


@breaks("workerGroupSpecs[0].labels: {'ebm': 'pools'} is not what conf/cluster/kuberay.yaml asks for")
def wrong_label(objects: list[Json]) -> None:
    pool(objects)["labels"] = {"ebm": "pools"}


@breaks("spec.entrypoint: chains.pool=8: unknown key; did you mean chains.pools")
def override_that_does_not_compose(objects: list[Json]) -> None:
    spec_of(objects)["entrypoint"] = "python -m pipeline.train chains.pool=8 output=s3://bucket/run"


@breaks("spec.entrypoint: two shells would read '{' '}'; put such values into a file of conf/experiment")
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


@breaks("submitterPodTemplate.spec.containers[0].securityContext.runAsNonRoot: this container may run as root")
def root_container(objects: list[Json]) -> None:
    spec_of(objects)["submitterPodTemplate"]["spec"]["containers"][0]["securityContext"]["runAsUser"] = 0


@breaks("autoscalerOptions.securityContext.capabilities: should drop ALL, and add none")
def autoscaler_with_capabilities(objects: list[Json]) -> None:
    cluster(objects)["autoscalerOptions"]["securityContext"]["capabilities"] = {"add": ["NET_ADMIN"]}


@breaks("workerGroupSpecs[0].template.spec.automountServiceAccountToken: should be false")
def pod_with_a_token(objects: list[Json]) -> None:
    del pool(objects)["template"]["spec"]["automountServiceAccountToken"]


@breaks("spec.rayClusterSpec.rayVersion: '2.59.0', and constraints.txt has Ray")
def another_ray(objects: list[Json]) -> None:
    cluster(objects)["rayVersion"] = "2.59.0"


@breaks("no /etc/ebm/conf/experiment/toy.yaml as conf/experiment/toy.yaml is; has conf/kustomization.yml a line for it?")
def forgotten_file_of_the_configuration(objects: list[Json]) -> None:
    maps = [value for value in objects if value["metadata"]["name"].startswith("ebm-conf-experiment")]
    del maps[0]["data"]["toy.yaml"]


@pytest.mark.parametrize(("change", "text"), CASES)
def test_what_is_broken_is_said(change: Callable[[list[Json]], object], text: str, crds: Path) -> None:
    objects = overlay("gpu")
    change(objects)
    found = problems(objects, crds)
    assert any(text in problem for problem in found), found
    assert all(re.match(r"\w+ [\w.-]+: \S", problem) for problem in found)


@pytest.fixture
def with_components(tmp_path: Path) -> Callable[..., list[Json]]:
    """Renders the base with components, in an overlay made for the test."""

    def made(*components: str) -> list[Json]:
        def at(folder: str) -> str:
            return os.path.relpath(ROOT / folder, tmp_path.resolve())

        lines = [f"resources: [{at('base')}]", "components:", *(f"- {at('components/' + name)}" for name in components)]
        (tmp_path / "kustomization.yaml").write_text("\n".join(lines))
        return render(tmp_path)

    return made


@pytest.mark.parametrize(("last", "kind"), [("job", "RayJob"), ("cluster", "RayCluster")])
def test_optional_components_hold(last: str, kind: str, with_components: Callable[..., list[Json]], crds: Path) -> None:
    """Kueue's label where Kueue looks for it; the Redis password by reference, and a way to the Redis."""
    objects = with_components("gpu", "spot", "gcs-fault-tolerance", last, "kueue")
    found = [problem for problem in problems(objects, crds) if "entrypoint" not in problem]  # a run of none
    assert found == []
    value = of_kind(objects, kind)
    assert value["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "ebm"}
    options = (value["spec"].get("rayClusterSpec") or value["spec"])["gcsFaultToleranceOptions"]
    assert options["redisPassword"] == {"valueFrom": {"secretKeyRef": {"name": "ebm-redis", "key": "password"}}}
    assert of_kind(objects, "NetworkPolicy", "ebm-redis")


def test_spot_takes_pools_only() -> None:
    groups = {group["groupName"]: group for group in cluster(overlay("gpu-spot"))["workerGroupSpecs"]}
    on_spot = {name for name, group in groups.items() if "affinity" in group["template"]["spec"]}
    assert on_spot == {"pool-spot"}
    assert groups["pool-spot"]["labels"]["ebm"] == "pool"
    assert groups["pool-spot"]["template"]["spec"]["containers"] == groups["pool"]["template"]["spec"]["containers"]


def test_a_standing_cluster_is_the_jobs() -> None:
    """One specification: the cluster of overlays/cluster is the one inside overlays/gpu's job."""
    assert of_kind(overlay("cluster"), "RayCluster")["spec"] == cluster(overlay("gpu"))
    assert "RayCluster" not in {value["kind"] for value in overlay("gpu")}


def test_prometheus_finds_the_drivers_port_and_no_other() -> None:
    """Port and labels of the PodMonitor are the head's; KubeRay adds ray.io/node-type. The network lets it in."""
    monitor = of_kind(rendered(ROOT / "monitoring"), "PodMonitor")["spec"]
    assert [endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]] == ["ebm-metrics"]
    template = cluster(overlay("gpu"))["headGroupSpec"]["template"]
    assert monitor["selector"]["matchLabels"] == template["metadata"]["labels"] | {"ray.io/node-type": "head"}
    ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
    rules = of_kind(overlay("gpu"), "NetworkPolicy", "ebm-head")["spec"]["ingress"]
    assert ports["ebm-metrics"] in [port["port"] for rule in rules for port in rule["ports"]]


def test_only_the_autoscaler_has_a_token() -> None:
    mounts = {
        container["name"]
        for group in [cluster(overlay("gpu"))["headGroupSpec"], *cluster(overlay("gpu"))["workerGroupSpecs"]]
        for container in group["template"]["spec"]["containers"]
        for mount in container["volumeMounts"]
        if mount["name"] == "autoscaler-token"
    }
    assert mounts == set()
    assert "autoscaler-token" in [mount["name"] for mount in cluster(overlay("gpu"))["autoscalerOptions"]["volumeMounts"]]


def test_the_command_reports(
    crds: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for each rendering; with a configuration that the manifests do not carry, its problems and status 1."""
    shutil.copytree(conf_directory(), tmp_path / "conf")
    (tmp_path / "conf/experiment/mine.yaml").write_text("")
    monkeypatch.setenv("EBM_CONF", str(tmp_path / "conf"))
    monkeypatch.setattr("k8s.manifests.render", rendered)
    assert main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines if not line.startswith("  ")] == [
        str(folder.relative_to(ROOT)) for folder in RENDERINGS
    ]
    assert sum("no /etc/ebm/conf/experiment/mine.yaml" in line for line in lines) == 4
    assert crds.is_dir()


def test_without_definitions_it_says_where_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CRDS", str(tmp_path / "none"))
    assert main() == 1
    assert "ray.io_rayjobs.yaml" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=r"monitoring\.coreos\.com_podmonitors"):
        schemas.custom(tmp_path)


@pytest.mark.parametrize(("text", "number"), [("500m", 0.5), ("2", 2), (1.5, 1.5), ("8Gi", 8 * 2**30), ("3k", 3000)])
def test_quantities(text: object, number: float) -> None:
    assert quantity(text) == number


@pytest.mark.parametrize("text", ["", "Gi", "1e3x", "-1"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        quantity(text)


def test_the_containerfile_is_clean() -> None:
    done = subprocess.run(["hadolint", "Containerfile"], cwd=ROOT.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
