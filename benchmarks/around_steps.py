"""Seconds around the steps: from the command to the first step, and from the last step to the end.

    python -m benchmarks.around_steps [--pairs 9] [--steps 5] [--beside CHECKOUT] [--json FILE]

The default recipe runs `--steps` steps, in one process and on a Ray of its own, in alternation with
the code of another CHECKOUT where one is given. The result is {"rows": [...]}, medians of a cluster
and a checkout:

    first_step    from the command to the line of the first step, seconds
    end           from the line of the last step to the end of the command, seconds
    whole         the command, seconds
    processor     of all its processes, Ray's own among them, seconds of processor time
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import psutil

from benchmarks import harness
from benchmarks.harness import say

ROOT = Path(__file__).parents[1]
CLUSTERS = ("inline", "local")
POLL_SECONDS = 0.1


class Meter(threading.Thread):
    """Adds up the processor time of a process and of all that it starts, while they live."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root = psutil.Process(pid)
        self._spent: dict[psutil.Process, float] = {}

    def run(self) -> None:
        while self._root.is_running():
            try:
                for process in [self._root, *self._root.children(recursive=True)]:
                    times = process.cpu_times()
                    self._spent[process] = times.user + times.system
            except psutil.Error:  # of one that has just ended
                pass
            time.sleep(POLL_SECONDS)

    @property
    def seconds(self) -> float:
        return sum(self._spent.values())


def measure(cluster: str, steps: int, checkout: Path) -> dict[str, float]:
    """Return the seconds of one run. Raises `CalledProcessError` where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pipeline.train", f"trainer.steps={steps}"]
        command += [f"cluster={cluster}", "metrics.port=0", f"output={folder}/run"]
        environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1"}
        begin = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True
        )
        meter = Meter(process.pid)
        meter.start()
        assert process.stdout is not None
        seen = {}
        for line in process.stdout:
            seen[" ".join(line.split()[:2])] = time.perf_counter() - begin
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, command)
        whole = time.perf_counter() - begin
    first, last = seen[f"step 1/{steps}"], seen[f"step {steps}/{steps}"]
    return {
        "first_step": first,
        "end": whole - last,
        "whole": whole,
        "processor": meter.seconds,
    }


def main() -> None:
    parser = harness.command_line(__doc__, "pairs", "json")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT")
    arguments = parser.parse_args()
    checkouts = {"this": ROOT}
    if arguments.beside is not None:
        checkouts["beside"] = arguments.beside.resolve()
    measured = defaultdict(list)
    for _ in range(arguments.pairs):
        for cluster in CLUSTERS:
            for name, checkout in checkouts.items():
                found = measure(cluster, arguments.steps, checkout)
                measured[cluster, name].append(found)
                say(f"{cluster:<8}{name:<8}" + "".join(f"{v:8.1f}" for v in found.values()))
    rows = [
        {"cluster": cluster, "checkout": name}
        | {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for (cluster, name), runs in measured.items()
    ]
    content = {**harness.conditions("torch", "ray"), "steps": arguments.steps, "rows": rows}
    harness.write(content, arguments.json)


if __name__ == "__main__":
    main()
