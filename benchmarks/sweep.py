"""A sweep by successive halving beside full runs of the same trials, through `pipeline.sweep`.

    python -m benchmarks.sweep [--docs FOLDER] [--runs FOLDER]

27 trials of experiment=digits_rbm, whose likelihood is computed exactly: once judged at 500, 1,500
and 4,500 steps, once all in full. `--runs` keeps their runs there; what is there already is not
made again. `--docs` writes sweep.json and sweep.png there. It takes 7 minutes on 2 cores.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import say
from pipeline.sweep import sweep

GRID = (
    *("experiment=digits_rbm", "evaluation.samples=0", "optimizer.learning_rate=0.05,0.2,0.5"),
    *("energy.hidden=8,12,16", "chains.per_pool=50,100,250"),
)
WAYS: dict[str, tuple[str, ...]] = {"halved": (), "full": ("sweep.rungs=1",)}


def carry_out(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns what `sweep.json` holds of both ways."""
    found = {}
    for name, more in WAYS.items():
        output = folder / name
        say(sweep([*GRID, *more, f"output={output}"]))
        found[name] = json.loads((output / "sweep.json").read_text())
    return found


def compared(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns what halving cost and found, as shares of full runs and nats from their best."""
    full, halved = found["full"], found["halved"]
    seconds = {name: way["processor_seconds"] for name, way in found.items()}
    scores = {tuple(full["trials"][r["trial"]]): r["score"] for r in full["results"]}
    return {
        "processor_seconds": seconds,
        "share_of_processor_time": seconds["halved"] / seconds["full"],
        "best": {name: way["best"] for name, way in found.items()},
        "best_score": {name: way["best_score"] for name, way in found.items()},
        "nats_from_the_best": full["best_score"] - scores[tuple(halved["best"])],
    }


def main() -> None:
    parser = harness.command_line(__doc__, "docs")
    parser.add_argument("--runs", type=Path, help="folder of the runs, which stay there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.runs or Path(temporary)).absolute()
        found = carry_out(folder)
        figures = compared(found)
        say(json.dumps(figures, indent=1))
        if arguments.docs:
            command = "python -m benchmarks.sweep --docs docs"
            content = {"command": command, **harness.conditions("torch", "ray"), **figures}
            content["results"] = {name: way["results"] for name, way in found.items()}
            harness.write(content, arguments.docs / "sweep.json")
            shutil.copy(folder / "halved" / "sweep.png", arguments.docs / "sweep.png")


if __name__ == "__main__":
    main()
