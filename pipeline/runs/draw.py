"""The work of `python -m pipeline.sample`: to open runs, compose them, draw, and write files."""

from __future__ import annotations

import io
import time
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import csv, parquet
from torch import Tensor

from pipeline.assembly.chains import make_plan
from pipeline.assembly.devices import check_device
from pipeline.assembly.memory import check_numbers
from pipeline.chains.batch import fixed_size_lists
from pipeline.common.errors import ConfigError
from pipeline.common.json_text import to_json
from pipeline.common.masking import masked
from pipeline.common.types import Progress
from pipeline.common.work import result
from pipeline.config.data import FastaData
from pipeline.config.fields import digest
from pipeline.config.run import RunConfig
from pipeline.data.alignment_files import as_fasta
from pipeline.data.similarity import nearest
from pipeline.energies.base import Energy
from pipeline.evaluation.conditional_pictures import draw_conditional
from pipeline.evaluation.labels import names_of
from pipeline.evaluation.order import draw_order
from pipeline.evaluation.pictures import draw_samples
from pipeline.evaluation.report import as_dealt, sample_contexts
from pipeline.evaluation.samples import Drawn
from pipeline.runs.chains import Aim, draw, starts
from pipeline.runs.clamping import clamped_rows, held_rows
from pipeline.runs.display import Display
from pipeline.runs.rows import column_names
from pipeline.runs.trained import (
    Trained,
    bound,
    composed,
    contexts_of,
    names_of_labels,
    open_run,
    output_of,
)
from pipeline.storage.files import write_file

if TYPE_CHECKING:
    from pipeline.config.sample import Settings

SAMPLES = 40  # where neither the command nor the run says how many


def sample(settings: Settings, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Draws what `settings` asks for, writes it, and returns what `summary.json` holds.

    Raises `PipelineError`.
    """
    began, display = time.perf_counter(), Display()
    runs = [open_run(url, overrides, needs_data=False) for url in settings.runs]
    config, aim, held, drawing = _prepared(settings, runs)
    samples = config.evaluation.samples
    output = _output(settings, runs, overrides)
    title = f" {settings.compose} ".join(run.config.name for run in runs)
    title += (
        f": {samples} samples, {config.evaluation.transitions:,}"
        f" {config.kernel.name} transitions each"
    )
    display.say(f"{title}, to {output}")
    with display.working():
        drawn = result(drawing, display.work)
    _write(drawn, aim, output, settings.format, runs[0])
    undrawn = _pictures(settings, runs, aim, drawn, held, title, output)
    summary = {
        "runs": [run.url for run in runs],
        "checkpoints": [run.checkpoint.folder for run in runs],
        **settings.model_dump(
            mode="json",
            include={
                *("compose", "weights", "given", "start", "clamp", "clamp_columns"),
                *("clamp_mask", "columns", "order", "format", "seed", "device"),
            },
        ),
        "log_partitions": aim.log_z,
        "kernel": config.kernel.model_dump(mode="json"),
        "samples": config.evaluation.samples,
        "transitions": config.evaluation.transitions,
        "acceptance": drawn.acceptance,
        "samples_r_hat": drawn.r_hat,
        "mean_energy": float(drawn.energy.double().mean()),
        "seconds": round(time.perf_counter() - began, 3),
        "output": output,
        **undrawn,
    }
    summary = masked(summary)
    write_file(output, "summary.json", to_json(summary, indent=1).encode())
    return summary


def samples_of(run: Trained, settings: Settings) -> Tensor:
    """Draws what `settings` asks of one run, `[samples, *shape]` in the units of its data, without
    latent units. Raises `PipelineError`.
    """
    _, aim, _, drawing = _prepared(settings, [run])
    return in_own_units(run, aim.energy, result(drawing))


def in_own_units(run: Trained, energy: Energy, drawn: Drawn) -> Tensor:
    """Returns samples of `energy`, made of the run's, without latent units and in the units of the
    run's data.
    """
    position = energy.visible(drawn.position)
    return position if run.data.scale is None else run.data.scale.in_own_units(position)


def _prepared(
    settings: Settings, runs: Sequence[Trained]
) -> tuple[RunConfig, Aim, Tensor | None, Generator[Progress, None, Drawn]]:
    """Returns the configuration of the chains, their law, the rows that are held in part, and the
    work of drawing. Raises `PipelineError`.
    """
    rows = clamped_rows(settings, runs[0])
    config = _config(settings, runs[0].config, rows)
    torch.set_num_threads(config.cluster.threads)
    aim = (
        _compose(settings, runs) if settings.compose is not None else _bind(settings, runs, config)
    )
    _check(settings, config, aim.energy)
    plan = make_plan(config)
    start = starts(settings, config, aim.energy, runs[0])
    held = None
    if rows is not None:
        held = held_rows(settings, runs[0], aim.energy, rows, config.evaluation.samples)
    return config, aim, held, draw(settings, config, plan, aim, start, held)


def _config(settings: Settings, config: RunConfig, rows: Tensor | None) -> RunConfig:
    """Returns the run's configuration, with as many samples and transitions as are asked for: one
    for each row of a file that is clamped.
    """
    of_file = len(rows) if rows is not None and settings.clamp != "data" else 0
    asked = {
        "samples": settings.samples or of_file or config.evaluation.samples or SAMPLES,
        "transitions": settings.transitions or config.evaluation.transitions,
    }
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update=asked)})


def _bind(settings: Settings, runs: Sequence[Trained], config: RunConfig) -> Aim:
    """Returns the law of a single run, under contexts where it takes any. Raises `ConfigError`."""
    for key in ("weights", "log_partitions"):
        if getattr(settings, key) is not None:
            raise ConfigError(key, list(getattr(settings, key)), "goes with compose=and, or, not")
    if len(runs) > 1:
        raise ConfigError("compose", "null", "say how several runs are composed: and, or, not")
    run, samples = runs[0], config.evaluation.samples
    if settings.given is None:
        context = _contexts(settings, run, config)
        return Aim(bound(run, context), context, run=run)
    given = contexts_of(run, settings.given)
    each = given[torch.arange(samples) % len(given)]
    return Aim(bound(run, given if len(given) == 1 else each), each, run=run)


def _contexts(settings: Settings, run: Trained, config: RunConfig) -> Tensor | None:
    """Returns the contexts of samples where none is given. Raises `ConfigError` where rows of a
    file are clamped that have one, and it is not known.
    """
    if settings.clamp is None:
        return sample_contexts(config, run.data)
    if not config.conditional:
        return None  # of rows and their labels: what is held is of the row
    if settings.clamp != "data":
        remedy = f"{run.url} conditions on a context: give that of the rows of clamp=FILE"
        raise ConfigError("given", "null", remedy)
    held_out = None if run.data.context is None else run.data.context.held_out
    if held_out is None or not len(held_out):
        return None
    return held_out[torch.arange(config.evaluation.samples) % len(held_out)]


def _compose(settings: Settings, runs: Sequence[Trained]) -> Aim:
    """Returns the law composed of several runs, or of one under several contexts, each part bound
    to its entry of `given`. Raises `ConfigError`.
    """
    given = settings.given
    entries = given if isinstance(given, list) else [given] * len(runs)
    of = list(runs) * len(entries) if len(runs) == 1 else list(runs)
    if len(of) < 2 or len(entries) != len(of):
        raise ConfigError(
            "runs",
            list(settings.runs),
            "compose two or more runs, or a single one with given=[..] for each part",
        )
    kinds = [None if run.data.scale is None else run.data.scale.plain() for run in of]
    if any(kind != kinds[0] for kind in kinds):
        remedy = (
            "are of rows of different scales (data.scale): what they learned is not of one space"
        )
        raise ConfigError("runs", list(settings.runs), remedy)
    parts = []
    for run, entry in zip(of, entries, strict=True):
        if entry is None and run.config.conditional:
            raise ConfigError(
                "given", given, f"{run.url} conditions on a context: give one for each part"
            )
        context = None if entry is None else contexts_of(run, entry)
        if context is not None and len(context) > 1:
            raise ConfigError("given", given, "one context for each part")
        parts.append(bound(run, context))
    energy, log_z = composed(
        settings.compose or "", of, parts, settings.weights, settings.log_partitions
    )
    return Aim(energy, log_z=log_z)


def _check(settings: Settings, config: RunConfig, energy: Energy) -> None:
    """Raises `ConfigError` where the energy lacks what the kernel needs, samples have no letters
    that a FASTA file could hold, memory cannot hold them, or no such device is there.
    """
    kernel = getattr(config.kernel, "inner", config.kernel)
    if kernel.needs_conditionals and not energy.blocks:
        remedy = "what is composed, or bound to a context, has no conditionals to sweep over; use "
        remedy += "gibbs_with_gradients or single_site" if energy.levels else "mala or hmc"
        raise ConfigError(
            "kernel" if kernel is config.kernel else "kernel.inner", kernel.name, remedy
        )
    if settings.format == "fasta" and not isinstance(config.data, FastaData):
        remedy = (
            f"goes with runs on data=fasta, and this one is on data={config.data.name}; use csv"
        )
        raise ConfigError("format", settings.format, remedy)
    samples = config.evaluation.samples
    copies = 1 + (settings.order or 0)
    check_numbers("samples", samples, samples * energy.dimension * copies)
    check_device(settings.device)


def _output(settings: Settings, runs: Sequence[Trained], overrides: Sequence[str]) -> str:
    """Returns where files go: by default those of one run in its folder, of several under runs/."""
    asked = settings.model_dump(mode="json", exclude={"output", "device"})
    folders = [run.checkpoint.folder for run in runs]
    name = f"samples-{digest([asked, sorted(overrides), folders])}"
    return output_of(runs[0], settings.output or (f"runs/{name}" if len(runs) > 1 else None), name)


def _write(drawn: Drawn, aim: Aim, output: str, form: str, run: Trained) -> None:
    """Writes `samples.<form>` in the units of the run's data, in a CSV with the names of the
    columns learned from, or x0, ...; labels as the data have them.
    """
    position, buffer = in_own_units(run, aim.energy, drawn), io.BytesIO()
    names, labels = column_names(run), names_of_labels(run)
    if form == "fasta":
        buffer.write(_fasta(position, drawn.energy, run))
    elif form == "npy":
        np.save(buffer, position.numpy())
    elif form == "csv":
        flat = position.flatten(1)
        numbered = [f"x{number}" for number in range(flat.shape[1])]
        own = numbered if not names or "energy" in names else names
        columns: dict[str, Any] = dict(zip(own, flat.T.numpy(), strict=True))
        for name, (_, values) in zip(own, run.data.columns, strict=False):
            if values is not None:
                columns[name] = [values[int(place)] for place in columns[name]]
        if aim.context is not None:
            contexts = aim.context.flatten(1) if aim.context.ndim > 1 else aim.context[:, None]
            columns |= {
                f"context{i}": column if labels is None else [labels[int(k)] for k in column]
                for i, column in enumerate(contexts.T.numpy())
            }
        csv.write_csv(pa.table(columns | {"energy": drawn.energy.numpy()}), buffer)
    else:
        columns = {
            "position": fixed_size_lists(position),
            "energy": pa.array(drawn.energy.numpy()),
        }
        if aim.context is not None:
            columns["context"] = (
                fixed_size_lists(aim.context)
                if labels is None
                else pa.array([labels[int(k)] for k in aim.context.flatten()])
            )
        table = pa.table(columns)
        if form == "parquet":
            parquet.write_table(table, buffer)
        else:
            with pa.ipc.new_file(buffer, table.schema) as file:
                file.write_table(table)
    write_file(output, f"samples.{form}", buffer.getvalue())


def _fasta(position: Tensor, energy: Tensor, run: Trained) -> bytes:
    """Returns sequences with their letters. A header tells the energy in nats, and where the
    alignment is there, which training sequence is the nearest, and the share of sites where both
    have the same letter.
    """
    assert isinstance(run.config.data, FastaData)
    letters, codes = np.array(list(run.config.data.letters)), position.flatten(1).to(torch.int8)
    headers = [f"sample_{n + 1} energy={value:.2f}" for n, value in enumerate(energy.tolist())]
    if run.data.sequences is not None:
        places, identity = nearest(codes.numpy(), run.data.sample.flatten(1).to(torch.int8).numpy())
        headers = [
            f"{header} identity={share:.2f} nearest={run.data.sequences.training[place]}"
            for header, place, share in zip(headers, places, identity, strict=True)
        ]
    return as_fasta(headers, ("".join(row) for row in letters[codes.numpy()]))


def _pictures(
    settings: Settings,
    runs: Sequence[Trained],
    aim: Aim,
    drawn: Drawn,
    held: Tensor | None,
    title: str,
    output: str,
) -> dict[str, str]:
    """Draws `samples.png`: the samples beside rows of all runs; under contexts, beside those of the
    law given them; beside what they were given, where that is `held`. With a way `order.png` too.
    Returns why what was not drawn could not be (`draw_figure`).
    """
    first, energy = runs[0], aim.energy
    data = [as_dealt(run.config, run.data) for run in runs]
    shown, flat = data[0], len(data[0].shape) == 1
    undrawn: dict[str, str] = {}
    if drawn.way is not None:
        passed = [energy.visible(position) for position in drawn.way.position]
        way = drawn.way._replace(position=torch.stack(passed))
        one_law = energy if energy.contexts == 1 else None
        undrawn = draw_order(one_law, way, shown, title, output)
    if aim.context is not None and flat and first.config.conditional:
        picture = draw_conditional(first.energy, drawn.position, aim.context, shown, title, output)
        return undrawn | picture
    if energy.contexts > 1 and flat:  # a density is drawn of one law
        energy = first.energy
    if settings.compose is not None:
        # a composition of smoothed laws is no smoothed law, that it could be denoised
        held_out = torch.cat([one.held_out[: 1000 // len(data)] for one in data])
        shown = shown._replace(
            rows=sum(one.rows for one in data),
            held_out=held_out,
            sample=torch.cat([one.sample for one in data]),
            noise=0.0,
            log_density=None,  # of the composition none is known
        )
    given = None if held is None else energy.visible(held)
    labelled = first.config.energy.has_labels and settings.compose is None
    labels = names_of(aim.context, shown) if labelled and aim.context is not None else ()
    return undrawn | draw_samples(
        energy, energy.visible(drawn.position), shown, title, output, given, labels
    )
