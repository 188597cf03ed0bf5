"""Draw samples of a trained model, or of several composed, with Markov chains started at noise.

    python -m pipeline.sample run=URL [key=value ...]
    python -m pipeline.sample runs=[A,B] compose=and|or|not [key=value ...]

URL is a run's output folder, or one of its checkpoints, on any fsspec file system. Neither Ray nor
training is needed.

    compose=and    E = sum_i w_i E_i, a product of experts
                   weights=[1,1]
    compose=or     E = -log sum_i w_i exp(-E_i) / Z_i, a mixture
                   weights=[1,1] log_partitions=[..]
    compose=not    E = E_A - w E_B
                   weights=[1,0.5]

For compose=or the Z_i are exact or by quadrature where they can be had; elsewhere give their
logarithms, or they are taken to be equal. The kernel is that of the first run; kernel=NAME and
kernel.KEY=VALUE change it. No data are needed: they are shown beside the samples where they are
there, and data.path=PATH says where they are now.

    python -m pipeline.sample run=runs/latest samples=100 transitions=2000 kernel=hmc
    python -m pipeline.sample runs=[runs/ring,runs/stripe] compose=not weights=[1,0.5]
    python -m pipeline.sample run=runs/labelled given=3
        a model of rows given a label: rows of class 3
    python -m pipeline.sample run=runs/labelled given=[0,1] compose=or
        one model under two contexts, composed
    python -m pipeline.sample run=runs/latest clamp=data clamp_columns=0-31
        the lower halves of held-out images of 8x8, drawn given the upper ones
    python -m pipeline.sample run=runs/latest clamp=halves.csv
        what is missing in the rows of a file, drawn given the rest
    python -m pipeline.sample run=runs/latest start=rows.parquet
        chains that begin at the rows of a file; start=data: at training rows
    python -m pipeline.sample run=runs/latest order=8
        the chains at eight instants on their way from noise, as a picture

Files of rows are .npy, CSV (the first line holds the columns' names), Parquet or Arrow, on any
fsspec URL. The numbers of a row are counted from 0 on, an image's along its lines.

In the folder of the output: samples.png; samples.arrow, an Arrow file with columns `position`
(lists of numbers: rows, flattened, without latent units), `energy` (nats) and, of models given
contexts, `context`; format=parquet writes the same table, csv a column for each number (those
learned from by their names, else x0, x1, ...), npy the positions alone, and of runs on data=fasta
fasta sequences with their energies, the nearest training sequences and the identity to these;
order.png with order=N; summary.json.

Exit status: 0 done, 2 refused before the start, 1 failed, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from pipeline.config.arguments import carry_out, parse, usage
from pipeline.config.sample import OVERRIDABLE, Settings


def in_words(summary: dict[str, Any]) -> str:
    """Tells a person what came of it."""
    r_hat = summary["samples_r_hat"]
    lines = [
        "",
        f"done: {summary['samples']} samples in {summary['seconds']:.0f} s, acceptance"
        f" {summary['acceptance']:.2f}"
        + (
            f", split R-hat of their energies {r_hat:.2f} (1: the chains agree)"
            if r_hat is not None
            else ""
        ),
    ]
    if summary["compose"] == "or":
        used = summary["log_partitions"]
        known = "taken to be equal" if used is None else ", ".join(f"{value:.3f}" for value in used)
        lines.append(f"  log Z of the parts {known}")
    rows = f"samples.{summary['format']}"
    names = {"samples": "samples.png", "rows": rows, "summary": "summary.json"}
    if summary["order"] is not None:
        names = {"order": "order.png", **names}
    for picture in ("samples", "order"):
        if f"undrawn_{picture}" in summary:
            del names[picture]
            lines.append(f"  {picture:<11} no picture: {summary[f'undrawn_{picture}']}")
    return "\n".join(
        [*lines, *(f"  {name:<11} {summary['output']}/{file}" for name, file in names.items())]
    )


def main(arguments: Sequence[str]) -> int:
    """Carries out the command line, and returns its exit status."""

    def work(texts: Sequence[str]) -> None:
        settings, overrides = parse(texts, Settings, OVERRIDABLE)
        from pipeline.runs.draw import sample

        print(in_words(sample(settings, overrides)), flush=True)

    return carry_out(arguments, usage(__doc__ or "", Settings), work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
