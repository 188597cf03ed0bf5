"""The doors to a run on Ray, each opened as a person would: a command, a signal, a log, an exit
status.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from ray._private.services import find_gcs_addresses

from pipeline.config.compose import compose
from pipeline.runs.inline import InlineRunner
from pipeline.storage.store import find
from tests.patience import PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.ray]

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SCRIPTS = Path(sys.executable).parent
TRAIN = (
    "-m",
    "pipeline.train",
    "experiment=digits_rbm",
    "metrics.port=0",
    "chains.per_pool=20",
    "evaluation.transitions=50",
)
SHORT = ("trainer.steps=60", "checkpoint.every=20")
LONG = ("trainer.steps=1000000", "checkpoint.every=50")
SUMMARY_KEYS = {
    *(
        "version",
        "wall_seconds",
        "steps_per_second",
        "negatives_per_second",
        "transitions_per_second",
        "mean_lag",
        "max_lag",
    ),
    *("mean_ess", "restarts", "checkpoint", "test_log_likelihood"),
}
# explicit, since Ray otherwise decides by what it finds in the home folder; the cluster listens on
# this machine only
NO_AUTH = {"RAY_AUTH_MODE": "disabled"}


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Polls until `condition()` is true; fails the test where it never is."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {PATIENCE:.0f} s in vain for {what}")
        time.sleep(0.05)


def free_ports(number: int) -> list[int]:
    """Different ports that nothing listens on."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)
        ]
        return [server.getsockname()[1] for server in servers]


class Command:
    """A command in a session of its own, what it prints in files, no settings of Ray but
    `environment`'s.
    """

    def __init__(
        self, arguments: tuple[str, ...], folder: Path, environment: dict[str, str]
    ) -> None:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        everything = {**clean, "PYTHONUNBUFFERED": "1", **environment}
        self._out, self._err = folder / "stdout", folder / "stderr"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                arguments,
                cwd=REPOSITORY,
                env=everything,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.pid = self.process.pid

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Polls until `condition()` holds while the command runs."""
        wait_until(lambda: condition() or self.process.poll() is not None, what)
        assert self.process.poll() is None, f"ended before {what}:\n{self.out}\n{self.err}"

    def status(self) -> int:
        """Its exit status, once it has ended."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {PATIENCE:.0f} s:\n{self.out}\n{self.err}")

    def succeed(self) -> str:
        """What it printed, once it has ended well."""
        assert self.status() == 0, f"{self.out}\n{self.err}"
        return self.out

    def session(self) -> list[int]:
        """Its processes that are still there, those of a Ray it started among them."""
        members = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # ended a moment ago
                if (
                    os.getsid(int(entry.name)) == self.pid
                    and "\nState:\tZ" not in (entry / "status").read_text()
                ):
                    members.append(int(entry.name))
        return members

    def kill(self) -> None:
        """Ends whatever is left of it."""
        for pid in self.session():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


Start = Callable[..., Command]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a program of the environment: `start("python", *arguments, NAME=value)`; nothing of it
    outlives the test.
    """
    commands: list[Command] = []

    def start_command(program: str, *arguments: str, **environment: str) -> Command:
        folder = tmp_path / f"command-{len(commands)}"
        folder.mkdir()
        commands.append(Command((str(SCRIPTS / program), *arguments), folder, environment))
        return commands[-1]

    yield start_command
    for command in commands:
        command.kill()


class Head(NamedTuple):
    """A running cluster of one node."""

    environment: dict[str, str]  # for what connects to it
    dashboard: str
    folder: Path

    def drivers(self) -> str:
        """Every driver that has connected, with its command, as JSON; empty where the dashboard
        does not answer.
        """
        with (
            suppress(OSError),
            urllib.request.urlopen(f"{self.dashboard}/api/jobs/", timeout=10) as answer,
        ):
            return answer.read().decode()
        return ""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """`ray start --head`, its jobs finding `python` and EBM_RUNS in its environment."""
    gcs, client, dashboard, agent, agent_grpc = free_ports(5)
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        options = {
            "port": gcs,
            "ray-client-server-port": client,
            "dashboard-port": dashboard,
            "num-cpus": 4,
        }
        options |= {"dashboard-agent-listen-port": agent, "dashboard-agent-grpc-port": agent_grpc}
        options |= {"min-worker-port": 0, "max-worker-port": 0, "object-store-memory": 200_000_000}
        start = [f"--{key}={value}" for key, value in options.items()]
        start += [
            f"--temp-dir={folder}",
            "--node-ip-address=127.0.0.1",
            "--include-dashboard=true",
            "--disable-usage-stats",
        ]
        scripts = _without_blanks(SCRIPTS, folder)
        environment = {
            **NO_AUTH,
            "EBM_RUNS": f"{folder}/runs",
            "PATH": f"{scripts}:{os.environ['PATH']}",
        }
        ray = (str(scripts / "python"), "-m", "ray.scripts.scripts")
        command = Command((*ray, "start", "--head", "--block", *start), folder, environment)
        try:
            head = Head(
                {**NO_AUTH, "RAY_ADDRESS": f"127.0.0.1:{gcs}"},
                f"http://127.0.0.1:{dashboard}",
                folder,
            )
            command.wait_for(head.drivers, "the head node")
            yield head
        finally:
            command.kill()  # SIGTERM would drain the node for half a minute


def _without_blanks(scripts: Path, folder: Path) -> Path:
    """`scripts` by a way without blanks: `ray start --head --block` starts its server of clients by
    a command line that has none in quotes (Ray 2.60), and ends with it.
    """
    if " " not in str(scripts):
        return scripts
    (folder / "environment").symlink_to(scripts.parent)
    return folder / "environment" / scripts.name


def check_results(output: Path, version: int = 60) -> None:
    """All that a finished run leaves."""
    summary = json.loads((output / "summary.json").read_text())
    assert summary.keys() >= SUMMARY_KEYS
    assert (summary["version"], summary["checkpoint"]) == (version, find(str(output)).folder)
    assert all(
        (output / name).read_bytes().startswith(b"\x89PNG")
        for name in ("samples.png", "curves.png")
    )
    assert json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])


def check_interrupted(log: str, output: Path) -> None:
    """The log names the step, and the newest checkpoint is of that step, not an earlier periodic
    one.
    """
    said = re.search(r"^interrupted at step (\d+) of 1000000", log, re.MULTILINE)
    assert said is not None, log
    assert find(str(output)).step == int(said[1]) > 0


def check_bitwise(output: Path, arguments: tuple[str, ...]) -> None:
    """The newest checkpoint, of whatever step, is one process's at that step, and goes on as it
    does.
    """
    config, checkpoint = compose([*TRAIN[2:], *arguments]), find(str(output))
    whole, resumed = InlineRunner(config), InlineRunner(config)
    whole.start(None, None)
    while whole.step()[0].version < checkpoint.step:
        pass
    resumed.start(checkpoint, None)
    for _ in range(3):
        assert np.array_equal(whole._learner.publish().flat, resumed._learner.publish().flat)
        whole.step()
        resumed.step()


def check_refused(command: Command, output: Path, *words: str) -> None:
    """Status 2, one line with `words` on standard error, nothing written."""
    assert command.status() == 2, f"{command.out}\n{command.err}"
    lines = command.err.splitlines()
    assert len(lines) == 1, lines
    assert all(word in lines[0] for word in ("refused: ", *words)), lines
    assert not output.exists()


def test_no_cluster_to_be_found_is_refused(start: Start, tmp_path: Path) -> None:
    """cluster=ray with nothing to connect to ends at once with what to do."""
    if find_gcs_addresses():
        pytest.skip("a Ray of somebody else's runs here, and would rightly be found")
    command = start("python", *TRAIN, *SHORT, "cluster=ray", f"output={tmp_path / 'run'}")
    check_refused(command, tmp_path / "run", "cluster=ray", "ray start --head")


def test_an_address_where_nothing_listens_is_refused(start: Start, tmp_path: Path) -> None:
    """RAY_ADDRESS that names no cluster ends with the address, not with minutes of attempts."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    arguments = (*TRAIN, *SHORT, "cluster=ray", f"output={tmp_path / 'run'}")
    check_refused(
        start("python", *arguments, RAY_ADDRESS=address, **NO_AUTH), tmp_path / "run", address
    )


def test_alone_it_trains_and_the_same_command_resumes(start: Start, tmp_path: Path) -> None:
    """Without RAY_ADDRESS a Ray of its own carries the run; a second time there is nothing left to
    train.
    """
    output = tmp_path / "run"
    first = start("python", *TRAIN, *SHORT, f"output={output}")
    log = first.succeed()
    assert re.search(r"^step 60/60  loss", log, re.MULTILINE), log
    assert "\x1b" not in log
    check_results(output)
    wait_until(lambda: not first.session(), "the end of the Ray it had started")
    log = start("python", *TRAIN, *SHORT, f"output={output}").succeed()
    assert "this run is done: step 60 of 60" in log
    assert not re.search(r"^step ", log, re.MULTILINE), log


@pytest.mark.parametrize(
    ("number", "status", "whole_group"),
    [
        (signal.SIGINT, 130, False),
        (signal.SIGINT, 130, True),
        (signal.SIGTERM, 143, False),
        (signal.SIGHUP, 129, True),
    ],
    ids=["SIGINT", "Ctrl-C", "SIGTERM", "a terminal that closes"],
)
def test_an_interrupt_leaves_a_checkpoint(
    start: Start, tmp_path: Path, number: signal.Signals, status: int, whole_group: bool
) -> None:
    """A signal to the driver, or to the terminal's whole process group, ends the run after a last
    checkpoint.
    """
    command = start("python", *TRAIN, *LONG, f"output={tmp_path / 'run'}")
    command.wait_for(lambda: "\nstep " in command.out, "the first step")
    (os.killpg if whole_group else os.kill)(command.pid, number)
    assert command.status() == status, f"{command.out}\n{command.err}"
    assert "Traceback" not in command.err
    check_interrupted(command.out, tmp_path / "run")
    check_bitwise(tmp_path / "run", LONG)


def test_a_run_starts_ray_in_odd_surroundings(start: Start, tmp_path: Path) -> None:
    """A proxy that is dead, a folder for temporary files whose path is too long and has spaces, and
    a home folder that takes no files.
    """
    folder = tmp_path / " ".join(["a long name"] * 8)
    folder.mkdir()
    output = folder / "run"
    proxy = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    command = start(
        "python", *TRAIN, *SHORT, f"output={output}", TMPDIR=str(folder), HOME="/dev/null", **proxy
    )
    command.succeed()
    assert f"TMPDIR={folder}: Ray wants an absolute path of at most" in command.err
    check_results(output)


@pytest.mark.parametrize("cluster", ["ray", "local"])
def test_with_an_address_it_joins_that_cluster(
    start: Start, tmp_path: Path, head: Head, cluster: str
) -> None:
    """RAY_ADDRESS decides, whichever of the two configurations is chosen."""
    output = tmp_path / "run"
    start(
        "python", *TRAIN, *SHORT, f"cluster={cluster}", f"output={output}", **head.environment
    ).succeed()
    check_results(output)
    assert str(output) in head.drivers()


def test_a_killed_driver_is_taken_up_again(start: Start, tmp_path: Path, head: Head) -> None:
    """After SIGKILL the same command goes on from the last complete checkpoint, on CPUs that the
    first one had.
    """
    output = tmp_path / "run"
    arguments = (
        *TRAIN,
        "trainer.steps=600",
        "checkpoint.every=20",
        "cluster=ray",
        f"output={output}",
    )
    killed = start("python", *arguments, **head.environment)
    killed.wait_for(lambda: list(output.glob("checkpoints/*/manifest.json")), "a checkpoint")
    killed.process.kill()
    assert killed.status() == -signal.SIGKILL
    step = find(str(output)).step
    assert 0 < step < 600
    assert (
        f"resuming at step {step} of 600"
        in start("python", *arguments, **head.environment).succeed()
    )
    check_results(output, version=600)


def test_more_pools_than_the_cluster_has_room_for_are_refused(
    start: Start, tmp_path: Path, head: Head
) -> None:
    """What would wait for CPUs for ever is refused, with the arithmetic."""
    arguments = (*TRAIN, *SHORT, "cluster=ray", "chains.pools=64", f"output={tmp_path / 'run'}")
    check_refused(
        start("python", *arguments, **head.environment),
        tmp_path / "run",
        "64 pools",
        "65.0 CPUs",
        "has 4.0",
    )


def submit(start: Start, head: Head, *arguments: str) -> Command:
    """`ray job submit` of this checkout, from its root."""
    return start(
        "ray",
        "job",
        "submit",
        "--address",
        head.dashboard,
        "--working-dir",
        ".",
        *arguments,
        **NO_AUTH,
    )


def test_a_job_logs_plain_lines_and_writes_under_ebm_runs(start: Start, head: Head) -> None:
    """The working directory is uploaded without what git ignores; the default output is under
    EBM_RUNS.
    """
    log = submit(start, head, "--", "python", *TRAIN, *SHORT).succeed()
    assert "succeeded" in log
    assert re.search(r"^step 60/60  loss", log, re.MULTILINE), log
    said = re.search(
        rf"^digits_rbm: .* to ({re.escape(str(head.folder))}/runs/runs/digits_rbm-\w{{10}})$",
        log,
        re.MULTILINE,
    )
    assert said is not None, log
    check_results(Path(said[1]))
    (uploaded,) = (head.folder / "session_latest/runtime_resources/working_dir_files").glob(
        "_ray_pkg_*/"
    )
    assert (uploaded / "pipeline/train.py").exists()
    assert not {".git", ".venv", "runs", "dist", ".mypy_cache"} & {
        path.name for path in uploaded.iterdir()
    }
    assert sum(path.stat().st_size for path in uploaded.rglob("*") if path.is_file()) < 20_000_000


def test_a_refused_job_fails_with_its_reason(start: Start, head: Head) -> None:
    """What is wrong with the configuration stands in the job's log."""
    command = submit(start, head, "--", "python", *TRAIN, "trainer.steps=abc")
    assert command.status() == 1
    assert "refused: trainer.steps=abc: " in command.out
    assert "failed" in command.out


def test_a_stopped_job_leaves_a_checkpoint(start: Start, head: Head) -> None:
    """`ray job stop` gives a few seconds; that is enough for a last checkpoint. A relative output
    is under EBM_RUNS.
    """
    submit(
        start,
        head,
        "--no-wait",
        "--submission-id=stopped",
        "--",
        "python",
        *TRAIN,
        *LONG,
        "output=stopped",
    ).succeed()
    log = head.folder / "session_latest/logs/job-driver-stopped.log"
    wait_until(lambda: log.exists() and "\nstep " in log.read_text(), "the job's first step")
    assert (
        "was stopped"
        in start("ray", "job", "stop", "--address", head.dashboard, "stopped", **NO_AUTH).succeed()
    )
    check_interrupted(log.read_text(), head.folder / "runs/stopped")
