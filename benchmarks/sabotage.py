"""Runs that are spoilt on purpose, and runs that are not: what their diagnosis says.

    python -m benchmarks.sabotage [--only CASE ...] [--seed 0] [--json FILE] [--docs FOLDER]

Each case of `benchmarks.sabotage_cases` is a run in one process, by what `python -m
pipeline.train` calls. Its verdicts are read from the lines that it prints. The result is {"rows":
[...], "wrong": so many}, a row for each case:

    causes     those of which a verdict must name one; none of a run that is well
    spoilt_at  the step from which on it is spoilt
    verdicts   [{"step", "cause", "words"}], as they were printed
    since      the step from which on the first one's sign was seen, by its summary; null without
    right      whether the first verdict names one of the causes; of a run that is well, whether
               there is none
"""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import harness
from benchmarks.harness import say
from benchmarks.sabotage_cases import HEALTHY, SICK, Case, arguments_of
from pipeline.common.errors import PipelineError
from pipeline.common.types import Flow, RoundReport, StepReport
from pipeline.config.compose import compose
from pipeline.runs.inline import InlineRunner
from pipeline.train import run

VERDICT = re.compile(r"^verdict at step (\d+), (\w+): (.*)$", re.MULTILINE)
BRIEF = ("evaluation.samples=0", "evaluation.ais_temperatures=0")


def judge(case: Case, folder: Path, seed: int) -> dict[str, Any]:
    """Carry out a case, its files under `folder`, and return its row."""

    class Spoilt(InlineRunner):
        def step(self) -> tuple[StepReport, list[RoundReport], Flow]:
            if case.tamper is not None:
                case.tamper(self, self._learner.version)
            return super().step()

    began, output = time.perf_counter(), folder / str(abs(hash(case.name)))
    lines, summary, refused = io.StringIO(), dict[str, Any](), None
    arguments = [*arguments_of(case, folder), *BRIEF, f"output={output}", f"seed={seed}"]
    with contextlib.redirect_stdout(lines), mock.patch("actors.launch.InlineRunner", Spoilt):
        try:
            summary = dict(run(compose(arguments)))
        except PipelineError as error:
            refused = str(error)
    verdicts = [
        {"step": int(step), "cause": cause, "words": words}
        for step, cause, words in VERDICT.findall(lines.getvalue())
    ]
    if refused is not None and not verdicts:
        verdicts = [{"step": 0, "cause": "refused", "words": refused}]
    told = [each for each in summary.get("diagnosis", {}).get("verdicts", ()) if not each["well"]]
    right = verdicts[0]["cause"] in case.causes if verdicts else not case.causes
    return {
        "case": case.name,
        "arguments": list(case.arguments),
        "causes": sorted(case.causes),
        "spoilt_at": case.spoilt_at,
        "verdicts": verdicts,
        "since": told[0]["since"] if told else None,
        "right": right,
        "seconds": round(time.perf_counter() - began, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table of Markdown: spoilt runs one by one, the others in one line."""
    lines = ["| spoilt run | from step | verdict | at step | right |", "|---|---|---|---|---|"]
    for row in rows:
        if not row["causes"]:
            continue
        first = row["verdicts"][0] if row["verdicts"] else {"cause": "none", "step": ""}
        right = "yes" if row["right"] else "no"
        lines.append(
            f"| {row['case']} | {row['spoilt_at']} | `{first['cause']}` | {first['step']} |"
            f" {right} |"
        )
    counts = Counter((bool(row["causes"]), row["right"]) for row in rows)
    sick, well = (counts[kind, True] + counts[kind, False] for kind in (True, False))
    lines.append(
        f"\nOf {sick} spoilt runs {counts[True, True]} got the right verdict first. Of {well} runs"
        f" that were well, {counts[False, False]} got a verdict"
        + "".join(
            f" ({row['case']}: `{row['verdicts'][0]['cause']}`)"
            for row in rows
            if not row["causes"] and not row["right"]
        )
        + "."
    )
    return "\n".join(lines)


def main() -> None:
    parser = harness.command_line(__doc__, "json", "docs")
    parser.add_argument("--seed", type=int, default=0)
    harness.add_only(parser, [case.name for case in (*SICK, *HEALTHY)])
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in (*SICK, *HEALTHY):
            if case.name not in arguments.only:
                continue
            rows.append(judge(case, Path(folder), arguments.seed))
            told = ", ".join(f"{each['cause']} at {each['step']}" for each in rows[-1]["verdicts"])
            say(f"{'right' if rows[-1]['right'] else 'WRONG'}  {case.name}: {told or 'no verdict'}")
    content = {
        "command": "python -m benchmarks.sabotage",
        **harness.conditions("torch"),
        "seed": arguments.seed,
        "wrong": sum(not row["right"] for row in rows),
        "rows": rows,
    }
    say(f"{content['wrong']} of {len(rows)} wrong")
    if arguments.docs:
        harness.write(content, arguments.docs / "sabotage.json")
        harness.insert(table(rows), arguments.docs / "evaluation.md", "benchmarks.sabotage")
    if arguments.json or not arguments.docs:
        harness.write(content, arguments.json)


if __name__ == "__main__":
    main()
