"""Shared pieces: one thread, small models with known truth, small configurations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
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


@contextmanager
def undrawn() -> Iterator[None]:
    """Within, pictures are empty files: to draw them takes most of the time of a small run."""
    from matplotlib.figure import Figure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda *_, **__: None)
        yield


@pytest.fixture(name="undrawn")
def _undrawn() -> Iterator[None]:
    """For tests that look at no picture."""
    with undrawn():
        yield


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """For short runs in the plane, most of whose time goes to log Z: 250 x 250 points. Of laws with
    a width of 0.2 the midpoint rule is exact to single precision then.
    """
    from pipeline.evaluation import likelihood

    monkeypatch.setattr(likelihood, "GRID", 250)


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


SYSTEM = Path(__file__).parent / "system"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Groups for xdist's `loadgroup`, which reads them as soon as all tests are collected.

    Tests that start a Ray of their own are one group, and those that share `local_ray` another, so
    that no process starts it twice. Other tests are grouped by file, for the fixtures that these
    share, but for `single` ones, which share none.
    """
    if item.path.is_relative_to(SYSTEM):  # through the doors: whole runs, if small ones
        item.add_marker(pytest.mark.slow)
    if item.get_closest_marker("ray"):
        item.add_marker(pytest.mark.xdist_group("shared ray" if _shares_ray(item) else "ray"))
    elif not (item.get_closest_marker("xdist_group") or item.get_closest_marker("single")):
        item.add_marker(pytest.mark.xdist_group(item.path.name))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Their order: those with a Ray of several nodes come first, then other Rays of their own, then
    the shared one. Actors are numbered anew in each Ray, and a handle that is left of one Ray can
    take its reference from the actor of its number in the next; so nodes come before the shared
    Ray. Slow files begin early and single tests come last, lest one process be left alone with a
    long group.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: _place(item, item.path in slow))


def _shares_ray(item: pytest.Item) -> bool:
    return "local_ray" in getattr(item, "fixturenames", ())


def _place(item: pytest.Item, slow: bool) -> int:
    """When the item's turn comes."""
    if item.get_closest_marker("ray"):
        return 0 if item.get_closest_marker("nodes") else 2 if _shares_ray(item) else 1
    return 5 if item.get_closest_marker("single") else 3 if slow else 4


@pytest.fixture(scope="session", autouse=True)
def _composed_once() -> Iterator[None]:
    """What Hydra makes of the same overrides and the shipped folder is worked out once a process;
    whoever asks for it only reads it.
    """
    hydra_compose = hydra.compose

    @lru_cache(maxsize=200)
    def once(name: str, overrides: tuple[str, ...]) -> Any:
        return hydra_compose(name, list(overrides))

    def composed(name: str, overrides: Sequence[str]) -> Any:
        if "EBM_CONF" in os.environ:  # a folder that a test may still change
            return hydra_compose(name, list(overrides))
        return once(name, tuple(overrides))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hydra, "compose", composed)
        yield


@pytest.fixture(scope="module")
def local_ray() -> None:
    """The Ray of this process's tests. It takes seconds to start, and so serves all of them."""
    import ray

    if not ray.is_initialized():
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )


def descended(energy: torch.nn.Module, rate: float) -> torch.Tensor:
    """The parameters end to end, `[P]`, after a step of gradient descent along their `grad`."""
    return torch.cat(
        [(p.detach() - rate * p.grad).flatten() for p in energy.parameters() if p.grad is not None]
    )


def states(units: int) -> torch.Tensor:
    """All of {0, 1}^units, `[2^units, units]` float64."""
    return (torch.arange(2**units)[:, None] >> torch.arange(units) & 1).double()
