"""Drivers that are started again: children that are killed, fail, end, or are told to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.common.restarts import RestartBudget
from pipeline.runs.interruption import Interruption
from pipeline.runs.supervision import AGAIN, PARENT, is_child, supervise

REPOSITORY = Path(__file__).resolve().parent.parent.parent
ENDS = """
import os, signal, sys
from pathlib import Path
log = Path(sys.argv[1])
log.write_text(log.read_text() + "x" if log.exists() else "x")
end = sys.argv[1 + len(log.read_text())]
os.kill(os.getpid(), int(end[1:])) if end.startswith("-") else sys.exit(int(end))
"""


@pytest.mark.parametrize(
    ("ends", "status", "told"),
    [
        (["0"], 0, []),
        (["2"], 2, []),
        (["1"], 1, []),
        (["-15"], 128 + 15, []),
        (["-9", "-11", "0"], 0, ["(SIGKILL); it is started", "(SIGSEGV); it is started"]),
        ([str(AGAIN), "0"], 0, ["(its cluster failed); it is started again"]),
        (["-9", "2"], 2, ["(SIGKILL); it is started again"]),
        (["-9", str(AGAIN), "-9"], 1, ["(SIGKILL)", "cluster failed", "driver_restarts=2 allows"]),
    ],
    ids=str,
)
def test_what_died_is_started_again_and_what_ended_is_not(
    tmp_path: Path, ends: list[str], status: int, told: list[str]
) -> None:
    said: list[str] = []
    log = tmp_path / "starts"
    assert supervise([sys.executable, "-c", ENDS, str(log), *ends], 2, said.append) == status
    assert len(log.read_text()) == len(ends)
    assert len(said) == len(told)
    assert all(part in line for part, line in zip(told, said, strict=True))


SUPERVISES = """
import sys
from pipeline.runs.supervision import supervise
sys.exit(supervise([sys.executable, "-u", "-c", sys.argv[1]], 9, print))
"""
WAITS = """
import os, signal, sys, time
from pipeline.runs.supervision import end_with_parent, is_child
end_with_parent()
def ended(number, frame):
    print(f"told {number}", flush=True)
    sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, ended)
print(os.getpid(), is_child(), flush=True)
time.sleep(600)
"""


def supervised() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISES, WAITS],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on_and_nothing_is_started_again(number: signal.Signals) -> None:
    with supervised() as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().split()[1] == "True"
        parent.send_signal(number)
        assert parent.stdout.read() == f"told {number.value}\n"
    assert parent.returncode == 128 + number


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells no child of it")
def test_a_driver_does_not_outlive_its_parent() -> None:
    """It is told to end, as by a SIGTERM."""
    with supervised() as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        parent.kill()
        assert parent.stdout.read() == f"told {signal.SIGTERM.value}\n"


def test_a_child_knows_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PARENT, raising=False)
    assert not is_child()
    monkeypatch.setenv(PARENT, str(os.getppid()))
    assert is_child()
    monkeypatch.setenv(PARENT, str(os.getpid()))
    assert not is_child(), "a grandchild, which has the environment too"


def test_a_signal_that_was_passed_on_as_well_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same within a second; a later one, or another, ends the process."""
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    interruption = Interruption()
    for number, at in ((15, 100.0), (15, 100.9), (2, 100.9), (15, 101.1)):
        now[0] = at
        interruption._note(number, None)
    assert interruption.signal == 15
    assert ended == [128 + 2, 128 + 15]


def test_a_budget_is_for_an_hour() -> None:
    budget = RestartBudget(3)
    assert [budget.spend(now) for now in (0.0, 1000.0, 2000.0)] == [True] * 3
    assert not budget.spend(3000.0)
    later = RestartBudget(3)
    assert all(later.spend(1200.5 * number) for number in range(100)), "one in 20 minutes is fine"
    assert not RestartBudget(0).spend(0.0)
