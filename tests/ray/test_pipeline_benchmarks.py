"""The simulated pipeline does what can be worked out by hand; what is measured on Ray is counted as
it says.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import ray
import torch

from benchmarks import pipeline
from benchmarks.copies import Copies
from benchmarks.flow import Setting, Simulation, limits
from benchmarks.on_ray import started
from benchmarks.pipeline import driver_time
from benchmarks.scaling import CASES, GPUS, MODELS, costs, draw, example, row, tables
from benchmarks.trivial_actors import TrivialPool, TrivialServer, sharing

EQUAL = Setting(1, 1, 1, 0.1, 0.1, batch_seconds=0.0, call_seconds=0.0, hop_seconds=0.0)


def test_overlap_doubles_the_speed_of_equal_parts() -> None:
    lock_step, overlapped = (Simulation(EQUAL._replace(lag=lag)).run(100) for lag in (0, 1))
    assert lock_step.steps_per_second == pytest.approx(5, rel=0.01)
    assert overlapped.steps_per_second == pytest.approx(10, rel=0.01)
    assert (lock_step.busy, overlapped.busy) == pytest.approx((0.5, 1.0), abs=0.02)
    assert lock_step.lags == {0: 100}
    for lag, outcome in enumerate((lock_step, overlapped)):
        assert min(limits(EQUAL._replace(lag=lag)).values()) == pytest.approx(
            outcome.steps_per_second, rel=0.01
        )


@pytest.mark.parametrize(
    ("lag", "inflight", "batches"), [(1, None, 8), (2, 2, 8), (4, 2, 3), (3, 1, 16)]
)
def test_the_bounds_on_lag_and_rounds_in_flight_hold(
    lag: int, inflight: int | None, batches: int
) -> None:
    """Whatever dies, hangs or is slow. A late pool's rounds take nobody else's place: they come on
    top.
    """
    s = Setting(
        8,
        batches,
        lag,
        0.1,
        0.05,
        inflight,
        sigma=0.8,
        slow_pools=2,
        slowness=6.0,
        hangs=0.01,
        deaths=0.01,
    )
    outcome = Simulation(s).run(200)
    assert max(outcome.lags) <= lag
    assert outcome.most_in_flight <= min(
        batches * (lag + 1) + 8 * s.rules.each(lag + 1),
        8 * s.rules.each(lag + 1) + batches * (lag + 1),
    )
    assert outcome.dropped > 0


def test_nothing_is_in_flight_beyond_the_bound_where_no_pool_is_late() -> None:
    outcome = Simulation(Setting(8, 4, 2, 0.1, 0.2, sigma=0.3)).run(100)
    assert outcome.most_in_flight <= 4 * (2 + 1)


def test_a_hung_pool_slows_nobody() -> None:
    """But by the share of rounds that it would have made, once it is known to be late."""
    s = Setting(8, 4, 4, 0.1, 0.05, inflight=2, slow_pools=1)
    well, hung = (Simulation(s._replace(slowness=slowness)).run(400) for slowness in (1.0, 1e6))
    assert hung.steps_per_second > 0.95 * 7 / 8 * well.steps_per_second


def test_each_limit_binds_where_it_should() -> None:
    base = Setting(64, 64, 2, 1.0, 0.2, inflight=2)
    for name, s in {
        "pools": base,
        "trainer": base._replace(step_seconds=4.0),
        "driver": base._replace(batch_seconds=0.1),
        "weights": base._replace(weight_bytes=1e10, pools_per_node=64),
    }.items():
        allowed = limits(s)
        assert min(allowed, key=lambda part: allowed[part]) == name
        assert Simulation(s).run(20).steps_per_second == pytest.approx(allowed[name], rel=0.1)


def test_what_all_ask_for_at_once_comes_from_one_node() -> None:
    """That others could pass the weights on is no help: rounds are asked for as soon as a version
    is there.
    """
    s = Setting(64, 64, 1, 1.0, 0.5, weight_bytes=3e9, pools_per_node=1, sigma=0.5)
    alone, spread = (
        Simulation(s._replace(spread=spread)).run(20).steps_per_second for spread in (False, True)
    )
    assert spread == pytest.approx(alone, rel=0.02)


def test_a_simulation_is_repeatable() -> None:
    s = CASES["16 pools, a quarter of them a step"]
    assert Simulation(s, 3).run(50) == Simulation(s, 3).run(50)
    assert Simulation(s, 3).run(50) != Simulation(s, 4).run(50)


def test_examples_use_every_gpu_and_become_a_table(tmp_path: Path) -> None:
    for model in MODELS.values():
        for gpus in GPUS:
            s = example(model, gpus, 0.0005)
            assert s.pools + s.replicas == gpus
            assert s.batches_per_step % s.replicas == 0
            assert s.batches_per_step * (s.lag + 1) > s.pools
    rows = [row(example(MODELS["convolutions"], gpus, 0.0005), 5) for gpus in (8, 64)]
    text = tables({"trainer_busy": 0.971}, {"convolutions": rows}, {})
    assert "| 0.971 |" in text
    assert text.count("| convolutions |") == 2
    assert len(costs({})) == 2
    draw({"one": rows}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_trivial_actors_are_light() -> None:
    check = (
        "import benchmarks.trivial_actors, sys; print([m for m in ('torch', 'pyarrow', 'sklearn')"
        " if m in sys.modules])"
    )
    root = Path(__file__).resolve().parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_copy_is_found_and_no_view_is_one() -> None:
    original, other = torch.randn(6, 3), torch.randn(6, 3)
    with Copies([original, other]) as copies:
        staging = torch.empty(12, 3)
        staging[2:8].copy_(original)
        staging[2:8].view(3, 6)
        torch.cat([other[:1], original])
        (original * 2).sum()
        original.clone()
        other.detach().reshape(18)
    assert sorted(copies.found[0].values()) == [
        "aten.cat.default",
        "aten.clone.default",
        "aten.copy_.default",
    ]
    assert list(copies.found[1].values()) == []


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
class TestOnRay:
    def test_the_driver_takes_a_batch_of_every_pool(self) -> None:
        with started(
            ("chains.pools=3", "chains.per_pool=1", "trainer.lag=1"),
            (1,),
            TrivialPool,
            TrivialServer,
        ) as (runner, _):
            assert driver_time(runner, 30) > 0
            report, rounds, flow = runner.step()
            assert (report.negatives, len(rounds), flow.pools) == (3, 3, 3)
            assert max(report.lags) <= 1
            pool = runner.pools.members[0].actor
            assert ray.get(pool.loaded.remote(("torch", "sklearn", "json"))) == ["json"]

    def test_pools_may_share_processes(self) -> None:
        sizes = ("chains.pools=9", "chains.per_pool=1", "trainer.lag=1")
        with sharing(2), started(sizes, (1,), TrivialPool, TrivialServer) as (runner, _):
            rounds = [report for _ in range(20) for report in runner.step()[1]]
            assert len(rounds) == 180
            assert {report.pool for report in rounds} == set(range(9))
            assert len({member.actor.host for member in runner.pools.members}) == 2

    def test_a_batch_is_copied_once_at_most(self) -> None:
        figures = pipeline.copies(steps=2)
        assert figures["trainer_copies_per_batch"] <= 1
        assert figures["copies"]["batches"] == 4
        assert figures["copies"]["by"] == ["aten.copy_.default"]
        assert figures["copies"]["decoded_in_place_in_shared_memory"]
