"""A run whose process is killed at random moments, and begun again each time.

    python -m benchmarks.moments [--moments 50] [--seed 0] [--json [FILE]] [key=value ...]

The end of it is held against that of a run that nobody disturbed: at lag 0 they are equal bit for
bit. The configuration is that of a small run in one process; with cluster=local it is one on Ray,
of which the driver is killed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import command_line, say, write
from pipeline.storage.store import find

RUN = (
    *("experiment=digits_rbm", "cluster=inline", "metrics.port=0", "chains.per_pool=20"),
    *("trainer.steps=4000", "checkpoint.every=50", "evaluation.samples=0"),
)
Start = Callable[[Sequence[str], int], int]
"""Begins a run with these arguments, in a process whose output goes to this descriptor; the id of
the process.
"""
AT_THE_START = 0.2
"""The chance that a moment is between the start of the process and its first step."""


def in_a_process(arguments: Sequence[str], output: int) -> int:
    """Begin the run as a person does."""
    command = [sys.executable, "-u", "-m", "pipeline.train", *arguments]
    return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True).pid


def forked(arguments: Sequence[str], output: int) -> int:
    """Begin the run in a copy of this process, which has loaded everything: in one process alone,
    and where no other thread runs.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        from pipeline.train import main

        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        status = main(arguments)
    finally:
        os._exit(status)


class Attempt:
    """One process of the run, until it ends or is killed."""

    def __init__(self, start: Start, arguments: Sequence[str]) -> None:
        self._reading, writing = os.pipe()
        self._pid = start(arguments, writing)
        os.close(writing)
        self.said = b""

    def until_first_step(self) -> None:
        """Wait for the first step, or the end of the process."""
        while b"\nstep " not in self.said and self._read():
            pass

    def kill(self) -> bool:
        """SIGKILL; whether there was still somebody to kill."""
        os.kill(self._pid, signal.SIGKILL)
        return self.end() == -signal.SIGKILL

    def end(self) -> int:
        """Its exit status, when it has ended."""
        while self._read():
            pass
        os.close(self._reading)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def _read(self) -> bool:
        more = os.read(self._reading, 65536)
        self.said += more
        return bool(more)


def killed_at_moments(
    start: Start, arguments: Sequence[str], moments: int, seed: int, span: float
) -> int:
    """Begin the run, kill it at a random moment, and so on, as often as there are `moments`; then
    let it end. Return how often it was killed: less than asked for where it was done before.

    A moment is within `span` seconds of the first step, or before that.
    """
    generator, killed = random.Random(seed), 0
    to_first = 0.0  # seconds from the start of a process to its first step
    for _ in range(moments):
        at_start, share = generator.random() < AT_THE_START, generator.random()
        clock, attempt = time.perf_counter(), Attempt(start, arguments)
        if at_start and to_first:
            time.sleep(share * to_first)
        else:
            attempt.until_first_step()
            to_first = time.perf_counter() - clock
            time.sleep(share * span)
        killed += attempt.kill()
    last = Attempt(start, arguments)
    status = last.end()
    assert status == 0, last.said.decode()
    return killed


def disturbed(
    folder: Path, arguments: Sequence[str], moments: int, seed: int, start: Start
) -> dict[str, Any]:
    """Make one run undisturbed and one that is killed at so many random `moments`, both under
    `folder`. Return how often it was `killed`, and whether both ends are `equal` bit for bit.
    """
    whole = Attempt(start, [*arguments, f"output={folder / 'whole'}"])
    whole.until_first_step()
    clock = time.perf_counter()
    status = whole.end()
    assert status == 0, whole.said.decode()
    # processes that are killed half way through their spans have then made half of the run
    span = (time.perf_counter() - clock) / moments
    output = f"output={folder / 'killed'}"
    killed = killed_at_moments(start, [*arguments, output], moments, seed, span)
    one, two = (find(str(folder / name)).read("learner") for name in ("whole", "killed"))
    equal = one["version"] == two["version"] and bool(one["weights"].equal(two["weights"]))
    return {"moments": moments, "seed": seed, "killed": killed, "equal": equal}


def main(arguments: Sequence[str] | None = None) -> None:
    """Carry out the command line."""
    parser = command_line(__doc__, "json")
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        run = [*RUN, *options.overrides]
        found = disturbed(Path(folder), run, options.moments, options.seed, in_a_process)
    say(
        f"killed {found['killed']} times of {found['moments']}; equal bit for bit: {found['equal']}"
    )
    write(found, options.json)


if __name__ == "__main__":
    main()
