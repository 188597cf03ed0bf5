"""Shared pieces: one thread, small models with known truth, small configurations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch

from pipeline.config.compose import compose
from pipeline.config.run import RunConfig
from pipeline.energies.rbm import BernoulliRBM

# what a small run of the binary model has in common, wherever it is carried out
SMALL_RBM = (
    "experiment=digits_rbm",
    "chains.per_pool=20",
    "trainer.steps=20",
    "checkpoint.every=10",
    "evaluation.transitions=20",
    "evaluation.samples=8",
    "metrics.port=0",
)
SMALL_DEEP = (
    "chains.per_pool=8",
    "kernel.transitions=2",
    "trainer.steps=20",
    "trainer.batch_size=16",
    "checkpoint.every=10",
    "evaluation.transitions=20",
    "evaluation.samples=8",
    "evaluation.ais_temperatures=20",
    "evaluation.ais_particles=8",
    "metrics.port=0",
)
SMALL_TAGS = (
    *(
        "experiment=conditional_structured",
        "data.rows=200",
        "data.held_out=40",
        "trainer.batch_size=8",
        "chains.per_pool=32",
    ),
    *(
        "kernel.transitions=4",
        "trainer.steps=20",
        "checkpoint.every=10",
        "evaluation.transitions=20",
        "evaluation.samples=8",
    ),
    "metrics.port=0",
)
SMALL = {
    "conditional": SMALL_TAGS,
    "rbm": SMALL_RBM,
    "deep": (*SMALL_DEEP, "energy.hidden=[16,16]"),
    "ladder": (
        *("kernel=replica_exchange", *SMALL_DEEP, "energy.hidden=[16,16]", "kernel.rungs=3"),
        *("kernel.adapt_rounds=150", "kernel.inner.target_acceptance=0.6", "kernel.transitions=1"),
    ),
    "conv": (*SMALL_DEEP, "energy=conv", "energy.channels=[4,4]", "energy.hidden=8"),
}


# Ray's workers yield to everybody else by default: beside another process of tests they would
# hardly run
os.environ.setdefault("RAY_worker_niceness", "0")


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    """One thread; and torch's global stream, which initial weights are drawn from, begins anew: in
    whatever order tests run.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def small() -> Callable[..., RunConfig]:
    """`small("rbm" | "deep" | "ladder" | "conv" | "conditional", *overrides)`: a configuration
    whose run takes a second.
    """

    def make(kind: str, *overrides: str) -> RunConfig:
        return compose([*SMALL[kind], *overrides])

    return make


@pytest.fixture
def tiny_rbm() -> BernoulliRBM:
    """5 visible and 3 hidden units, float64, weights large enough that nothing about it is nearly
    uniform.
    """
    rbm = BernoulliRBM((5,), hidden=3, weight_scale=1.0).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in rbm.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return rbm


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start a Ray come first, then those with slow tests: they would be what one process
    is left with at the end.
    """
    items.sort(key=lambda item: [item.get_closest_marker(name) is None for name in ("ray", "slow")])


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray of this test module's own."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


def states(units: int) -> torch.Tensor:
    """All of {0, 1}^units, `[2^units, units]` float64."""
    return (torch.arange(2**units)[:, None] >> torch.arange(units) & 1).double()
