"""The lease of an output: one run at a time writes there.

`<output>/lease/<generation>.json` says who holds the output. To take the lease is to create the
file of the next generation, which one run alone can do (`pipeline.storage.files.create_file`). The
holder writes its file anew every few seconds, with a counter that rises: its heartbeat. It has lost
the lease when a file of a higher generation is there, or when its own file names another owner.

A newcomer judges a holder as follows.

- A file that says "released" is of a run that ended. The lease is free.
- A holder on the same machine is looked for by its process id and the time its process started.
  A process that is gone holds nothing, and one that is there is not disturbed.
- Any other holder is watched, for at most `PATIENCE` seconds of the newcomer's own clock. A
  heartbeat that goes on refuses the newcomer, and one that stands still is taken over.

No clock of one machine is compared with that of another. A holder that was paused for longer than
`PATIENCE` finds out when it next looks, before it writes. Between a look and the write that follows
it there is a moment in which a pause would go unnoticed: no file system offers the two as one.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, NamedTuple

import psutil
from pydantic import Field, TypeAdapter

from pipeline.common.errors import ConfigError, LostLeaseError, StorageError
from pipeline.common.json_text import to_json
from pipeline.storage.exclusive import create_file, remove_if_empty
from pipeline.storage.files import exists, names, read_file, remove, write_file

log = logging.getLogger(__name__)
LEASE_FOLDER = "lease"
LEASE_NAME = re.compile(r"([0-9]+)\.json")
HEARTBEAT = 5.0  # seconds between two renewals
POLL = 1.0  # seconds between two looks at a holder that is watched
# six heartbeats: storage that is away for a while, or a machine that is paused, costs some of them
PATIENCE = 30.0
SAME_START = 2.0  # seconds: the start of a process is told as exactly


class Holder(NamedTuple):
    """The holder of a lease, as its file tells.

    `owner` is drawn anew for each process of a run. `machine` tells where `pid` is a process id,
    and `started` is when that process started, in seconds after the machine's start. `since` is for
    people. `beat` counts the renewals.
    """

    owner: str
    host: str
    machine: str
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    started: Annotated[float, Field(allow_inf_nan=False)]
    since: str
    beat: int = 0
    released: bool = False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (run {self.owner}, since {self.since})"

    def runs(self) -> bool | None:
        """Returns whether the process runs, or None where this machine cannot tell."""
        if self.machine != _machine():
            return None
        if not psutil.pid_exists(self.pid):
            return False
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return abs(_started(process) - self.started) < SAME_START
        except psutil.Error:  # hidden from this user, or it ends just now
            return None


FORM = TypeAdapter(Holder)


@cache
def _machine() -> str:
    """The space that process ids are of: a start of this machine, and a namespace of processes.

    Containers may share the name of a host, and after a restart of the machine process ids begin
    anew.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return f"{socket.gethostname()} {uuid.getnode()}"


def _started(process: psutil.Process) -> float:
    """Seconds from the start of the machine to that of `process`: setting a clock moves both."""
    return float(process.create_time() - psutil.boot_time())


def _parsed(content: bytes) -> Holder | None:
    """Returns whom a lease's file names; None where it is half-written or not of this form."""
    try:
        return FORM.validate_json(content, strict=True)
    except ValueError:
        return None


class Lease:
    """The right to write to `output`: a context manager that takes it and gives it back.

    `say` is told, in one line each, of a holder that is watched and of one that is succeeded.
    `failed` is called, in another thread, for each renewal that fails.
    """

    def __init__(
        self, output: str, say: Callable[[str], None], failed: Callable[[], None] = lambda: None
    ) -> None:
        self._output, self._say, self._failed = output.rstrip("/"), say, failed
        self._folder = f"{self._output}/{LEASE_FOLDER}"
        self._holder = Holder(
            owner=secrets.token_hex(6),
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_started(psutil.Process()),
            since=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        self._generation = 0
        self._made_output = False
        self._lost: str | None = None  # in words, whose it is now
        self._lock = threading.Lock()  # of the file: one thread reads or writes it at a time
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lease", daemon=True)

    @property
    def owner(self) -> str:
        """The word that names this holder of the lease, 12 letters and digits."""
        return self._holder.owner

    @property
    def lost(self) -> bool:
        """True once it was seen that the lease is lost. No file is read."""
        return self._lost is not None

    def __enter__(self) -> Lease:
        """Takes the lease. Raises `ConfigError` about `output` where another run holds it."""
        while True:
            newest = max(self._generations(), default=0)
            if newest:
                self._await_end(newest)
            self._made_output = not newest and not exists(self._output)
            self._generation = newest + 1
            if create_file(self._url(self._generation), self._content()):
                break
        for older in self._generations():
            if older < self._generation:
                with suppress(OSError, StorageError):  # left there, it does no harm
                    if self._read(older) is not None:  # a folder is nothing of ours
                        remove(self._url(older))
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the lease back, where it is still held: the next run need not wait. A failure is
        logged. A run that wrote nothing leaves nothing.
        """
        self._stop.set()
        self._heart.join()
        try:
            with self._lock:
                if self._is_lost():
                    return
                self._holder = self._holder._replace(released=True)
                if self._generation == 1 and names(self._output) == [LEASE_FOLDER]:
                    self._leave_nothing()
                else:
                    self._write()
        except Exception as error:
            log.warning(
                "the lease of %s could not be given back (%s); the next run may have to wait %.0f"
                " s",
                self._output,
                error,
                PATIENCE,
            )

    def check(self) -> None:
        """Raises `LostLeaseError` where another run has taken the output over. It reads files."""
        with self._lock:
            if self._is_lost():
                raise LostLeaseError(f"output={self._output}: it was taken over by {self._lost}")

    def _await_end(self, generation: int) -> None:
        """Returns once the holder of `generation` may be succeeded. Raises `ConfigError` where it
        is alive.
        """
        content = self._read(generation)
        holder = content and _parsed(content)
        if content is None or (holder and holder.released):
            return
        runs = holder.runs() if holder else None
        named = holder or "another run"
        if runs:
            raise self._refusal(named)
        if runs is None:
            self._say(
                f"{named} has not given the output up; waiting for up to {PATIENCE:.0f} s to see"
                " whether it is alive"
            )
            began = time.monotonic()
            while time.monotonic() - began < PATIENCE:
                time.sleep(POLL)
                now = self._read(generation)
                seen = now and _parsed(now)
                if now is None or (seen and seen.released):
                    return
                if now != content:
                    raise self._refusal(seen or named)
        why = "has gone" if runs is False else "shows no sign of life"
        self._say(f"{named} {why}, and did not give the output up: this run takes it over")

    def _refusal(self, holder: Holder | str) -> ConfigError:
        remedy = f"{holder} writes there; wait for its end, stop it, or give another output"
        return ConfigError("output", self._output, remedy)

    def _beat(self) -> None:
        """Renews the lease until it is given back or lost."""
        failed = False
        while not self._stop.wait(HEARTBEAT):
            try:
                with self._lock:
                    if self._is_lost():
                        return
                    self._holder = self._holder._replace(beat=self._holder.beat + 1)
                    self._write()
                failed = False
            except Exception as error:  # storage is away: the next time may do
                self._failed()
                if not failed:
                    log.warning("the lease of %s could not be renewed: %s", self._output, error)
                failed = True

    def _is_lost(self) -> bool:
        """Looks who holds the output. The lock is held."""
        newest = max(self._generations(), default=0)
        content = self._read(max(newest, self._generation))
        # a file that is gone names nobody: somebody cleaned up, and it is written again
        if content is not None:
            holder = _parsed(content)
            if holder is None:  # the new owner is just writing it
                self._lost = self._lost or "another run"
            elif holder.owner != self.owner:
                self._lost = str(holder)
        return self.lost

    def _leave_nothing(self) -> None:
        """Removes the file, and the folders that were made for it."""
        remove(self._url(self._generation))
        remove_if_empty(self._folder)
        if self._made_output:
            remove_if_empty(self._output)

    def _generations(self) -> list[int]:
        found = map(LEASE_NAME.fullmatch, names(self._folder))
        return [int(name[1]) for name in found if name is not None]

    def _url(self, generation: int) -> str:
        return f"{self._folder}/{generation}.json"

    def _content(self) -> bytes:
        return to_json(self._holder._asdict(), indent=1).encode()

    def _read(self, generation: int) -> bytes | None:
        try:
            return read_file(self._url(generation))
        except (FileNotFoundError, IsADirectoryError):
            return None

    def _write(self) -> None:
        write_file(self._folder, f"{self._generation}.json", self._content())
