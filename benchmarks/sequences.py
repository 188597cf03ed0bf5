"""Sequences: contacts beside plmc, Boltzmann machine learning beside adabmDCA, and large models.

    pip install -c constraints.txt -c constraints-sequences.txt -e '.[sequences]'
    python -m benchmarks.sequences [--only dhfr rna pools memory] [--alignments FOLDER]
                                   [--json [FILE]]

The folder holds alignments: the example of plmc (github.com/debbiemarkslab/plmc, example/protein
and tests), DHFR.a2m.gz, DHFR.couplings.gz (-le 16.0 -lh 0.01 -m 100 -g -f DYR_ECOLI) and
DHFR_weights_raw.txt.gz; and RF00379.fasta.gz, 3,827 sequences of 136 sites. All sequences are
learned from, and at most one is held out. The result has

    dhfr      weights: the largest difference of a sequence's weight from plmc's; correlation, of
              the scores of all pairs of sites with plmc's (Pearson); shared, the share of plmc's
              strongest pairs, one for each site, that are among as many of the strongest here;
              seconds and cpu_s of training, on one core
    rna       experiment=rna_potts and adabmDCA side by side, 2,000 chains and one thread each:
              processor seconds, from the start of the program, until each level of Pearson's
              correlation of two-site covariances that the program tells of its own chains; and by
              one judge, the same of sequences drawn anew from both models
    pools     seconds of 60 steps in one process, with two pools on Ray, and with two ranks besides
    memory    the most bytes held by two steps of a model of 1,000 sites and 21 letters

Parts that were not asked for keep what FILE has of them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import harness
from benchmarks.boltzmann_learning import memory, pools, side_by_side
from benchmarks.harness import say
from pipeline.assembly.data import open_data
from pipeline.assembly.learner import make_learner
from pipeline.config.compose import compose
from pipeline.energies.potts import PottsModel
from pipeline.evaluation.contacts import contact_scores

SETTINGS = (
    *("experiment=protein_potts", "data.focus=DYR_ECOLI", "data.held_out=0"),
    *("cluster=inline", "metrics.port=0"),
)


def numbers(file: Path, column: int) -> np.ndarray:
    """Returns one column of a gzipped table of numbers and words."""
    with gzip.open(file, "rt") as lines:
        return np.array([line.split()[column] for line in lines], np.float64)


def measure(folder: Path, iterations: int) -> dict[str, float]:
    """Trains, and returns the figures."""
    config = compose([*SETTINGS, f"data.path={folder / 'DHFR.a2m.gz'}"])
    data = open_data(config)
    weights = numbers(folder / "DHFR_weights_raw.txt.gz", 0)
    clock, spent = time.perf_counter(), time.process_time()
    learner = make_learner(config, data)
    for done in range(1, iterations + 1):
        report, _ = learner.step([])
        if done % 20 == 0:
            say(f"iteration {done}: loss {report.loss:.3f} nats a sequence")
    seconds, cpu = time.perf_counter() - clock, time.process_time() - spent
    assert isinstance(learner.energy, PottsModel)
    found = contact_scores(learner.energy).numpy()
    truth, sites = numbers(folder / "DHFR.couplings.gz", 5), len(data.sequences.numbering)
    best = (set(np.argsort(-scores)[:sites].tolist()) for scores in (found, truth))
    return {
        "weights": float(np.abs(weights - data.sequences.weights).max()),
        "correlation": float(np.corrcoef(found, truth)[0, 1]),
        "shared": len(set.intersection(*best)) / sites,
        "seconds": seconds,
        "cpu_s": cpu,
    }


def main() -> None:
    parser = harness.command_line(__doc__, "json")
    beside = Path(__file__).parents[2] / "shared" / "msa"
    parser.add_argument("--alignments", type=Path, default=beside, metavar="FOLDER")
    parser.add_argument("--iterations", type=int, default=100, help="of L-BFGS")
    parser.add_argument("--rate", type=float, default=0.05, help="learning rate of adabmDCA")
    parser.add_argument("--updates", type=int, default=500, help="of adabmDCA, at most")
    parser.add_argument("--pairs", type=int, default=3, help="timed pairs of runs")
    rna = "RF00379.fasta.gz"
    parts: dict[str, Callable[[argparse.Namespace], Any]] = {
        "dhfr": lambda asked: measure(asked.alignments, asked.iterations),
        "rna": lambda asked: side_by_side(asked.alignments / rna, asked.rate, asked.updates),
        "pools": lambda asked: pools(asked.alignments / rna, asked.pairs),
        "memory": lambda _: memory(),
    }
    harness.add_only(parser, parts)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for name in arguments.only:
        found[name] = parts[name](arguments)
        say(f"{name}: {found[name]}")
    there = arguments.json and arguments.json != "-" and Path(arguments.json).exists()
    known = json.loads(Path(arguments.json).read_text()) if there else {}
    harness.write({**known, **harness.conditions(), **found}, arguments.json)


if __name__ == "__main__":
    main()
