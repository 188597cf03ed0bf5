"""The manifests hold, as far as anyone can say without a cluster; and what is wrong with broken
ones is said by name.
"""

from __future__ import annotations

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
from pipeline.config.groups import conf_directory
from tests.k8s.broken import CASES, cluster, of_kind, overlay, rendered

pytestmark = pytest.mark.k8s
Json = Any


@pytest.fixture
def crds() -> Path:
    """Fails, and does not skip, where there are none: what was not checked should not look well."""
    return crds_folder()


@pytest.mark.parametrize("folder", RENDERINGS, ids=lambda folder: folder.name)
def test_a_rendering_is_without_problems(folder: Path, crds: Path) -> None:
    assert problems(rendered(folder), crds) == []


@pytest.mark.parametrize(("change", "text"), CASES)
def test_what_is_broken_is_said(
    change: Callable[[list[Json]], object], text: str, crds: Path
) -> None:
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

        lines = [
            f"resources: [{at('base')}]",
            "components:",
            *(f"- {at('components/' + name)}" for name in components),
        ]
        (tmp_path / "kustomization.yaml").write_text("\n".join(lines))
        return render(tmp_path)

    return made


@pytest.mark.parametrize(("last", "kind"), [("job", "RayJob"), ("cluster", "RayCluster")])
def test_optional_components_hold(
    last: str, kind: str, with_components: Callable[..., list[Json]], crds: Path
) -> None:
    """Kueue's label where Kueue looks for it; the Redis password by reference, and a way to the
    Redis.
    """
    objects = with_components("gpu", "spot", "gcs-fault-tolerance", last, "kueue")
    found = [
        problem for problem in problems(objects, crds) if "entrypoint" not in problem
    ]  # a run of none
    assert found == []
    value = of_kind(objects, kind)
    assert value["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "ebm"}
    options = (value["spec"].get("rayClusterSpec") or value["spec"])["gcsFaultToleranceOptions"]
    assert options["redisPassword"] == {
        "valueFrom": {"secretKeyRef": {"name": "ebm-redis", "key": "password"}}
    }
    assert of_kind(objects, "NetworkPolicy", "ebm-redis")


def test_spot_takes_pools_only() -> None:
    groups = {
        group["groupName"]: group for group in cluster(overlay("gpu-spot"))["workerGroupSpecs"]
    }
    wishes = {
        name: group["template"]["spec"]["affinity"]["nodeAffinity"]
        for name, group in groups.items()
    }
    on_spot = {
        name
        for name, wish in wishes.items()
        if "requiredDuringSchedulingIgnoredDuringExecution" in wish
    }
    assert on_spot == {"pool-spot"}
    assert groups["pool-spot"]["labels"]["ebm"] == "pool"
    assert (
        groups["pool-spot"]["template"]["spec"]["containers"]
        == groups["pool"]["template"]["spec"]["containers"]
    )


def test_a_standing_cluster_is_the_jobs() -> None:
    """One specification: the cluster of overlays/cluster is the one inside overlays/gpu's job."""
    assert of_kind(overlay("cluster"), "RayCluster")["spec"] == cluster(overlay("gpu"))
    assert "RayCluster" not in {value["kind"] for value in overlay("gpu")}


def test_prometheus_finds_the_drivers_port_and_no_other() -> None:
    """Port and labels of the PodMonitor are the head's; KubeRay adds ray.io/node-type. The network
    lets it in.
    """
    monitor = of_kind(rendered(ROOT / "monitoring"), "PodMonitor")["spec"]
    assert [endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]] == ["ebm-metrics"]
    template = cluster(overlay("gpu"))["headGroupSpec"]["template"]
    assert monitor["selector"]["matchLabels"] == template["metadata"]["labels"] | {
        "ray.io/node-type": "head"
    }
    ports = {
        port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]
    }
    rules = of_kind(overlay("gpu"), "NetworkPolicy", "ebm-head")["spec"]["ingress"]
    assert ports["ebm-metrics"] in [port["port"] for rule in rules for port in rule["ports"]]


def test_only_the_autoscaler_has_a_token() -> None:
    mounts = {
        container["name"]
        for group in [
            cluster(overlay("gpu"))["headGroupSpec"],
            *cluster(overlay("gpu"))["workerGroupSpecs"],
        ]
        for container in group["template"]["spec"]["containers"]
        for mount in container["volumeMounts"]
        if mount["name"] == "autoscaler-token"
    }
    assert mounts == set()
    assert "autoscaler-token" in [
        mount["name"] for mount in cluster(overlay("gpu"))["autoscalerOptions"]["volumeMounts"]
    ]


def test_the_command_reports(
    crds: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for each rendering; with a configuration that the manifests do not carry, its problems
    and status 1.
    """
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


DEFINITION = """
spec:
  group: example.com
  names: {kind: Thing}
  versions:
    - name: v1
      schema:
        openAPIV3Schema:
          type: object
          properties:
            apiVersion: {type: string}
            kind: {type: string}
            metadata: {type: object}
            spec:
              type: object
              properties:
                size: {type: integer, default: 3, maximum: 5}
                free: {type: object, x-kubernetes-preserve-unknown-fields: true}
                port: {x-kubernetes-int-or-string: true}
              x-kubernetes-validations:
                - {rule: self.size > 2, message: too small}
                - {rule: self.size >= oldSelf.size}
                - {rule: self.size in unheard_of}
"""


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ({"free": {"any": 1}, "port": "http"}, []),
        ({"size": 2, "sise": 4}, ["spec: Additional properties", "spec: too small"]),
        ({"size": 6}, ["spec.size: 6 is greater"]),
    ],
)
def test_a_definition_is_taken_strictly(spec: Json, found: list[str], tmp_path: Path) -> None:
    """YAML as upstream has it: defaults first, unknown fields refused, rules asked; one that cannot
    be asked is said.
    """
    (tmp_path / "things.yaml").write_text(DEFINITION)
    thing = {
        "apiVersion": "example.com/v1",
        "kind": "Thing",
        "metadata": {"name": "one"},
        "spec": spec,
    }
    *said, last = problems([thing], tmp_path)
    assert len(said) == len(found)
    assert all(
        problem.startswith(f"Thing one: {text}") for problem, text in zip(said, found, strict=True)
    )
    assert "the rule 'self.size in unheard_of' cannot be evaluated" in last


@pytest.mark.parametrize(
    ("text", "number"), [("500m", 0.5), ("2", 2), (1.5, 1.5), ("8Gi", 8 * 2**30), ("3k", 3000)]
)
def test_quantities(text: object, number: float) -> None:
    assert quantity(text) == number


@pytest.mark.parametrize("text", ["", "Gi", "1e3x", "-1"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        quantity(text)


def test_the_containerfile_is_clean() -> None:
    done = subprocess.run(
        ["hadolint", "Containerfile"], cwd=ROOT.parent, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
