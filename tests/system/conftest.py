"""Trained runs that the tests of what is done with one share."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
import torch

from pipeline.train import main as train
from tests.conftest import SMALL_RBM, undrawn

TINY = (
    *(
        "cluster=inline",
        "metrics.port=0",
        "trainer.steps=5",
        "trainer.batch_size=16",
        "optimizer.warmup=0",
    ),
    *("evaluation.samples=0", "evaluation.transitions=10", "cluster.threads=1"),
)
PLANE = ("experiment=toy", "objective=nce", "energy.hidden=[8]", *TINY)
RUNS = {
    "ring": (*PLANE, "data.law=ring", "evaluation.samples=20"),
    "stripe": (*PLANE, "data.law=stripe"),
    "rbm": (*SMALL_RBM, "cluster=inline"),
    "dbm": (
        "experiment=dbm_digits",
        "energy.hidden=[4,3]",
        "chains.per_pool=8",
        "evaluation.ais_temperatures=0",
        *TINY,
    ),
    "labelled": ("experiment=compose_toys", "energy.hidden=[8]", "objective=denoising", *TINY),
    "regression": (
        "experiment=conditional_regression",
        "energy.hidden=[8]",
        "chains.per_pool=8",
        *TINY,
    ),
}


class Runs(dict[str, str]):
    """Folders of runs by name, each hardly trained, when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, name: str) -> str:
        output = str(self._folder / name)
        with contextlib.ExitStack() as stack:
            # a test that asks for it has the streams and the output that it has without
            stack.enter_context(torch.random.fork_rng())
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            stack.enter_context(undrawn())
            torch.manual_seed(0)
            assert train([*RUNS[name], f"output={output}"]) == 0
        self[name] = output
        return output


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Not to be written to, but for what is drawn and evaluated beside them."""
    return Runs(tmp_path_factory.mktemp("runs"))
