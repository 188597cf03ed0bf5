"""Renders the manifests and says what is wrong with them, before a cluster does or does not.

    CRDS=FOLDER python -m k8s.manifests

Each rendering is held strictly against the schemas of Kubernetes and of the custom resources. Then
come rules that no schema knows: names that must exist, limits, security, and whether the run that a
job starts has a valid configuration and a cluster with room for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from k8s import schemas
from k8s.pods import pod_problems, templates
from k8s.runs import cluster_problems, conf_problems, job_problems

Json = Any
ROOT = Path(__file__).resolve().parent
RENDERINGS = [*sorted((ROOT / "overlays").iterdir()), ROOT / "monitoring"]


def render(folder: Path) -> list[Json]:
    """Return the objects that `kubectl apply -k` would apply.

    Raises `ValueError` with kustomize's complaint where it has one.
    """
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(done.stderr.strip())
    return list(yaml.safe_load_all(done.stdout))


def crds_folder() -> Path:
    """Return the folder that CRDS names.

    Raises `FileNotFoundError`, with where to get the definitions, where there is none.
    """
    given = os.environ.get("CRDS")
    if not given or not Path(given).is_dir():
        raise FileNotFoundError(f"CRDS={given or ''}: no such folder\n{schemas.WHERE_TO_GET_THEM}")
    return Path(given)


def problems(objects: Sequence[Json], crds: Path) -> list[str]:
    """Return everything wrong with one rendering.

    Each line has the object, the path in it, and what is wrong.
    """
    found = []
    for value in objects:
        name = f"{value.get('kind')} {value.get('metadata', {}).get('name')}"
        found += [f"{name}: {problem}" for problem in _problems_of(value, objects, crds)]
    return found


def _problems_of(value: Json, objects: Sequence[Json], crds: Path) -> Iterator[str]:
    schema = schemas.custom(crds).get((value.get("apiVersion"), value.get("kind")))
    if schema is None:
        yield from schemas.built_in_problems(value)
    else:
        yield from schemas.custom_problems(value, schema)
    if value.get("kind") not in ("RayJob", "RayCluster"):
        return
    rendered = {(other["kind"], other["metadata"]["name"]) for other in objects}
    for pod in templates(value):
        yield from pod_problems(pod, rendered)
    yield from cluster_problems(value)
    config_maps = {
        other["metadata"]["name"]: other.get("data", {})
        for other in objects
        if other["kind"] == "ConfigMap"
    }
    yield from conf_problems(value, config_maps)
    if value["kind"] == "RayJob":
        yield from job_problems(value)


def main() -> int:
    """Print a line for each rendering and what is wrong with any; return the exit status."""
    try:
        crds = crds_folder()
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    wrong = 0
    for folder in RENDERINGS:
        try:
            objects = render(folder)
            found = problems(objects, crds)
        except ValueError as error:
            objects, found = [], [f"cannot be rendered: {error}"]
        print(f"{folder.relative_to(ROOT)}: {len(objects)} objects, {len(found)} problems")
        for problem in found:
            print(f"  {problem}")
        wrong += len(found)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
