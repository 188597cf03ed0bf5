"""The job of the RayJob, run on a local Ray in the manifest's own words: as another user than root,
from the wheel alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from k8s.manifests import render
from tests.patience import PATIENCE
from tests.ray.test_ray_entry import free_ports

pytestmark = [pytest.mark.k8s, pytest.mark.ray]
ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = Path(sys.executable).parent
# a second's run instead of the two minutes of the default one
SMALL = (
    *(
        "trainer.steps=20",
        "checkpoint.every=10",
        "chains.per_pool=8",
        "trainer.batch_size=16",
        "kernel.transitions=2",
    ),
    *(
        "evaluation.samples=8",
        "evaluation.transitions=20",
        "evaluation.ais_temperatures=20",
        "evaluation.ais_particles=8",
    ),
)


class Place:
    """What a pod has and this machine has not: the image's packages, volumes under other names, a
    user, a token.
    """

    def __init__(
        self, folder: Path, job: dict[str, Any], config_maps: dict[str, dict[str, str]]
    ) -> None:
        self.folder, self._spec = folder, job["spec"]
        self.cluster = self._spec["rayClusterSpec"]
        pod = self.cluster["headGroupSpec"]["template"]["spec"]
        (self._container,) = pod["containers"]
        security = pod["securityContext"]
        self.user, self.group = security["runAsUser"], security["runAsGroup"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        self._tops = {mount["mountPath"].split("/")[1] for mount in self._container["volumeMounts"]}
        for mount in self._container["volumeMounts"]:
            here = folder / mount["mountPath"].strip("/")
            config_map = volumes[mount["name"]].get("configMap")
            if config_map is None:
                here.mkdir(parents=True)
            elif "subPath" in mount:
                here.parent.mkdir(parents=True, exist_ok=True)
                here.write_text(config_maps[config_map["name"]][mount["subPath"]])
            else:
                here.mkdir(parents=True)
                for name, text in config_maps[config_map["name"]].items():
                    (here / name).write_text(text)
        self._site = self._wheel()
        self.token = secrets.token_hex(16)

    def _wheel(self) -> Path:
        """The package as `pip install` of the wheel leaves it, and nothing else of the checkout."""
        build = [
            "-m",
            "pip",
            "wheel",
            str(ROOT),
            "--no-deps",
            "--no-build-isolation",
            "--quiet",
            "-w",
            str(self.folder),
        ]
        subprocess.run([sys.executable, *build], check=True)
        (wheel,) = self.folder.glob("*.whl")
        zipfile.ZipFile(wheel).extractall(self.folder / "site")
        return self.folder / "site"

    def here(self, text: str) -> str:
        """A pod's paths as those of this machine."""
        return re.sub(rf"(?<![\w.])/({'|'.join(self._tops)})\b", rf"{self.folder}/\1", text)

    @property
    def entrypoint(self) -> list[str]:
        return shlex.split(self.here(self._spec["entrypoint"]))

    @property
    def environment(self) -> dict[str, str]:
        """The container's own variables; what the operator adds for `authOptions`; the image's
        packages.
        """
        assert self.cluster["authOptions"]["mode"] == "token"
        own = {
            variable["name"]: self.here(variable["value"]) for variable in self._container["env"]
        }
        given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        system = {
            "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
            "PYTHONPATH": str(self._site),
            "PYTHONUNBUFFERED": "1",
        }
        # Ray's workers yield to everybody else by default: on a busy machine they would hardly run
        return {**own, **given, **system, "RAY_worker_niceness": "0"}

    def start(self, *arguments: str, log: str) -> subprocess.Popen[bytes]:
        """A program as the pod's user, in a session of its own, outside the checkout; root alone
        can be somebody else.
        """
        if os.geteuid() == 0:
            # the interpreter may be in root's own home, which that user may read here, and write no
            # more than anything else
            ids = [f"--reuid={self.user}", f"--regid={self.group}", "--clear-groups"]
            reads = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
            arguments = ("setpriv", *ids, *reads, *arguments)
        with (self.folder / log).open("wb") as out:
            return subprocess.Popen(
                arguments,
                cwd=self.folder,
                env=self.environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )


@pytest.fixture
def place() -> Iterator[Place]:
    objects = render(ROOT / "k8s" / "overlays" / "local-cpu")
    (job,) = [value for value in objects if value["kind"] == "RayJob"]
    config_maps = {
        value["metadata"]["name"]: value["data"]
        for value in objects
        if value["kind"] == "ConfigMap"
    }
    # Ray's sockets want short names
    folder = Path(tempfile.mkdtemp(prefix="j", dir="/tmp"))
    try:
        made = Place(folder, job, config_maps)
        if os.geteuid() == 0:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, made.user, made.group)
        yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def ray_start(
    place: Place, group: dict[str, Any], log: str, *options: str
) -> subprocess.Popen[bytes]:
    """`ray start` as KubeRay spells it for a group: its parameters, its labels, the container's
    CPUs where none are given.
    """
    (container,) = group["template"]["spec"]["containers"]
    parameters = {"num-cpus": container["resources"]["limits"]["cpu"], **group["rayStartParams"]}
    labels = ",".join(f"{key}={value}" for key, value in group.get("labels", {}).items())
    words = [f"--{key}={value}" for key, value in parameters.items()] + (
        [f"--labels={labels}"] if labels else []
    )
    words += [
        "--node-ip-address=127.0.0.1",
        "--object-store-memory=200000000",
        "--min-worker-port=0",
        "--max-worker-port=0",
    ]
    agent, grpc = free_ports(2)
    words += [
        f"--dashboard-agent-listen-port={agent}",
        f"--dashboard-agent-grpc-port={grpc}",
        "--disable-usage-stats",
    ]
    return place.start("ray", "start", "--block", *words, *options, log=log)


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """All of their sessions, Ray's processes among them."""
    sessions = {process.pid for process in processes}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(entry.name)) in sessions:
                os.kill(int(entry.name), signal.SIGKILL)
    for process in processes:
        process.wait()


def answers(url: str, token: str) -> bool:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=10) as answer:
        return answer.status == 200
    return False


def wait_for(condition: Any, what: str, *logs: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}:\n" + "\n".join(
            log.read_text() for log in logs
        )
        time.sleep(0.1)


def test_the_package_is_the_wheels(place: Place) -> None:
    assert (
        place.start(
            "python",
            "-c",
            "import actors.driver, pipeline; print(pipeline.__file__)",
            log="where.log",
        ).wait()
        == 0
    )
    assert (
        place.folder / "where.log"
    ).read_text().strip() == f"{place.folder}/site/pipeline/__init__.py"


def test_the_job_runs_in_the_manifests_own_words(place: Place) -> None:
    """A head without work, a node for every pool and for the server, `ray job submit` of the
    entrypoint: it trains.
    """
    gcs, client, dashboard = free_ports(3)
    head = [
        f"--port={gcs}",
        f"--ray-client-server-port={client}",
        f"--dashboard-port={dashboard}",
        "--head",
    ]
    head += [f"--temp-dir={place.folder}/tmp", "--include-dashboard=true"]
    processes = [ray_start(place, place.cluster["headGroupSpec"], "head.log", *head)]
    try:
        url = f"http://127.0.0.1:{dashboard}"
        wait_for(
            lambda: answers(f"{url}/api/jobs/", place.token),
            "the dashboard",
            place.folder / "head.log",
        )
        for group in place.cluster["workerGroupSpecs"]:
            for number in range(group["maxReplicas"]):
                log = f"{group['groupName']}-{number}.log"
                processes.append(ray_start(place, group, log, f"--address=127.0.0.1:{gcs}"))
                # one after the other: on one machine they would take each other's ports
                wait_for(
                    lambda log=place.folder / log: "runtime started" in log.read_text(),
                    "a node",
                    place.folder / log,
                )
        job = place.start(
            "ray",
            "job",
            "submit",
            f"--address={url}",
            "--",
            *place.entrypoint,
            *SMALL,
            log="job.log",
        )
        processes.append(job)
        wait_for(lambda: job.poll() is not None, "the job's end", *place.folder.glob("*.log"))
        assert job.returncode == 0, (place.folder / "job.log").read_text()
        output = Path(place.here("/runs")) / "digits"
        summary = json.loads((output / "summary.json").read_text())
        assert summary["version"] == 20
        manifest = json.loads((output / "checkpoints" / "00000020" / "manifest.json").read_text())
        assert manifest["config"]["cluster"]["name"] == "kuberay"
        assert {"pool-0.safetensors", "pool-1.safetensors", "learner.safetensors"} <= set(
            manifest["parts"]
        )
        if os.geteuid() == 0:
            assert (output / "summary.json").stat().st_uid == place.user
    finally:
        end(processes)
