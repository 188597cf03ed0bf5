"""A run and a Prometheus that scrapes it, both real, on this machine.

The live test and the dashboard's picture use them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from k8s.expressions import rules

PATIENCE = 120.0


class Prometheus:
    """Prometheus's HTTP API at `address`, such as http://localhost:9090."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")

    def _get(self, path: str, **parameters: str | float) -> Any:
        url = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"{parameters}: {error.read().decode()}") from error

    def now(self, promql: str) -> list[dict[str, Any]]:
        """Return every series of the newest values."""
        return self._get("query", query=promql)["result"]

    def over(self, promql: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """Return every series of the values from `start` to `end`, Unix times in seconds."""
        return self._get("query_range", query=promql, start=start, end=end, step=step)["result"]

    def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts that are pending or fire."""
        return self._get("alerts")["alerts"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Any, what: str, patience: float = PATIENCE) -> None:
    """Wait until the condition holds. Raises `TimeoutError` where it does not in time."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {patience:.0f} s: {what}")
        time.sleep(0.2)


@contextlib.contextmanager
def process(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command while the block runs; at its end it gets SIGTERM, and time to go."""
    with log.open("wb") as output:
        started = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


@contextlib.contextmanager
def prometheus(folder: Path, ports: Sequence[int]) -> Iterator[Prometheus]:
    """Run a Prometheus with the project's alerts that scrapes those ports every second."""
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules()))
    jobs = [
        {
            "job_name": "ebm",
            "static_configs": [{"targets": [f"localhost:{port}" for port in ports]}],
        }
    ]
    every = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    configuration = {"global": every, "rule_files": ["rules.yaml"], "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    address = f"localhost:{free_port()}"
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
    ]
    with process([*command, f"--web.listen-address={address}"], folder / "prometheus.log"):
        server = Prometheus(f"http://{address}")
        wait_for(
            lambda: answers(f"{server.address}/-/ready"),
            f"Prometheus, see {folder / 'prometheus.log'}",
        )
        yield server


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextlib.contextmanager
def training(folder: Path, port: int, *settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a run as a user does, its files in `folder`, its metrics on `port`.

    Where it is not done at the block's end, SIGTERM stops it.
    """
    command = [
        sys.executable,
        "-m",
        "pipeline.train",
        *settings,
        f"metrics.port={port}",
        f"output={folder}",
    ]
    # Ray's workers yield to everybody else by default: on a busy machine they would hardly run
    with process(command, folder.with_suffix(".log"), {"RAY_worker_niceness": "0"}) as started:
        yield started


def descendants(pid: int) -> list[int]:
    """Return the process's children, and theirs."""
    children = [
        int(child)
        for tasks in Path(f"/proc/{pid}/task").glob("*/children")
        for child in tasks.read_text().split()
    ]
    return [found for child in children for found in (child, *descendants(child))]


def kill_a_pool(run: subprocess.Popen[bytes]) -> None:
    """Send SIGKILL to one of the run's own pool processes."""
    for pid in descendants(run.pid):
        with contextlib.suppress(OSError):
            if b"ChainPool" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
                return
    raise LookupError("no pool's process was found")
