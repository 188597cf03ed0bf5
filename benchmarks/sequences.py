"""Contacts of a protein family, held against those of plmc with the same settings.

    python -m benchmarks.sequences [--alignments FOLDER] [--iterations 100] [--json [FILE]]

The folder holds the example of plmc (github.com/debbiemarkslab/plmc, example/protein and tests):
DHFR.a2m.gz, DHFR.couplings.gz (-le 16.0 -lh 0.01 -m 100 -g -f DYR_ECOLI) and
DHFR_weights_raw.txt.gz. As there, all sequences are learned from, and none is held out. The result
has

    weights          the largest difference of a sequence's weight from plmc's
    correlation      of the scores of all pairs of sites with plmc's (Pearson)
    shared           the share of plmc's strongest pairs, one for each site, that are among as many
                     of the strongest here
    seconds, cpu_s   of training, and of the processor, on one core
"""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks import harness
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
    parser.add_argument("--iterations", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = measure(arguments.alignments, arguments.iterations)
    for name, value in figures.items():
        say(f"{name:<12}{value:.6g}")
    harness.write({**harness.conditions(), "dhfr": figures}, arguments.json)


if __name__ == "__main__":
    main()
