"""A run of `benchmarks.chaos`: its driver, begun as often as need be, and the processes below it.

Only processes are ended that the driver started, by their ids.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos_parts import PROTOCOL, STEPS

SAMPLE_SECONDS = 1.0  # from one look at the memory to the next
PATIENCE = 15.0  # seconds that processes have to end behind their driver
MB = 2**20
TRACEBACKS = ("Traceback (most recent call last)", "Unhandled error")


class ChaosRun:
    """The command `python -m pipeline.train ARGUMENTS` with its files under `folder`.

    `status` is the exit status of its last driver; `drivers` counts them; `orphans` names processes
    that outlived theirs; `failures` has the status
    and the last line of each that ended without being asked to, and not well. `memory` holds by
    name (process, seconds, MB) of each look.
    """

    def __init__(
        self, folder: Path, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self.folder, self.output = folder, folder / "run"
        command = [sys.executable, "-u", "-m", "pipeline.train", *arguments]
        self._command = [*command, f"output={PROTOCOL}://{self.output}"]
        self._environment = {**os.environ, **environment, "RAY_TMPDIR": str(folder)}
        self._environment.pop("RAY_ADDRESS", None)
        self._driver: subprocess.Popen[bytes] | None = None
        self._stopped: list[tuple[float, psutil.Process]] = []  # until when
        self.status: int | None = None
        self.drivers = 0
        self.orphans: list[str] = []
        self.failures: list[str] = []
        self.memory: dict[str, list[tuple[int, float, float]]] = {"driver": [], "object_store": []}

    def begin(self) -> None:
        """Begins a driver."""
        self.drivers += 1
        with (self.folder / f"driver-{self.drivers}.log").open("wb") as log:
            self._driver = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._environment
            )
        self.status = None
        threading.Thread(target=self._watch, args=(self._driver,), daemon=True).start()

    def _watch(self, driver: subprocess.Popen[bytes]) -> None:
        """Looks at the memory of driver and object store as long as the driver is there."""
        while driver.poll() is None:
            now = time.time()
            with suppress(psutil.Error):
                process = psutil.Process(driver.pid)
                held = process.memory_info().rss / MB
                self.memory["driver"].append((driver.pid, now, held))
                for child in process.children(recursive=True):
                    if child.name() == "raylet":
                        # pages of the object store that were ever used: they stay mapped
                        shared = child.memory_info().shared / MB
                        self.memory["object_store"].append((driver.pid, now, shared))
            time.sleep(SAMPLE_SECONDS)

    # -- how it goes -------------------------------------------------------------------------------

    def rows(self) -> int:
        """Returns how many rows of figures there are, of all drivers."""
        with suppress(FileNotFoundError):
            return (self.folder / STEPS).read_bytes().count(b"\n")
        return 0

    def step(self) -> int:
        """Returns the step of the last row."""
        with suppress(FileNotFoundError, IndexError):
            return int((self.folder / STEPS).read_text().splitlines()[-1].split()[1])
        return 0

    def keep_going(self) -> bool:
        """Begins a driver that failed again, lets processes go on whose time is over, and returns
        whether the run goes on.
        """
        self._let_go()
        assert self._driver is not None
        if self._driver.poll() is None:
            return True
        self.status = self._driver.returncode
        if self.status == 0:
            return False
        said = (self.folder / f"driver-{self.drivers}.log").read_text().splitlines()
        self.failures.append(f"{self.status}: {said[-1] if said else ''}")
        self.begin()
        return True

    def await_end(self, look: Callable[[], None]) -> None:
        """Returns when the run is done, and calls `look` over and over until then."""
        while self.keep_going():
            look()
            time.sleep(0.1)

    def summary(self) -> dict[str, Any]:
        """Returns what the run left at its end."""
        found: dict[str, Any] = json.loads((self.output / "summary.json").read_text())
        return found

    def tracebacks(self) -> int:
        """Returns how many tracebacks its drivers printed."""
        logs = (file.read_text() for file in self.folder.glob("driver-*.log"))
        return sum(log.count(mark) for log in logs for mark in TRACEBACKS)

    # -- what is done to it ------------------------------------------------------------------------

    def _actors(self, role: str) -> list[psutil.Process]:
        """Returns the processes of the actors whose class is called `role`."""
        assert self._driver is not None
        found = []
        with suppress(psutil.Error):
            for process in psutil.Process(self._driver.pid).children(recursive=True):
                with suppress(psutil.Error, IndexError):
                    if process.cmdline()[0].startswith(f"ray::{role}"):
                        found.append(process)
        return found

    def _chosen(
        self, role: str, count: int | None, generator: random.Random
    ) -> list[psutil.Process]:
        found = sorted(self._actors(role), key=lambda process: process.pid)
        return found if count is None else generator.sample(found, min(count, len(found)))

    def kill(self, role: str, count: int | None, generator: random.Random) -> None:
        """Kills so many of the actors, or all of them."""
        for process in self._chosen(role, count, generator):
            _send(process, signal.SIGKILL)

    def stop(self, role: str, seconds: float, generator: random.Random) -> None:
        """Stops one of the actors for so long."""
        for process in self._chosen(role, 1, generator):
            self._stopped.append((time.monotonic() + seconds, process))
            _send(process, signal.SIGSTOP)

    def _let_go(self, all_of_them: bool = False) -> None:
        now = time.monotonic()
        over = [entry for entry in self._stopped if all_of_them or entry[0] <= now]
        for entry in over:
            self._stopped.remove(entry)
            _send(entry[1], signal.SIGCONT)

    def kill_driver(self) -> None:
        """Kills the driver, and waits for the processes that it started to end. Those that do not
        are counted, and ended.
        """
        assert self._driver is not None
        below: list[psutil.Process] = []
        with suppress(psutil.Error):
            below = psutil.Process(self._driver.pid).children(recursive=True)
        self._let_go(all_of_them=True)
        self._driver.kill()
        self.status = self._driver.wait()
        _, alive = psutil.wait_procs(below, timeout=PATIENCE)
        for process in alive:
            with suppress(psutil.Error):
                self.orphans.append(process.name())
            _send(process, signal.SIGKILL)

    def end_all(self) -> None:
        """Ends whatever is left."""
        if self._driver is not None and self._driver.poll() is None:
            self.kill_driver()


def _send(process: psutil.Process, number: int) -> None:
    """Sends a signal to the very process, not to a later one of the same id."""
    with suppress(psutil.Error):
        process.send_signal(number)
