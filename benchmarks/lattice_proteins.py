"""A machine of lattice proteins: its likelihood, and whether the sequences that it draws fold.

    python -m benchmarks.lattice_proteins [--alignments FOLDER] [--run FOLDER] [--json [FILE]]

The folder holds the example of PGM (github.com/jertubiana/PGM, data/Lattice_Proteins), gzipped:
Lattice_Proteins.fasta.gz, sequences of a structure, and Lattice_Proteins_pnat.txt.gz, for each the
published probability of folding into it. A run with the preset learns them, or --run names one that
did, and draws sequences by chains from noise. `benchmarks.lattice_model` works out how they fold.
The result has

    log_likelihood_a_site   of held-out and training sequences, nats a site, and by either way of
                            annealing
    log_z_apart             between the ways there and back, nats
    folding                 mean P_nat of sequences that were drawn (designed), of as many natural
                            ones and of as many with each column shuffled by itself, among all
                            structures
    folding_at_least        the same among those that no published probability rules out, which
                            have the 10,000 that were used there among them: P_nat is that there,
                            or more
    published               mean P_nat of the natural ones as published
    nearest                 mean published P_nat of the natural sequences nearest to those drawn
    training_seconds        of the run's steps

`ratio` is that of designed to natural sequences.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.harness import say
from benchmarks.lattice_model import (
    LETTERS,
    Structures,
    folding_probabilities,
    native_structure,
    ruled_out,
    structures,
)
from pipeline.sample import main as sample

DRAWN, TRANSITIONS = 1000, 200
"""Sequences that are drawn, and transitions of their chains."""


def codes_of(text: str) -> np.ndarray:
    """The sequences of a FASTA file's `text`, one a line, `[N, 27]` of numbers of `LETTERS`."""
    rows = (line for line in text.splitlines() if line and not line.startswith(">"))
    return np.array([[LETTERS.index(letter) for letter in row] for row in rows])


def designed(run: Path, folder: Path) -> np.ndarray:
    """Sequences drawn from the model of a `run`, `[DRAWN, 27]`; they are written to `folder`."""
    asked = (f"samples={DRAWN}", f"transitions={TRANSITIONS}", "format=fasta")
    if sample([f"run={run}", f"output={folder}", *asked]):
        raise RuntimeError(f"no sequences were drawn from {run}")
    return codes_of((folder / "samples.fasta").read_text())


def trained(path: Path, output: Path) -> dict[str, Any]:
    """Trains and evaluates with the preset; returns the summary."""
    words = ("experiment=lattice_proteins", f"data.path={path}", "cluster=inline", "metrics.port=0")
    return harness.run("pipeline.train", *words, output=output)


def folding(kinds: dict[str, np.ndarray], among: Structures, native: np.ndarray) -> dict[str, Any]:
    """Mean P_nat of each kind of sequences, and the ratio of the first to the second."""
    found: dict[str, Any] = {"structures": len(among.contacts)}
    for kind, sequences in kinds.items():
        found[kind] = float(folding_probabilities(sequences, among, native).mean())
    first, second = list(kinds)[:2]
    return found | {"ratio": found[first] / found[second]}


def nearest(sequences: np.ndarray, natural: np.ndarray) -> np.ndarray:
    """The number of the natural sequence [M, 27] that is most alike each of `sequences` [N, 27]."""
    return np.array([(natural == row).sum(1).argmax() for row in sequences])


def measure(folder: Path, run: Path | None) -> dict[str, Any]:
    """Trains where there is no `run`, and returns the figures."""
    path = folder / "Lattice_Proteins.fasta.gz"
    with gzip.open(path, "rt") as file:
        natural = codes_of(file.read())
    published = np.loadtxt(folder / "Lattice_Proteins_pnat.txt.gz")
    with tempfile.TemporaryDirectory() as place:
        if run is None:
            run = Path(place) / "run"
            trained(path, run)
        summary = json.loads((run / "summary.json").read_text())
        drawn = designed(run, Path(place) / "drawn")
    say("sequences are drawn; now structures")
    random, every = np.random.RandomState(0), structures()
    native = native_structure(natural, every)
    some = natural[random.choice(len(natural), DRAWN, replace=False)]
    shuffled = np.stack([random.permutation(column) for column in some.T], 1)
    kinds = {"designed": drawn, "natural": some, "shuffled": shuffled}
    left = every.without(ruled_out(natural, published, every, native))
    return {
        "log_likelihood_a_site": summary["log_likelihood_a_site"],
        "log_z_apart": summary["log_z_reverse"] - summary["log_z_forward"],
        "log_likelihood_gap": summary["train_log_likelihood"] - summary["test_log_likelihood"],
        "sequence_statistics": summary["sequence_statistics"],
        "folding": folding(kinds, every, native),
        "folding_at_least": folding(kinds, left, native),
        "published": float(published.mean()),
        "nearest": float(published[nearest(drawn, natural)].mean()),
        "training_seconds": summary["wall_seconds"],
    }


def main() -> None:
    parser = harness.command_line(__doc__, "json")
    beside = Path(__file__).parents[2] / "shared" / "msa"
    parser.add_argument("--alignments", type=Path, default=beside, metavar="FOLDER")
    parser.add_argument("--run", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    figures = measure(arguments.alignments, arguments.run)
    for name, value in figures.items():
        say(f"{name:<20} {value}")
    harness.write({**harness.conditions(), **figures}, arguments.json)


if __name__ == "__main__":
    main()
