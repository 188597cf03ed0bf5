"""The time that a run loses to its checkpoints, on a store of 20 MB/s.

    python -m benchmarks.checkpoint_stall [--steps 400] [--every 50] [--rounds 5] [--json [FILE]]

The default recipe is trained inline and through Ray. Windows of `--steps` steps without checkpoints
alternate with windows in which one is begun every `--every` steps. The result is {"rows": [...]}, a
row for each runner, and for each way of saving: in the background, as runs do, or with the steps
waiting until each checkpoint stands.

    steps_per_second    without checkpoints, the median over windows
    lost                the share of its time that a window with checkpoints loses: 1 less its speed
                        over that of the window without beside it, the median over rounds
    stall               the share of the time of windows with checkpoints in which steps waited: for
                        copies of the state, and for saves that were not done
    megabytes           a checkpoint's size
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import ray

from actors.driver import RayRunner
from benchmarks import harness
from benchmarks.harness import say
from benchmarks.on_ray import COMMON, DIGITS
from benchmarks.throttled import ThrottledPool, ThrottledServer
from pipeline.assembly.energies import make_energy
from pipeline.config.compose import compose
from pipeline.config.run import RunConfig
from pipeline.runs.inline import InlineRunner
from pipeline.runs.metrics import RunMetrics
from pipeline.runs.saving import Saving
from pipeline.storage.lease import Lease


class Training(NamedTuple):
    """A run under way, at `version[0]`, with what saves it, and the seconds that steps waited for
    that, `stalled[0]`.
    """

    runner: InlineRunner | RayRunner
    saving: Saving
    metrics: RunMetrics
    version: list[int]
    stalled: list[float]

    def window(self, steps: int, every: int | None, waits: bool) -> float:
        """Make so many steps, with a checkpoint `every` so many, and return the seconds."""
        clock, first = time.perf_counter(), self.version[0]
        while self.version[0] < first + steps:
            made = self.version[0] - first
            ahead = steps - made if every is None else every - made % every
            for report, _, _ in self.runner.stretch(min(ahead, steps - made)):
                self.version[0] = report.version
            self.saving.poll()
            if every is not None and (self.version[0] - first) % every == 0:
                begun = time.perf_counter()
                self.saving.save(self.runner, self.version[0])
                if waits:
                    self.saving.settle()
                self.stalled[0] += time.perf_counter() - begun
        self.saving.settle()
        return time.perf_counter() - clock


@contextmanager
def training(cluster: str) -> Iterator[Training]:
    """Give a run of the default recipe whose output is on the slow store."""
    config: RunConfig = compose([*COMMON, f"cluster={cluster}"])
    with tempfile.TemporaryDirectory() as folder:
        output = f"throttled://{folder}/run"
        metrics, energy = RunMetrics("run"), make_energy(config, DIGITS)
        with Lease(output, say) as lease:
            runner = (
                InlineRunner(config)
                if cluster == "inline"
                else RayRunner(config, output, DIGITS, pool=ThrottledPool, server=ThrottledServer)
            )
            try:
                runner.start(None, None)
                saving = Saving(config, output, energy, metrics, lease)
                yield Training(runner, saving, metrics, [0], [0.0])
            finally:
                runner.close()


def measured(run: Training, steps: int, every: int, rounds: int, waits: bool) -> dict[str, Any]:
    """Measure one way of saving."""
    run.stalled[0] = 0.0
    without, with_them = harness.alternate(
        rounds,
        partial(run.window, steps, None, waits),
        partial(run.window, steps, every, waits),
    )
    return {
        "steps_per_second": round(steps / statistics.median(without), 1),
        "lost": round(1 - harness.median_ratio(without, with_them), 4),
        "stall": round(run.stalled[0] / sum(with_them), 4),
        "megabytes": round(run.metrics.row()["ebm_checkpoint_bytes"] / 1e6, 2),
    }


def main() -> None:
    parser = harness.command_line(__doc__, "json")
    parser.add_argument("--steps", type=int, default=400, help="of a window")
    parser.add_argument("--every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of windows")
    options = parser.parse_args()
    rows = []
    for cluster in ("inline", "local"):
        if cluster != "inline":
            ray.init(include_dashboard=False, log_to_driver=False)
        with training(cluster) as run:
            run.window(options.steps, None, False)
            for way, waits in (("background", False), ("waits", True)):
                figures = measured(run, options.steps, options.every, options.rounds, waits)
                rows.append({"cluster": cluster, "saving": way, **figures})
                say(rows[-1])
    ray.shutdown()
    result = {"every": options.every, "rows": rows, **harness.conditions("torch", "ray")}
    harness.write(result, options.json)


if __name__ == "__main__":
    main()
