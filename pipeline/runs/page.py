"""The page about runs, one of them or several side by side, in one file of HTML."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.common.errors import ConfigError
from pipeline.common.masking import masked
from pipeline.common.types import Figures
from pipeline.config.run import RunConfig
from pipeline.evaluation.curves import curves
from pipeline.evaluation.words import in_words
from pipeline.runs.page_tables import (
    diagnosis,
    flat,
    folded,
    grid,
    likelihood_of,
    likelihood_table,
    nats,
    shown,
    speed_of,
    table,
    verdicts,
)
from pipeline.runs.recorders.series import MOST, thinned
from pipeline.runs.summaries import summary_at
from pipeline.storage.figures import smaller
from pipeline.storage.files import names, read_file, write_file
from pipeline.storage.paths import absolute
from pipeline.storage.probe import check_output, check_run
from pipeline.storage.rows import Row, StoredRows
from pipeline.storage.store import find

if TYPE_CHECKING:
    from pipeline.config.report import Settings

PAGE = "report.html"
NOTEBOOK_WIDTH = 760
"""Pixels that a run takes in a notebook's cell."""
PICTURES = {
    "curves.png": "The run's series by step.",
    "samples.png": "Samples, of chains that started at noise. Images stand beside the training"
    " image nearest to each. In the plane the learned density is drawn as well, and the true one"
    " beside it where it is known.",
    "energies.png": "Energies of data, of samples, and of noise. Where a model has learned its"
    " data, samples have the energies of held-out rows, and noise has higher ones. Held-out rows to"
    " the right of training rows tell of over-fitting.",
    "filters.png": "Weights between hidden units and a row, those of the largest norm first.",
    "motifs.png": "What hidden units look for in a sequence: letters above the line raise a unit,"
    " letters below it lower it, as much as they are high. Beside it its means under training"
    " sequences.",
}
"""Those that come first, with what a reader sees; others follow by name."""
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
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; } h3 { margin-bottom: .2rem; }
.runs { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(32rem, 100%), 1fr)); }
section { min-width: 0; } p { margin: .2rem 0 .5rem; } .faint { color: #59636e; }
img { max-width: 100%; height: auto; border: 1px solid #d8dee4; border-radius: 4px; }
table { border-collapse: collapse; } td, th { padding: .15rem .8rem .15rem 0; text-align: left;
  vertical-align: top; border-bottom: 1px solid #eaeef2; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } .numbers td, .numbers th + th { text-align: right;
  font-variant-numeric: tabular-nums; } .numbers td, .numbers th { overflow-wrap: normal; }
pre { white-space: pre-wrap; background: #f6f8fa; padding: .8rem; border-radius: 4px; }
.other { background: #fff8c5; } summary { cursor: pointer; } progress { width: 100%; }
"""


class Read(NamedTuple):
    """A run as its output tells of it; `config` and `summary` are without secrets. The latter has
    no `version` where the run was not evaluated; then `rows` are those of its series, and `state`
    says what it is at.
    """

    url: str
    step: int
    config: dict[str, Any]
    summary: Figures
    pictures: dict[str, bytes]
    rows: Sequence[Row] = ()
    state: str = "not evaluated"


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


def write_page_of(config: RunConfig, output: str, summary: Figures) -> Figures:
    """Writes the page of a run that ends with `summary`, masked, which has a `version`. Its
    pictures are read from `output`.

    Returns the name of the file as `page`. No page is worth a run: whatever goes wrong is returned
    as `undrawn_page`.
    """
    try:
        told = masked(config.model_dump(mode="json"))
        found = Read(output, summary["version"], told, summary, _pictures(output, names(output)))
        write_file(output, PAGE, page([found]).encode())
    except Exception as error:
        return {"undrawn_page": masked(" ".join(f"{type(error).__name__}: {error}".split()))}
    return {"page": PAGE}


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
    summary = summary_at(output, checkpoint.step)
    pictures, rows = _pictures(output, there), list[Row]()
    config = checkpoint.manifest.config
    if not summary:  # it goes on, or ended without its curves
        rows = thinned(StoredRows(output), MOST)
        pictures |= {"curves.png": curves(rows, str(config["name"]))} if rows else {}
    # of the texts alone: in a picture anything may look like a secret
    return Read(output, checkpoint.step, masked(config), masked(summary), pictures, rows)


def _pictures(output: str, there: Iterable[str]) -> dict[str, bytes]:
    """Returns the pictures among the files that are `there`, by name."""
    return {name: read_file(f"{output}/{name}") for name in sorted(there) if name.endswith(".png")}


def page(runs: Sequence[Read], renewed: int | None = None) -> str:
    """Returns the whole page, which a browser asks for anew every `renewed` seconds."""
    title = " beside ".join(str(run.config["name"]) for run in runs)
    parts = [f"<h1>{escape(title)}</h1>"]
    if len(runs) > 1:
        parts += [_comparison(runs), "<h2>Settings that differ</h2>", _differences(runs)]
    parts += ['<div class="runs">', *(_section(run) for run in runs), "</div>"]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        + ("" if renewed is None else f'<meta http-equiv="refresh" content="{renewed}">')
        + f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _section(run: Read) -> str:
    """The part about one run."""
    steps = run.config["trainer"]["steps"]
    evaluated = "version" in run.summary
    head = f"step {run.step} of {steps}" + ("" if evaluated else f", {run.state}")
    parts = [
        f"<section><h2>{escape(str(run.config['name']))}: {escape(head)}</h2>",
        f'<p class="faint">{escape(str(masked(run.url)))}</p>',
    ]
    if not evaluated:
        speed = speed_of(run.summary, run.rows)
        told = "" if speed is None else f"<p>{speed:,.1f} steps a second</p>"
        parts.append(f'<progress value="{run.step}" max="{steps}"></progress>{told}')
    likelihood = likelihood_table(run.summary, run.rows)
    parts += ["<h3>likelihood</h3>", likelihood] if likelihood else []
    if "diagnosis" in run.summary:
        parts += ["<h3>diagnosis</h3>", diagnosis(run.summary["diagnosis"])]
    if evaluated:
        words = run.summary.get("words") or in_words(run.summary)
        parts.append(f"<pre>{escape(chr(10).join(words))}</pre>")
    order = [*PICTURES, *(name for name in run.pictures if name not in PICTURES)]
    parts += [_picture(name, run.pictures[name]) for name in order if name in run.pictures]
    undrawn = {key: why for key, why in run.summary.items() if key.startswith("undrawn_")}
    for key, why in undrawn.items():
        parts.append(f"<p>no {escape(key.removeprefix('undrawn_'))}: {escape(str(why))}</p>")
    if evaluated:
        timings = {
            label: run.summary[key] for key, label in TIMINGS.items() if run.summary.get(key)
        }
        parts += ["<h3>timings</h3>", table(timings)]
        figures = {key: run.summary[key] for key in run.summary if key not in TIMINGS}
        parts.append(folded("all figures", table(dict(flat(figures)))))
    elif run.rows:
        parts.append(folded("all figures", table(run.rows[-1])))
    parts.append(folded("configuration", table(dict(flat(run.config)))))
    return "".join([*parts, "</section>"])


def in_short(run: Read) -> str:
    """Returns a run in short, for a notebook's cell: how far it is, its likelihood, its verdicts,
    and small pictures of its curves and samples.
    """
    evaluated = "" if "version" in run.summary else f", {run.state}"
    name, steps = escape(str(run.config["name"])), run.config["trainer"]["steps"]
    parts = [
        f"<p><b>{name}</b>: step {run.step} of {steps}{evaluated}, in"
        f" <code>{escape(str(masked(run.url)))}</code></p>",
        likelihood_table(run.summary, run.rows),
        verdicts(run.summary["diagnosis"]) if "diagnosis" in run.summary else "",
    ]
    for picture in ("curves.png", "samples.png"):
        if picture in run.pictures:
            source = _source(smaller(run.pictures[picture]))
            parts.append(
                f'<img alt="{picture.removesuffix(".png")}" src="{source}" style="width: 100%">'
            )
    return f'<div style="max-width: {NOTEBOOK_WIDTH}px">{"".join(parts)}</div>'


def _source(content: bytes) -> str:
    """A PNG within the page."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _picture(name: str, content: bytes) -> str:
    """A picture within the page, with its heading and what a reader sees."""
    label = escape(name.removesuffix(".png").replace("_", " "))
    caption = f'<p class="faint">{escape(PICTURES[name])}</p>' if name in PICTURES else ""
    return f'<h3>{label}</h3>{caption}<img alt="{label}" src="{_source(content)}">'


def _comparison(runs: Sequence[Read]) -> str:
    """A table of how far the runs are, and of what they have come to."""

    def line(run: Read) -> list[str]:
        found, speed = likelihood_of(run.summary, run.rows), speed_of(run.summary, run.rows)
        rate = "" if speed is None else f"{speed:,.1f}"
        kind, *numbers = found or ("", None, None, None)
        name = f"{_called(run)} ({run.config['name']})"
        return [name, str(run.step), rate, *map(nats, numbers), kind]

    head = ("run", "step", "steps a second", "at least", "estimate", "at most", "nats a row")
    return grid(head, map(line, runs), "numbers")


def _called(run: Read) -> str:
    return str(masked(run.url)).rpartition("/")[2]


def _differences(runs: Sequence[Read]) -> str:
    """A table of the settings in which the runs differ."""
    settings = [dict(flat(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    differing = [key for key in keys if len({repr(one.get(key)) for one in settings}) > 1]
    head = "".join(f"<th>{escape(_called(run))}</th>" for run in runs)
    rows = "".join(
        f"<tr><th>{escape(key)}</th>"
        + "".join(f'<td class="other">{escape(shown(one.get(key)))}</td>' for one in settings)
        + "</tr>"
        for key in differing
    )
    return f'<div class="wide"><table><tr><th></th>{head}</tr>{rows}</table></div>'
