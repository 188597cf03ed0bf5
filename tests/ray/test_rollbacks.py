"""Runs through Ray that diverge go back as those in one process do, to the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors.driver import RayRunner
from pipeline.assembly.data import open_data
from pipeline.assembly.energies import make_energy
from pipeline.common.errors import DivergenceError
from pipeline.common.types import Figures
from pipeline.config.run import RunConfig
from pipeline.runs.display import Display
from pipeline.runs.inline import InlineRunner
from pipeline.runs.run import Execution, Runner
from pipeline.storage.checkpoint import Checkpoint
from pipeline.storage.store import CheckpointStore
from tests.ray.reused import reused_processes

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("undrawn")]
Small = Callable[..., RunConfig]
QUICK = ("evaluation.samples=0", "evaluation.ais_temperatures=0")


@pytest.fixture(scope="module", autouse=True)
def _reused(local_ray: None) -> Iterator[None]:  # noqa: ARG001 - it comes first, and goes last
    with reused_processes():
        yield


def execute(config: RunConfig, output: Path, inline: bool) -> Figures:
    data = open_data(config)
    energy = make_energy(config, data.shape, data.context_shape)

    def make(_: object) -> Runner:
        if inline:
            return InlineRunner(config)
        return RayRunner(config, str(output), data.shape, data.context_shape)

    return Execution(config, str(output), energy, Display()).carry_out(make)


def last(output: Path) -> Checkpoint:
    found = CheckpointStore(str(output), 3).latest()
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        ((), 0),  # it begins again
        ((), 40),  # it goes back to a checkpoint
        (("trainer.lag=1", "trainer.lag_mode=exact", "trainer.reweight=false"), 0),
    ],
)
def test_one_process_and_ray_go_back_alike(
    small: Small, tmp_path: Path, overrides: tuple[str, ...], steps: int
) -> None:
    """By stretches, and by single calls where there is lag, under which pools end a round ahead."""
    rows = ("chains.per_pool=100", "optimizer.schedule=constant", *QUICK, *overrides)
    figures = []
    for inline in (True, False):
        output = tmp_path / str(inline)
        if steps:
            well = small("rbm", *rows, f"trainer.steps={steps}", "checkpoint.every=20")
            execute(well, output, inline=True)
        config = small(
            "rbm", *rows, "optimizer.learning_rate=200", "trainer.steps=80", "checkpoint.every=40"
        )
        figures.append(execute(config, output, inline))
    one, other = last(tmp_path / "True"), last(tmp_path / "False")
    assert figures[0]["rollbacks"] == figures[1]["rollbacks"] >= 1
    assert one.step == other.step == 80
    for name in ("pool-0", "pool-1"):
        if config.lag == 0:
            mine, theirs = one.read(name), other.read(name)
            assert mine["position"].equal(theirs["position"]), name
            assert (mine["round"], mine["incarnation"]) == (theirs["round"], theirs["incarnation"])
    assert one.read("learner")["weights"].equal(other.read("learner")["weights"])
    assert one.read("energy")["weights"].equal(other.read("energy")["weights"])


@pytest.mark.slow
def test_several_ranks_go_back_together(small: Small, tmp_path: Path) -> None:
    config = small(
        *("rbm", "optimizer.learning_rate=200", "trainer.steps=40", "trainer.replicas=2", *QUICK),
        *("chains.per_pool=100", "optimizer.schedule=constant"),
    )
    figures = execute(config, tmp_path, inline=False)
    assert figures["rollbacks"] >= 1
    assert last(tmp_path).step == 40


def test_a_stretch_that_raised_is_gone_back_from(small: Small, tmp_path: Path) -> None:
    """Lines that it broke are opened anew, and the end is that of one process."""
    config = small(
        "deep", "optimizer.learning_rate=1e18", "trainer.steps=60", "trainer.rollbacks=2", *QUICK
    )
    said = []
    for inline in (True, False):
        with pytest.raises(DivergenceError) as failure:
            execute(config, tmp_path / str(inline), inline)
        said.append(str(failure.value).replace(str(tmp_path / str(inline)), ""))
    assert said[0] == said[1]
    assert "after 2 rollbacks" in said[0]


def test_first_come_rounds_are_given_up(small: Small, tmp_path: Path) -> None:
    """With rounds of the absurd weights under way, none of them is learned from. Two rollbacks
    leave a rate of 5, which learns; one of 10 would not always.
    """
    config = small(
        *("rbm", "optimizer.learning_rate=500", "trainer.steps=60", "trainer.lag=2", *QUICK),
        *("chains.per_pool=100", "optimizer.schedule=constant"),
    )
    figures = execute(config, tmp_path, inline=False)
    assert figures["rollbacks"] >= 1
    assert figures["max_lag"] <= 2
    assert figures["test_log_likelihood"] > -64 * 0.6931 - 1
