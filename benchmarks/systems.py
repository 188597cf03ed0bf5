"""Every system's preset through the front door, with a Ray of its own: figure, verdict, picture.

    python -m benchmarks.systems [--docs FOLDER] [--only NAME ...]

It writes FOLDER/systems.json, a picture FOLDER/systems/NAME.png of each system, and the table of
figures into FOLDER/systems.md. With `--only` the other rows stay as they are.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import say

# each system's arguments, and the picture that shows it best
SYSTEMS: dict[str, tuple[tuple[str, ...], str]] = {
    "conditional_label": (("experiment=conditional_label",), "samples.png"),
    "conditional_regression": (("experiment=conditional_regression",), "samples.png"),
    "conditional_regression_2d": (
        ("experiment=conditional_regression", "data.law=wheel"),
        "samples.png",
    ),
    "conditional_structured": (("experiment=conditional_structured",), "samples.png"),
    "maxent_moments": (("experiment=maxent_moments",), "moments.png"),
    "maxent_ising": (("experiment=maxent_ising",), "moments.png"),
    "dbm_digits": (("experiment=dbm_digits",), "samples.png"),
    "compose_toys": (("experiment=compose_toys",), "compositions.png"),
}
# keys of a summary that a row keeps
KEPT = (
    "judged",
    "version",
    "wall_seconds",
    "mean_lag",
    "test_log_likelihood",
    "true_log_likelihood",
    "kl_from_truth",
    "kl_from_truth_standard_error",
    "test_accuracy",
    "test_label_log_likelihood",
    "samples_recognised",
    "accuracy",
    "accuracy_by_component",
    "search",
    "test_log_likelihood_bound",
    "log_z",
    "log_z_standard_error",
    "log_z_at_least",
    "log_z_at_most",
    "unreliable",
    "moments",
    "entropy",
    "compositions",
    "baselines",
    "method",
)


def train(name: str, folder: Path) -> dict[str, Any]:
    """Return one run's summary."""
    return harness.run("pipeline.train", *SYSTEMS[name][0], "metrics.port=0", output=folder)


def table(rows: dict[str, Any]) -> str:
    """Return the figures and verdicts as a table in Markdown."""
    lines = [
        "| `python -m pipeline.train` | judged by | figure | held against | | seconds of steps |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows.values():
        verdict = row["judged"]
        held = f"{verdict['sense'].replace('_', ' ')} {verdict['reference']:.4g}"
        passes = "passes" if verdict["passes"] else "does not pass"
        arguments, seconds = " ".join(row["arguments"]), row["wall_seconds"]
        lines.append(
            f"| `{arguments}` | `{verdict['name']}` | {verdict['value']:.4g} | {held} | {passes} |"
            f" {seconds:.0f} |"
        )
    return "\n".join(lines)


def show(name: str, summary: dict[str, Any]) -> None:
    """Print a line of the run's verdict."""
    verdict = summary["judged"]
    held = f"{verdict['sense'].replace('_', ' ')} {verdict['reference']:.4g}"
    passes = "passes" if verdict["passes"] else "DOES NOT PASS"
    say(
        f"{name:<28}{verdict['name']}: {verdict['value']:.4g} {held}  {passes} "
        f" {summary['wall_seconds']:.0f} s"
    )


def main() -> None:
    parser = harness.command_line(__doc__, "docs")
    harness.add_only(parser, SYSTEMS)
    arguments = parser.parse_args()
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            given, picture = SYSTEMS[name]
            output = Path(folder) / name
            summary = train(name, output)
            kept = {key: summary[key] for key in KEPT if key in summary}
            rows[name] = {"arguments": list(given), **kept}
            show(name, summary)
            if arguments.docs:
                (arguments.docs / "systems").mkdir(exist_ok=True)
                shutil.copy(output / picture, arguments.docs / "systems" / f"{name}.png")
    if arguments.docs:
        path = arguments.docs / "systems.json"
        rows = (json.loads(path.read_text())["rows"] if path.exists() else {}) | rows
        command = "python -m benchmarks.systems --docs docs"
        content = {"command": command, **harness.conditions("torch", "ray"), "rows": rows}
        harness.write(content, path)
        harness.insert(table(rows), arguments.docs / "systems.md", "benchmarks.systems")


if __name__ == "__main__":
    main()
