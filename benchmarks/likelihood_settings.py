"""The settings that `benchmarks.time_to_likelihood --tune` tries: as many for each contestant.

Each grid was narrowed down to these by hand before, on seed 0, in 15 to 30 short runs.
"""

from __future__ import annotations

from typing import Any

Setting = dict[str, Any]


def rbm(steps: int, rate: float, chains: int, pools: int, *more: str) -> Setting:
    """Return this project's setting: Adam nearly without a memory, and every row in each step."""
    overrides = (
        "optimizer.name=adam",
        f"optimizer.learning_rate={rate}",
        "optimizer.momentum=0.1",
        "optimizer.beta2=0.8",
        "optimizer.ema=0.7",
        "energy.weight_scale=0.3",
        "trainer.batch_size=1500",
        f"chains.pools={pools}",
        f"chains.per_pool={chains // pools}",
    )
    return {"steps": steps, "overrides": [*overrides, *more]}


def perceptron(steps: int, rate: float, pools: int, *more: str) -> Setting:
    """Return this project's setting: the default recipe, shorter, at a higher rate, with no chain
    begun anew: in so short a run fresh chains cost more nats than they bring.
    """
    overrides = (
        f"optimizer.learning_rate={rate}",
        "optimizer.schedule=linear",
        "optimizer.warmup=50",
        f"chains.pools={pools}",
        f"chains.per_pool={128 // pools}",
        "chains.restart=0",
    )
    return {"steps": steps, "overrides": [*overrides, *more]}


def ula(transitions: int, step_size: float) -> tuple[str, ...]:
    return "kernel=ula", f"kernel.transitions={transitions}", f"kernel.step_size={step_size}"


def adam(steps: int, rate: float, batch: int, **more: Any) -> Setting:
    """Return a peer's setting for the RBM, with as many chains as a batch has rows."""
    given = {"steps": steps, "rate": rate, "batch": batch, "chains": batch, "transitions": 1}
    return {**given, "optimizer": "adam", "betas": [0.1, 0.9], **more}


def sgd(steps: int, rate: float, batch: int) -> Setting:
    given = {"steps": steps, "rate": rate, "batch": batch, "chains": batch, "transitions": 1}
    return {**given, "optimizer": "sgd"}


def deep(steps: int, rate: float, transitions: int, step_size: float, **more: Any) -> Setting:
    """Return a peer's setting for the perceptron: the rest is this project's default recipe."""
    return {
        "steps": steps,
        "rate": rate,
        "transitions": transitions,
        "step_size": step_size,
        "batch": 128,
        "chains": 128,
        "restart": 0.005,
        "optimizer": "adam",
        "betas": [0.0, 0.999],
        "decay": 0.12,
        "clip": 1.0,
        "ema": 0.995,
        "energy_l2": 0.002,
        **more,
    }


# a buffer that is drawn from with replacement wants more chains than a batch
BUFFER: Setting = {"chains": 512, "restart": 0.001}
RBMS = [adam(300, 0.07, 250), adam(400, 0.07, 250), adam(300, 0.1, 500), sgd(600, 1.0, 250)]
SETTINGS: dict[str, dict[str, list[Setting]]] = {
    "digits RBM": {
        "this project, inline": [
            rbm(100, 0.18, 1500, 1),
            rbm(110, 0.18, 1000, 1),
            rbm(120, 0.15, 1000, 1),
            rbm(160, 0.15, 500, 1),
        ],
        "this project, Ray": [
            rbm(100, 0.18, 1500, 1),
            rbm(110, 0.18, 1500, 2),
            rbm(120, 0.15, 1000, 2),
            rbm(120, 0.15, 1000, 2, "trainer.lag=1"),
        ],
        "scikit-learn": [
            sgd(1500, 0.8, 100),
            sgd(1800, 0.6, 100),
            sgd(2000, 0.6, 80),
            sgd(2250, 0.5, 100),
        ],
        "rbms": RBMS,
        "rbms, its step alone": RBMS,
        "ebmkit": [
            adam(450, 0.1, 200),
            adam(600, 0.1, 150),
            sgd(900, 1.0, 200),
            sgd(1500, 0.7, 100),
        ],
    },
    "digits perceptron": {
        "this project, inline": [
            perceptron(1400, 0.012, 1),
            perceptron(1400, 0.012, 1, *ula(5, 0.005)),
            perceptron(1400, 0.012, 1, *ula(3, 0.008)),
            perceptron(1200, 0.014, 1, *ula(3, 0.008)),
        ],
        "this project, Ray": [
            perceptron(1400, 0.012, 2),
            perceptron(1400, 0.012, 2, *ula(5, 0.005)),
            perceptron(1400, 0.012, 2, *ula(3, 0.008)),
            perceptron(1200, 0.014, 2, *ula(3, 0.008)),
        ],
        "ebmkit": [
            deep(1400, 0.012, 5, 0.01, kernel="mala", **BUFFER),
            deep(1400, 0.012, 5, 0.005, kernel="ula", **BUFFER),
            deep(1400, 0.012, 3, 0.008, kernel="ula", **BUFFER),
            deep(1400, 0.012, 5, 0.005, kernel="ula", threads=2, **BUFFER),
        ],
        "torchebm": [
            deep(1400, 0.012, 5, 0.005),
            deep(1600, 0.010, 5, 0.005),
            deep(1400, 0.012, 3, 0.008),
            deep(1400, 0.012, 5, 0.005, threads=2),
        ],
    },
}
