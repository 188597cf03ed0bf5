"""Law 3: a run in one process and a run through Ray, same seed, end with bitwise equal weights."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from actors import stretches
from actors.driver import RayRunner
from actors.lines import LineBroken
from pipeline.assembly.data import open_data
from pipeline.common.errors import DivergenceError
from pipeline.config.run import RunConfig
from pipeline.data.given import given_rows
from pipeline.runs.inline import InlineRunner
from pipeline.runs.ladder import LadderLikelihood
from pipeline.storage.store import CheckpointStore
from tests.ray.reused import reused_processes
from tests.unit.test_checkpoint import save

pytestmark = pytest.mark.ray
Small = Callable[..., RunConfig]
STEPS = 8


@pytest.fixture(scope="module", autouse=True)
def _reused(local_ray: None) -> Iterator[None]:  # noqa: ARG001 - it comes first, and goes last
    """Every run after the first has processes that served an earlier one."""
    with reused_processes():
        yield


@pytest.fixture(autouse=True)
def _long_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1, 2, 4, ... steps, however slow the machine is."""
    monkeypatch.setattr(stretches, "SECONDS", 600.0)


def begun(config: RunConfig, output: Path) -> RayRunner:
    data = open_data(config)
    runner = RayRunner(config, str(output), data.shape, data.context_shape)
    runner.start(CheckpointStore(str(output), 3).latest(), None)
    return runner


def through_ray(config: RunConfig, output: Path, steps: int = STEPS) -> RayRunner:
    """In stretches that the actors make among themselves, where they can."""
    runner, made, longest = begun(config, output), 0, 0
    while made < steps:
        done = runner.stretch(steps - made)
        made, longest = made + len(done), max(longest, len(done))
        # a row of metrics has the time of its step, and not that at which the driver heard of it
        ago = [flow.ago for _, _, flow in done]
        assert ago == sorted(set(ago), reverse=True), "steps end one after the other"
        assert ago[-1:] in ([], [0.0])
    if steps:
        assert (longest > 1) == (config.trainer.lag == 0)
    return runner


def inline(config: RunConfig) -> np.ndarray:
    runner = InlineRunner(config)
    runner.start(None, None)
    for _ in range(STEPS):
        runner.step()
    return runner._learner.publish().flat


def weights(runner: RayRunner) -> np.ndarray:
    return ray.get(runner.servers.first.publish.remote(runner._version)).flat


@pytest.mark.parametrize(
    "overrides",
    [
        ["deep"],
        ["rbm"],
        ["deep", "chains.pools=4", "cluster.pool_cpus=0.25", "trainer.negatives=16"],
        ["rbm", "objective=cd", "trainer.batch_size=40"],
        ["conv"],
        ["ladder"],
        ["deep", "trainer.negatives=8", "trainer.lag=3", "trainer.lag_mode=exact"],
        ["rbm", "objective=cd", "trainer.batch_size=40", "trainer.lag=2", "trainer.lag_mode=exact"],
        ["deep", "trainer.lag=2", "trainer.lag_mode=exact", "trainer.refresh=2"],
        ["rbm", "objective=fast_pcd"],
        ["deep", "objective=improved_cd", "objective.replayed=2", "kernel=ula"],
        ["deep", "objective=hutchinson"],
        ["conditional"],
        ["conditional", "objective=cd", "trainer.lag=2", "trainer.lag_mode=exact"],
        ["conditional", "chains.kept_contexts=0"],
        [
            "deep",
            "objective=mixture",
            "objective.weights={short_run:1.0,nce:0.5}",
            "chains.restart=0",
        ],
    ],
    ids=lambda overrides: "-".join(overrides),
)
def test_one_process_and_ray_end_bitwise_equal(
    small: Small, tmp_path: Path, overrides: list[str]
) -> None:
    """Two pools; lock-step and exact lags; all negatives or one pool's a step; chains persistent or
    started at data.
    """
    config = small(*overrides)
    runner = through_ray(config, tmp_path)
    assert np.array_equal(weights(runner), inline(config))
    runner.close()


def test_rows_given_in_code_travel_to_the_parameter_server(small: Small, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(300, 3))
    config = small("deep", "data=rows").carrying(rows=given_rows(rows))
    runner = through_ray(config, tmp_path)
    assert np.array_equal(weights(runner), inline(config))
    runner.close()


@pytest.mark.parametrize("kind", ["deep", "conditional"])
def test_lock_step_by_single_calls_ends_bitwise_equal(
    small: Small, tmp_path: Path, kind: str
) -> None:
    """As where lines cannot be opened; by turns with stretches, too."""
    config = small(kind)
    runner = begun(config, tmp_path)
    for _ in range(STEPS // 2):
        runner.step()
    made = STEPS // 2
    while made < STEPS - 1:
        made += len(runner.stretch(STEPS - 1 - made))
    runner.step()
    assert np.array_equal(weights(runner), inline(config))
    runner.close()


def test_where_lines_cannot_be_opened_the_run_goes_on_by_calls(
    small: Small, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the parameter server has no door, or a pool does not reach it. It is said once."""
    config = small("deep")
    for actors, name in (("servers.actors", "listen"), ("pools.members", "connect")):
        caplog.clear()
        runner = begun(config, tmp_path)
        last = operator.attrgetter(actors)(runner)[-1]
        ray.get(getattr(last, "actor", last).__ray_call__.remote(without_lines, name))
        made = [runner.stretch(STEPS) for _ in range(STEPS)]
        assert [len(steps) for steps in made] == [1] * STEPS
        assert not any(flow.restarts for steps in made for _, _, flow in steps)
        assert caplog.text.count("could not open lines") == 1
        assert np.array_equal(weights(runner), inline(config))
        runner.close()


def without_lines(actor: Any, name: str) -> None:
    """In the actor's process: lines fail there from now on."""

    def broken(*_: Any) -> None:
        raise LineBroken("tried")

    setattr(actor._lines, name, broken)


def stretch_on(runner: RayRunner | InlineRunner) -> None:
    for _ in range(100):
        runner.stretch(100)


def test_a_run_that_diverges_says_the_same(small: Small, tmp_path: Path) -> None:
    """In a stretch as in one process, and at the same step."""
    config = small("deep", "optimizer.learning_rate=1e18")
    said = []
    alone, runner = InlineRunner(config), begun(config, tmp_path)
    alone.start(None, None)
    for one in (alone, runner):
        with pytest.raises(DivergenceError) as failure:
            stretch_on(one)
        said.append(str(failure.value))
    assert said[0] == said[1]
    runner.close()


def test_a_checkpoint_passes_from_one_to_the_other(small: Small, tmp_path: Path) -> None:
    """Saved through Ray at half time, resumed in one process: as if never stopped, and as if never
    through Ray.
    """
    config = small("deep")
    runner = through_ray(config, tmp_path, STEPS // 2)
    save(runner, config, str(tmp_path), STEPS // 2)  # type: ignore[arg-type]
    runner.close()
    resumed = InlineRunner(config)
    resumed.start(CheckpointStore(str(tmp_path), 3).latest(), None)
    for _ in range(STEPS - STEPS // 2):
        resumed.step()
    assert np.array_equal(resumed._learner.publish().flat, inline(config))
    again = through_ray(config, tmp_path, STEPS - STEPS // 2)
    assert np.array_equal(weights(again), inline(config))
    again.close()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("deep",), ("chains.pools=3", "chains.per_pool=4", "cluster.pool_cpus=0.3")),
        (("deep",), ("chains.per_pool=12", "chains.newcomers=data")),
        (("conditional",), ("chains.pools=1", "chains.per_pool=64")),
    ],
    ids=lambda overrides: "-".join(overrides),
)
def test_one_process_and_ray_deal_chains_alike(
    small: Small, tmp_path: Path, before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    """To more pools of fewer chains, to pools that are larger than they were, and to one alone."""
    config = small(*before)
    first = InlineRunner(config)
    first.start(None, None)
    for _ in range(STEPS // 2):
        first.step()
    checkpoint = save(first, config, str(tmp_path), STEPS // 2)
    config = small(*before, *after)
    alone = InlineRunner(config)
    alone.start(checkpoint, None)
    for _ in range(STEPS // 2):
        alone.step()
    runner = through_ray(config, tmp_path, STEPS // 2)
    assert np.array_equal(weights(runner), alone._learner.publish().flat)
    theirs, mine = (one.save(str(tmp_path / name)) for one, name in ((runner, "a"), (alone, "b")))
    assert [part for part in theirs if part.name.startswith("pool")] == mine[: config.pools]
    runner.close()


def test_a_run_that_chooses_its_lag_keeps_to_it(small: Small, tmp_path: Path) -> None:
    """No batch is older than the bound of the step before, in lock-step, while it looks, and under
    whatever it chooses; which that is depends on the machine.
    """
    runner = through_ray(small("rbm", "trainer.lag=auto", "trainer.steps=160"), tmp_path, 0)
    bound, looked = 0, False
    for _ in range(160):
        report, _, _ = runner.step()
        assert max(report.lags) <= bound
        bound, choice = report.lag_bound, report.lag_choice
        assert choice is not None
        assert (bound == 0) or choice.treatment != "none"
        looked = looked or choice.possible is not None
    runner.close()
    assert looked


@pytest.mark.parametrize("lag", [0, 2])
def test_a_ladder_tells_the_same_likelihood(small: Small, tmp_path: Path, lag: int) -> None:
    """In both runners, bit for bit, of the same versions."""
    config = small(
        *("ladder", "metrics.held_out_every=2", "chains.per_pool=30", f"trainer.lag={lag}"),
        "trainer.lag_mode=exact",
    )
    alone, runner, told = InlineRunner(config), begun(config, tmp_path), []
    alone.start(None, None)
    for one in (alone, runner):
        ladder, figures, made = LadderLikelihood(), [], 0
        while made < STEPS:
            for report, rounds, _ in one.stretch(STEPS - made):
                figures.append(dict(ladder.tell(report, rounds).figures))
                made += 1
        told.append([found for found in figures if "log_likelihood" in found])
    assert [found["log_likelihood_version"] for found in told[0]] == [2, 4, 6][: (7 - lag) // 2]
    assert told[0] == told[1]
    runner.close()
