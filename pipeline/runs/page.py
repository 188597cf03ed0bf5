"""The page of `python -m pipeline.report`: runs side by side, in one file of HTML."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.common.errors import ConfigError
from pipeline.common.json_text import to_json
from pipeline.common.masking import masked
from pipeline.evaluation.curves import curves
from pipeline.evaluation.words import in_words
from pipeline.runs.recorders.series import MOST, thinned
from pipeline.storage.files import names, read_file, write_file
from pipeline.storage.paths import absolute
from pipeline.storage.probe import check_output, check_run
from pipeline.storage.rows import StoredRows
from pipeline.storage.store import find

if TYPE_CHECKING:
    from pipeline.config.report import Settings

PAGE = "report.html"
PICTURES = ("curves.png", "samples.png")
"""Those that come first; others follow by name."""
TIMINGS = {
    "steps": "steps of the last process",
    "wall_seconds": "seconds of them",
    "steps_per_second": "steps a second",
    "negatives_per_second": "negatives a second",
    "transitions_per_second": "transitions a second",
    "mean_lag": "mean lag, versions",
    "restarts": "restarts",
    "rollbacks": "rollbacks",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem;
  color: #1b1f24; background: #fff; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.runs { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(32rem, 1fr)); }
img { max-width: 100%; height: auto; border: 1px solid #d8dee4; border-radius: 4px; }
table { border-collapse: collapse; } td, th { padding: .15rem .8rem .15rem 0; text-align: left;
  vertical-align: top; border-bottom: 1px solid #eaeef2; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; background: #f6f8fa; padding: .8rem; border-radius: 4px; }
.other { background: #fff8c5; } summary { cursor: pointer; }
"""


class Read(NamedTuple):
    """A run as its output tells of it. `summary` is empty where it was not evaluated."""

    url: str
    step: int
    config: dict[str, Any]
    summary: dict[str, Any]
    pictures: dict[str, bytes]


def write_page(settings: Settings) -> str:
    """Writes the page and returns its URL. Raises `PipelineError`, where a run has no checkpoint
    among others.
    """
    runs = [read(url) for url in settings.runs]
    output = settings.output or (runs[0].url if len(runs) == 1 else "runs")
    output = absolute(output, "output").rstrip("/")
    check_output(output)
    write_file(output, PAGE, page(runs).encode())
    return f"{output}/{PAGE}"


def read(url: str) -> Read:
    """Reads a run's output: configuration, summary, series and pictures. Raises `ConfigError` and
    `CheckpointError`.
    """
    if not url:
        raise ConfigError("run", url, "give a run's output")
    check_run(url, "run")
    checkpoint = find(url)
    output = checkpoint.folder.rpartition("/checkpoints/")[0] or checkpoint.folder
    there = set(names(output))
    summary: dict[str, Any] = {}
    if "summary.json" in there:
        try:
            found = json.loads(read_file(f"{output}/summary.json"))
            # one of an earlier step says nothing of a run that went on
            if isinstance(found, dict) and found.get("version") == checkpoint.step:
                summary = found
        except ValueError:
            pass
    pictures = {
        name: read_file(f"{output}/{name}") for name in sorted(there) if name.endswith(".png")
    }
    config = checkpoint.manifest.config
    if not summary:  # it goes on, or ended without its curves
        rows = thinned(StoredRows(output), MOST)
        pictures |= {"curves.png": curves(rows, str(config["name"]))} if rows else {}
    # of the texts alone: in a picture anything may look like a secret
    return Read(output, checkpoint.step, masked(config), masked(summary), pictures)


def page(runs: Sequence[Read]) -> str:
    """Returns the whole page."""
    title = " beside ".join(str(run.config["name"]) for run in runs)
    parts = [f"<h1>{escape(title)}</h1>"]
    if len(runs) > 1:
        parts += ["<h2>Settings that differ</h2>", _differences(runs)]
    parts += ['<div class="runs">', *(_section(run) for run in runs), "</div>"]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _section(run: Read) -> str:
    """The part about one run."""
    steps = run.config["trainer"]["steps"]
    head = f"step {run.step} of {steps}" + ("" if run.summary else ", not evaluated")
    parts = [
        f"<section><h2>{escape(str(run.config['name']))}: {head}</h2>",
        f"<p>{escape(str(masked(run.url)))}</p>",
    ]
    if run.summary:
        words = run.summary.get("words") or in_words(run.summary)
        parts.append(f"<pre>{escape(chr(10).join(words))}</pre>")
    order = [*PICTURES, *(name for name in run.pictures if name not in PICTURES)]
    for name in order:
        if name in run.pictures:
            content = base64.b64encode(run.pictures[name]).decode()
            label = name.removesuffix(".png").replace("_", " ")
            parts.append(
                f'<h3>{escape(label)}</h3><img alt="{escape(label)}"'
                f' src="data:image/png;base64,{content}">'
            )
    if run.summary:
        timings = {
            label: run.summary[key] for key, label in TIMINGS.items() if run.summary.get(key)
        }
        parts += ["<h3>timings</h3>", _table(timings)]
        figures = {key: run.summary[key] for key in run.summary if key not in TIMINGS}
        parts.append(_folded("all figures", _table(dict(flat(figures)))))
    parts.append(_folded("configuration", _table(dict(flat(run.config)))))
    return "".join([*parts, "</section>"])


def _differences(runs: Sequence[Read]) -> str:
    """A table of the settings in which the runs differ."""
    settings = [dict(flat(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    differing = [key for key in keys if len({repr(one.get(key)) for one in settings}) > 1]
    head = "".join(f"<th>{escape(run.url.rpartition('/')[2])}</th>" for run in runs)
    rows = "".join(
        f"<tr><th>{escape(key)}</th>"
        + "".join(f'<td class="other">{escape(_shown(one.get(key)))}</td>' for one in settings)
        + "</tr>"
        for key in differing
    )
    return f"<table><tr><th></th>{head}</tr>{rows}</table>"


def flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of nested `values`, each with its key, with dots between."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _table(values: Mapping[str, Any]) -> str:
    rows = (
        f"<tr><th>{escape(key)}</th><td>{escape(_shown(value))}</td></tr>"
        for key, value in values.items()
    )
    return f"<table>{''.join(rows)}</table>"


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else to_json(value)
