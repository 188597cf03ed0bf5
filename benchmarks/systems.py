"""Every system's preset through the front door, with a Ray of its own: its figure, its verdict, its
picture.

    python -m benchmarks.systems [--docs FOLDER] [--only NAME ...]

Writes FOLDER/systems.json, FOLDER/systems/NAME.png for each, and the table of figures into
FOLDER/systems.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# what each is called here: its arguments, and the picture that shows it best
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
FIGURES = "<!-- figures: made by `python -m benchmarks.systems --docs docs` -->"
END = "<!-- end of figures -->"
KEPT = (
    *(
        "judged",
        "version",
        "wall_seconds",
        "mean_lag",
        "test_log_likelihood",
        "true_log_likelihood",
        "kl_from_truth",
    ),
    *(
        "kl_from_truth_standard_error",
        "test_accuracy",
        "test_label_log_likelihood",
        "samples_recognised",
        "accuracy",
    ),
    *(
        "accuracy_by_component",
        "search",
        "test_log_likelihood_bound",
        "log_z",
        "log_z_standard_error",
        "log_z_gap",
    ),
    *("moments", "entropy", "compositions", "baselines", "method"),
)


def train(name: str, folder: Path) -> dict[str, Any]:
    """One run's summary."""
    arguments = [*SYSTEMS[name][0], f"output={folder}", "metrics.port=0"]
    subprocess.run(
        [sys.executable, "-m", "pipeline.train", *arguments], check=True, stdout=subprocess.DEVNULL
    )
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def table(rows: dict[str, Any]) -> str:
    """Figures and verdicts, in Markdown."""
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--docs", type=Path, help="write the figures and the pictures there")
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    arguments = parser.parse_args()
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            output = Path(folder) / name
            summary = train(name, output)
            rows[name] = {"arguments": list(SYSTEMS[name][0])} | {
                key: summary[key] for key in KEPT if key in summary
            }
            verdict = summary["judged"]
            held = (
                f"{verdict['value']:.4g} {verdict['sense'].replace('_', ' ')}"
                f" {verdict['reference']:.4g}"
            )
            passes = "passes" if verdict["passes"] else "DOES NOT PASS"
            print(
                f"{name:<28}{verdict['name']}: {held}  {passes}  {summary['wall_seconds']:.0f} s",
                flush=True,
            )
            if arguments.docs:
                (arguments.docs / "systems").mkdir(exist_ok=True)
                shutil.copy(output / SYSTEMS[name][1], arguments.docs / "systems" / f"{name}.png")
    if arguments.docs:
        path = arguments.docs / "systems.json"
        rows = (json.loads(path.read_text())["rows"] if path.exists() else {}) | rows
        content = {"command": "python -m benchmarks.systems --docs docs", "rows": rows}
        path.write_text(json.dumps(content, indent=1) + "\n")
        page = arguments.docs / "systems.md"
        head, _, rest = page.read_text().partition(FIGURES)
        page.write_text(
            head + FIGURES + "\n\n" + table(rows) + "\n\n" + END + rest.partition(END)[2]
        )


if __name__ == "__main__":
    main()
