"""The work of `python -m pipeline.evaluate`: the figures of a run anew, a ranking of points, an
outlier score.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.csv
import torch
from torch import Tensor

from pipeline.assembly.memory import check_evaluation
from pipeline.common.errors import ConfigError
from pipeline.common.json_text import to_json
from pipeline.common.masking import masked
from pipeline.common.rng import torch_generator
from pipeline.common.types import Figures, Progress
from pipeline.config.fields import digest
from pipeline.data import row_weights
from pipeline.evaluation.mutations import Mutants, mutation_figures, read_mutants
from pipeline.evaluation.outliers import outlier_score, shuffled
from pipeline.evaluation.report import evaluate
from pipeline.runs.display import Display
from pipeline.runs.features import check_features, write_features
from pipeline.runs.rows import read_rows
from pipeline.runs.trained import Taking, Trained, bound, contexts_of, open_run, output_of
from pipeline.storage.files import write_file
from pipeline.storage.probe import check_input

if TYPE_CHECKING:
    from pipeline.config.evaluate import Settings

ROWS = 1000  # energies at once
FIRST = 10  # points of a ranking that are told one by one
CODE = "of a run on rows given in code give them: pipeline.evaluate.evaluate(run, rows=...)"
WITHOUT_ROWS = (
    "no likelihood, no baselines and no distances between samples and rows: these need the run's"
    f" rows, which are not there; {CODE}"
)


def evaluate_again(
    settings: Settings, overrides: Sequence[str] = (), taking: Taking | None = None
) -> Figures:
    """Works out what `settings` asks for, and returns it; `summary.json` holds it as well. Of a run
    on rows given in code `taking` gives the data; without it `without_rows` says what is not told.

    Raises `PipelineError`.
    """
    display = Display()
    run = open_run(settings.run, overrides, taking=taking)
    torch.set_num_threads(run.config.cluster.threads)
    points = (
        None
        if settings.points is None
        else read_rows("points", settings.points, settings.columns, run)
    )
    others = (
        None
        if settings.ood in (None, "noise", "shuffled")
        else read_rows("ood", settings.ood or "", settings.columns, run)
    )
    context = None if settings.given is None else contexts_of(run, settings.given)
    _check(settings, run, context)
    mutants = None if settings.mutations is None else _mutants(settings.mutations, run)
    asked = settings.model_dump(mode="json", exclude={"output"})
    output = output_of(
        run,
        settings.output,
        f"evaluation-{digest([asked, sorted(overrides), run.checkpoint.folder])}",
    )
    display.say(f"{run.config.name}, step {run.checkpoint.step}, evaluated again, to {output}")
    found: Figures = {
        "run": run.url,
        "checkpoint": run.checkpoint.folder,
        "name": run.config.name,
        "step": run.checkpoint.step,
    }
    with display.working():
        for item in evaluate(run.config, run.weights, run.data, output):
            if isinstance(item, Progress):
                display.work(item)
            else:
                found["figures"] = item
    if not run.data.rows and run.config.data.has_rows:
        found["without_rows"] = WITHOUT_ROWS
        if found["figures"].get("log_z") is None:
            found["figures"]["log_z"] = run.energy.log_partition()
    with torch.no_grad():
        if settings.ood is not None:
            found["ood"] = outliers(settings, run, others, context)
        if points is not None:
            log_z = found["figures"].get("log_z") if context is None else None
            found["ranking"] = rank(run, points, context, log_z, output)
        if points is not None and settings.features is not None:
            write_features(settings.features, run.energy, points, energies(run, points, context))
            found["features"] = settings.features
        if mutants is not None:
            assert run.data.sequences is not None
            found["mutations"] = mutation_figures(
                run.energy,
                mutants,
                run.data.sequences,
                f"{run.config.name}, step {run.checkpoint.step}: all single mutants",
                output,
            )
    found["output"] = output
    found = masked(found)
    write_file(output, "summary.json", to_json(found, indent=1).encode())
    return found


def _check(settings: Settings, run: Trained, context: Tensor | None) -> None:
    """Raises `ConfigError` where the points or rows asked for have no energy of their own, or
    memory cannot hold what is to be drawn.
    """
    check_evaluation(run.config, run.energy.dimension)
    if settings.features is not None:
        if settings.points is None:
            raise ConfigError("features", settings.features, "goes with points=FILE")
        check_features(settings.features, run.energy)
    if settings.points is None and settings.ood is None:
        if context is not None:
            raise ConfigError("given", settings.given, "goes with points=FILE or ood=FILE")
        return
    asked = ("points", settings.points) if settings.points is not None else ("ood", settings.ood)
    if run.energy.shape != run.data.shape:
        remedy = (
            f"the energy of {run.url} is of rows and latent units together, and p(row) sums"
            " these out"
        )
        raise ConfigError(*asked, remedy)
    of_a_file = settings.points is not None or settings.ood not in (None, "noise", "shuffled")
    if run.config.conditional and of_a_file and (context is None or len(context) != 1):
        remedy = (
            f"{run.url} conditions on a context, and Z depends on it: give the one of all these"
            " rows"
        )
        raise ConfigError("given", settings.given, remedy)
    if settings.ood is not None and not len(run.data.held_out):
        why = f"{run.url} has no held-out rows to tell from others"
        raise ConfigError("ood", settings.ood, why if run.data.rows else f"{why}; {CODE}")


def _mutants(url: str, run: Trained) -> Mutants:
    """Reads mutants of the wild type of a run. Raises `ConfigError` where it has none, `DataError`
    where they are none.
    """
    if run.data.sequences is None or run.energy.shape != run.data.shape:
        remedy = f"goes with runs on data=fasta, and {run.url} is on data={run.config.data.name}"
        raise ConfigError("mutations", url, remedy)
    check_input(url, "mutations")
    return read_mutants(url, run.data.sequences)


def energies(run: Trained, rows: Tensor, context: Tensor | None) -> Tensor:
    """Returns E of `rows` [N, *shape], each under its own of the contexts, or under the only one;
    `[N]` float64, nats.
    """
    values = []
    for number in torch.arange(len(rows)).split(ROWS):
        under = context if context is None or len(context) == 1 else context[number]
        values.append(bound(run, under)(rows[number]).double())
    return torch.cat(values)


def rank(
    run: Trained, points: Tensor, context: Tensor | None, log_z: float | None, output: str
) -> Figures:
    """Ranks points by log p(x) / p(x') = E(x') - E(x), x' the most probable; writes `ranking.csv`,
    and returns the first of them.
    """
    values = energies(run, points, context)
    order = values.argsort(stable=True)
    columns = {"point": order, "energy": values[order], "log_ratio": values.min() - values[order]}
    if log_z is not None:
        columns["log_density"] = -values[order] - log_z
    table, buffer = (
        pa.table({name: column.numpy() for name, column in columns.items()}),
        io.BytesIO(),
    )
    pyarrow.csv.write_csv(table, buffer)
    write_file(output, "ranking.csv", buffer.getvalue())
    first = table.slice(0, FIRST).to_pylist()
    return {"points": len(points), "log_z": log_z, "first": first, "file": f"{output}/ranking.csv"}


def outliers(
    settings: Settings, run: Trained, others: Tensor | None, context: Tensor | None
) -> Figures:
    """Returns the AUROC of the energy, as a score that tells held-out rows from others.

    Held-out rows, and what is made of them, are under their own contexts, as are draws of the base.
    """
    data, config, generator = run.data, run.config, torch_generator(settings.seed, "outliers")
    own = data.context.held_out if data.context is not None and config.conditional else None

    def noisy(rows: Tensor) -> Tensor:
        return run.energy.into_domain(
            rows + data.noise * torch.randn(rows.shape, generator=generator)
        )

    inside, weights = noisy(data.held_out), data.row_weights.held_out
    rows, under = inside, own  # that others are made of
    if weights is not None:
        numbers = row_weights.shuffled(weights, len(inside), generator)
        rows, under = inside[numbers], None if own is None else own[numbers]
    if settings.ood == "noise":
        outside = run.energy.sample_base(len(inside), generator)
    elif settings.ood == "shuffled":
        outside = shuffled(rows, generator)
    else:
        assert others is not None
        outside, under = noisy(others), context
    score = outlier_score(energies(run, inside, own), energies(run, outside, under), weights)
    against = {
        "noise": "draws of the base law",
        "shuffled": "held-out rows, their components permuted over the rows",
    }
    return {
        "against": against.get(settings.ood or "", settings.ood),
        "auroc": score.auroc,
        "standard_error": score.standard_error,
        "standard_error_method": "Hanley & McNeil 1982",
        "held_out": len(inside),
        "others": len(outside),
    }
