"""Runs that are spoilt on purpose, each in one way, and runs that are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet

from pipeline.kernels.base import Info
from pipeline.runs.inline import InlineRunner

Tamper = Callable[[InlineRunner, int], None]
"""Spoils a runner before it makes the step after so many."""
INJECTED = 150
"""Steps after which a run is spoilt that begins well."""


class Case(NamedTuple):
    """A run: its `name`, the `arguments` of `python -m pipeline.train`, and the causes of which a
    verdict must name one; none of a run that is well. `spoilt_at`: steps made when it begins to go
    wrong. `rows`: the name of a function that writes its data.
    """

    name: str
    arguments: tuple[str, ...]
    causes: frozenset[str] = frozenset()
    steps: int = 400
    tamper: Tamper | None = None
    spoilt_at: int = 0
    rows: str | None = None


def _sick(
    cause: str,
    name: str,
    *arguments: str,
    steps: int = 400,
    tamper: Tamper | None = None,
    rows: str | None = None,
) -> Case:
    spoilt_at = INJECTED if tamper is not None else 0
    return Case(name, arguments, frozenset(cause.split()), steps, tamper, spoilt_at, rows)


RBM, TOY, DBM = ("experiment=digits_rbm",), ("experiment=toy",), ("experiment=dbm_digits",)
GAUSSIAN = (
    *("energy=gaussian_rbm", "kernel=gibbs", "objective.energy_l2=0", "optimizer.name=sgd"),
    *("optimizer.learning_rate=0.01", "optimizer.clip_norm=null", "optimizer.weight_decay=0"),
    *("chains.restart=0",),
)
CONV = ("energy=conv", "energy.channels=[8,16]", "energy.hidden=64")
REGRESSION = ("experiment=conditional_regression",)
ISING = ("experiment=maxent_ising",)
POTTS = (
    *("energy=potts_rbm", "kernel=gibbs", "data.encoding=categorical", "data.noise=0"),
    *("objective.energy_l2=0", "optimizer.name=sgd", "optimizer.learning_rate=0.05"),
    *("optimizer.clip_norm=null", "optimizer.weight_decay=0", "chains.restart=0"),
)
FEW = ("data.held_out=1737", "trainer.batch_size=60")
"""Of the digits, 60 rows to train on."""


def frozen_pool(runner: InlineRunner, step: int) -> None:
    """From `INJECTED` steps on, the chains of pool 1 stay where they are."""
    if step == INJECTED:
        assert runner._together is not None
        runner._together.as_one = False  # else a round moves all pools alike
        plan = runner._pools[1].plan
        plan = plan._replace(kernel=plan.kernel._replace(step=_stay))
        runner._pools[1].plan = runner._pools[1].sampler._plan = plan


def lost_pool(runner: InlineRunner, step: int) -> None:
    """From `INJECTED` steps on, the chains of pool 1 begin every round at the base law."""
    if step >= INJECTED:
        pool = runner._pools[1]
        pool.sampler.position = pool.energy.sample_base(len(pool.sampler.position), pool.generator)


def poisoned_pool(runner: InlineRunner, step: int) -> None:
    """From `INJECTED` steps on, a quarter of the chains of pool 1 is lost to NaN each round."""
    if step >= INJECTED:
        runner._pools[1].sampler.position[::4] = torch.nan


def blind_weights(runner: InlineRunner, step: int) -> None:
    """At `INJECTED` steps, one weight of the model becomes NaN."""
    if step == INJECTED:
        with torch.no_grad():
            next(runner._learner.energy.parameters()).view(-1)[0] = torch.nan


def _stay(_: Any, state: Any, __: Any, **___: Any) -> tuple[Any, Info]:
    """A transition that moves nothing."""
    return state, Info(torch.zeros(len(state.position)))


SICK = (
    # the learning rate, 30 times as high
    _sick("learning_rate", "perceptron, rate x 30", "optimizer.learning_rate=0.12"),
    _sick("learning_rate", "toy, rate x 30", *TOY, "optimizer.learning_rate=0.09"),
    _sick("learning_rate", "RBM, rate x 30", *RBM, "optimizer.learning_rate=6"),
    _sick("learning_rate", "DBM, rate x 30", *DBM, "optimizer.learning_rate=4.5"),
    _sick("learning_rate", "convolutions, rate x 30", *CONV, "optimizer.learning_rate=0.12"),
    _sick("learning_rate", "Gaussian RBM, rate x 30", *GAUSSIAN, "optimizer.learning_rate=0.3"),
    _sick("learning_rate", "Ising, rate x 30", *ISING, "optimizer.learning_rate=0.9"),
    _sick("learning_rate", "regression, rate x 300", *REGRESSION, "optimizer.learning_rate=0.9"),
    _sick("learning_rate", "RBM, momentum 0.99", *RBM, "optimizer.momentum=0.99"),
    # a thousandth of it
    _sick("no_learning", "perceptron, rate / 1000", "optimizer.learning_rate=4e-6"),
    _sick("no_learning", "toy, rate / 1000", *TOY, "optimizer.learning_rate=3e-6"),
    _sick("no_learning", "RBM, rate / 1000", *RBM, "optimizer.learning_rate=2e-4"),
    # the step size, 10 times as large
    _sick("step_size", "perceptron, step x 10", "kernel.step_size=0.1"),
    _sick("step_size", "toy, step x 10", *TOY, "kernel.step_size=0.2"),
    _sick("step_size", "convolutions, step x 30", *CONV, "kernel.step_size=0.3"),
    _sick(
        "step_size",
        "toy, HMC, step x 30",
        *(*TOY, "kernel=hmc", "kernel.step_size=3", "kernel.target_acceptance=null"),
    ),
    _sick("step_size", "regression, step x 30", *REGRESSION, "kernel.step_size=24"),
    # and a thousandth of it
    _sick("chains_stand", "perceptron, step / 1000", "kernel.step_size=1e-5"),
    _sick("chains_stand", "toy, step / 1000", *TOY, "kernel.step_size=2e-5"),
    _sick("chains_stand", "toy, ULA, step / 1000", *TOY, "kernel=ula", "kernel.step_size=5e-6"),
    _sick(
        "chains_stand",
        "toy, random walk, step / 1000",
        *(*TOY, "kernel=random_walk", "kernel.step_size=1e-4", "kernel.target_acceptance=null"),
    ),
    # chains that are too short
    _sick(
        "chains_short chains_stand",
        "perceptron, k = 1, step / 20",
        "kernel.transitions=1",
        "kernel.step_size=5e-4",
    ),
    _sick("chains_short", "perceptron, half of the chains restart", "chains.restart=0.5"),
    _sick(
        "chains_short",
        "toy, half of the chains restart",
        *(*TOY, "kernel.transitions=1", "chains.restart=0.5", "chains.burn_in=0"),
    ),
    _sick(
        "chains_short",
        "convolutions, k = 1, all restart",
        *CONV,
        "kernel.transitions=1",
        "chains.restart=1",
    ),
    # chains of old weights
    _sick("lag", "perceptron, lag 32", "trainer.lag=32", "trainer.lag_mode=exact"),
    _sick(
        "lag",
        "RBM, lag 64",
        *(*RBM, "trainer.lag=64", "trainer.lag_mode=exact", "optimizer.learning_rate=1"),
    ),
    # one bad pool of two
    _sick("pool", "RBM, one pool stands still", *RBM, tamper=frozen_pool),
    _sick("pool", "perceptron, one pool stands still", tamper=frozen_pool),
    _sick("pool", "perceptron, one pool begins anew", tamper=lost_pool),
    _sick("pool not_finite", "toy, one pool loses chains", *TOY, tamper=poisoned_pool),
    # numbers that are none
    _sick("not_finite", "toy, a weight is NaN", *TOY, tamper=blind_weights),
    _sick("refused", "rows with NaN", rows="with_nan"),
    # data that do not fit the model
    _sick("scale", "pixels 0 to 255", rows="bytes"),
    _sick("scale", "rows around 1,000", rows="far"),
    _sick("scale", "rows of a millionth", rows="tiny"),
    _sick("box", "half of the rows at a box's walls", "energy.box=[0,1]", rows="walls"),
    # over-fitting
    _sick("over_fits", "RBM, 60 rows", *RBM, "energy.hidden=256", *FEW, steps=1500),
    _sick("over_fits", "perceptron, 60 rows", *FEW, steps=800),
    # a ladder whose rungs are too far apart
    _sick(
        "ladder",
        "perceptron, a ladder of 2 rungs",
        *("kernel=replica_exchange", "kernel.rungs=2", "chains.restart=0"),
    ),
)


def _well(name: str, *arguments: str, steps: int = 400, rows: str | None = None) -> Case:
    return Case(name, arguments, steps=steps, rows=rows)


HEALTHY = (
    _well("perceptron"),
    _well("perceptron, whole run", steps=2000),
    _well("perceptron, k = 20", "kernel.transitions=20"),
    _well("perceptron, half the rate", "optimizer.learning_rate=2e-3"),
    _well("perceptron, no restarts", "chains.restart=0"),
    _well("perceptron, adapted steps", "kernel.target_acceptance=0.7"),
    _well("perceptron, CD", "objective=cd"),
    _well("perceptron, denoising", "objective=denoising"),
    _well("perceptron, sliced", "objective=sliced"),
    _well("toy, underdamped", *TOY, "kernel=underdamped", "kernel.transitions=2"),
    _well("perceptron, ladder", "kernel=replica_exchange", "chains.restart=0", steps=200),
    _well("convolutions", *CONV),
    _well(
        "short runs",
        "objective=short_run",
        "kernel=ula",
        "kernel.noise=0.01",
        "kernel.transitions=30",
    ),
    _well("toy", *TOY, steps=800),
    _well("toy, two moons", *TOY, "data.law=two_moons"),
    _well("toy, checkerboard", *TOY, "data.law=checkerboard"),
    _well("toy, HMC", *TOY, "kernel=hmc", "kernel.transitions=3"),
    _well("toy, random walk", *TOY, "kernel=random_walk"),
    _well("toy, ladder", *TOY, "kernel=replica_exchange", "chains.restart=0", "chains.burn_in=0"),
    _well("toy, score matching", *TOY, "objective=score_matching"),
    _well("toy, Hutchinson", *TOY, "objective=hutchinson"),
    _well("toy, NCE", *TOY, "objective=nce"),
    _well("toy, ULA", *TOY, "kernel=ula", "kernel.step_size=0.02"),
    _well("RBM", *RBM),
    _well("RBM, whole run", *RBM, steps=4500),
    _well("RBM, another seed", *RBM, "seed=1"),
    _well("RBM, CD", *RBM, "objective=cd", "trainer.batch_size=500"),
    _well("RBM, fast weights", *RBM, "objective=fast_pcd"),
    _well("RBM, pseudo-likelihood", *RBM, "objective=pseudo_likelihood"),
    _well("RBM, maximum likelihood", *RBM, "objective=maximum_likelihood", steps=60),
    _well("RBM, lag 1", *RBM, "trainer.lag=1", "trainer.lag_mode=exact"),
    _well("RBM, single sites", *RBM, "kernel=single_site", "kernel.transitions=100"),
    _well("RBM, four pools", *RBM, "chains.pools=4", "chains.per_pool=50"),
    _well("DBM", *DBM),
    _well("Gaussian RBM", *GAUSSIAN),
    _well("Potts RBM", *POTTS),
    _well("Ising", *ISING),
    _well("moments alone", "experiment=maxent_moments"),
    _well("regression", *REGRESSION),
    _well("tags", "experiment=conditional_structured"),
)


def write_rows(kind: str, folder: Path) -> str:
    """Write the digits, changed as `kind` says, as a Parquet file. Return its path."""
    from sklearn.datasets import load_digits

    rows = (load_digits().data / 8 - 1).astype(np.float32)
    generator = np.random.default_rng(0)
    if kind == "with_nan":
        rows[generator.integers(len(rows), size=20), 10] = np.nan
    elif kind == "bytes":
        rows = (rows + 1) * 127.5
    elif kind == "far":
        rows = rows + 1000
    elif kind == "tiny":
        rows = rows * 1e-6
    elif kind == "walls":
        rows = (generator.random((1797, 64)) > 0.5).astype(np.float32)
    else:
        raise ValueError(kind)
    path = folder / f"{kind}.parquet"
    parquet.write_table(pa.table({f"x{i}": rows[:, i] for i in range(64)}), path)
    return str(path)


def arguments_of(case: Case, folder: Path) -> list[str]:
    """Return the command line of a case, whose files lie in `folder`."""
    data = []
    if case.rows is not None:
        path = write_rows(case.rows, folder)
        data = ["data=columns", f"data.path={path}", "data.held_out=297"]
    return [
        "cluster=inline",
        "metrics.port=0",
        *case.arguments,
        *data,
        f"trainer.steps={case.steps}",
    ]
