"""Evaluate a trained run again; rank points by their probability; score how well the energy tells
outliers.

    python -m pipeline.evaluate run=URL [--json] [key=value ...]

URL is a run's output folder, or one of its checkpoints, on any fsspec file system. Neither Ray nor
training is needed.

First come the figures of the run's own summary, worked out anew from its newest checkpoint.
evaluation.KEY=VALUE, kernel=NAME and kernel.KEY=VALUE change how (evaluation.samples=0: no samples;
evaluation.ais_temperatures=0: no AIS); data.path=PATH: where its data are now. Of a run on rows
given in code there are those figures that need no rows, and points=FILE; with its rows, from
Python, all of them: pipeline.evaluate.evaluate(URL, rows=...).

    points=FILE    ranks the rows of a file (CSV, Parquet, Arrow or .npy) by log p(x) / p(x'), x'
                   the most probable of them, which needs no Z. Where log Z is known, log p(x) is
                   told too. All of them are written to ranking.csv.
    features=OUT   writes the values of the hidden units under the points, by their order in the
                   file: h0, h1, ... and the energy in a .csv or .parquet, the values alone in a
                   .npy.
    ood=noise      the area under the ROC curve of the energy as a score that tells held-out rows
                   from draws of the base law;
    ood=shuffled   from held-out rows whose components are permuted over the rows, each by itself;
    ood=FILE       from the rows of a file. To data that are learned with noise the same noise is
                   added.
    mutations=FILE of a run on data=fasta, the effects of mutations: E(mutant) - E(wild type), the
                   wild type being the focus sequence. The CSV file has a column `mutant`, such as
                   A24G by the numbers of the sites, or A24G:L28I; a column `score` of measured
                   values is compared by Spearman's correlation. Written to mutations.csv, and
                   those of all single mutants drawn as mutations.png.

    python -m pipeline.evaluate run=runs/latest --json
    python -m pipeline.evaluate run=runs/latest evaluation.samples=0 points=images.npy
        ood=shuffled
    python -m pipeline.evaluate run=runs/ring ood=runs/stripe/samples-0b3f/samples.arrow
        columns=[position]

With --json standard output holds one JSON document, and what is going on goes to standard error.

Exit status: 0 done, 2 refused before the start, 1 failed, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from functools import partial
from typing import Any

from pipeline.common.json_text import to_json
from pipeline.config.arguments import carry_out, parse, usage
from pipeline.config.evaluate import OVERRIDABLE, Settings


def evaluate(
    run: str,
    *arguments: str,
    rows: Any = None,
    held_out: Any = None,
    weights: Any = None,
    held_out_weights: Any = None,
) -> dict[str, Any]:
    """Evaluates the run at the URL `run` as the command line of these `arguments` does, such as
    "points=FILE", and returns what `summary.json` holds. Raises `PipelineError`.

    Of a run on rows given in code the data are what is given here, as to `pipeline.train.run`: its
    own rows, or others of their shape, which are scaled as its own were.
    """
    settings, overrides = parse([f"run={run}", *arguments], Settings, OVERRIDABLE)
    from pipeline.data.given import given_rows
    from pipeline.runs.evaluate_again import evaluate_again

    taking = None
    if rows is not None:
        taking = partial(given_rows, rows, held_out, weights, held_out_weights)
    return evaluate_again(settings, overrides, taking)


def in_words(found: dict[str, Any]) -> str:
    """Tells a person what was found."""
    figures = found["figures"]
    lines = ["", f"{found['name']}, step {found['step']}", *figures["words"]]
    lines += [
        f"  no {name.removeprefix('undrawn_')}.png: {why}"
        for name, why in figures.items()
        if name.startswith("undrawn_")
    ]
    if "without_rows" in found:
        lines.append(f"  {found['without_rows']}")
    if "ood" in found:
        from pipeline.evaluation.words import plus_minus  # brings torch

        score = found["ood"]
        error = plus_minus(score["standard_error"], 3)
        lines.append(
            f"outliers, {score['against']}: AUROC {score['auroc']:.3f}{error}"
            f" ({score['held_out']:,} held-out rows, {score['others']:,} others)"
        )
    if "ranking" in found:
        ranking = found["ranking"]
        known = ranking["log_z"] is not None
        lines.append(f"{ranking['points']:,} points, the most probable first:")
        lines.append(
            f"  {'point':>8}{'energy':>12}{'log p/p_best':>14}"
            + (f"{'log p':>12}" if known else "")
        )
        for row in ranking["first"]:
            density = f"{row['log_density']:>12.3f}" if known else ""
            lines.append(
                f"  {row['point']:>8}{row['energy']:>12.3f}{row['log_ratio']:>14.3f}{density}"
            )
        lines.append(f"  all of them {ranking['file']}")
    if "mutations" in found:
        from pipeline.evaluation.mutations import mutation_words  # brings torch

        lines += mutation_words(found["mutations"])
    if "features" in found:
        lines.append(f"  features    {found['features']}")
    return "\n".join([*lines, f"  files       {found['output']}"])


def main(arguments: Sequence[str]) -> int:
    """Carries out the command line, and returns its exit status."""
    as_json = "--json" in arguments

    def work(texts: Sequence[str]) -> None:
        settings, overrides = parse(
            [text for text in texts if text != "--json"], Settings, OVERRIDABLE
        )
        from pipeline.runs.evaluate_again import evaluate_again

        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            found = evaluate_again(settings, overrides)
        print(to_json(found, indent=1) if as_json else in_words(found), flush=True)

    return carry_out(arguments, usage(__doc__ or "", Settings), work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
