"""A run across two machines, as far as one can be two: network namespaces with addresses of their
own, joined by a wire.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.test_nodes import wait_for
from tests.patience import PATIENCE

HEAD, OTHER = ("ebm-head", "10.213.77.1"), ("ebm-other", "10.213.77.2")
PORT = 6399


def ip(*arguments: str) -> str:
    return subprocess.run(("ip", *arguments), check=True, capture_output=True, text=True).stdout


def may_make_namespaces() -> bool:
    if shutil.which("ip") is None or os.geteuid():
        return False
    try:
        ip("netns", "add", "ebm-probe")
        ip("netns", "del", "ebm-probe")
    except subprocess.CalledProcessError:
        return False
    return True


pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.nodes,
    pytest.mark.skipif(
        not may_make_namespaces(), reason="network namespaces want root and iproute2"
    ),
]


def end(namespace: str) -> None:
    """SIGKILL to every process in the namespace."""
    for pid in ip("netns", "pids", namespace).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def network() -> Iterator[None]:
    for name, _ in (HEAD, OTHER):
        ip("netns", "add", name)
    try:
        ip(
            "link",
            "add",
            "ebm0",
            "netns",
            HEAD[0],
            "type",
            "veth",
            "peer",
            "name",
            "ebm1",
            "netns",
            OTHER[0],
        )
        for (name, address), device in ((HEAD, "ebm0"), (OTHER, "ebm1")):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", device)
            ip("-n", name, "link", "set", device, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name, _ in (HEAD, OTHER):
            end(name)
            ip("netns", "del", name)


def within(namespace: str, *command: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_ADDRESS": f"{HEAD[1]}:{PORT}",
        "PYTHONUNBUFFERED": "1",
    }
    everything = ("ip", "netns", "exec", namespace, sys.executable, *command)
    return subprocess.Popen(
        everything, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def start_node(namespace: str, address: str, folder: str, *options: str) -> subprocess.Popen[str]:
    ray = (
        "-m",
        "ray.scripts.scripts",
        "start",
        "--block",
        f"--node-ip-address={address}",
        "--disable-usage-stats",
    )
    return within(
        namespace, *ray, "--object-store-memory=100000000", f"--temp-dir={folder}", *options
    )


@pytest.mark.usefixtures("network")
def test_a_run_across_two_machines_loses_one_and_ends_with_the_pools_that_are_left(
    tmp_path: Path,
) -> None:
    overrides = (
        "experiment=digits_rbm",
        "chains.per_pool=20",
        "trainer.steps=1500",
        "trainer.lag=2",
        "evaluation.transitions=50",
    )
    pools = ("chains.pools=2", "cluster.pool_cpus=1", "checkpoint.every=100", "metrics.port=0")
    train = ("-m", "pipeline.train", *overrides, *pools, f"output=file://{tmp_path}/run")
    with tempfile.TemporaryDirectory(prefix="e", ignore_cleanup_errors=True) as folder:
        start_node(
            *HEAD,
            f"{folder}/a",
            "--head",
            f"--port={PORT}",
            "--num-cpus=2",
            "--include-dashboard=false",
        )
        wait_within(REACHABLE)
        start_node(*OTHER, f"{folder}/b", f"--address={HEAD[1]}:{PORT}", "--num-cpus=1")
        wait_within(TWO_NODES)
        run = within(HEAD[0], *train)
        wait_for(
            lambda: list(tmp_path.glob("run/checkpoints/*/manifest.json")) or run.poll() is not None
        )
        end(OTHER[0])
        printed, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, printed
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert (summary["version"], summary["restarts"]) == (1500, 1), printed
    assert (rows[0]["ebm_pools"], rows[-1]["ebm_pools"]) == (2, 1)


REACHABLE = f"""
import socket, time
while True:
    try:
        socket.create_connection(("{HEAD[1]}", {PORT}), timeout=1)
        break
    except OSError:
        time.sleep(0.1)
"""
TWO_NODES = """
import ray, time
ray.init(address="auto", log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < 2:
    time.sleep(0.1)
"""


def wait_within(program: str) -> None:
    """Waits for a program that ends when what it waits for, in the head's namespace, is there."""
    waiting = within(HEAD[0], "-c", program)
    try:
        printed, _ = waiting.communicate(timeout=PATIENCE)
    finally:
        waiting.kill()
    assert waiting.returncode == 0, printed
