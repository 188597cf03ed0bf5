"""A run through Ray under random faults, beside an undisturbed one of the same steps.

    python -m benchmarks.chaos [--seed 0] [--minutes 10] [--docs docs] [key=value ...]

Both are begun by the command that a person gives. Faults come one after the other, in an order that
the seed decides: pools, all pools, the parameter server, one rank of two and the driver are killed
(SIGKILL), a pool is stopped for longer than `cluster.pool_timeout` (SIGSTOP), the storage is away,
slow or full, and the newest checkpoint is damaged while there is no driver. A driver that is gone
is begun again by the same command. When the minutes are over the run is left alone until it ends.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.chaos_figures import (
    EVERY,
    Fault,
    memory,
    quantile,
    read_rows,
    recomputed,
    rounded,
    stalls,
    table,
)
from benchmarks.chaos_parts import STEPS, WEATHER, install
from benchmarks.chaos_run import ChaosRun
from benchmarks.harness import add_only, command_line, conditions, insert, say, write
from pipeline.common.errors import CheckpointError
from pipeline.storage.checkpoint import Checkpoint
from pipeline.storage.manifest import MANIFEST

POOL_TIMEOUT = 5
RUN = (
    *("experiment=digits_rbm", "chains.per_pool=50", "trainer.replicas=2", "metrics.port=0"),
    *(f"metrics.every={EVERY}", "checkpoint.every=100", "recorders=[series,steps]"),
    *(f"cluster.pool_timeout={POOL_TIMEOUT}", "cluster.timeout=120"),
    *("cluster.server_restarts=1000", "checkpoint.patience=100", "evaluation.samples=0"),
)
STEPS_A_MINUTE = 500
FAULTS = {
    "pool": 2,
    "all pools": 1,
    "one rank": 2,
    "parameter server": 1,
    "driver": 1,
    "driver, newest checkpoint damaged": 1,
    "pool hangs": 1,
    "storage away": 1,
    "storage slow": 1,
    "storage full": 1,
}
"""Kinds of faults, and how often each comes in one shuffle of all of them."""
QUIET = (1.0, 5.0)  # seconds of steps between two faults, at random
AWAY = (3.0, 12.0)  # seconds that storage is away, or slow, at random
SLOW = 0.2  # seconds that a call of slow storage takes


class Chaos:
    """Faults made to one run under `folder`."""

    def __init__(self, folder: Path, arguments: Sequence[str], generator: random.Random) -> None:
        self._folder, self._generator = folder, generator
        self.run = ChaosRun(folder, arguments, install(folder))
        self.faults: list[Fault] = []
        self.spoilt: set[int] = set()  # steps of checkpoints damaged on purpose
        self.committed: set[int] = set()  # steps of checkpoints that were seen complete
        self.lost: set[int] = set()
        self._ways: dict[str, Callable[[], None]] = {
            "pool": lambda: self.run.kill("ChainPool", 1, generator),
            "all pools": lambda: self.run.kill("ChainPool", None, generator),
            "one rank": lambda: self.run.kill("ParameterServer", 1, generator),
            "parameter server": lambda: self.run.kill("ParameterServer", None, generator),
            "driver": self._kill_driver,
            "driver, newest checkpoint damaged": lambda: self._kill_driver(damage=True),
            "pool hangs": lambda: self.run.stop("ChainPool", 2.0 * POOL_TIMEOUT, generator),
            "storage away": lambda: self._weather("down"),
            "storage slow": lambda: self._weather(str(SLOW)),
            "storage full": lambda: self._weather("full"),
        }

    def carry_out(self, seconds: float, kinds: Sequence[str]) -> None:
        """Makes faults of these `kinds` for so many seconds from the first steps on, or until the
        run ends, then waits for its end.
        """
        while self.run.keep_going() and not self.run.rows():
            time.sleep(0.1)
        deadline, deck = time.monotonic() + seconds, list[str]()
        while self._await_steps(deadline):
            if not deck:
                deck = [kind for kind in kinds for _ in range(FAULTS[kind])]
                self._generator.shuffle(deck)
            kind = deck.pop()
            say(f"  {time.monotonic() - deadline + seconds:5.0f} s  step {self.run.step()}: {kind}")
            self.faults.append(Fault(kind, time.time()))
            self._ways[kind]()
        self.run.await_end(self._look)
        self._check()

    def _await_steps(self, deadline: float) -> bool:
        """Waits until steps have been made for a while; False when the time is over, or the run."""
        made, quiet = self.run.rows(), self._generator.uniform(*QUIET)
        begun: float | None = None
        while time.monotonic() < deadline:
            if not self.run.keep_going():
                return False
            self._look()
            if begun is None and self.run.rows() > made:
                begun = time.monotonic()
            if begun is not None and time.monotonic() - begun > quiet:
                return True
            time.sleep(0.1)
        return False

    def _kill_driver(self, damage: bool = False) -> None:
        """Ends the driver, looks at what it left, and begins it again."""
        self.run.kill_driver()
        self._check()
        if damage and (there := self._there()):
            step = max(there)
            self.spoilt.add(step)
            # resuming does not read the averaged weights alone
            folder = self._checkpoints / f"{step:08d}"
            parts = sorted(file for file in folder.iterdir() if file.stem != "energy")
            part = self._generator.choice(parts)
            content = bytearray(part.read_bytes())
            content[self._generator.randrange(len(content))] ^= 0xFF
            part.write_bytes(content)
        self.run.begin()

    def _weather(self, weather: str) -> None:
        """Has the storage be so for a while."""
        file, until = self._folder / WEATHER, time.monotonic() + self._generator.uniform(*AWAY)
        file.with_suffix(".new").write_text(weather)
        file.with_suffix(".new").replace(file)
        while time.monotonic() < until:
            self.run.keep_going()
            time.sleep(0.1)
        file.unlink()

    # -- checkpoints -------------------------------------------------------------------------------

    @property
    def _checkpoints(self) -> Path:
        return self.run.output / "checkpoints"

    def _there(self) -> set[int]:
        """Returns the steps of the checkpoints that are complete."""
        found = self._checkpoints.glob(f"*/{MANIFEST}")
        return {int(file.parent.name) for file in found if file.parent.name.isdecimal()}

    def _look(self) -> None:
        self.committed |= self._there()

    def _check(self) -> None:
        """Reads every checkpoint in full, while nobody writes. The newest that was seen has to be
        there, or one of them that is newer.
        """
        there = self._there()
        self.committed |= there
        for step in there - self.spoilt:
            try:
                checkpoint = Checkpoint.open(str(self._checkpoints / f"{step:08d}"))
                assert checkpoint is not None
                for part in checkpoint.manifest.parts:
                    checkpoint.read(part.rpartition(".")[0])
            except CheckpointError:
                self.lost.add(step)
        whole = self.committed - self.spoilt
        if whole and max(whole) > max(there, default=0):
            self.lost.add(max(whole))


def summed_up(chaos: Chaos, seconds: float) -> dict[str, Any]:
    """Returns the figures of a disturbed run."""
    run = chaos.run
    rows, summary = read_rows(run.folder / STEPS), run.summary()
    waits = stalls(rows, chaos.faults)
    kinds = dict(Counter(fault.kind for fault in chaos.faults))
    by_kind = {kind: quantile([wait for of, wait in waits if of == kind], 0.5) for kind in kinds}
    return {
        "seconds": round(seconds, 1),
        "exit_status": run.status,
        "step": summary.get("version"),
        "log_likelihood": summary.get("test_log_likelihood"),
        "faults": kinds,
        "drivers": run.drivers,
        "drivers_that_failed": [words.replace(f"{run.folder}/", "") for words in run.failures],
        "tracebacks": run.tracebacks(),
        "processes_that_outlived_their_driver": run.orphans,
        "checkpoints_seen": len(chaos.committed),
        "checkpoints_damaged_on_purpose": len(chaos.spoilt),
        "checkpoints_lost": sorted(chaos.lost),
        "steps_recomputed": recomputed(rows, summary.get("version", 0)),
        "stall_seconds": {
            "p50": rounded(quantile([wait for _, wait in waits], 0.5)),
            "p95": rounded(quantile([wait for _, wait in waits], 0.95)),
            "p50_by_kind": {kind: rounded(wait) for kind, wait in by_kind.items()},
        },
        "memory": memory(run.memory, rows),
    }


def undisturbed(folder: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Returns the figures of a run that is left alone."""
    run, began = ChaosRun(folder, arguments, install(folder)), time.monotonic()
    run.begin()
    run.await_end(lambda: None)
    summary = run.summary()
    return {
        "seconds": round(time.monotonic() - began, 1),
        "exit_status": run.status,
        "step": summary.get("version"),
        "log_likelihood": summary.get("test_log_likelihood"),
        "memory": memory(run.memory, read_rows(run.folder / STEPS)),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Carries out the command line, and returns the result."""
    parser = command_line(__doc__, "json", "docs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10.0)
    add_only(parser, FAULTS)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args(arguments)
    steps = f"trainer.steps={max(200, int(STEPS_A_MINUTE * options.minutes))}"
    command = [*RUN, steps, f"seed={options.seed}", *options.overrides]
    with tempfile.TemporaryDirectory(prefix="chaos") as scratch:
        folders = [Path(scratch, name) for name in ("a", "b")]
        for folder in folders:
            folder.mkdir()
        say("undisturbed")
        calm = undisturbed(folders[0], command)
        say("disturbed")
        chaos = Chaos(folders[1], command, random.Random(options.seed))
        began = time.monotonic()
        try:
            chaos.run.begin()
            chaos.carry_out(60 * options.minutes, options.only)
            stormy = summed_up(chaos, time.monotonic() - began)
        finally:
            chaos.run.end_all()
    found = {
        "command": f"python -m benchmarks.chaos --seed {options.seed} --minutes"
        f" {options.minutes:g} {' '.join(options.overrides)}".strip(),
        "run": [*RUN, steps],
        "undisturbed": calm,
        "disturbed": stormy,
        **conditions("ray", "torch"),
    }
    say(json.dumps(stormy, indent=1))
    write(found, options.json)
    if options.docs:
        write(found, options.docs / "chaos.json")
        insert(table(found), options.docs / "reliability.md", "benchmarks.chaos")
    return found


if __name__ == "__main__":
    main()
