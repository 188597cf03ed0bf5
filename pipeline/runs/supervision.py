"""A driver that is started again when it died: a parent process that does nothing else.

`python -m pipeline.train` with `cluster.driver_restarts` above 0 runs the same command in a child.
A child that was killed, or whose cluster failed, is started again, and goes on from the newest
checkpoint. Any other end is the parent's end too.

Ray has no such retry for a driver of a laptop, and none for the entrypoint of `ray job submit`;
KubeRay's `backoffLimit` makes a whole cluster anew. A parent works alike in all three places, and
keeps the cluster where it is one that stays.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from pipeline.common.restarts import RestartBudget

PARENT = "EBM_DRIVER_PARENT"
"""The environment variable by which a child knows its parent: the parent's process id."""
AGAIN = 75
"""The exit status of a child whose cluster failed: EX_TEMPFAIL of sysexits.h."""
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def is_child() -> bool:
    """Returns whether the parent of this process supervises it."""
    return os.environ.get(PARENT) == str(os.getppid())


def end_with_parent() -> None:
    """Has the system send this process a SIGTERM when its parent ends, so that a run whose parent
    was killed writes a last checkpoint and gives its output back. Where the system is not Linux it
    does nothing.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def supervise(command: Sequence[str], restarts: int, say: Callable[[str], None]) -> int:
    """Runs `command` in a child, and again where it died, at most `restarts` times within an hour.
    Returns the exit status for this process. `say` is told of each death, in one line.

    SIGINT, SIGTERM and SIGHUP are passed on to the child, which is not started again then. It is in
    a process group of its own, lest a terminal send it what it gets from here as well.
    """
    budget, environment = RestartBudget(restarts), {**os.environ, PARENT: str(os.getpid())}
    with _passed_on() as forward:
        while True:
            child = subprocess.Popen(command, env=environment, process_group=0)
            status = forward(child)
            # somebody may tell the child itself to end
            died = status == AGAIN or (status < 0 and -status not in PASSED_ON)
            if not died or forward.seen is not None:
                return _as_exit_status(status)
            how = "its cluster failed" if status == AGAIN else _signal_name(-status)
            if not budget.spend(time.monotonic()):
                say(
                    f"failed: the driver died ({how}); cluster.driver_restarts={restarts} allows no"
                    " more within an hour"
                )
                return 1
            say(f"the driver died ({how}); it is started again")


class _Forward:
    """Waits for a child, and hands it the signals that this process gets meanwhile. `seen` is the
    first of them.
    """

    def __init__(self) -> None:
        self.seen: int | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def __call__(self, child: subprocess.Popen[bytes]) -> int:
        """Returns the child's exit status, negative where a signal ended it."""
        self._child = child
        if self.seen is not None:  # it came while there was no child
            child.send_signal(self.seen)
        return child.wait()

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Hands the signal on."""
        self.seen = self.seen or number
        if self._child is not None:
            with suppress(ProcessLookupError):
                self._child.send_signal(number)


@contextmanager
def _passed_on() -> Iterator[_Forward]:
    """Within, signals are noted and handed on. One that this process ignores, as under `nohup`,
    stays ignored, by the child too.
    """
    forward = _Forward()
    before = {
        number: signal.signal(number, forward.note)
        for number in PASSED_ON
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield forward
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signal_name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def _as_exit_status(status: int) -> int:
    """Returns the exit status as a shell would have it."""
    return 128 - status if status < 0 else 1 if status == AGAIN else status


def own_command(arguments: Sequence[str]) -> list[str]:
    """Returns the command that trains with these arguments in a process of its own."""
    return [sys.executable, "-m", "pipeline.train", *arguments]
