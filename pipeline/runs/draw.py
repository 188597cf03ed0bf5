"""The work of `python -m pipeline.sample`: to open runs, compose them, draw, and write files."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from pyarrow import csv, parquet
from torch import Tensor

from pipeline.assembly.chains import make_plan
from pipeline.assembly.data import noisy_sample
from pipeline.assembly.devices import check_device
from pipeline.assembly.memory import check_numbers
from pipeline.chains.batch import fixed_size_lists
from pipeline.common.errors import ConfigError
from pipeline.common.json_text import to_json
from pipeline.common.masking import masked
from pipeline.common.rng import torch_generator
from pipeline.config.fields import digest
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.energies.clamped import Clamped, by_pattern
from pipeline.evaluation.conditional_pictures import draw_conditional
from pipeline.evaluation.pictures import draw_samples
from pipeline.evaluation.report import sample_contexts
from pipeline.evaluation.samples import Drawn, draw_from_noise
from pipeline.runs.display import Display
from pipeline.runs.evaluate_again import read_rows
from pipeline.runs.trained import Trained, bound, composed, contexts_of, open_run, output_of
from pipeline.storage.files import write_file

if TYPE_CHECKING:
    from pipeline.config.sample import Settings

SAMPLES = 40  # where neither the command nor the run says how many


class Aim(NamedTuple):
    """The law that is sampled: an energy of positions alone; the samples' contexts [samples,
    *context_shape], where a single run is bound to any; and the log Z of the parts that "or" used.
    """

    energy: Energy
    context: Tensor | None = None
    log_z: list[float] | None = None


def sample(settings: Settings, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Draws what `settings` asks for, writes it, and returns what `summary.json` holds.

    Raises `PipelineError`.
    """
    began, display = time.perf_counter(), Display()
    runs = [open_run(url, overrides, needs_data=False) for url in settings.runs]
    config = _config(settings, runs[0].config)
    torch.set_num_threads(config.cluster.threads)
    aim = (
        _compose(settings, runs) if settings.compose is not None else _bind(settings, runs, config)
    )
    _check(settings, config, aim.energy)
    output = _output(settings, runs, overrides)
    title = f" {settings.compose} ".join(run.config.name for run in runs)
    title += (
        f": {config.evaluation.samples} samples, {config.evaluation.transitions:,}"
        f" {config.kernel.name} transitions each"
    )
    display.say(f"{title}, to {output}")
    drawn = _draw(settings, config, aim.energy, display, runs[0])
    _write(drawn, aim, output, settings.format)
    undrawn = _picture(settings, runs, aim, drawn, title, output)
    summary = {
        "runs": [run.url for run in runs],
        "checkpoints": [run.checkpoint.folder for run in runs],
        **settings.model_dump(
            mode="json",
            include={
                *("compose", "weights", "given", "start", "clamp", "format", "seed", "device")
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


def _config(settings: Settings, config: RunConfig) -> RunConfig:
    """Returns the run's configuration, with as many samples and transitions as are asked for."""
    asked = {
        "samples": settings.samples or config.evaluation.samples or SAMPLES,
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
        context = sample_contexts(config, run.data)
        return Aim(bound(run, context), context)
    given = contexts_of(run, settings.given)
    each = given[torch.arange(samples) % len(given)]
    return Aim(bound(run, given if len(given) == 1 else each), each)


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
    check_numbers("samples", samples, samples * energy.dimension)
    check_device(settings.device)


def _output(settings: Settings, runs: Sequence[Trained], overrides: Sequence[str]) -> str:
    """Returns where files go: by default those of one run in its folder, of several under runs/."""
    asked = settings.model_dump(mode="json", exclude={"output", "device"})
    folders = [run.checkpoint.folder for run in runs]
    name = f"samples-{digest([asked, sorted(overrides), folders])}"
    return output_of(runs[0], settings.output or (f"runs/{name}" if len(runs) > 1 else None), name)


def _draw(
    settings: Settings, config: RunConfig, energy: Energy, display: Display, run: Trained
) -> Drawn:
    """Runs the chains and shows their progress; on the settings' device, and back on the CPU."""
    generator = torch_generator(settings.seed, "sample", device=settings.device)
    count, device = config.evaluation.samples, settings.device
    start = _starts(settings, config, energy, run)
    rows = None if settings.clamp is None else _clamped_rows(settings, energy, run, count)
    pieces = [torch.arange(count)] if rows is None else by_pattern(rows)
    ends: list[Drawn] = []
    energy.to(device)
    for piece in pieces:
        law, begin = energy, None if start is None else start[piece].to(device)
        if rows is not None:
            free = rows[piece[0]].isnan()
            law = Clamped(energy, rows[piece].to(device), free.to(device))
            begin = None if begin is None else law.chosen(begin)
        drawing = draw_from_noise(
            law, make_plan(config), len(piece), config.evaluation.transitions, generator, begin
        )
        with display.working():
            while True:
                try:
                    display.work(next(drawing))
                except StopIteration as stop:
                    drawn: Drawn = stop.value
                    break
        whole = law.whole(drawn.position) if isinstance(law, Clamped) else drawn.position
        ends.append(drawn._replace(position=whole.cpu(), energy=drawn.energy.cpu()))
    energy.cpu()
    if len(ends) == 1:
        return ends[0]
    order = torch.cat(pieces).argsort()
    shares = [len(piece) / count for piece in pieces]
    return Drawn(
        torch.cat([end.position for end in ends])[order],
        torch.cat([end.energy for end in ends])[order],
        sum(share * end.acceptance for share, end in zip(shares, ends, strict=True)),
        None,
    )


def _starts(settings: Settings, config: RunConfig, energy: Energy, run: Trained) -> Tensor | None:
    """Returns training rows for the chains to begin at, over again where there are fewer; None
    where they begin at noise. Raises `ConfigError` where the data are not there.
    """
    if settings.start == "noise":
        return None
    rows = noisy_sample(run.config, run.data)
    if not len(rows):
        raise ConfigError("start", "data", "the data are not there; give data.path, or use noise")
    chosen = rows[torch.arange(config.evaluation.samples) % len(rows)]
    return energy.with_latents(energy.into_domain(chosen))


def _clamped_rows(settings: Settings, energy: Energy, run: Trained, count: int) -> Tensor:
    """Returns a row with holes for each of `count` samples, [count, *shape]. Raises `ConfigError`
    where the law is not one of such rows, or there is nothing to draw or to hold.
    """
    assert settings.clamp is not None
    remedy = None
    if energy.contexts > 1 or energy.shape != run.data.shape:
        remedy = "goes with one model of rows alone, without latent units, under one context"
    else:
        rows = read_rows("clamp", settings.clamp, (), run, holes=True)
        held = rows.flatten(1).isnan().sum(1)
        if not bool((held > 0).all()):
            remedy = f"row {int((held == 0).nonzero()[0, 0])} has no NaN: nothing is to be drawn"
    if remedy is not None:
        raise ConfigError("clamp", settings.clamp, remedy)
    return rows[torch.arange(count) % len(rows)]


def _write(drawn: Drawn, aim: Aim, output: str, form: str) -> None:
    """Writes `samples.<form>`."""
    position, buffer = aim.energy.visible(drawn.position), io.BytesIO()
    if form == "npy":
        np.save(buffer, position.numpy())
    elif form == "csv":
        parts = {"x": position, "context": aim.context}
        columns = {
            f"{name}{number}": pa.array(column.numpy())
            for name, part in parts.items()
            if part is not None
            for number, column in enumerate(part.flatten(1).T)
        }
        csv.write_csv(pa.table({**columns, "energy": drawn.energy.numpy()}), buffer)
    else:
        columns = {
            "position": fixed_size_lists(position),
            "energy": pa.array(drawn.energy.numpy()),
        }
        if aim.context is not None:
            columns["context"] = fixed_size_lists(aim.context)
        table = pa.table(columns)
        if form == "parquet":
            parquet.write_table(table, buffer)
        else:
            with pa.ipc.new_file(buffer, table.schema) as file:
                file.write_table(table)
    write_file(output, f"samples.{form}", buffer.getvalue())


def _picture(
    settings: Settings, runs: Sequence[Trained], aim: Aim, drawn: Drawn, title: str, output: str
) -> dict[str, str]:
    """Draws `samples.png`: the samples beside rows of all runs; under contexts, beside those of the
    law given them. Returns why it could not be drawn, if so (`draw_figure`).
    """
    first, data, energy = runs[0], [run.data for run in runs], aim.energy
    shown, flat = data[0], len(data[0].shape) == 1
    if aim.context is not None and flat and first.config.conditional:
        return draw_conditional(first.energy, drawn.position, aim.context, shown, title, output)
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
    return draw_samples(energy, energy.visible(drawn.position), shown, title, output)
