"""The work of `python -m pipeline.sample`: to open runs, compose them, draw, and write files."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
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
from pipeline.config.fields import digest
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.evaluation.conditional_pictures import draw_conditional
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
    rows = clamped_rows(settings, runs[0])
    config = _config(settings, runs[0].config, rows)
    torch.set_num_threads(config.cluster.threads)
    aim = (
        _compose(settings, runs) if settings.compose is not None else _bind(settings, runs, config)
    )
    _check(settings, config, aim.energy)
    plan = make_plan(config)
    start = starts(settings, config, aim.energy, runs[0])
    samples, held = config.evaluation.samples, None
    if rows is not None:
        held = held_rows(settings, runs[0], aim.energy, rows, samples)
    output = _output(settings, runs, overrides)
    title = f" {settings.compose} ".join(run.config.name for run in runs)
    title += (
        f": {samples} samples, {config.evaluation.transitions:,}"
        f" {config.kernel.name} transitions each"
    )
    display.say(f"{title}, to {output}")
    with display.working():
        drawing = draw(settings, config, plan, aim, start, held)
        while True:
            try:
                display.work(next(drawing))
            except StopIteration as stop:
                drawn: Drawn = stop.value
                break
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
    """Raises `ConfigError` where the energy lacks what the kernel needs, memory cannot hold the
    samples, or no such device is there.
    """
    kernel = getattr(config.kernel, "inner", config.kernel)
    if kernel.needs_conditionals and not energy.blocks:
        remedy = "what is composed, or bound to a context, has no conditionals to sweep over; use "
        remedy += "gibbs_with_gradients or single_site" if energy.levels else "mala or hmc"
        raise ConfigError(
            "kernel" if kernel is config.kernel else "kernel.inner", kernel.name, remedy
        )
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
    position, buffer = aim.energy.visible(drawn.position), io.BytesIO()
    if run.data.scale is not None:
        position = run.data.scale.in_own_units(position)
    names, labels = column_names(run), names_of_labels(run)
    if form == "npy":
        np.save(buffer, position.numpy())
    elif form == "csv":
        flat = position.flatten(1)
        numbered = [f"x{number}" for number in range(flat.shape[1])]
        own = numbered if not names or "energy" in names else names
        columns = dict(zip(own, flat.T.numpy(), strict=True))
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
    return undrawn | draw_samples(
        energy, energy.visible(drawn.position), shown, title, output, given
    )
