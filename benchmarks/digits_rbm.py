"""Exact held-out log-likelihoods of the digits RBM, in lock-step and at a lag of 16, beside
scikit-learn's.

    python -m benchmarks.digits_rbm [--seeds 3] [--json FILE]

Every run goes through the front door: `python -m pipeline.train experiment=digits_rbm`, with a Ray
of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from pipeline.assembly.data import open_data
from pipeline.config.compose import compose
from pipeline.energies.rbm import BernoulliRBM
from pipeline.evaluation.likelihood import exact, independent_levels

STALE = ("trainer.lag=16", "trainer.lag_mode=exact")
VARIANTS: dict[str, tuple[str, ...]] = {
    "lock-step": (),
    "lag 16, reweighted": STALE,
    "lag 16, plain": (*STALE, "trainer.reweight=false"),
}


def train(variant: str, seed: int, folder: Path) -> dict[str, Any]:
    """One run's summary."""
    overrides = [*VARIANTS[variant], f"seed={seed}", f"output={folder}", "metrics.port=0"]
    subprocess.run(
        [sys.executable, "-m", "pipeline.train", "experiment=digits_rbm", *overrides],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def scikit_learn(seed: int) -> float:
    """BernoulliRBM of the same size on the same rows, 300 epochs of batches of 100; its exact
    held-out likelihood, nats.
    """
    from sklearn.neural_network import BernoulliRBM as Peer

    data = open_data(compose(["experiment=digits_rbm"]))
    peer = Peer(16, learning_rate=0.05, batch_size=100, n_iter=300, random_state=seed)
    peer.fit(data.sample.flatten(1).numpy())
    rbm = BernoulliRBM(data.shape, hidden=16, weight_scale=0.01)
    with torch.no_grad():
        rbm.weight.copy_(torch.from_numpy(peer.components_))
        rbm.visible_bias.copy_(torch.from_numpy(peer.intercept_visible_))
        rbm.hidden_bias.copy_(torch.from_numpy(peer.intercept_hidden_))
        return float(
            exact(rbm, rbm.log_partition() or 0.0, data.held_out, data.sample)[
                "test_log_likelihood"
            ]
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    arguments = parser.parse_args()
    seeds = range(arguments.seeds)
    rows = []

    def add(name: str, values: list[float], **more: Any) -> None:
        row = {
            "name": name,
            "test_log_likelihood": sum(values) / len(values),
            "by_seed": values,
            **more,
        }
        rows.append(row)
        print(
            f"{name:<24}{row['test_log_likelihood']:8.2f}  {' '.join(f'{v:.2f}' for v in values)}",
            flush=True,
        )

    data = open_data(compose(["experiment=digits_rbm"]))
    add("independent pixels", [independent_levels(data, 2)])
    add("scikit-learn", [scikit_learn(seed) for seed in seeds])
    with tempfile.TemporaryDirectory() as folder:
        for variant in VARIANTS:
            runs = [
                train(variant, seed, Path(folder) / str(len(rows)) / str(seed)) for seed in seeds
            ]
            add(
                variant,
                [run["test_log_likelihood"] for run in runs],
                mean_ess=sum(run["mean_ess"] for run in runs) / len(runs),
                wall_seconds=max(run["wall_seconds"] for run in runs),
            )
    if arguments.json:
        content = {
            "command": f"python -m benchmarks.digits_rbm --seeds {arguments.seeds}",
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
