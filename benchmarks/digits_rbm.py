"""Exact held-out log-likelihoods of the digits RBM, beside scikit-learn's.

    python -m benchmarks.digits_rbm [--seeds 3] [--json [FILE]]

The RBM is trained in lock-step and at a lag of 16. Every run goes through the front door,
`python -m pipeline.train experiment=digits_rbm`, with a Ray of its own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from benchmarks.harness import say
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
    """Return one run's summary."""
    given = ("experiment=digits_rbm", *VARIANTS[variant], f"seed={seed}", "metrics.port=0")
    return harness.run("pipeline.train", *given, output=folder)


def scikit_learn(seed: int) -> float:
    """Train scikit-learn's RBM of the same size on the same rows, 300 epochs of batches of 100.

    Returns its exact held-out log-likelihood, nats a row.
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


def row_of(name: str, values: list[float], **more: Any) -> dict[str, Any]:
    """Return a row of the mean over seeds, and show it."""
    mean = sum(values) / len(values)
    say(f"{name:<24}{mean:8.2f}  {' '.join(f'{value:.2f}' for value in values)}")
    return {"name": name, "test_log_likelihood": mean, "by_seed": values, **more}


def main() -> None:
    parser = harness.command_line(__doc__, "json")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    seeds = range(arguments.seeds)
    data = open_data(compose(["experiment=digits_rbm"]))
    rows = [
        row_of("independent pixels", [independent_levels(data, 2)]),
        row_of("scikit-learn", [scikit_learn(seed) for seed in seeds]),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for variant in VARIANTS:
            runs = [
                train(variant, seed, Path(folder) / str(len(rows)) / str(seed)) for seed in seeds
            ]
            row = row_of(
                variant,
                [run["test_log_likelihood"] for run in runs],
                mean_ess=sum(run["mean_ess"] for run in runs) / len(runs),
                wall_seconds=max(run["wall_seconds"] for run in runs),
            )
            rows.append(row)
    command = f"python -m benchmarks.digits_rbm --seeds {arguments.seeds}"
    content = {"command": command, **harness.conditions("torch", "scikit-learn"), "rows": rows}
    harness.write(content, arguments.json)


if __name__ == "__main__":
    main()
