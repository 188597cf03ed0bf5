"""The speed of whole runs through the front door, beside loops written by hand.

    python -m benchmarks.front_door [--only RECIPE ...] [--repeats 5] [--seconds 4] [--json [FILE]]

The result is {"rows": [...]}, a row for each recipe and contender:

    steps_per_second    the median over windows of this process's run
    ratio_to_bare       its speed over that of the bare loop (`benchmarks.training_loops`), the
                        median over rounds of windows
    cores_used          processor seconds of all processes of the run, by the system's account of
                        each (psutil), over the seconds of a window: the median
    driver_ms_per_step  processor milliseconds a step of the process that drives actors, as the run
                        itself counts them (ebm_cpu_seconds_total); null where there are no actors

Every contender is a process of its own, with its children: `python -m pipeline.train`, as a person
starts it. All of a recipe are started, one after the other, and stopped (SIGSTOP) when they are
warm. Then each in turn goes on for a window, alone on the machine, round after round. Its speed is
that between the first and the last row of metrics within the window. A window begins a moment
after its contender went on, when what waited for a stopped process has come to rest.
"""

from __future__ import annotations

import json
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from benchmarks import harness
from benchmarks.harness import say

IMAGES = "train-images-idx3-ubyte"
ENDLESS = ("trainer.steps=1000000", "metrics.port=0", "resume=never")
ROW_EACH_STEP = "metrics.every=1"
"""For recipes of few steps a second, whose windows would hold few rows."""
WARM, SETTLE = 3.0, 0.5
"""Seconds of steps before a contender is first stopped, and before each window."""
STILL = frozenset({psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD, None})
"""States of a process that does nothing; None: it has ended."""
DRIVER = 'ebm_cpu_seconds_total{process="driver"}'


class Recipe(NamedTuple):
    """What is trained: overrides, and the chains of a step over all pools."""

    overrides: tuple[str, ...]
    chains: int = 128


RECIPES = {
    "default": Recipe(()),
    "k40": Recipe(("kernel.transitions=40",)),
    "conv": Recipe(("energy=conv", "kernel.transitions=20", ROW_EACH_STEP)),
    "rbm": Recipe(("experiment=digits_rbm",), 1000),
    "images": Recipe(("experiment=images", "data.held_out=500", ROW_EACH_STEP)),
}
BARE = "bare loop"
CONTENDERS: dict[str, tuple[str, int, int]] = {
    "inline": ("inline", 2, 1),
    "Ray, 1 pool": ("local", 1, 1),
    "Ray, 2 pools": ("local", 2, 1),
    "Ray, 2 pools, 2 ranks": ("local", 2, 2),
}
"""The choice of `cluster`, pools and ranks."""


class Window(NamedTuple):
    """A stretch of time, Unix seconds, and the processor seconds used within it."""

    begin: float
    end: float
    used: float


class Speed(NamedTuple):
    """What a window holds; `driver` are milliseconds a step, not a number where none drives."""

    steps_per_second: float
    cores: float
    driver: float


class Contender:
    """A process that makes steps, with its children.

    Raises `RuntimeError` where it ends before its first step; what it wrote is in `file`.
    """

    def __init__(self, arguments: Sequence[str], file: Path) -> None:
        self._file = file
        command = [sys.executable, "-u", "-m", *arguments]
        with file.open("w") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        self._root = psutil.Process(self._process.pid)

    def warm_up(self) -> None:
        """Wait until it makes steps, and is warm, and stop it."""
        while not any(line.startswith("step ") for line in self._file.read_text().splitlines()):
            if self._process.poll() is not None:
                raise RuntimeError(self._file.read_text())
            time.sleep(0.1)
        time.sleep(WARM)
        self.halt()

    def tree(self) -> list[psutil.Process]:
        """Return its processes that are there."""
        return [self._root, *(_if_there(lambda: self._root.children(recursive=True)) or [])]

    def halt(self) -> None:
        """Stop its processes where they are, and wait until all stand still."""
        stopped = self.tree()
        for process in stopped:
            _if_there(process.suspend)
        while not STILL.issuperset(_if_there(process.status) for process in stopped):
            time.sleep(0.01)

    def go_on(self) -> None:
        """Let its processes go on."""
        for process in self.tree():
            _if_there(process.resume)

    def window(self, seconds: float) -> Window:
        """Let it run for so long, and return the window."""
        self.go_on()
        time.sleep(SETTLE)
        begin, used = time.time(), self._used()
        time.sleep(seconds)
        end, used = time.time(), self._used() - used
        self.halt()
        return Window(begin, end, used)

    def _used(self) -> float:
        """Return the processor seconds of its processes up to now."""
        times = [_if_there(process.cpu_times) for process in self.tree()]
        return sum(at.user + at.system for at in times if at is not None)

    def end(self) -> None:
        """Ask it to end, with a last checkpoint and its rows; it need not have ended yet."""
        self.go_on()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Wait until it has ended; one that does not within a minute is killed."""
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            for process in self.tree():
                _if_there(process.kill)
            self._process.wait()


def _if_there(work: Any) -> Any:
    """Call a method of a process that may have ended; None where it has."""
    try:
        return work()
    except psutil.NoSuchProcess:
        return None


def speed(rows: Iterable[dict[str, float]], window: Window) -> Speed:
    """Return the speed within a window by the rows of metrics.

    Raises `ValueError` where fewer than two of them are within it.
    """
    within = [row for row in rows if window.begin <= row["time"] <= window.end]
    if len(within) < 2:
        raise ValueError(f"{len(within)} rows in {window.end - window.begin:.1f} s: longer windows")
    first, last = within[0], within[-1]
    steps = last["step"] - first["step"]
    nothing = float("nan")
    return Speed(
        steps / (last["time"] - first["time"]),
        window.used / (window.end - window.begin),
        1e3 * (last.get(DRIVER, nothing) - first.get(DRIVER, nothing)) / steps,
    )


def arguments_of(name: str, who: str, folder: Path) -> list[str]:
    """Return the module and the arguments of a contender, whose files go to `folder`."""
    recipe, images = RECIPES[name], folder.parent / IMAGES
    if who == BARE:
        shown = ["--images", str(images)] if name == "images" else []
        return ["benchmarks.training_loops", name, str(folder / "metrics.jsonl"), *shown]
    cluster, pools, ranks = CONTENDERS[who]
    return [
        "pipeline.train",
        *recipe.overrides,
        *((f"data.path={images}",) if name == "images" else ()),
        f"cluster={cluster}",
        f"chains.pools={pools}",
        f"chains.per_pool={recipe.chains // pools}",
        f"trainer.replicas={ranks}",
        *ENDLESS,
        f"output={folder}",
    ]


def measure(name: str, repeats: int, seconds: float, folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a recipe; files go below `folder`."""
    folders = {who: folder / str(number) for number, who in enumerate((BARE, *CONTENDERS))}
    running: dict[str, Contender] = {}
    try:
        for who, own in folders.items():
            own.mkdir()
            running[who] = Contender(arguments_of(name, who, own), folder / f"{own.name}.log")
            running[who].warm_up()
        sides = [partial(contender.window, seconds) for contender in running.values()]
        windows = dict(zip(running, harness.alternate(repeats, *sides), strict=True))
    finally:
        for contender in running.values():
            contender.end()
        for contender in running.values():
            contender.wait()
    found = {}
    for who, own in folders.items():
        lines = (own / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        found[who] = [speed(rows, window) for window in windows[who]]
    bare = [at.steps_per_second for at in found[BARE]]
    return [row_of(name, who, speeds, bare) for who, speeds in found.items()]


def row_of(name: str, who: str, speeds: Sequence[Speed], bare: Sequence[float]) -> dict[str, Any]:
    """Return a contender's row, and show it; `bare` are the bare loop's speeds, by round."""
    rates, cores, driver = zip(*speeds, strict=True)
    drives = CONTENDERS.get(who, (None,))[0] == "local"
    row = {
        "recipe": name,
        "who": who,
        "steps_per_second": statistics.median(rates),
        "ratio_to_bare": harness.median_ratio(rates, bare),
        "cores_used": statistics.median(cores),
        "driver_ms_per_step": statistics.median(driver) if drives else None,
        "by_window": list(rates),
    }
    told = f"  driver {row['driver_ms_per_step']:.2f} ms a step" if drives else ""
    say(
        f"{name:<8} {who:<22} {row['steps_per_second']:9.1f} steps/s"
        f" {row['ratio_to_bare']:6.2f} of bare {row['cores_used']:5.2f} cores{told}"
    )
    return row


def write_images(file: Path, count: int = 4500) -> None:
    """Write blobs of light on 28x28 pixels as an IDX file, so that no data need be there."""
    generator = np.random.default_rng(0)
    centre = generator.uniform(8, 20, (count, 3, 2, 1))
    away = (np.arange(28) - centre) ** 2 / 18
    light = np.exp(-away[:, :, 0, :, None] - away[:, :, 1, None, :]).max(1)
    header = struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28)
    file.write_bytes(header + (255 * light).astype(np.uint8).tobytes())


def main() -> None:
    parser = harness.command_line(__doc__, "json")
    harness.add_only(parser, RECIPES)
    parser.add_argument("--repeats", type=int, default=5, help="windows of each contender")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a window")
    arguments = parser.parse_args()
    # what is stopped must not be left so
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    rows: list[dict[str, Any]] = []
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            write_images(Path(folder) / IMAGES)
            rows += measure(name, arguments.repeats, arguments.seconds, Path(folder))
    result = {
        "command": "python -m benchmarks.front_door --json docs/front_door.json",
        "repeats": arguments.repeats,
        "seconds": arguments.seconds,
        **harness.conditions("torch", "ray"),
        "rows": rows,
    }
    harness.write(result, arguments.json)


if __name__ == "__main__":
    main()
